"""The address translation of a wg-quick file's commands as the tables [server.nat] and [[server.nat.forward]].

The rule: what is translated keeps its extent: source networks, the outgoing interface and SNAT's address, and of a port
that is forwarded the protocol, the interface and the address that it comes in at. What these tables cannot say is not
narrowed or widened to fit but left to a unit, with the reason. Sources: iptables-extensions(8), MASQUERADE, SNAT, DNAT.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network

from oxidize.config import HostAddress, InterfaceAddress, Network
from oxidize.config.checks import contains
from oxidize.config.nat import EVERYTHING, default_sources
from oxidize.config.values import InvalidValueError, interface_name
from oxidize.provision.firewall_rules import SNAT, Rule, Value
from oxidize.provision.hook_notes import Tunnel
from oxidize.provision.hooks import Found, Hooks

_TARGET = re.compile(r"(?:\[(?P<v6>[^\]]+)\]|(?P<host>[0-9.]+)):(?P<port>[0-9]+(?:-[0-9]+)?)")
_PORT = re.compile(r"([0-9]+)(?:[:-]([0-9]+))?")


class _InexpressibleError(ValueError):
    """A rule says what a table cannot; the text is the reason."""


@dataclass(slots=True)
class NatTables:
    """values: of [server.nat]; None without address translation, empty for `nat = true`. forwards: with their lines."""

    values: dict[str, object] | None = None
    forwards: list[tuple[int, dict[str, object]]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Translation:
    """A rule in one family: the networks that it translates, by which interface, and with which address.

    networks: empty for all. interface, address: None for any interface, and for that interface's own address.
    """

    version: int
    networks: tuple[Network, ...]
    interface: str | None
    address: HostAddress | None


def nat_tables(
    hooks: Hooks, addresses: Sequence[InterfaceAddress], networks: Sequence[Network], tunnel: Tunnel
) -> NatTables:
    """Return the tables, and say of each rule what does it. networks: the peers' allowed IPs."""
    tables = NatTables()
    for found in hooks.forwards:
        try:
            tables.forwards += [(found.setting.line, table) for table in _forwards(found.rule, tunnel)]
        except _InexpressibleError as reason:
            hooks.unit(f"{reason}", found)
        else:
            hooks.say("[[server.nat.forward]] does this", found)
    _masquerade_forwards(tables, hooks)
    translations: list[_Translation] = []
    done: list[Found] = []
    for found in hooks.translations:
        try:
            translations += _translations(found.rule, translations, tunnel)
        except _InexpressibleError as reason:
            hooks.unit(f"{reason}", found)
        else:
            done.append(found)
    if translations:
        tables.values = _values(translations, addresses, networks)
        for found in done:
            outgoing = found.rule.outgoing
            text = "nat = true does this" if not (tables.values or tables.forwards) else "[server.nat] does this"
            if outgoing is not None and not outgoing.negated and tables.values.get("interface") is None:
                text += ", by whatever interface"
            hooks.say(text, found)
    elif tables.forwards:
        tables.values = {"sources": []}
    return tables


def _masquerade_forwards(tables: NatTables, hooks: Hooks) -> None:
    """Let the targets of forwarded ports see this machine's address, where a rule translates what enters the tunnel."""
    for found in hooks.into_tunnel:
        if tables.forwards and not found.rule.conditions:
            for _, table in tables.forwards:
                table["masquerade"] = True
            hooks.say("masquerade = true does this for the forwarded ports, and nothing for other packets", found)
        else:
            hooks.unit("it translates what enters the tunnel, and nat what leaves it", found)


# --- Translations of the source ---


def _translations(rule: Rule, before: Sequence[_Translation], tunnel: Tunnel) -> list[_Translation]:
    """Return a rule in each of its families; raises _InexpressibleError."""
    if rule.conditions or rule.protocol or rule.port or rule.incoming:
        raise _InexpressibleError("nat has no such condition")
    destination, outgoing = rule.destination, rule.outgoing
    if destination is not None and not destination.negated:
        raise _InexpressibleError("nat has no destination")
    if outgoing is not None and outgoing.negated and outgoing.text not in (tunnel.old, "lo"):
        raise _InexpressibleError("nat has one outgoing interface, not all but one")
    networks = _networks(rule.source)
    address = _snat_address(rule.to) if rule.target == SNAT else None
    versions = {rule.version} if rule.version else {4, 6}
    if networks:
        versions &= {each.version for each in networks}
    if address is not None:
        versions &= {address.version}
    found = []
    for version in sorted(versions):
        own = tuple(each for each in networks if each.version == version)
        if any(each.version == version and each.address != address for each in before):
            raise _InexpressibleError("nat has one address for each family")
        found.append(_Translation(version, own, _interface(outgoing), address))
    return found


def _networks(source: Value | None) -> tuple[Network, ...]:
    """Return the networks of -s, which may be separated by commas."""
    if source is None:
        return ()
    if source.negated or source.text is None:
        raise _InexpressibleError("nat has no such source")
    try:
        return tuple(ip_network(word, strict=False) for word in source.text.split(","))
    except ValueError:
        raise _InexpressibleError("nat has no such source") from None


def _snat_address(to: Value | None) -> HostAddress:
    try:
        return ip_address((to.text if to is not None else None) or "")
    except ValueError:
        raise _InexpressibleError("snat is one address, without ports") from None


def _interface(outgoing: Value | None) -> str | None:
    """Return the name of an outgoing interface; None for any, for a pattern, and for one that a command tells."""
    if outgoing is None or outgoing.negated or outgoing.text is None or outgoing.text.endswith(("+", "*")):
        return None
    try:
        return interface_name(outgoing.text)
    except InvalidValueError:
        return None


def _values(
    translations: Sequence[_Translation], addresses: Sequence[InterfaceAddress], networks: Sequence[Network]
) -> dict[str, object]:
    """Return the keys of [server.nat]."""
    default = default_sources(addresses)
    sources: list[Network] = []
    for each in translations:
        if each.networks:
            sources += each.networks
            continue
        own = [network for network in default if network.version == each.version]
        theirs = [network for network in networks if network.version == each.version and network.prefixlen]
        has_all = all(any(contains(outer, inner) for outer in own) for inner in theirs)
        sources += own if has_all else [EVERYTHING[each.version]]
    values: dict[str, object] = {}
    if set(sources) != set(default):
        values["sources"] = [str(network) for network in dict.fromkeys(sources)]
    interfaces = {each.interface for each in translations}
    if len(interfaces) == 1 and None not in interfaces:
        values["interface"] = next(iter(interfaces))
    snat = dict.fromkeys(str(each.address) for each in translations if each.address is not None)
    if snat:
        values["snat"] = list(snat) if len(snat) > 1 else next(iter(snat))
    return values


# --- Forwarded ports ---


def _forwards(rule: Rule, tunnel: Tunnel) -> Iterator[dict[str, object]]:
    """Yield a table for each port of a rule; raises _InexpressibleError."""
    others = (rule.source, rule.outgoing)
    if rule.conditions or any(others) or rule.chain.upper() == "OUTPUT":
        raise _InexpressibleError("a forwarded port has no such condition")
    for value in (rule.protocol, rule.port, rule.incoming, rule.destination):
        if value is not None and (value.negated or value.text is None):
            raise _InexpressibleError("a forwarded port has no such condition")
    protocol = rule.protocol.text if rule.protocol is not None else None
    if protocol not in ("tcp", "udp") or rule.port is None:
        raise _InexpressibleError("a forwarded port has a protocol, tcp or udp, and a port")
    incoming = rule.incoming.text if rule.incoming is not None else None
    address = None if rule.destination is None else [str(each) for each in _networks(rule.destination)]
    for word in (rule.port.text or "").split(","):
        match = _PORT.fullmatch(word)
        if match is None:
            raise _InexpressibleError("a forwarded port is a number or a range")
        port: int | str = int(match[1]) if match[2] is None else f"{match[1]}-{match[2]}"
        yield {
            "protocol": protocol,
            "port": port,
            "to": _target(rule.to, str(port)),
            "interface": tunnel.new if incoming == tunnel.old else incoming,
            "address": address if address is None or len(address) > 1 else address[0].removesuffix("/32"),
        }


def _target(to: Value | None, port: str) -> str:
    """Return where a port is forwarded to; without a port of its own where that is the same."""
    text = (to.text if to is not None else None) or ""
    match = _TARGET.fullmatch(text)
    host = text if match is None else match["v6"] or match["host"]
    try:
        address = ip_address(host.strip("[]"))
    except ValueError:
        raise _InexpressibleError("a port is forwarded to one address") from None
    if match is None or match["port"] == port:
        return str(address)
    if "-" in match["port"] or "-" in port:
        raise _InexpressibleError("a range of ports keeps its numbers")
    return f"[{address}]:{match['port']}" if address.version == 6 else f"{address}:{match['port']}"
