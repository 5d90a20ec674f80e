"""Read commands of iptables, nft, ufw and firewall-cmd as rules: what they match, and their verdict.

The rule: a condition that is not understood is kept as one, so that no rule is taken for a wider one than it is.
Sources: iptables(8), iptables-extensions(8), nft(8), ufw(8), firewall-cmd(1).
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from oxidize.provision.shell_line import Word

MASQUERADE, SNAT, DNAT, ACCEPT, DROP, REJECT = "MASQUERADE", "SNAT", "DNAT", "ACCEPT", "DROP", "REJECT"
TRANSLATIONS = frozenset({MASQUERADE, SNAT})
REFUSALS = frozenset({DROP, REJECT})

_OPERATIONS = {
    **dict.fromkeys(("-A", "--append", "-I", "--insert", "-R", "--replace"), "add"),
    **dict.fromkeys(("-D", "--delete"), "delete"),
    **dict.fromkeys(("-C", "--check"), "check"),
    **dict.fromkeys(("-P", "--policy"), "policy"),
    **dict.fromkeys(("-N", "--new-chain", "-F", "--flush", "-X", "--delete-chain", "-Z", "-L", "-S"), "chain"),
}
# Options with one value, by the field that keeps it.
_FIELDS = {
    **dict.fromkeys(("-i", "--in-interface"), "incoming"),
    **dict.fromkeys(("-o", "--out-interface"), "outgoing"),
    **dict.fromkeys(("-s", "--source", "--src"), "source"),
    **dict.fromkeys(("-d", "--destination", "--dst"), "destination"),
    **dict.fromkeys(("-p", "--protocol", "--proto"), "protocol"),
    **dict.fromkeys(("--dport", "--destination-port", "--dports", "--destination-ports"), "port"),
    **dict.fromkeys(("-j", "--jump", "-g", "--goto"), "target"),
    **dict.fromkeys(("--to-source", "--to-destination", "--to-ports", "--to"), "to"),
    **dict.fromkeys(("-t", "--table"), "table"),
}
_WITHOUT_EFFECT = {"--comment": 1, "-w": 0, "--wait": 0, "-v": 0, "--verbose": 0, "-q": 0, "--random": 0}
_WITHOUT_EFFECT |= {"--random-fully": 0, "--persistent": 0, "--reject-with": 1, "-n": 0, "--numeric": 0}
_MODULES_WITHOUT_EFFECT = frozenset({"comment", "tcp", "udp", "multiport"})
_IPTABLES = re.compile(r"ip(?P<six>6?)tables(?:-nft|-legacy)?")


@dataclass(frozen=True, slots=True)
class Value:
    """What a rule compares with: a text, None if only a shell can tell it, and whether it must differ."""

    text: str | None
    negated: bool = False


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule of a packet filter.

    version: 4 or 6, 0 for both. operation: add, delete, check, policy, or chain for a change of a whole chain. target:
    the verdict in capitals, or the name of a chain. conditions: those that are not in a field, as words.
    """

    version: int
    operation: str = "add"
    table: str = "filter"
    chain: str = ""
    target: str = ""
    incoming: Value | None = None
    outgoing: Value | None = None
    source: Value | None = None
    destination: Value | None = None
    protocol: Value | None = None
    port: Value | None = None
    to: Value | None = None
    conditions: tuple[str, ...] = field(default=())


def read_rules(words: Sequence[Word]) -> list[Rule] | None:
    """Return the rules that a command changes, None if it is none of a packet filter or cannot be read."""
    program = words[0].value.rpartition("/")[2]
    match = _IPTABLES.fullmatch(program)
    if match is not None:
        return [_iptables(words[1:], 6 if match["six"] else 4)]
    if program == "nft":
        text = " ".join(word.value for word in words[1:])
        return _nft(text) if all(word.is_literal for word in words) else None
    if program == "ufw":
        rule = _ufw([word.value for word in words[1:]])
        return None if rule is None else [rule]
    if program == "firewall-cmd":
        return _firewalld(words[1:])
    return None


def _iptables(words: Sequence[Word], version: int) -> Rule:
    found: dict[str, Value] = {}
    operation, chain = "chain", ""
    conditions: list[str] = []
    negated = False
    at = 0
    while at < len(words):
        word = words[at]
        option, equals, given = word.value.partition("=")
        if not (equals and option.startswith("--")):
            option, given = word.value, ""
        following = words[at + 1] if at + 1 < len(words) else None
        if option == "!":
            negated, at = True, at + 1
            continue
        if option in _OPERATIONS:
            operation, chain = _OPERATIONS[option], following.value if following else ""
            at += 2
            if operation == "policy" and at < len(words):
                found["target"] = Value(words[at].value)
                at += 1
            elif at < len(words) and words[at].value.isdigit():
                at += 1  # the position
        elif option in _FIELDS:
            if not given and following is not None and following.value == "!":  # as old releases had it
                negated, at = True, at + 1
                following = words[at + 1] if at + 1 < len(words) else None
            value = Word(given, given, is_literal=True) if given else following
            if value is not None:
                found[_FIELDS[option]] = Value(value.value if value.is_literal else None, negated)
            at += 1 if given else 2
        elif option in ("-m", "--match") and following is not None and following.value in _MODULES_WITHOUT_EFFECT:
            at += 2
        elif option in _WITHOUT_EFFECT:
            at += 1 + _WITHOUT_EFFECT[option]
        else:
            conditions += ["!", word.source] if negated else [word.source]
            at += 1
        negated = False
    table = found.pop("table", Value("filter")).text or "filter"
    target = found.pop("target", Value("")).text or ""
    rule = Rule(version, operation, table, chain, target, conditions=tuple(conditions))
    return replace(rule, **found)  # type: ignore[arg-type]  # its keys are those of _FIELDS


_NFT_RULE = re.compile(r"(?:add|insert|create)\s+rule\s+(?:(ip6?|inet|arp|bridge|netdev)\s+)?(\S+)\s+(\S+)\s+(.*)")
_NFT_HOOK = re.compile(r"\{[^{}]*\bhook\b[^{}]*\}")
_NFT_SCAFFOLD = re.compile(r"(?:add|create)\s+(?:table|chain)\b")
_NFT_VERSIONS = {"ip": 4, "ip6": 6}
_NFT_MATCHES = (
    (re.compile(r"(?:meta )?iif(?:name)? (!= |== )?(\S+)"), "incoming"),
    (re.compile(r"(?:meta )?oif(?:name)? (!= |== )?(\S+)"), "outgoing"),
    (re.compile(r"ip6? saddr (!= |== )?(\S+)"), "source"),
    (re.compile(r"ip6? daddr (!= |== )?(\S+)"), "destination"),
)
_NFT_PORT = re.compile(r"(tcp|udp) dport (\d+)")
_NFT_IGNORED = re.compile(r'counter(?: packets \d+ bytes \d+)?|comment "[^"]*"|position \d+|handle \d+|index \d+')
_NFT_TRANSLATION = re.compile(r"(snat|dnat)(?: ip6?)? to (\S+)")
_NFT_VERDICT = re.compile(r"\b(masquerade|accept|drop|reject)\b(?: with .*| random.*| fully-random.*| persistent)?\s*$")


def _nft(text: str) -> list[Rule] | None:
    """Return the rules of one or more statements; those that make tables and chains give none."""
    rules = []
    for statement in filter(None, map(str.strip, _NFT_HOOK.sub("", text).split(";"))):
        match = _NFT_RULE.fullmatch(" ".join(statement.split()))
        if match is not None:
            rules.append(_nft_rule(_NFT_VERSIONS.get(match[1] or "ip", 0), match[3], match[4]))
        elif not _NFT_SCAFFOLD.match(statement):
            return None
    return rules


def _nft_rule(version: int, chain: str, rest: str) -> Rule:
    rest = _NFT_IGNORED.sub(" ", rest)
    found: dict[str, Value] = {}

    def keep(key: str, value: Value) -> str:
        found[key] = value
        return " "

    for pattern, key in _NFT_MATCHES:
        rest = pattern.sub(lambda m, key=key: keep(key, Value(m[2].strip('"'), (m[1] or "").startswith("!"))), rest)  # type: ignore[misc]  # a default binds the key
    rest = _NFT_PORT.sub(lambda m: keep("protocol", Value(m[1])) + keep("port", Value(m[2])), rest)
    target, table = "", "filter"
    translation = _NFT_TRANSLATION.search(rest)
    if translation is not None:
        target, table = translation[1].upper(), "nat"
        found["to"] = Value(translation[2])
        rest = rest.replace(translation[0], " ")
    else:
        verdict = _NFT_VERDICT.search(rest)
        if verdict is not None:
            target = verdict[1].upper()
            table = "nat" if target == MASQUERADE else "filter"
            rest = rest[: verdict.start()]
    return replace(Rule(version, "add", table, _usual(chain), target, conditions=tuple(rest.split())), **found)  # type: ignore[arg-type]  # its keys are fields


def _usual(chain: str) -> str:
    """Return the name of a chain as iptables has it, where it is the same but for its case."""
    return chain.upper() if chain.lower() in ("forward", "input", "output", "prerouting", "postrouting") else chain


_UFW_TARGETS = {"allow": ACCEPT, "limit": ACCEPT, "deny": DROP, "reject": REJECT}


def _ufw(words: list[str]) -> Rule | None:
    """Return the rule of `ufw [route] [insert N] allow|deny|reject [in on IF] [out on IF] ...`."""
    words = [word for word in words if word not in ("--force", "prepend")]
    chain = "INPUT"
    operation = "add"
    while words and words[0] in ("route", "delete", "insert"):
        if words[0] == "route":
            chain = "FORWARD"
        elif words[0] == "delete":
            operation = "delete"
        del words[: 2 if words[0] == "insert" else 1]
    if not words or words[0] not in _UFW_TARGETS:
        return None
    text = " ".join(words[1:])
    incoming = re.search(r"\bin on (\S+)", text)
    outgoing = re.search(r"\bout on (\S+)", text)
    port = re.match(r"(?:in |proto \S+ |to any |port )*(\d+)(?:/(tcp|udp))?", text)
    return Rule(
        0,
        operation,
        chain=chain,
        target=_UFW_TARGETS[words[0]],
        incoming=Value(incoming[1]) if incoming else None,
        outgoing=Value(outgoing[1]) if outgoing else None,
        port=Value(port[1]) if port else None,
    )


_RICH_RULE = re.compile(r"\b(accept|drop|reject|masquerade)\b")
_FORWARD_PORT = re.compile(r"(?:^|:)(port|proto|toport|toaddr)=([^:]+)")


def _firewalld(words: Sequence[Word]) -> list[Rule] | None:
    if any(word.value == "--direct" for word in words):
        return _firewalld_direct(words)
    rules = []
    for word, following in _with_following(words):
        option, _, given = word.value.partition("=")
        given = (given or following).strip("'\"")
        operation = "delete" if option.startswith("--remove-") else "add"
        kind = option.removeprefix("--remove-").removeprefix("--add-")
        if kind == option:
            continue
        if kind == "masquerade":
            rules.append(Rule(4, operation, "nat", "POSTROUTING", MASQUERADE))
        elif kind == "port":
            port, _, protocol = given.partition("/")
            rules.append(Rule(0, operation, chain="INPUT", target=ACCEPT, protocol=Value(protocol), port=Value(port)))
        elif kind == "rich-rule":
            verdict = _RICH_RULE.search(given)
            target = verdict[1].upper() if verdict else ""
            table = "nat" if target == MASQUERADE else "filter"
            rules.append(Rule(0, operation, table, "INPUT", target, conditions=tuple(given.split())))
        elif kind == "forward-port":
            parts = dict(_FORWARD_PORT.findall(given))
            to = f"{parts.get('toaddr', '')}:{parts.get('toport', parts.get('port', ''))}"
            protocol_value, port_value = Value(parts.get("proto", "tcp")), Value(parts.get("port"))
            rule = Rule(4, operation, "nat", "PREROUTING", DNAT, protocol=protocol_value, port=port_value)
            rules.append(replace(rule, to=Value(to)))
        else:
            return None
    return rules or None


def _firewalld_direct(words: Sequence[Word]) -> list[Rule] | None:
    """Return the rule of `firewall-cmd --direct --add-rule ipv4 TABLE CHAIN PRIORITY ARGUMENTS`."""
    for number, word in enumerate(words):
        if word.value in ("--add-rule", "--remove-rule") and number + 5 <= len(words):
            version = {"ipv4": 4, "ipv6": 6}.get(words[number + 1].value, 0)
            rule = _iptables(words[number + 5 :], version)
            operation = "add" if word.value == "--add-rule" else "delete"
            return [replace(rule, operation=operation, table=words[number + 2].value, chain=words[number + 3].value)]
    return None


def _with_following(words: Sequence[Word]) -> Iterator[tuple[Word, str]]:
    for number, word in enumerate(words):
        yield word, words[number + 1].value if number + 1 < len(words) else ""
