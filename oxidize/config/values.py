"""Single values of a configuration file: text in, parsed value out.

The rule: a value that can be read in two ways is refused, with the text that was probably meant. Sources: RFC 4632 and
RFC 4291 for networks, RFC 1123 section 2.1 for host names, RFC 3986 section 3.2.2 for `[address]:port`, RFC 4007
section 11 for zones, wg(8) for keys.
"""

import base64
import binascii
import contextlib
import re
import socket
import unicodedata
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
    ip_address,
    ip_interface,
    ip_network,
)
from typing import Literal, NamedTuple, TypeGuard

from oxidize.protocol.constants import KEY_SIZE, PEERS_MAX

InterfaceAddress = IPv4Interface | IPv6Interface
Network = IPv4Network | IPv6Network
HostAddress = IPv4Address | IPv6Address
HostPort = tuple[str, int]
NetworkKind = Literal["tun", "userspace"]
RoutingTable = Literal["auto", "off"] | int
PublicEndpoint = tuple[str, int | None]  # a host, an IPv6 address without brackets, and a port if one was given

INTERFACE_NAME_MAX = 15  # IFNAMSIZ without its NUL
PEER_NAME_MAX = 64  # no standard's: a name is a column of `oxidize status` and a field of log lines
PEER_NAME_BYTES_MAX = 128  # in UTF-8: a file name of 255 bytes holds it, with a tunnel's name and an ending
PORT_MAX = 65_535
HOST_NAME_MAX = 253  # RFC 1035 section 2.3.4, without the root's dot
# --- linux/rtnetlink.h: the numbers of routing tables ---
MAIN_TABLE, LOCAL_TABLE = 254, 255
KERNELS_TABLES = range(253, 256)
TABLE_MAX = FWMARK_MAX = 0xFFFF_FFFF  # struct fib_rule_hdr's attributes and SO_MARK have 32 bits
FWMARK_DEFAULT = 0x6F78  # "ox"; wg-quick(8) begins at 0xca6c

_HOST_PORT = re.compile(r"(?:\[(?P<v6>[^\]\[\0]+)\]|(?P<host>[^:\[\]]+)):(?P<port>[0-9]{1,5})")
_HOST_LABEL = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
# Not beginning with "-": the name is an argument of other programs.
_INTERFACE_NAME = re.compile(rf"[A-Za-z0-9_=+.][A-Za-z0-9_=+.-]{{0,{INTERFACE_NAME_MAX - 1}}}")
# What Linux itself refuses: two folders, and two that sysctls have (net/ipv4/devinet.c).
_RESERVED_INTERFACE_NAMES = frozenset({".", "..", "all", "default"})
_ZONE = re.compile(rf"[A-Za-z0-9_.-]{{1,{INTERFACE_NAME_MAX}}}")
_PEER_NAME = re.compile(rf"[^\W_][\w.@-]{{0,{PEER_NAME_MAX - 1}}}")

# The points of small order of Curve25519 (RFC 7748 section 6.1): with them every shared secret is zero, and no
# private key has them as its public key. The top bit of a key is ignored, hence the mask in `public_key`.
_SMALL_ORDER = frozenset(
    bytes.fromhex(point)
    for point in (
        "00" * 32,
        "01" + "00" * 31,
        "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
        "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
        "ec" + "ff" * 30 + "7f",
        "ed" + "ff" * 30 + "7f",
        "ee" + "ff" * 30 + "7f",
    )
)


class NameServers(NamedTuple):
    """The name servers to use while the tunnel of `interface` is up; none where `servers` is empty.

    domains: search domains, appended one after the other to a name that is not found as it stands.
    """

    interface: str
    servers: tuple[HostAddress, ...]
    domains: tuple[str, ...]


class InvalidValueError(ValueError):
    """A value is refused: `expected` completes "expected ...", `remedy` says what to do (None: the field's default)."""

    def __init__(self, expected: str, remedy: str | None = None) -> None:
        super().__init__(expected)
        self.expected = expected
        self.remedy = remedy


def text(value: object, expected: str) -> str:
    """Return the value if it is a non-empty string; raises InvalidValueError."""
    if not isinstance(value, str) or not value:
        raise InvalidValueError(expected)
    return value


def parse_key(encoded: str) -> bytes | None:
    """Return the 32 bytes of a key in the one base64 form that wg writes, or None."""
    try:
        key = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        return None
    return key if len(key) == KEY_SIZE and format_key(key) == encoded else None


def format_key(key: bytes) -> str:
    """Return a key in base64, as wg writes it."""
    return base64.b64encode(key).decode()


def public_key(value: object) -> bytes:
    """Parse a public key in base64; raises InvalidValueError."""
    expected = "a public key: 44 characters of base64 for 32 bytes"
    key = parse_key(text(value, expected))
    if key is None:
        raise InvalidValueError(expected)
    if key[:-1] + bytes([key[-1] & 0x7F]) in _SMALL_ORDER:
        raise InvalidValueError("a public key that some private key has; this is a point of small order")
    return key


def interface_address(value: object) -> InterfaceAddress:
    """Parse an interface's address with the length of its network's prefix; raises InvalidValueError."""
    expected = 'an address with the length of its network\'s prefix, such as "10.0.0.1/24" or "fd00::1/64"'
    given = text(value, expected)
    address, slash, prefix = given.partition("/")
    if slash and not _is_number(prefix):
        raise InvalidValueError(expected)
    try:
        parsed = ip_interface(given)
    except ValueError:
        raise InvalidValueError(expected) from None
    if not slash:
        raise InvalidValueError(expected, f'write "{address}/{parsed.max_prefixlen}" if it has no network')
    if parsed.ip.is_unspecified or parsed.ip.is_multicast or "%" in given:
        raise InvalidValueError("an address that one machine can have, without a zone")
    return parsed


def network(value: object) -> Network:
    """Parse a network in CIDR notation, or one address as a network of its own; raises InvalidValueError."""
    expected = 'a network in CIDR notation, such as "10.0.0.2/32" or "fd00:1::/64"'
    given = text(value, expected)
    _, slash, prefix = given.partition("/")
    if (slash and not _is_number(prefix)) or "%" in given:
        raise InvalidValueError(expected)
    with contextlib.suppress(OSError, ValueError):
        return _usual_network(given)
    try:
        parsed = ip_network(given, strict=False)
    except ValueError:
        raise InvalidValueError(expected) from None
    if slash and parsed.network_address != ip_interface(given).ip:
        host = f"{ip_interface(given).ip}/{parsed.max_prefixlen}"
        raise InvalidValueError(
            f"a network without host bits after its prefix of {parsed.prefixlen}",
            f'write "{parsed}" for the network, or "{host}" for the one address',
        )
    return parsed


def _usual_network(given: str) -> Network:
    """Return a network in the form that most have, at a fifth of the cost; raises OSError or ValueError for others."""
    address, _, prefix = given.partition("/")
    if ":" in address:
        return IPv6Network((socket.inet_pton(socket.AF_INET6, address), int(prefix or 128)))
    return IPv4Network((socket.inet_pton(socket.AF_INET, address), int(prefix or 32)))


def listen_address(value: object) -> HostPort:
    """Parse "address:port", a literal address to bind; port 0 lets the kernel choose; raises InvalidValueError."""
    expected = '"address:port" or "[IPv6 address]:port", with a literal address and a port from 0 to 65535'
    host, port, is_v6 = _split_host_port(text(value, expected), expected)
    if _literal(host, is_v6) is None:
        raise InvalidValueError(expected)
    return host, port


def endpoint(value: object) -> str:
    """Check "host:port", where host is an address or a name, which is not looked up; raises InvalidValueError."""
    expected = '"host:port" or "[IPv6 address]:port", with a port from 1 to 65535'
    given = text(value, expected)
    host, port, is_v6 = _split_host_port(given, expected)
    literal = _literal(host, is_v6)
    if port == 0 or (literal is None and (is_v6 or not _is_host_name(host))):
        raise InvalidValueError(expected)
    if literal is not None and (literal.is_unspecified or literal.is_multicast):
        raise InvalidValueError("the address of one machine")
    return given


def public_endpoint(value: object) -> PublicEndpoint:
    """Parse "host" or "host:port", an IPv6 address with or without brackets; raises InvalidValueError."""
    expected = '"host" or "host:port", the name or the address of one machine as its clients see it'
    given = text(value, expected)
    bare = given.removeprefix("[").removesuffix("]")
    is_v6 = _literal(bare, is_v6=True) is not None
    has_port = not is_v6 and ":" in given
    whole = given if has_port else f"[{bare}]:1" if is_v6 else f"{given}:1"
    try:
        endpoint(whole)
    except InvalidValueError as error:
        raise InvalidValueError(expected, error.remedy) from None
    host, port, _ = _split_host_port(whole, expected)
    return host, port if has_port else None


def listen_address_or_none(value: object) -> HostPort | None:
    """Parse `listen_address`, or "" or false for None; raises InvalidValueError."""
    if value is False or value == "":
        return None
    try:
        return listen_address(value)
    except InvalidValueError as error:
        raise InvalidValueError(f'{error.expected}, or "" for none', error.remedy) from None


def number_of_peers(value: object) -> int:
    """Parse a number of peers, true for all that there may be, false for none; raises InvalidValueError."""
    if isinstance(value, bool):
        return PEERS_MAX if value else 0
    if isinstance(value, int) and 0 <= value <= PEERS_MAX:
        return value
    raise InvalidValueError(f"true, false, or a whole number from 0 to {PEERS_MAX}")


def host_address(endpoint: str) -> HostAddress | None:
    """Return the address in a "host:port" that passed `endpoint`, or None for a name."""
    host = endpoint.rpartition(":")[0]
    return _literal(host.strip("[]"), is_v6=host.startswith("["))


def name_server(value: object) -> HostAddress | str:
    """Parse the address of a name server, or a domain to search in; raises InvalidValueError."""
    expected = 'the address of a name server, such as "10.0.0.1", or a domain to search in'
    given = text(value, expected)
    try:
        parsed = ip_address(given)
    except ValueError:
        if not _is_host_name(given):
            raise InvalidValueError(expected) from None
        return given.removesuffix(".")
    if parsed.is_unspecified or parsed.is_multicast or "%" in given:
        raise InvalidValueError("an address that one machine can have, without a zone")
    return parsed


def interface_name(value: object) -> str:
    """Check the name of a network interface; raises InvalidValueError."""
    expected = (
        f'1 to {INTERFACE_NAME_MAX} of letters, digits and _ = + . -, not beginning with -, nor "all" or "default"'
    )
    given = text(value, expected)
    if not _INTERFACE_NAME.fullmatch(given) or given in _RESERVED_INTERFACE_NAMES:
        raise InvalidValueError(expected)
    return given


def routing_table(value: object) -> RoutingTable:
    """Check the routing table of a tunnel; raises InvalidValueError."""
    if value == "auto":
        return "auto"
    if value == "off":
        return "off"
    if type(value) is int and 0 < value <= TABLE_MAX and value != LOCAL_TABLE:
        return value
    raise InvalidValueError(
        f'"auto", "off", or the number of a table from 1 to {TABLE_MAX} other than {LOCAL_TABLE}, the kernel\'s own',
        _number_remedy(value),
    )


def fwmark(value: object) -> int:
    """Check the mark of a tunnel's own packets, 0 for "off"; raises InvalidValueError."""
    if value == "off":
        return 0
    if type(value) is int and 0 <= value <= FWMARK_MAX:
        return value
    raise InvalidValueError(f'"off", or a whole number from 0 to {FWMARK_MAX}', _number_remedy(value))


def _number_remedy(value: object) -> str | None:
    """Return a remedy for a number that is written as text, None if it is something else."""
    try:
        return f"write {int(value, 0)}, a number without quotes" if isinstance(value, str) else None
    except ValueError:
        return None


def is_peer_name(value: object) -> TypeGuard[str]:
    """Return whether this can be the name of a peer: letters of any script, in the one form that NFC gives them."""
    if not isinstance(value, str) or _PEER_NAME.fullmatch(value) is None:
        return False
    return value.isascii() or (
        len(value.encode()) <= PEER_NAME_BYTES_MAX and value.isprintable() and unicodedata.is_normalized("NFC", value)
    )


def peer_name(value: object) -> str:
    """Check the name of a peer; raises InvalidValueError."""
    expected = (
        f"1 to {PEER_NAME_MAX} of letters, digits and _ . @ -, beginning with a letter or a digit, and at most "
        f"{PEER_NAME_BYTES_MAX} bytes"
    )
    if not is_peer_name(value):
        raise InvalidValueError(expected)
    return value


def file_path(value: object) -> str:
    """Check the path of a file; raises InvalidValueError."""
    expected = "the path of a file, relative to the folder of this configuration"
    given = text(value, expected)
    if "\0" in given:
        raise InvalidValueError(expected)
    return given


def one_or_many(value: object) -> tuple[object, ...]:
    """Return the items of a list, or one value as the only item."""
    return tuple(value) if isinstance(value, list) else (value,)


def one_or_more_addresses(value: object) -> tuple[object, ...]:
    """Return the items of a list that is not empty, or one value as the only item; raises InvalidValueError."""
    if value == []:
        raise InvalidValueError("one or more addresses in CIDR notation")
    return one_or_many(value)


def list_of_networks(value: object) -> tuple[object, ...]:
    """Return the items of a list; raises InvalidValueError for anything else."""
    if not isinstance(value, list):
        raise InvalidValueError("a list of networks in CIDR notation", 'write it as a list, such as ["10.0.0.2/32"]')
    return tuple(value)


def _is_number(digits: str) -> bool:
    return digits.isascii() and digits.isdigit()


def _split_host_port(given: str, expected: str) -> tuple[str, int, bool]:
    match = _HOST_PORT.fullmatch(given)
    if match is None or int(match["port"]) > PORT_MAX:
        raise InvalidValueError(expected, _bracket_remedy(given))
    return match["v6"] or match["host"], int(match["port"]), match["v6"] is not None


def _bracket_remedy(given: str) -> str | None:
    """Return a remedy for an IPv6 address without brackets, None if it is something else."""
    host, _, port = given.rpartition(":")
    if _literal(host, is_v6=True) is None or not _is_number(port):
        return None
    return f'write "[{host}]:{port}"'


def _literal(host: str, is_v6: bool) -> IPv4Address | IPv6Address | None:
    """Return the address that a text is; Python takes anything for a zone, which is the name of an interface."""
    try:
        parsed = ip_address(host)
    except ValueError:
        return None
    zone = parsed.scope_id if isinstance(parsed, IPv6Address) else None
    if zone is not None and not _ZONE.fullmatch(zone):
        return None
    return parsed if isinstance(parsed, IPv6Address) == is_v6 else None


def _is_host_name(host: str) -> bool:
    labels = host.removesuffix(".").split(".")
    # A name whose last label is a number would be a mistyped address (RFC 1123 section 2.1).
    return len(host) <= HOST_NAME_MAX and all(map(_HOST_LABEL.fullmatch, labels)) and not _is_number(labels[-1])
