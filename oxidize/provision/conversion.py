"""Convert a wg-quick file to an Oxidize configuration.

The rule: every setting of the file is either in the result or named in a note with what to do instead. Ambiguities are
resolved as wg does: host bits are masked, two sections with one public key are one peer, and an address that two peers
have belongs to the last one. Sources: wg(8), wg-quick(8).
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_network

from oxidize.config import Network
from oxidize.config.report import show
from oxidize.config.schema import MTU_DEFAULT, MTU_MIN
from oxidize.errors import ConfigError
from oxidize.protocol.constants import INNER_MTU_MAX
from oxidize.provision.hook_nat import NatTables, nat_tables
from oxidize.provision.hook_notes import HookNotes, Tunnel
from oxidize.provision.hooks import Hooks, read_hooks
from oxidize.provision.peer_names import peer_names
from oxidize.provision.peer_tables import table_lines
from oxidize.provision.wg_quick import Document, Section
from oxidize.provision.wg_values import Reading, own_public_key

UNIT_PORT = 51820  # of systemd/oxidize.socket
_OVERHEAD = 80  # as wg-quick has it: IPv6, UDP, and WireGuard's header, counter, tag and padding
_HALVES = {
    ip_network("0.0.0.0/0"): (ip_network("0.0.0.0/1"), ip_network("128.0.0.0/1")),
    ip_network("::/0"): (ip_network("::/1"), ip_network("8000::/1")),
}


def _no_file(path: str) -> str:
    raise FileNotFoundError(2, "No such file or directory", path)


@dataclass(frozen=True, slots=True)
class Machine:
    """What a conversion asks the machine that it runs on.

    read_key: returns the contents of a file; raises OSError. uplink_mtu: returns the MTU of the way to these
    endpoints, or to the Internet, with the name of its interface; None if there is none.
    """

    read_key: Callable[[str], str] = _no_file
    uplink_mtu: Callable[[Sequence[str]], tuple[int, str] | None] = lambda _: None


@dataclass(frozen=True, slots=True)
class Output:
    """The file that a conversion is for: its name without ending, and the interface that it is going to name."""

    stem: str
    interface: str | None = None


@dataclass(frozen=True, slots=True)
class Converted:
    """A configuration, its key files (base64 by file name), and notes on settings that have no counterpart.

    origins: for each key of the result, such as "server.mtu", the line and the name in the file that was read.
    interface: that the result names.
    """

    toml: str
    keys: dict[str, str] = field(repr=False)
    notes: tuple[str, ...]
    origins: dict[str, tuple[int, str]]
    interface: str


def is_client(document: Document) -> bool:
    """Return whether a file is a client's: it dials its only peer, and nothing but that peer can dial it.

    Some apps write a port into clients' files; a file with a port is a client's if it sends all traffic to its peer.
    """
    peers = [peer for peer in document.peers if peer.enabled]
    if len(peers) != 1 or peers[0].last("Endpoint") is None:
        return False
    port, table = document.interface.last("ListenPort"), document.interface.last("Table")
    has_port = port is not None and port.value.strip("0") != ""
    return not has_port or (_takes_all_traffic(peers[0]) and (table is None or table.value in ("", "auto")))


def _takes_all_traffic(peer: Section) -> bool:
    words = {word.strip() for setting in peer.all("AllowedIPs") for word in setting.value.split(",")}
    networks = set()
    for word in words:
        try:
            networks.add(ip_network(word, strict=False))
        except ValueError:  # reported where it is converted
            continue
    return any(whole in networks or networks.issuperset(halves) for whole, halves in _HALVES.items())


def to_server(
    document: Document, source: str, output: Output = Output("server"), machine: Machine = Machine()
) -> Converted:
    """Return the file as a server's configuration; raises ConfigError with a line for each mistake in it."""
    return _Conversion(document, source, output, machine, is_client=False).server()


def to_client(
    document: Document, source: str, output: Output = Output("client"), machine: Machine = Machine()
) -> Converted:
    """Return the file as a client's configuration; raises ConfigError with a line for each mistake in it."""
    return _Conversion(document, source, output, machine, is_client=True).client()


class _Conversion:
    """One file on its way to a configuration."""

    def __init__(self, document: Document, source: str, output: Output, machine: Machine, *, is_client: bool) -> None:
        self.document = document
        self.interface = document.interface
        self.source = source
        self.output = output
        self.machine = machine
        self.reading = Reading(source)
        self.keys: dict[str, str] = {}
        self.origins: dict[str, tuple[int, str]] = {}
        default = ("oxidize1", "oxidize-client") if is_client else ("oxidize0", "oxidize-daemon")
        stem = re.sub(r"\.conf$", "", source.rpartition("/")[2])
        self.tunnel = Tunnel(stem, output.interface or default[0], default[1], is_client)
        self.hooks = Hooks(HookNotes(self.tunnel, self.reading))

    def server(self) -> Converted:
        reading = self.reading
        self.hooks = read_hooks(self.document, self.tunnel, reading, self.machine.read_key)
        private_key = self._private_key()
        port = reading.port(self.interface)
        peers = self._peers(private_key)
        addresses = reading.addresses(self.interface)
        networks = [network for peer in peers for network in peer.networks]
        nat = nat_tables(self.hooks, addresses, networks, self.tunnel)
        table: dict[str, object] = {
            "address": [str(address) for address in addresses],
            "private_key_file": f"{self.output.stem}.key",
            "listen": f"[::]:{port or UNIT_PORT}",
            "interface": self.output.interface,
            "mtu": self._mtu(peers),
            **self._routing(),
            "nat": True if nat.values == {} and not nat.forwards else None,
        }
        self._note_port(port)
        self._note_others()
        names = {"address": "Address", "mtu": "MTU", "listen": "ListenPort", "table": "Table", "fwmark": "FwMark"}
        self._trace("server", self.interface, names)
        lines = [*table_lines("[server]", table), *self._nat_lines(nat)]
        for peer in peers:
            lines += ["", *table_lines("[[peer]]", self._peer_table(peer))]
        return self._converted(lines)

    def client(self) -> Converted:
        reading = self.reading
        enabled = [peer for peer in self.document.peers if peer.enabled]
        if len(enabled) != 1 or enabled[0].last("Endpoint") is None:
            expected = "expected one [Peer] with an Endpoint, as clients have it"
            remedy = "leave out --client for a server's file, and for one with several peers: a server dials them too"
            raise ConfigError(f"{self.source}: {expected}; {remedy}")
        self.hooks = read_hooks(self.document, self.tunnel, reading, self.machine.read_key)
        self._private_key()
        (section,) = (peer for peer in self.document.peers if peer.enabled)
        networks = reading.networks(section)
        preshared = reading.preshared_key(section)
        if preshared:
            self.keys[f"{self.output.stem}.psk"] = preshared
        table = {
            "server": reading.endpoint(section),
            "server_public_key": reading.public_key(section),
            "private_key_file": f"{self.output.stem}.key",
            "preshared_key_file": f"{self.output.stem}.psk" if preshared else None,
            "interface": self.output.interface,
            "address": [str(address) for address in reading.addresses(self.interface)],
            "allowed_ips": [str(network) for network in networks],
            "dns": [str(entry) for entry in reading.name_servers(self.interface)] or None,
            "persistent_keepalive": reading.keepalive(section) or 0,
            "mtu": self._mtu([_Peer("server", section, [])]),
            **self._routing(),
            "kill_switch": self._kill_switch(networks),
        }
        if reading.port(self.interface):
            reading.remark("ListenPort: the client uses any port")
        self._note_others()
        names = {"address": "Address", "mtu": "MTU", "dns": "DNS", "table": "Table", "fwmark": "FwMark"}
        self._trace("client", self.interface, names)
        self._trace(
            "client",
            section,
            {"server": "Endpoint", "server_public_key": "PublicKey", "allowed_ips": "AllowedIPs"},
        )
        return self._converted(table_lines("[client]", table))

    def _routing(self) -> dict[str, object]:
        """Return the keys for the routing table and the mark, as far as they are not the default."""
        table, mark = self.reading.table(self.interface), self.reading.mark(self.interface)
        off = "off" if mark == 0 and self.tunnel.is_client else None  # which a server has without the key
        return {"table": None if table == "auto" else table, "fwmark": mark or off}

    # --- Peers ---

    def _private_key(self) -> str:
        """Return the private key in base64, and keep it; a missing one is a mistake, unless a command has told why."""
        key = ""
        if self.interface.last("PrivateKey") is not None or not self.hooks.has_key:
            key = self.reading.key(self.interface, "PrivateKey")
        self.keys[f"{self.output.stem}.key"] = key
        return key

    def _peers(self, private_key: str) -> list["_Peer"]:
        """Return the peers as wg would have them: one for each public key, and each network with its last one."""
        own = own_public_key(private_key)
        merged: dict[str, list[Section]] = {}
        for section in self.document.peers:
            key = self.reading.public_key(section) if section.enabled else _key_of(section)
            if key and key == own:
                self.reading.note(section.line, "this peer is left out, as by wg: its PublicKey is this machine's own")
            elif section.enabled or self._can_be_disabled(section):
                merged.setdefault(key or f"line {section.line}", []).append(section)
        groups = {key: _only_enabled(sections) for key, sections in merged.items()}
        wholes = {key: _merged(sections) for key, sections in groups.items()}
        names = dict(zip(wholes, peer_names(list(wholes.values())), strict=True))
        for key, sections in groups.items():
            for section in sections[1:]:
                self.reading.note(
                    section.line,
                    f"this section and that of line {sections[0].line} have one PublicKey, so they are one peer, "
                    f"{names[key]}, as for wg: with the AllowedIPs of this section",
                )
        for key, section in wholes.items():
            if not section.enabled:
                self.reading.note(section.line, f"{names[key]} is commented out: imported with enabled = false")
        networks = self._networks(groups, names)
        return [_Peer(names[key], section, networks[key]) for key, section in wholes.items()]

    def _can_be_disabled(self, section: Section) -> bool:
        """Return whether a section that is commented out is a peer; what is wrong in it is no mistake of the file."""
        probe = Reading(self.source)
        probe.public_key(section)
        for read in (probe.networks, probe.endpoint, probe.keepalive, probe.preshared_key):
            read(section)
        try:
            probe.check()
        except ConfigError:
            self.reading.note(section.line, "this section is commented out and has mistakes, so it is left out")
            return False
        return True

    def _networks(self, groups: dict[str, list[Section]], names: dict[str, str]) -> dict[str, list[Network]]:
        """Return the allowed IPs of each peer: a later section replaces those of its peer and takes those of others.

        A peer that is commented out keeps its own: another one may have them meanwhile.
        """
        ordered = sorted(
            ((section, key) for key, sections in groups.items() for section in sections), key=lambda each: each[0].line
        )
        owners: dict[Network, str] = {}
        found: dict[str, list[Network]] = {key: [] for key in groups}
        for section, key in ordered:
            for network in found[key]:
                owners.pop(network, None)
            found[key] = self.reading.networks(section)
            for network in found[key] if section.enabled else ():
                before = owners.get(network)
                if before is not None:
                    self.reading.note(section.line, f"{network} of {names[before]} goes to {names[key]}, as with wg")
                    found[before].remove(network)
                owners[network] = key
        return found

    def _peer_table(self, peer: "_Peer") -> dict[str, object]:
        reading, section, name = self.reading, peer.section, peer.name
        preshared = reading.preshared_key(section)
        file = f"{name}.psk" if self.output.stem == "server" else f"{self.output.stem}-{name}.psk"
        if preshared:
            self.keys[file] = preshared
        setting_names = {"public_key": "PublicKey", "allowed_ips": "AllowedIPs", "endpoint": "Endpoint"}
        self._trace(f"peer.{name}", section, {"name": "", **setting_names})
        return {
            "name": name,
            "public_key": reading.public_key(section) if section.enabled else _key_of(section),
            "preshared_key_file": file if preshared else None,
            "allowed_ips": [str(network) for network in peer.networks],
            "endpoint": reading.endpoint(section),
            "persistent_keepalive": reading.keepalive(section) or None,
            "enabled": None if section.enabled else False,
        }

    # --- The interface ---

    def _mtu(self, peers: Sequence["_Peer"]) -> int | None:
        """Return the MTU: the file's, or the one that wg-quick computes where that is not the usual one."""
        given = self.reading.mtu(self.interface)
        if given is not None:
            return given
        endpoints = [setting.value for peer in peers if (setting := peer.section.last("Endpoint")) is not None]
        uplink = self.machine.uplink_mtu(endpoints)
        if uplink is None or uplink[0] - _OVERHEAD == MTU_DEFAULT:
            return None
        mtu = min(max(uplink[0] - _OVERHEAD, MTU_MIN), INNER_MTU_MAX)
        self.reading.remark(
            f"mtu = {mtu}: there is no MTU, and wg-quick takes that of {uplink[1]}, {uplink[0]}, less {_OVERHEAD}"
        )
        return mtu

    def _kill_switch(self, networks: Sequence[Network]) -> bool | None:
        """Return whether a command is a kill switch, which a client has where it has a default route."""
        has_default = any(network.prefixlen == 0 for network in networks)
        for found in self.hooks.kill_switches:
            if has_default:
                self.hooks.say("kill_switch = true does this", found)
            else:
                self.hooks.unit("kill_switch needs a default route in allowed_ips", found)
        return True if has_default and self.hooks.kill_switches else None

    def _nat_lines(self, nat: NatTables) -> list[str]:
        """Return the tables of address translation."""
        lines = ["", *table_lines("[server.nat]", nat.values or {})] if nat.values or nat.forwards else []
        for number, (line, values) in enumerate(nat.forwards, start=1):
            self.origins |= {f"server.nat.forward[{number}].{key}": (line, f"PostUp: {key}") for key in values}
            lines += ["", *table_lines("[[server.nat.forward]]", values)]
        return lines

    def _note_port(self, port: int) -> None:
        if not port:
            given = "there is no ListenPort" if self.interface.last("ListenPort") is None else "ListenPort is 0"
            used = f"{given}, so wg used any port"
            self.reading.remark(f"{used}; this server listens at {UNIT_PORT}")
        elif port != UNIT_PORT:
            self.reading.remark(
                f"ListenPort = {port}: under systemd oxidize.socket sets the port: "
                f"`systemctl edit oxidize.socket`, and write [Socket], ListenDatagram= and ListenDatagram={port} "
                f"on three lines"
            )

    def _note_others(self) -> None:
        """Add a note for each setting of the interface that has no counterpart."""
        reading, interface = self.reading, self.interface
        if reading.saves_config(interface):
            self._note("SaveConfig", "only you, `oxidize peer add` and `oxidize peer remove` change the file")
        if not self.tunnel.is_client and any(setting.value for setting in interface.all("DNS")):
            self._note("DNS", "a server sets no name servers; set them for the machine")
        if self.hooks.notes.has_units:
            unit = self.tunnel.unit
            reading.remark(
                f"commands for a unit: `systemctl edit --force --full oxidize-hooks.service`, with [Unit] "
                f"After={unit}.service PartOf={unit}.service, [Service] Type=oneshot RemainAfterExit=yes and "
                f"ExecStart=/bin/sh -c '...' for each, [Install] WantedBy={unit}.service; then `systemctl enable "
                f"oxidize-hooks.service`"
            )

    def _note(self, name: str, text: str) -> None:
        setting = self.interface.all(name)[-1]
        self.reading.note(setting.line, f"{name} = {show(name, setting.value)}: {text}")

    # --- The result ---

    def _trace(self, prefix: str, section: Section, names: dict[str, str]) -> None:
        """Remember where the keys of a table come from."""
        for key, name in names.items():
            setting = section.last(name)
            self.origins[f"{prefix}.{key}"] = (section.line if setting is None else setting.line, name)

    def _converted(self, lines: Sequence[str]) -> Converted:
        self.reading.check()
        return Converted("\n".join([*lines, ""]), self.keys, self.reading.notes(), self.origins, self.tunnel.new)


@dataclass(frozen=True, slots=True)
class _Peer:
    """A peer: its name, the settings of all its sections, and its allowed IPs."""

    name: str
    section: Section
    networks: list[Network]


def _key_of(section: Section) -> str:
    setting = section.last("PublicKey")
    return "" if setting is None else "".join(setting.value.split())


def _only_enabled(sections: list[Section]) -> list[Section]:
    """Return the sections of one peer without those that are commented out, unless all are."""
    return [section for section in sections if section.enabled] or sections[-1:]


def _merged(sections: list[Section]) -> Section:
    """Return the sections of one peer as one; of a setting the last one counts, and the last comments come first."""
    if len(sections) == 1:
        return sections[0]
    return Section(
        sections[0].line,
        [setting for section in sections for setting in section.settings],
        [comment for section in reversed(sections) for comment in section.comments],
        sections[0].enabled,
    )
