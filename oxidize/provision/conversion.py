"""Convert a wg-quick file to an Oxidize configuration.

The rule: every setting of the file is either in the result or named in a note with what to do instead. Ambiguities are
resolved as wg does: host bits are masked, and an address that two peers have belongs to the last one. Sources:
wg(8), wg-quick(8).
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_interface, ip_network
from typing import TypeVar

from oxidize.config import InterfaceAddress, Network, values
from oxidize.config.report import Report, show
from oxidize.config.schema import KEEPALIVE_SECS_MAX
from oxidize.config.values import PORT_MAX, HostAddress, InvalidValueError
from oxidize.errors import ConfigError
from oxidize.protocol.constants import KEY_SIZE
from oxidize.provision.peer_names import peer_names
from oxidize.provision.peer_tables import table_lines
from oxidize.provision.wg_quick import Document, Section, Setting

_T = TypeVar("_T")

UNIT_PORT = 51820  # of systemd/oxidize.socket

_MASQUERADES = re.compile(r"masquerade|\bsnat\b", re.IGNORECASE)
_FORWARDS = re.compile(r"ip_forward|\.forwarding\b")
_FILTERS = re.compile(r"\bforward\b", re.IGNORECASE)
_KNOWN_COMMANDS = (_MASQUERADES, _FORWARDS, _FILTERS)

# Settings without a counterpart: the values that have no effect, and the note for any other.
_WITHOUT_COUNTERPART: dict[str, tuple[tuple[str, ...], str]] = {
    "PreUp": ((), "no counterpart; run it from a separate unit before {unit} starts"),
    "PreDown": ((), "no counterpart; run it from a separate unit before {unit} ends"),
    "PostDown": ((), "no counterpart; run it from a separate unit after {unit} has ended"),
    "Table": (("auto",), "no counterpart; routes to the peers' allowed_ips go into the main table"),
    "FwMark": (("0", "off"), "no counterpart; packets leave without a mark"),
    "SaveConfig": (("false",), "only you, `oxidize peer add` and `oxidize peer remove` change the file"),
    "DNS": ((), "a server sets no name servers; set them for the machine"),
}
_DEFAULT_ROUTES = {ip_network("0.0.0.0/0"), ip_network("::/0")}


@dataclass(frozen=True, slots=True)
class Converted:
    """A configuration, its key files (base64 by file name), and notes on settings that have no counterpart."""

    toml: str
    keys: dict[str, str] = field(repr=False)
    notes: tuple[str, ...]


def is_client(document: Document) -> bool:
    """Return whether a file is a client's: one peer with an endpoint and a default route, and no port to listen at."""
    return (
        len(document.peers) == 1
        and document.peers[0].last("Endpoint") is not None
        and document.interface.last("ListenPort") is None
        and any(
            word.strip() in map(str, _DEFAULT_ROUTES)
            for setting in document.peers[0].all("AllowedIPs")
            for word in setting.value.split(",")
        )
    )


def to_server(document: Document, source: str) -> Converted:
    """Return the file as a server's configuration; raises ConfigError with a line for each mistake in it."""
    reading = _Reading(source)
    interface = document.interface
    notes: list[str] = []
    keys = {"server.key": reading.key(interface, "PrivateKey")}
    table: dict[str, object] = {
        "address": [str(address) for address in reading.addresses(interface)],
        "private_key_file": "server.key",
    }
    port = reading.one(interface, "ListenPort", _number(PORT_MAX))
    if port is None:
        notes.append(f"there is no ListenPort, so wg used any port; this server listens at {UNIT_PORT}")
    else:
        table["listen"] = f"[::]:{port}"
        if port != UNIT_PORT:
            notes.append(
                f"ListenPort = {port}: under systemd oxidize.socket sets the port: "
                f"`systemctl edit oxidize.socket`, and write [Socket], ListenDatagram= and ListenDatagram={port} "
                f"on three lines"
            )
    table["mtu"] = reading.one(interface, "MTU", _number(PORT_MAX))
    if any(_MASQUERADES.search(setting.value) for setting in interface.all("PostUp")):
        table["nat"] = True
    notes += _interface_notes(interface, has_nat=True)
    lines = table_lines("[server]", table)
    names = peer_names(document.peers)
    claims = reading.networks(document.peers, names, notes)
    for section, name, networks in zip(document.peers, names, claims, strict=True):
        preshared = reading.preshared_key(section)
        if preshared:
            keys[f"{name}.psk"] = preshared
        peer = {
            "name": name,
            "public_key": reading.public_key(section),
            "preshared_key_file": f"{name}.psk" if preshared else None,
            "allowed_ips": [str(network) for network in networks],
            "endpoint": reading.one(section, "Endpoint", values.endpoint),
            "persistent_keepalive": reading.one(section, "PersistentKeepalive", _keepalive) or None,
        }
        lines += ["", *table_lines("[[peer]]", peer)]
    return reading.result(lines, keys, notes)


def to_client(document: Document, source: str) -> Converted:
    """Return the file as a client's configuration; raises ConfigError with a line for each mistake in it."""
    reading = _Reading(source)
    interface = document.interface
    notes: list[str] = []
    if len(document.peers) != 1 or document.peers[0].last("Endpoint") is None:
        expected = "one [Peer] with an Endpoint, as clients have it"
        raise ConfigError(f"{source}: expected {expected}; leave out --client for a server's file")
    (peer,) = document.peers
    keys = {"client.key": reading.key(interface, "PrivateKey")}
    preshared = reading.preshared_key(peer)
    if preshared:
        keys["client.psk"] = preshared
    keepalive = reading.one(peer, "PersistentKeepalive", _keepalive)
    dns = _name_servers(interface, notes)
    (networks,) = reading.networks([peer], ["server"], notes)
    table = {
        "server": reading.one(peer, "Endpoint", values.endpoint),
        "server_public_key": reading.public_key(peer),
        "private_key_file": "client.key",
        "preshared_key_file": "client.psk" if preshared else None,
        "address": [str(address) for address in reading.addresses(interface)],
        "allowed_ips": [str(network) for network in networks],
        "dns": [str(entry) for entry in dns] or None,
        "persistent_keepalive": keepalive or 0,
        "mtu": reading.one(interface, "MTU", _number(PORT_MAX)),
    }
    if interface.last("ListenPort") is not None:
        notes.append("ListenPort: the client uses any port")
    notes += _interface_notes(interface, has_nat=False, is_client=True)
    return reading.result(table_lines("[client]", table), keys, notes)


class _Reading:
    """Parses the values of one file and collects the mistakes in them."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._problems: list[tuple[int, str]] = []

    def wrong(self, line: int, text: str) -> None:
        self._problems.append((line, f"line {line}: {text}"))

    def result(self, lines: Sequence[str], keys: dict[str, str], notes: Sequence[str]) -> Converted:
        """Return the configuration; raises ConfigError if there are mistakes."""
        report = Report(self._source)
        for _, problem in sorted(self._problems):
            report.add(problem)
        report.check()
        return Converted("\n".join([*lines, ""]), keys, tuple(notes))

    def parsed(self, setting: Setting, text: str, parse: Callable[[str], _T]) -> _T | None:
        """Return the parsed value of a setting; a mistake is reported and gives None."""
        try:
            return parse(text)
        except InvalidValueError as error:
            remedy = f"; {error.remedy}" if error.remedy else "; correct it"
            self.wrong(setting.line, f"{setting.name} = {show(setting.name, text)}: expected {error.expected}{remedy}")
            return None

    def one(self, section: Section, name: str, parse: Callable[[str], _T]) -> _T | None:
        """Return the value of a setting that holds one value, None if it is absent or wrong."""
        setting = section.last(name)
        return None if setting is None else self.parsed(setting, "".join(setting.value.split()), parse)

    def each(self, section: Section, name: str, parse: Callable[[str], _T]) -> Iterator[_T]:
        """Yield the values of all settings of one name; commas separate them within a setting."""
        for setting in section.all(name):
            for word in setting.value.split(","):
                if word.strip():
                    value = self.parsed(setting, "".join(word.split()), parse)
                    if value is not None:
                        yield value

    def key(self, section: Section, name: str) -> str:
        """Return a required key in base64."""
        if section.last(name) is None:
            self.wrong(section.line, f"{name} is missing in this section; add it")
        return self.one(section, name, _key) or ""

    def public_key(self, section: Section) -> str:
        if section.last("PublicKey") is None:
            self.wrong(section.line, "PublicKey is missing in this section; add it, or remove the section")
        key = self.one(section, "PublicKey", lambda text: (values.public_key(text), text))
        return "" if key is None else key[1]

    def preshared_key(self, section: Section) -> str | None:
        """Return a pre-shared key in base64; zeros mean none, as for wg."""
        key = self.one(section, "PresharedKey", _key)
        return None if key is None or values.parse_key(key) == bytes(KEY_SIZE) else key

    def addresses(self, interface: Section) -> list[InterfaceAddress]:
        found = list(dict.fromkeys(self.each(interface, "Address", _address)))
        if not interface.all("Address"):
            self.wrong(
                interface.line,
                "Address is missing: expected the addresses in the tunnel; add the current one, such as 10.0.0.1/24",
            )
        return found

    def networks(self, peers: Sequence[Section], names: Sequence[str], notes: list[str]) -> list[list[Network]]:
        """Return the allowed IPs of each peer; of those that list the same network the last has it."""
        found = [list(dict.fromkeys(self.each(section, "AllowedIPs", _network))) for section in peers]
        owners = {network: owner for owner, networks in enumerate(found) for network in networks}
        for owner, networks in enumerate(found):
            for network in networks:
                if owners[network] != owner:
                    notes.append(f"{network} of {names[owner]} goes to {names[owners[network]]}, as with wg")
            found[owner] = [network for network in networks if owners[network] == owner]
        return found


def _interface_notes(interface: Section, has_nat: bool, is_client: bool = False) -> Iterator[str]:
    """Yield a note for each setting that has no counterpart."""
    unit = "the client" if is_client else "oxidize-daemon"
    for setting in interface.settings:
        shown = f"line {setting.line}: {setting.name} = {show(setting.name, setting.value)}"
        if setting.name == "PostUp":
            yield from (f"{shown}: {text}" for text in _command_notes(setting.value, has_nat, unit))
        elif setting.name == "PostDown" and any(pattern.search(setting.value) for pattern in _KNOWN_COMMANDS):
            continue  # it reverts PostUp
        elif setting.name in _WITHOUT_COUNTERPART and not (setting.name == "DNS" and is_client):
            harmless, text = _WITHOUT_COUNTERPART[setting.name]
            if setting.value.lower() not in harmless:
                yield f"{shown}: {text.format(unit=unit)}"


def _command_notes(command: str, has_nat: bool, unit: str) -> Iterator[str]:
    """Yield the replacements for a command that wg-quick runs."""
    known = False
    if _MASQUERADES.search(command):
        known = True
        if has_nat:
            yield "nat = true replaces this address translation"
        else:
            yield "set up address translation by hand, for the interface oxidize0"
    if _FORWARDS.search(command):
        known = True
        yield "forwarding is a setting of the machine: write it to /etc/sysctl.d/, for net.ipv4.ip_forward and IPv6"
    if _FILTERS.search(command):
        known = True
        yield "a firewall that drops forwarded packets needs this rule for the interface oxidize0"
    if not known:
        yield f"no counterpart; run it from a separate unit after {unit} has started"


def _name_servers(interface: Section, notes: list[str]) -> list[HostAddress | str]:
    """Return the name servers and search domains of DNS =, separated by commas or spaces as for wg-quick."""
    found: list[HostAddress | str] = []
    for setting in interface.all("DNS"):
        for word in filter(None, re.split(r"[,\s]+", setting.value)):
            try:
                found.append(values.name_server(word))
            except InvalidValueError as error:
                notes.append(f"line {setting.line}: DNS = {show('DNS', word)}: ignored: expected {error.expected}")
    if found and all(isinstance(entry, str) for entry in found):
        notes.append("DNS has no name server, so its domains are ignored, as by wg-quick")
        return []
    return found


def _key(text: str) -> str:
    if values.parse_key(text) is None:
        raise InvalidValueError("a key: 44 characters of base64 for 32 bytes")
    return text


def _number(largest: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not (text.isascii() and text.isdigit() and len(text) <= 10 and int(text) <= largest):
            raise InvalidValueError(f"a whole number from 0 to {largest}")
        return int(text)

    return parse


def _keepalive(text: str) -> int:
    return 0 if text.lower() == "off" else _number(KEEPALIVE_SECS_MAX)(text)


def _address(text: str) -> InterfaceAddress:
    try:
        whole = text if "/" in text else str(ip_interface(text))
    except ValueError:
        raise InvalidValueError("an address, with the length of its network's prefix, such as 10.0.0.1/24") from None
    return values.interface_address(whole)


def _network(text: str) -> Network:
    try:
        masked = str(ip_network(text, strict=False))
    except ValueError:
        raise InvalidValueError("a network, such as 10.0.0.2/32") from None
    return values.network(masked)
