"""Commands of a wg-quick file that change the tunnel itself, or a setting of the machine.

The rule: what a command changes in the tunnel (keys, addresses, MTU, mark, peers, name servers) becomes a setting of
the file, as if it stood there; a key is read from the file that the command names, and nothing is run for one.
Sources: wg(8), ip-address(8), ip-link(8), ip-route(8), sysctl(8), resolvectl(1), resolvconf(8).
"""

import itertools
import re
from collections.abc import Callable
from ipaddress import ip_network

from oxidize.config.report import without_keys
from oxidize.provision.hook_notes import HookNotes, Tunnel
from oxidize.provision.shell_line import Command, UnreadableError, Word, read_commands
from oxidize.provision.wg_quick import Document, Section, Setting
from oxidize.provision.wg_values import Reading

_WG_SETTINGS = {
    "private-key": "PrivateKey",
    "listen-port": "ListenPort",
    "fwmark": "FwMark",
    "preshared-key": "PresharedKey",
    "endpoint": "Endpoint",
    "persistent-keepalive": "PersistentKeepalive",
    "allowed-ips": "AllowedIPs",
}
_KEY_NAMES = ("private-key", "preshared-key")
_ADDRESS_WORDS = frozenset({"a", "ad", "add", "addr", "addre", "address"})
_FORWARDING = re.compile(r"net\.(?:ipv4\.ip_forward|ipv[46]\.conf\.(?:all|default)\.forwarding)")
_NAME_SERVER = re.compile(r"nameserver\s+([^\s\\]+)")
_SEARCH = re.compile(r"(?:search|domain)\s+((?:[^\s\\]+[ \t]*)+)")


class TunnelCommands:
    """Reads the commands of one file. has_key: one is about the private key. sets_dns: one sets name servers."""

    def __init__(
        self,
        document: Document,
        tunnel: Tunnel,
        reading: Reading,
        notes: HookNotes,
        read_file: Callable[[str], str],
    ) -> None:
        self.has_key = False
        self.sets_dns = False
        self._document = document
        self._tunnel = tunnel
        self._reading = reading
        self._notes = notes
        self._read_file = read_file

    def read(self, program: str, command: Command, before: Command | None) -> bool:
        """Read a command that is about the tunnel itself or a setting of the machine; return whether it is one."""
        if program == "wg":
            return self._wg(command, before)
        if program == "ip":
            return self._ip(command)
        if program == "sysctl":
            return self._sysctl(command)
        if program in ("resolvconf", "resolvectl", "systemd-resolve"):
            return self._resolver(program, command, before)
        return self._proc_sys(command)

    def _wg(self, command: Command, before: Command | None) -> bool:
        """Read `wg set INTERFACE ...`; return False for other commands."""
        words = command.words[1:]
        if len(words) < 2 or words[0].value != "set" or words[1].value != self._tunnel.old:
            if words and words[0].value in ("addconf", "setconf", "syncconf"):
                text = "these settings are not in this file: add them to it, and import it again"
                self._notes.say(text, command.source)
                return True
            return False
        section = self._document.interface
        rest = list(words[2:])
        while rest:
            name = rest.pop(0).value
            if name == "peer" and rest:
                section = self._peer(rest.pop(0).value)
            elif name == "remove" and section in self._document.peers:
                self._document.peers.remove(section)
            elif name in _WG_SETTINGS and rest:
                self._wg_setting(section, name, rest.pop(0), command, before)
                if name not in _KEY_NAMES:
                    self._notes.say("the result has this setting", command.source)
            else:
                self._reading.wrong(
                    self._notes.setting.line, f"wg set: {without_keys(name)}: expected what wg(8) names"
                )
                return True
        return True

    def _wg_setting(self, section: Section, name: str, word: Word, command: Command, before: Command | None) -> None:
        setting = _WG_SETTINGS[name]
        if name == "allowed-ips":
            section.settings = [each for each in section.settings if each.name != setting]
        if name in _KEY_NAMES:
            self.has_key |= name == "private-key"
            self._key(section, setting, word, command, before)
        elif word.is_literal:
            section.settings.append(Setting(setting, word.value, self._notes.setting.line))
        else:
            what = f"{setting} is {without_keys(word.source)}, which an import does not run"
            self._reading.wrong(self._notes.setting.line, f"{what}: expected a value; write it here")

    def _peer(self, key: str) -> Section:
        """Return the section of a peer; `wg set` makes a new one where there is none."""
        for section in reversed(self._document.peers):
            setting = section.last("PublicKey")
            if section.enabled and setting is not None and "".join(setting.value.split()) == key:
                return section
        section = Section(self._notes.setting.line, [Setting("PublicKey", key, self._notes.setting.line)])
        self._document.peers.append(section)
        return section

    def _key(self, section: Section, name: str, word: Word, command: Command, before: Command | None) -> None:
        """Add a key that a command takes from a file or from another command's output."""
        line = self._notes.setting.line
        source = word.source
        reader = _inner(word) or (before if word.value in ("/dev/stdin", "-") else None)
        literal = next((each for kind, each in command.redirections if kind == "<<<"), None)
        file = word.value if word.is_literal else ""
        if literal is not None and literal.is_literal:
            section.settings.append(Setting(name, literal.value, line))
            return
        if reader is not None:
            source = reader.source
            file = _argument_of(reader, "cat") or ""
            key = _argument_of(reader, "echo")
            if key:
                section.settings.append(Setting(name, key, line))
                return
        if not file:
            path = f"/etc/wireguard/{self._tunnel.old}.{'key' if name == 'PrivateKey' else 'psk'}"
            self._reading.wrong(
                line,
                f"{name} comes from `{without_keys(source)}`, which an import does not run: expected a file; run "
                f"`(umask 077; {without_keys(source)} > {path})`, name that file in this line, and import it again",
            )
            return
        try:
            key = self._read_file(file)
        except OSError as error:
            self._reading.wrong(
                line,
                f"{name} is in {without_keys(file)}: {error.strerror}: expected a file with one key; import it where "
                f"that file can be read, or name another one in this line",
            )
            return
        section.settings.append(Setting(name, key.strip(), line))
        self._reading.note(line, f"{name} is taken from {without_keys(file)}")

    def _ip(self, command: Command) -> bool:
        words = [word.value for word in command.words[1:] if not word.value.startswith("-")]
        if len(words) < 2 or not all(word.is_literal for word in command.words):
            return False
        kind, verb, rest = words[0], words[1], words[2:]
        arguments = dict(itertools.pairwise(rest))
        is_own = self._tunnel.old in rest
        add = self._document.interface.settings.append
        if kind in _ADDRESS_WORDS and verb in ("a", "add", "replace", "change") and is_own:
            address = next((word for word in rest if word not in ("dev", "local", self._tunnel.old)), "")
            add(Setting("Address", address, self._notes.setting.line))
            self._notes.say("address does this", command.source)
            if "peer" in arguments and not self._is_routed(arguments["peer"]):
                self._notes.unit(f"ip route add {arguments['peer']} dev {self._tunnel.old}")
            return True
        if kind in ("link", "l") and verb == "set" and is_own:
            if "mtu" in arguments:
                add(Setting("MTU", arguments["mtu"], self._notes.setting.line))
                self._notes.say("the result has this setting", command.source)
            if set(rest) <= {"dev", self._tunnel.old, "up", "mtu", arguments.get("mtu", "")}:
                return True
        if kind in ("r", "ro", "route") and verb in ("a", "add", "replace") and is_own:
            plain = set(rest[1:]) <= {"dev", self._tunnel.old, "scope", "link", "proto", "static"}
            if plain and self._is_routed(rest[0]):
                self._notes.say("allowed_ips does this", command.source)
                return True
        return False

    def _is_routed(self, text: str) -> bool:
        """Return whether a route to a network is set anyway, being a peer's."""
        table = self._document.interface.last("Table")
        if table is not None and table.value not in ("", "auto"):
            return False
        try:
            network = ip_network(text, strict=False)
        except ValueError:
            return False
        words = {
            word.strip()
            for peer in self._document.peers
            for setting in peer.all("AllowedIPs")
            for word in setting.value.split(",")
        }
        return str(network) in words or str(network.network_address) in words

    def _sysctl(self, command: Command) -> bool:
        settings = [word.value for word in command.words[1:] if "=" in word.value and not word.value.startswith("-")]
        for setting in settings:
            name, _, value = setting.partition("=")
            self._machine_setting(name.strip().replace("/", "."), value.strip())
        return bool(settings)

    def _proc_sys(self, command: Command) -> bool:
        """Read `echo VALUE > /proc/sys/...`."""
        path = next((word.value for kind, word in command.redirections if kind.startswith(">")), "")
        if not path.startswith("/proc/sys/") or len(command.words) != 2:
            return False
        self._machine_setting(path.removeprefix("/proc/sys/").replace("/", "."), command.words[1].value)
        return True

    def _machine_setting(self, name: str, value: str) -> None:
        if self._tunnel.old in name.split("."):  # of an interface that is not there when a machine boots
            name = ".".join(self._tunnel.new if part == self._tunnel.old else part for part in name.split("."))
            self._notes.unit(f"sysctl -w {name}={value}")
            return
        if _FORWARDING.fullmatch(name):
            how = "forwarding is a setting of the machine, which `make install` makes in /usr/lib/sysctl.d"
        else:
            how = "this is a setting of the machine"
        self._reading.note(
            self._notes.setting.line,
            f"{how}: write `{self._notes.shown(name)} = {value}` to a file in /etc/sysctl.d/ to keep it",
        )

    def _resolver(self, program: str, command: Command, before: Command | None) -> bool:
        words = [word.value for word in command.words[1:]]
        if self._tunnel.old not in " ".join(words) or not all(word.is_literal for word in command.words):
            return False
        entries: list[str] = []
        if program == "resolvectl" and words[0] in ("dns", "domain"):
            entries = [word for word in words[2:] if word not in ("~.", ".")]
        elif program == "systemd-resolve":
            entries = [word.partition("=")[2] for word in words if word.startswith(("--set-dns=", "--set-domain="))]
        elif program == "resolvconf" and "-a" in words and before is not None:
            text = " ".join(word.value for word in before.words[1:])
            entries = _NAME_SERVER.findall(text) + [name for found in _SEARCH.findall(text) for name in found.split()]
        elif program == "resolvectl" and words[0] in ("default-route", "dnsovertls", "dnssec", "flush-caches"):
            return False
        if not self._tunnel.is_client or not entries:
            return False
        self._document.interface.settings.append(Setting("DNS", ", ".join(entries), self._notes.setting.line))
        self.sets_dns = True
        self._notes.say("dns does this", command.source)
        return True


def _inner(word: Word) -> Command | None:
    """Return the one command of <(COMMAND), or None."""
    if not word.source.startswith("<("):
        return None
    try:
        commands = read_commands(word.source[2:-1])
    except UnreadableError:
        commands = []
    return commands[0] if len(commands) == 1 else Command((), (), "", word.source[2:-1])


def _argument_of(command: Command, program: str) -> str | None:
    """Return the only argument of a command of this program, None for any other."""
    if len(command.words) != 2 or not all(word.is_literal for word in command.words):
        return None
    return command.words[1].value if command.words[0].value == program else None
