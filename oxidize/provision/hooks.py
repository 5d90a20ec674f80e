"""What the commands of PreUp, PostUp, PreDown and PostDown mean for a configuration of Oxidize.

The rule: each command is either done by a setting of the result, or named in a note that says what to do: a rule that a
firewall needs, a rule that forbids something and has to hold before the start, or a line for a unit. What a rule does
is told by its verdict and its direction. Nothing is run. Sources: wg-quick(8), iptables(8), ip(8), wg(8), sysctl(8),
resolvectl(1), resolvconf(8).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from oxidize.provision import firewall_rules
from oxidize.provision.firewall_rules import ACCEPT, DNAT, REFUSALS, TRANSLATIONS, Rule
from oxidize.provision.hook_notes import HookNotes, Tunnel
from oxidize.provision.shell_line import Command, UnreadableError, read_commands
from oxidize.provision.tunnel_commands import TunnelCommands
from oxidize.provision.wg_quick import Document, Setting
from oxidize.provision.wg_values import Reading

UP, DOWN = ("PreUp", "PostUp"), ("PreDown", "PostDown")
_ALLOWS = "a firewall that forbids by default needs this rule"
_FORBIDS = "this rule forbids packets, and Oxidize sets none like it: have the firewall set it before {unit} starts"
_WRAPPERS = frozenset({"sudo", "command", "exec", "nohup"})
_PRINTERS = frozenset({"echo", "printf", "true", ":", "logger", "sleep", "date", "wait"})
_SHELLS = frozenset({"sh", "bash", "dash", "ash"})
_SHORT_REVERSALS = frozenset({"ip", "wg", "resolvectl", "resolvconf", "nft", "tc"})  # which name less than what did it
_OPPOSITES = {
    **dict.fromkeys(("-D", "--delete", "-I", "--insert", "--append"), "-A"),
    **dict.fromkeys(("del", "delete", "remove", "destroy", "replace", "append", "insert"), "add"),
    **{"down": "up", "stop": "start", "disable": "enable", "-d": "-a", "off": "on"},
}


@dataclass(frozen=True, slots=True)
class Found:
    """A rule, the setting with the command that adds it, and that command as written."""

    setting: Setting
    rule: Rule
    source: str


@dataclass(slots=True)
class Hooks:
    """What a file's commands set, for settings of the result: rules that are in no note yet.

    translations: of the source address of what leaves, where it does not enter the tunnel. into_tunnel: where it does.
    forwards: of the destination address. kill_switches: that let nothing leave past the tunnel. has_key: a command sets
    the private key, or has a mistake that says why not.
    """

    notes: HookNotes
    translations: list[Found] = field(default_factory=list)
    into_tunnel: list[Found] = field(default_factory=list)
    forwards: list[Found] = field(default_factory=list)
    kill_switches: list[Found] = field(default_factory=list)
    has_key: bool = False

    def say(self, text: str, found: Found) -> None:
        """Say of a rule what does it."""
        self.notes.setting = found.setting
        self.notes.say(text, found.source)
        self.notes.flush()

    def unit(self, reason: str, found: Found) -> None:
        """Say of a rule that a unit has to add it, and why."""
        self.notes.setting = found.setting
        self.notes.unit(found.source, f" ({reason})")
        self.notes.flush()


def read_hooks(document: Document, tunnel: Tunnel, reading: Reading, read_file: Callable[[str], str]) -> Hooks:
    """Return what the commands set, and add to `reading` a note for each of the others, and the mistakes.

    What they change in the tunnel itself (keys, addresses, MTU, mark, name servers) becomes a setting of `document`.
    read_file: returns the contents of a file with a key; raises OSError.
    """
    reader = _Reader(document, tunnel, reading, read_file)
    settings = [setting for setting in document.interface.settings if setting.name in (*UP, *DOWN) and setting.value]
    for setting in settings:
        if setting.name in UP:
            reader.read_up(setting)
    for setting in settings:
        if setting.name in DOWN:
            reader.read_down(setting)
    reader.found.has_key = reader.tunnel_commands.has_key
    return reader.found


class _Reader:
    """The state of reading the commands of one file."""

    def __init__(self, document: Document, tunnel: Tunnel, reading: Reading, read_file: Callable[[str], str]) -> None:
        self.notes = HookNotes(tunnel, reading)
        self.found = Hooks(self.notes)
        self.tunnel_commands = TunnelCommands(document, tunnel, reading, self.notes, read_file)
        self._tunnel = tunnel
        self._undone: list[frozenset[str]] = []  # for each command that was read, what would take it back
        self._rules: list[Rule] = []

    def read_up(self, setting: Setting) -> None:
        """Read the commands of PreUp or PostUp."""
        self.notes.setting = setting
        commands = self._commands(setting)
        if commands is not None:
            for number, command in enumerate(commands):
                self._undone.append(_normalized(command))
                self._rules += [replace(rule, operation="add") for rule in _rules_of(command) or ()]
                self._read(command, commands[number - 1] if command.operator == "|" else None, commands[number + 1 :])
        self.notes.flush()

    def read_down(self, setting: Setting) -> None:
        """Read the commands of PreDown or PostDown: those that take back what was done are not needed."""
        self.notes.setting = setting
        for command in self._commands(setting) or ():
            if not self._takes_back(command) and not _only_prints(command):
                self.notes.unit(command.source)
        self.notes.flush()

    def _commands(self, setting: Setting) -> list[Command] | None:
        """Return the commands of a hook, without what only runs others; None, with a note, if it is not read."""
        line = setting.value.replace("%i", self._tunnel.old)
        try:
            return list(_unwrapped(read_commands(line)))
        except UnreadableError as error:
            self.notes.unit(line, f" (it is not read, since it has {error})")
            return None

    def _read(self, command: Command, before: Command | None, after: Sequence[Command]) -> None:
        program = command.words[0].value.rpartition("/")[2] if command.words else ""
        rules = _rules_of(command)
        if rules is not None:
            for rule in rules:
                self._rule(rule, command, after)
        elif _only_prints(command):
            if not (after and after[0].operator == "|"):
                self.notes.say("it only prints or waits, and is not needed", command.source)
        elif not self.tunnel_commands.read(program, command, before):
            self.notes.unit(command.source)

    # --- Rules ---

    def _rule(self, rule: Rule, command: Command, after: Sequence[Command]) -> None:
        tunnel = self._tunnel
        if rule.operation == "check":
            return  # `iptables -C RULE || iptables -A RULE`: the second one counts
        if rule.operation == "delete":
            same = replace(rule, operation="add")
            if all(same not in (_rules_of(each) or ()) for each in after):
                self.notes.unit(command.source)
        elif rule.target in TRANSLATIONS and rule.operation == "add":
            self._translation(rule, command)
        elif rule.target == DNAT and rule.operation == "add" and not tunnel.is_client:
            self.found.forwards.append(Found(self.notes.setting, rule, command.source))
        elif rule.target in REFUSALS and rule.operation in ("add", "policy"):
            if tunnel.is_client and _is_kill_switch(rule, tunnel.old):
                self.found.kill_switches.append(Found(self.notes.setting, rule, command.source))
            else:
                self.notes.say(_FORBIDS.format(unit=tunnel.unit), command.source)
        elif rule.target == ACCEPT and rule.operation in ("add", "policy"):
            self.notes.say(_ALLOWS, command.source)
        else:
            self.notes.unit(command.source)

    def _translation(self, rule: Rule, command: Command) -> None:
        outgoing = rule.outgoing
        is_into = outgoing is not None and outgoing.text == self._tunnel.old and not outgoing.negated
        if self._tunnel.is_client:
            self.notes.unit(command.source, " (a client translates no addresses)")
        else:
            place = self.found.into_tunnel if is_into else self.found.translations
            place.append(Found(self.notes.setting, rule, command.source))

    # --- Notes ---

    def _takes_back(self, command: Command) -> bool:
        """Return whether a command takes back what one of PreUp or PostUp has done."""
        rules = _rules_of(command)
        if rules and all(
            rule.operation == "delete" and replace(rule, operation="add") in self._rules for rule in rules
        ):
            return True
        own = _normalized(command)
        if own in self._undone or (own == {"resolvectl", "revert", self._tunnel.old} and self.tunnel_commands.sets_dns):
            return True
        program = command.words[0].value.rpartition("/")[2] if command.words else ""
        return program in _SHORT_REVERSALS and any(own <= done for done in self._undone)


def _unwrapped(commands: Sequence[Command]) -> Iterator[Command]:
    """Yield commands; those of `sh -c LINE` instead of the shell, and what sudo runs instead of it."""
    for command in commands:
        words = command.words
        while words and words[0].value.rpartition("/")[2] in _WRAPPERS and len(words) > 1:
            words = words[1:]
        values = [word.value for word in words]
        if len(words) >= 3 and values[0].rpartition("/")[2] in _SHELLS and values[1] == "-c" and words[2].is_literal:
            yield from _unwrapped(read_commands(values[2]))
        else:
            source = command.source[command.source.find(words[0].source) :] if words else command.source
            yield replace(command, words=words, source=source)


def _rules_of(command: Command) -> list[Rule] | None:
    return firewall_rules.read_rules(command.words) if command.words else None


def _normalized(command: Command) -> frozenset[str]:
    """Return the words of a command so that it equals the one that takes it back, in any order."""
    words = [word.value if word.is_literal else word.source for word in command.words]
    program = words[0].rpartition("/")[2] if words else ""
    found = {program, *(word.source for _, word in command.redirections)}
    for word in words[1:]:
        if program == "sysctl" and "=" in word:
            found.add(word.partition("=")[0])
        elif (program == "echo" and command.redirections) or (program == "ufw" and word in ("delete", "--force")):
            continue
        elif word.startswith("--remove-"):
            found.add(f"--add-{word.removeprefix('--remove-')}")
        else:
            found.add(_OPPOSITES.get(word, word))
    return frozenset(found)


def _only_prints(command: Command) -> bool:
    written = [word.value for kind, word in command.redirections if ">" in kind]
    if not command.words or not set(written) <= {"1", "2", "/dev/null", "/dev/stderr"}:
        return False
    return command.words[0].value.rpartition("/")[2] in _PRINTERS


def _is_kill_switch(rule: Rule, interface: str) -> bool:
    """Return whether a rule refuses all that leaves past the tunnel, as in the example of wg-quick(8)."""
    others = (rule.source, rule.destination, rule.protocol, rule.port)
    outgoing = rule.outgoing
    is_past = outgoing is not None and outgoing.negated and outgoing.text == interface
    return is_past and rule.chain.upper() == "OUTPUT" and not any(others)
