"""The extent of a server's address translation: what leaves with which address, and which ports are forwarded.

The rule: these are the words of iptables(8) and nft(8), and mean what they mean there: sources (-s), an outgoing
interface (-o), SNAT's address or masquerading, and DNAT's ports with the interface (-i) and the address (-d) that they
come in at. A port forward applies to what is sent to this machine, unless it names other destinations: otherwise it
would catch the clients' own connections to that port of others.

Nothing here imports the schema, which a start after a crash does without (`runtime.validated`). Source:
iptables-extensions(8), MASQUERADE, SNAT and DNAT.
"""

import re
from collections.abc import Iterable
from ipaddress import ip_address, ip_network
from typing import Any, Literal, NamedTuple

from oxidize.config.values import PORT_MAX, HostAddress, InterfaceAddress, InvalidValueError, Network, text

# All are rules, which the first packet of every flow passes one after the other.
FORWARDS_MAX = 256
DESTINATIONS_MAX = 16  # of one forward
SOURCES_MAX = 256

Protocol = Literal["tcp", "udp", "both"]
PROTOCOLS: dict[Protocol, tuple[str, ...]] = {"tcp": ("tcp",), "udp": ("udp",), "both": ("tcp", "udp")}
EVERYTHING = {4: ip_network("0.0.0.0/0"), 6: ip_network("::/0")}

_PORTS = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?")
_TARGET = re.compile(r"(?:\[(?P<v6>[^\]\[]+)\]|(?P<v4>[0-9.]+)):(?P<port>[0-9]{1,5}(?:-[0-9]{1,5})?)")


class Ports(NamedTuple):
    """A range of ports, both ends included."""

    first: int
    last: int

    @property
    def given(self) -> int | str:
        """As in the configuration: a number, or "first-last"."""
        return self.first if self.first == self.last else f"{self.first}-{self.last}"

    def __str__(self) -> str:
        return str(self.given)


class Target(NamedTuple):
    """Where a port is forwarded to. port: None for the one that a packet was sent to."""

    address: HostAddress
    port: int | None

    def __str__(self) -> str:
        if self.port is None:
            return str(self.address)
        return f"[{self.address}]:{self.port}" if self.address.version == 6 else f"{self.address}:{self.port}"


class PortForward(NamedTuple):
    """Packets that go to another host than they were sent to.

    interface: by which they come in, None for any. destinations: what they are sent to; empty for the addresses of this
    machine. masquerade: whether the target sees the address of this machine as their source.
    """

    protocol: Protocol
    ports: Ports
    target: Target
    interface: str | None
    destinations: tuple[Network, ...]
    masquerade: bool


class NatSettings(NamedTuple):
    """What is translated.

    sources: where packets come from. interface: by which they leave, None for any but the tunnel's. snat: the addresses
    that they leave with, one of a family at most; without one it is that of the interface.
    """

    sources: tuple[Network, ...]
    interface: str | None
    snat: tuple[HostAddress, ...]
    forwards: tuple[PortForward, ...]

    @classmethod
    def unpacked(cls, packed: Iterable[Any]) -> "NatSettings":
        """Return the settings that were packed as nested arrays (`runtime.validated`)."""
        sources, interface, snat, forwards = packed
        return cls(sources, interface, snat, tuple(_forward(*each) for each in forwards))

    def describe(self) -> dict[str, Any]:
        """Return all of it for a status, as JSON has it; the names are those of the configuration."""
        return {
            "sources": list(map(str, self.sources)),
            "interface": self.interface,
            "snat": list(map(str, self.snat)),
            "forward": [
                {
                    "protocol": each.protocol,
                    "port": each.ports.given,
                    "to": str(each.target),
                    "interface": each.interface,
                    "address": [
                        str(network).removesuffix(f"/{network.max_prefixlen}") for network in each.destinations
                    ],
                    "masquerade": each.masquerade,
                }
                for each in self.forwards
            ],
        }


def _forward(
    protocol: Protocol,
    ports: Iterable[int],
    target: Iterable[Any],
    interface: str | None,
    destinations: tuple[Network, ...],
    masquerade: bool,
) -> PortForward:
    return PortForward(protocol, Ports(*ports), Target(*target), interface, destinations, masquerade)


def default_sources(addresses: Iterable[InterfaceAddress]) -> tuple[Network, ...]:
    """Return the networks of a server's addresses.

    Where all addresses of a family are hosts, /32 or /128, their networks have no peer: then it is the whole family,
    of which only what comes out of the tunnel is translated.
    """
    networks = {address.network for address in addresses}
    hosts = {
        version
        for version in EVERYTHING
        if all(each.prefixlen == each.max_prefixlen for each in networks if each.version == version)
    }
    return tuple(sorted({EVERYTHING[each.version] if each.version in hosts else each for each in networks}, key=str))


# --- The values of the configuration ---


def ports(value: object) -> Ports:
    """Parse a port, or a range of them as "first-last"; raises InvalidValueError."""
    expected = f'a port from 1 to {PORT_MAX}, or a range of them, such as "8000-8010"'
    given = str(value) if isinstance(value, int) and not isinstance(value, bool) else text(value, expected)
    match = _PORTS.fullmatch(given)
    if match is None:
        raise InvalidValueError(expected, _remedy_for_ports(given))
    first, last = int(match[1]), int(match[2] or match[1])
    if not 1 <= first <= last <= PORT_MAX:
        raise InvalidValueError(expected)
    return Ports(first, last)


def _remedy_for_ports(given: str) -> str | None:
    """Return what to write for a spelling of iptables(8), None for anything else."""
    if _PORTS.fullmatch(given.replace(":", "-")):
        return f'write "{given.replace(":", "-")}"'
    return "write a table [[server.nat.forward]] for each" if "," in given else None


def target(value: object) -> Target:
    """Parse "address:port", "[IPv6 address]:port" or an address; raises InvalidValueError."""
    expected = '"address:port" or "[IPv6 address]:port", or an address alone, which keeps the port'
    given = text(value, expected)
    match = _TARGET.fullmatch(given)
    if match is None:
        bare = given[1:-1] if given.startswith("[") and given.endswith("]") else given
        host, _, port = given.rpartition(":")
        if bare == given and _address(given) is not None and _address(host) is not None and _PORTS.fullmatch(port):
            raise InvalidValueError(expected, f'write "[{host}]:{port}", or "[{given}]" if it has no port')
        return Target(_host(bare, expected), None)
    port = match["port"]
    if "-" in port:
        raise InvalidValueError(expected, f'write "{given.rpartition(":")[0]}": a range of ports keeps them')
    if not 1 <= int(port) <= PORT_MAX:
        raise InvalidValueError(expected)
    return Target(_host(match["v6"] or match["v4"], expected), int(port))


def source_address(value: object) -> HostAddress:
    """Parse an address for packets to leave with; raises InvalidValueError."""
    expected = 'an address, such as "203.0.113.9"'
    return _host(text(value, expected), expected)


def _host(given: str, expected: str) -> HostAddress:
    """Return an address that another machine can send to; raises InvalidValueError."""
    found = _address(given)
    if found is None:
        raise InvalidValueError(expected)
    if found.is_unspecified or found.is_multicast or found.is_loopback or (found.version == 6 and found.is_link_local):
        raise InvalidValueError("an address that other machines can send to")
    return found


def _address(given: str) -> HostAddress | None:
    try:
        return ip_address(given) if "%" not in given else None
    except ValueError:
        return None
