"""The values of a wg-quick file, read as wg and wg-quick read them.

The rule: a value that they accept is accepted with the same meaning, and one that they refuse is a mistake with its
line. Sources: wg(8), wg-quick(8), ip-address(8); wg drops the blanks within a value, wg-quick separates addresses and
name servers by them.
"""

import re
from collections.abc import Callable
from ipaddress import IPv6Address, ip_interface, ip_network
from typing import TypeVar

from oxidize.config import HostAddress, InterfaceAddress, Network, values
from oxidize.config.keys import public_key
from oxidize.config.report import Report, show
from oxidize.config.schema import KEEPALIVE_SECS_MAX
from oxidize.config.values import PORT_MAX, InvalidValueError
from oxidize.protocol.constants import KEY_SIZE
from oxidize.provision.wg_quick import Section, Setting

_T = TypeVar("_T")

MARK_MAX = 0xFFFF_FFFF
_TABLES = {"default": 253, "main": 254, "local": 255}  # the kernel's own (linux/rtnetlink.h)
_NO_LINE = 1 << 62  # after all lines
_WORDS = re.compile(r"[,\s]+")


class Reading:
    """Parses the values of one file and collects the mistakes in them, and what is not as it was."""

    def __init__(self, source: str) -> None:
        self.source = source
        self._notes: list[tuple[int, str]] = []
        self._problems: dict[str, int] = {}  # each once, with its line: a value may be read twice

    def wrong(self, line: int, text: str) -> None:
        """Add a mistake."""
        self._problems[f"line {line}: {text}"] = line

    def note(self, line: int, text: str) -> None:
        """Add a note about a line."""
        self._notes.append((line, f"line {line}: {text}"))

    def remark(self, text: str) -> None:
        """Add a note about the file as a whole."""
        self._notes.append((_NO_LINE, text))

    def notes(self) -> tuple[str, ...]:
        """Return the notes by their lines; those about the whole file are the last."""
        return tuple(text for _, text in sorted(self._notes, key=lambda each: each[0]))

    def check(self) -> None:
        """Raise ConfigError if there are mistakes."""
        report = Report(self.source)
        for problem in sorted(self._problems, key=lambda each: self._problems[each]):
            report.add(problem)
        report.check()

    def parsed(self, setting: Setting, text: str, parse: Callable[[str], _T]) -> _T | None:
        """Return the parsed value of a setting; a mistake is reported and gives None."""
        try:
            return parse(text)
        except InvalidValueError as error:
            remedy = f"; {error.remedy}" if error.remedy else "; correct it"
            self.wrong(setting.line, f"{setting.name} = {show(setting.name, text)}: expected {error.expected}{remedy}")
            return None

    def one(self, section: Section, name: str, parse: Callable[[str], _T], *, empty: bool = False) -> _T | None:
        """Return the value of a setting that holds one value, None if it is absent or wrong.

        empty: whether an empty value is the same as none, as for what wg-quick reads itself.
        """
        setting = section.last(name)
        if setting is None or (empty and not setting.value):
            return None
        return self.parsed(setting, "".join(setting.value.split()), parse)

    def key(self, section: Section, name: str) -> str:
        """Return a required key in base64."""
        if section.last(name) is None:
            self.wrong(section.line, f"{name} is missing in this section; add it")
        return self.one(section, name, _key) or ""

    def public_key(self, section: Section) -> str:
        """Return a peer's public key in base64, "" if it is missing or wrong."""
        if section.last("PublicKey") is None:
            self.wrong(section.line, "PublicKey is missing in this section; add it, or remove the section")
        key = self.one(section, "PublicKey", lambda text: (values.public_key(text), text))
        return "" if key is None else key[1]

    def preshared_key(self, section: Section) -> str | None:
        """Return a pre-shared key in base64; zeros mean none, as for wg."""
        key = self.one(section, "PresharedKey", _key)
        return None if key is None or values.parse_key(key) == bytes(KEY_SIZE) else key

    def addresses(self, interface: Section) -> list[InterfaceAddress]:
        """Return the addresses, each once; of two that differ only in their prefix, the one of the wider network."""
        found: dict[HostAddress, InterfaceAddress] = {}
        is_missing = True
        for setting in interface.all("Address"):
            for word in filter(None, _WORDS.split(setting.value)):
                is_missing = False
                address = self.parsed(setting, word, _address)
                if address is None:
                    continue
                before = found.setdefault(address.ip, address)
                if before.network.prefixlen != address.network.prefixlen:
                    found[address.ip] = min(before, address, key=lambda each: each.network.prefixlen)
                    kept = found[address.ip]
                    self.note(setting.line, f"{address.ip} has two networks: {kept} is kept, the wider one")
        if is_missing:
            self.wrong(
                interface.line,
                "Address is missing: expected the addresses in the tunnel; add the current one, such as 10.0.0.1/24",
            )
        return list(found.values())

    def networks(self, section: Section) -> list[Network]:
        """Return the allowed IPs of a peer, each once."""
        found = []
        for setting in section.all("AllowedIPs"):
            for word in setting.value.split(","):
                network = self.parsed(setting, "".join(word.split()), _network) if word.strip() else None
                if network is not None:
                    found.append(network)
        return list(dict.fromkeys(found))

    def endpoint(self, section: Section) -> str | None:
        """Return an endpoint; an IPv6 address without brackets ends at the last colon, as for wg."""
        setting = section.last("Endpoint")
        if setting is None:
            return None
        given = "".join(setting.value.split())
        host, _, port = given.rpartition(":")
        if ":" in host and not host.startswith("[") and _is_ipv6(host):
            self.note(setting.line, f"Endpoint = {given} is read as [{host}]:{port}, as by wg")
            given = f"[{host}]:{port}"
        return self.parsed(setting, given, values.endpoint)

    def keepalive(self, section: Section) -> int | None:
        """Return seconds, 0 for off."""
        return self.one(section, "PersistentKeepalive", _keepalive)

    def port(self, interface: Section) -> int:
        """Return the port to listen at, 0 for any."""
        return self.one(interface, "ListenPort", number(PORT_MAX)) or 0

    def mtu(self, interface: Section) -> int | None:
        """Return the MTU, None where wg-quick computes it."""
        return self.one(interface, "MTU", number(PORT_MAX), empty=True)

    def table(self, interface: Section) -> str | int:
        """Return the routing table: "auto", "off" or a number."""
        return self.one(interface, "Table", _table, empty=True) or "auto"

    def mark(self, interface: Section) -> int | None:
        """Return the mark of the tunnel's own packets: 0 for none, None where it is not given."""
        return self.one(interface, "FwMark", _mark)

    def saves_config(self, interface: Section) -> bool:
        """Return whether wg-quick writes the file."""
        return bool(self.one(interface, "SaveConfig", _truth))

    def name_servers(self, interface: Section) -> list[HostAddress | str]:
        """Return the name servers and search domains of DNS =, separated by commas or blanks as for wg-quick."""
        found: list[HostAddress | str] = []
        for setting in interface.all("DNS"):
            for word in filter(None, _WORDS.split(setting.value)):
                try:
                    found.append(values.name_server(word))
                except InvalidValueError as error:
                    self.note(setting.line, f"DNS = {show('DNS', word)}: ignored: expected {error.expected}")
        if found and all(isinstance(entry, str) for entry in found):
            self.remark("DNS has no name server, so its domains are ignored, as by wg-quick")
            return []
        return list(dict.fromkeys(found))


def own_public_key(private_key: str) -> str:
    """Return the public key of a private key, both in base64; "" if it is none."""
    key = values.parse_key(private_key)
    return "" if key is None else values.format_key(public_key(key))


def number(largest: int) -> Callable[[str], int]:
    """Return a parser of whole numbers up to `largest`."""

    def parse(text: str) -> int:
        if not (text.isascii() and text.isdigit() and len(text) <= 10 and int(text) <= largest):
            raise InvalidValueError(f"a whole number from 0 to {largest}")
        return int(text)

    return parse


def _key(text: str) -> str:
    if values.parse_key(text) is None:
        raise InvalidValueError("a key: 44 characters of base64 for 32 bytes")
    return text


def _keepalive(text: str) -> int:
    return 0 if text.lower() == "off" else number(KEEPALIVE_SECS_MAX)(text)


def _mark(text: str) -> int:
    expected = f"a number from 0 to {MARK_MAX:#x}, or off"
    digits = text[2:] if text.startswith("0x") else text
    is_number = re.fullmatch(r"[0-9a-fA-F]{1,10}", digits) if text.startswith("0x") else re.fullmatch(r"\d{1,10}", text)
    if text.lower() == "off":
        return 0
    if not is_number or not text.isascii():
        raise InvalidValueError(expected)
    mark = int(digits, 16 if text.startswith("0x") else 10)
    if mark > MARK_MAX:
        raise InvalidValueError(expected)
    return mark


def _table(text: str) -> str | int:
    if text in ("auto", "off"):
        return text
    if text in _TABLES:
        return _TABLES[text]
    try:
        table = _mark(text)
    except InvalidValueError:
        table = 0
    if not table:
        raise InvalidValueError("auto, off, or the number of a routing table", "/etc/iproute2/rt_tables has its number")
    return table


def _truth(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise InvalidValueError("true or false")
    return text.lower() == "true"


def _is_ipv6(host: str) -> bool:
    try:
        IPv6Address(host)
    except ValueError:
        return False
    return True


def _address(text: str) -> InterfaceAddress:
    try:
        whole = text if "/" in text else str(ip_interface(text))
    except ValueError:
        raise InvalidValueError("an address, with the length of its network's prefix, such as 10.0.0.1/24") from None
    return values.interface_address(whole)


def _network(text: str) -> Network:
    expected = "a network, such as 10.0.0.2/32"
    _, slash, prefix = text.partition("/")
    if slash and not (prefix.isascii() and prefix.isdigit()):
        raise InvalidValueError(expected)
    try:
        masked = str(ip_network(text, strict=False))
    except ValueError:
        raise InvalidValueError(expected) from None
    return values.network(masked)
