"""The tables [server.nat] and [[server.nat.forward]] of a configuration file; see `schema` for the rule.

A mistake is reported under the key of the inner table, such as `server.nat.forward[2].to`; what holds the table then
has no value there.
"""

from collections.abc import Iterable
from typing import Annotated

from pydantic import BeforeValidator, Field, PlainValidator, ValidationInfo

from oxidize.config import nat, values
from oxidize.config.nat import (
    DESTINATIONS_MAX,
    FORWARDS_MAX,
    SOURCES_MAX,
    NatSettings,
    PortForward,
    Ports,
    Protocol,
    Target,
)
from oxidize.config.validation import Table, check_table, table_of
from oxidize.config.values import HostAddress, InterfaceAddress, InvalidValueError, Network

_InterfaceName = Annotated[str, PlainValidator(values.interface_name)]
_Network = Annotated[Network, PlainValidator(values.network)]
_BRACKETS = "write a table [[server.nat.forward]] for each, with two brackets"


def _destinations(value: object) -> tuple[object, ...]:
    listed = values.one_or_many(value)
    if len(listed) > DESTINATIONS_MAX:
        raise InvalidValueError(f"at most {DESTINATIONS_MAX} addresses or networks", "join them to larger networks")
    return listed


class ForwardTable(Table):
    """One table [[server.nat.forward]]."""

    protocol: Protocol = Field(description='"tcp", "udp" or "both"', examples=["tcp"])
    """What is forwarded: TCP, UDP, or both."""
    ports: Annotated[Ports, PlainValidator(nat.ports)] = Field(
        alias="port", description='a port, or a range as "first-last"', examples=[443]
    )
    """The port that packets are sent to, 1 to 65535, or a range of ports with both ends included. Of UDP not the port
    that the server itself listens at, except where they come in by the tunnel."""
    target: Annotated[Target, PlainValidator(nat.target)] = Field(
        alias="to", description='"address:port", or an address', examples=["10.0.0.2:443"]
    )
    """Where they go instead: `"10.0.0.2:8443"`, `"[fd00::2]:8443"`, or an address alone, which keeps the port, as a
    range of ports needs. Only packets of this address's family are forwarded."""
    interface: _InterfaceName | None = Field(None, description="a name")
    """The interface by which they come in; without this key any."""
    destinations: Annotated[tuple[_Network, ...], BeforeValidator(_destinations)] = Field(
        default=[], validate_default=True, alias="address", description="an address, a network, or a list"
    )
    """The addresses or networks that they are sent to; without this key all addresses of this machine. `"0.0.0.0/0"`
    is every destination, also those that this machine only passes on."""
    masquerade: bool = Field(default=False, description="true or false")
    """Whether the target sees this machine's address as their source. A client whose `AllowedIPs` have no default
    route needs that: it drops packets from the Internet, and sends its answers past the tunnel."""

    def settings(self) -> PortForward:
        """Return what a server needs of it."""
        return PortForward(self.protocol, self.ports, self.target, self.interface, self.destinations, self.masquerade)


def _sources(value: object) -> tuple[object, ...]:
    listed = values.list_of_networks(value)
    if len(listed) > SOURCES_MAX:
        raise InvalidValueError(f"at most {SOURCES_MAX} networks", "join them to larger ones")
    return listed


def _forwards(value: object, info: ValidationInfo) -> tuple[ForwardTable, ...]:
    """Validate the tables [[server.nat.forward]]; raises InvalidValueError where they are none."""
    if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
        raise InvalidValueError("tables [[server.nat.forward]]", _BRACKETS)
    if len(value) > FORWARDS_MAX:
        raise InvalidValueError(f"at most {FORWARDS_MAX} tables", "forward ranges of ports")
    outer = table_of(info)
    found = [
        check_table(ForwardTable, each, f"{outer.prefix}.forward[{number}]", outer.source).table
        for number, each in enumerate(value, start=1)
    ]
    right = tuple(each for each in found if each is not None)
    return right if len(right) == len(found) else ()


class NatTable(Table):
    """The table [server.nat]; without any key it is `nat = true`."""

    sources: Annotated[tuple[_Network, ...], BeforeValidator(_sources)] | None = Field(
        None, description="a list of networks"
    )
    """The networks whose packets are translated where they leave; an empty list translates none. Without this key those
    of the server's `address`; in a family whose addresses are all `/32` or `/128`, where no peer can be in them,
    everything that comes out of the tunnel. Other networks count only for packets that come out of the tunnel, so
    `["0.0.0.0/0"]` is whatever peers send by IPv4, sites too."""
    interface: _InterfaceName | None = Field(None, description="a name")
    """The interface by which packets leave that are translated; without this key any but the tunnel's and `lo`."""
    snat: Annotated[
        tuple[Annotated[HostAddress, PlainValidator(nat.source_address)], ...], BeforeValidator(values.one_or_many)
    ] = Field(default=[], validate_default=True, description="an address, or a list with one of IPv4 and one of IPv6")
    """The address that packets leave with (SNAT). It belongs to this machine, or is routed to it. Packets of a family
    without one leave with the address of the interface (masquerading)."""
    forwards: Annotated[tuple[ForwardTable, ...], PlainValidator(_forwards)] = Field(
        default=[], validate_default=True, alias="forward", description="tables [[server.nat.forward]]"
    )
    """The ports that are forwarded (DNAT), at most 256 tables. Of two that match the first applies."""

    def settings(self, addresses: Iterable[InterfaceAddress]) -> NatSettings:
        """Return what a server of these addresses needs of it."""
        sources = nat.default_sources(addresses) if self.sources is None else self.sources
        return NatSettings(sources, self.interface, self.snat, tuple(each.settings() for each in self.forwards))
