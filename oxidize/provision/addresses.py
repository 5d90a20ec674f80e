"""The next free address in a server's networks.

The rule: a new address is not in use: it is neither the server's nor in a peer's allowed IPs, and it has no special
meaning in its network. A peer that has the whole network, such as one with a default route, takes no address away: the
new one's prefix is longer. Sources: RFC 1122 section 3.2.1.3 (network and broadcast address), RFC 3021 (/31), RFC 4291
section 2.6.1 (the subnet-router anycast address), RFC 6164 (/127).
"""

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from ipaddress import ip_interface, ip_network

from oxidize.config import HostAddress, InterfaceAddress, Network
from oxidize.config.checks import contains
from oxidize.errors import ConfigError


def free_addresses(own: Sequence[InterfaceAddress], taken: Iterable[Network]) -> tuple[InterfaceAddress, ...]:
    """Return the lowest free address in each network of `own`, with the network's prefix length.

    If one host number is free in all networks, all addresses have it, so that 10.9.0.7 and fd09::7 are the same peer's.
    Raises ConfigError with a line for each network that is full.
    """
    hosts, networks = [address.network.__class__(address.ip) for address in own], list(taken)
    spaces = [
        _Space(network, [*hosts, *(other for other in networks if not contains(other, network))])
        for network in tunnel_networks(own)
    ]
    full = [space.network for space in spaces if space.next_free(0) is None]
    if full:
        raise ConfigError(
            *(
                f"{network}: no free address: expected one that is neither the server's nor in a peer's allowed_ips; "
                f"give [server] address another network, or remove a peer"
                for network in full
            )
        )
    common = _common(spaces)
    numbers = [space.next_free(0) if common is None else common for space in spaces]
    return tuple(space.host(number) for space, number in zip(spaces, numbers, strict=True) if number is not None)


def chosen_addresses(
    own: Sequence[InterfaceAddress], owners: Mapping[Network, str], chosen: Sequence[HostAddress]
) -> tuple[InterfaceAddress, ...]:
    """Return these addresses with the prefix length of their network, and a free one for a family that has none.

    owners: the names of the peers by their allowed IPs. A server whose own addresses are networks of one address has
    none that another address could lie in. Raises ConfigError with a line for each address that cannot be had.
    """
    networks = tunnel_networks(own)
    problems, found = [], []
    for address in chosen:
        family = [network for network in networks if network.version == address.version]
        around = next((network for network in family if address in network and network.num_addresses > 1), None)
        host = ip_network(address)
        if any(address == each.ip for each in own):
            problems.append(f"{address}: expected an address that is not the server's own; choose another one")
        elif host in owners:
            problems.append(f"{address}: expected an address that no peer has, but {owners[host]} has it")
        elif around is None and not (family and all(network.num_addresses == 1 for network in family)):
            places = " or ".join(map(str, networks))
            problems.append(f"{address}: expected an address in {places}, or give [server] address another network")
        elif around is not None and not _Space(around, []).is_free(address):
            problems.append(f"{address}: expected an address that a host can have in {around}; choose another one")
        else:
            found.append(ip_interface(f"{address}/{(around or host).prefixlen}"))
    if problems:
        raise ConfigError(*(f"--address {problem}" for problem in problems))
    others = [each for each in own if each.version not in {address.version for address in chosen}]
    return (*found, *(free_addresses(others, owners) if others else ()))


def tunnel_networks(own: Sequence[InterfaceAddress]) -> tuple[Network, ...]:
    """Return the networks of the server's addresses, each once; of two that overlap, the smaller one."""
    networks = list(dict.fromkeys(address.network for address in own))
    return tuple(
        network
        for network in networks
        if not any(contains(network, other) for other in networks if other is not network)
    )


class _Space:
    """The host numbers of one network, and the ranges of them that are taken."""

    def __init__(self, network: Network, claimed: Iterable[Network]) -> None:
        self.network = network
        self._base = int(network.network_address)
        ranges = [self._range(other) for other in claimed if contains(network, other)]
        if network.max_prefixlen - network.prefixlen > 1:
            ranges.append((0, 1))
            if network.version == 4:
                ranges.append((network.num_addresses - 1, network.num_addresses))
        self._ranges = _merge(ranges)
        self._starts = [start for start, _ in self._ranges]

    def _range(self, other: Network) -> tuple[int, int]:
        first = int(other.network_address) - self._base
        return first, first + other.num_addresses

    def next_free(self, number: int) -> int | None:
        """Return the first free host number from `number` on, or None."""
        before = bisect_right(self._starts, number) - 1
        if before >= 0 and number < self._ranges[before][1]:
            number = self._ranges[before][1]
        return number if number < self.network.num_addresses else None

    def is_free(self, address: HostAddress) -> bool:
        """Return whether an address of the network is free."""
        number = int(address) - self._base
        return self.next_free(number) == number

    def host(self, number: int) -> InterfaceAddress:
        """Return an address by its host number."""
        return ip_interface((self._base + number, self.network.prefixlen))


def _common(spaces: Sequence[_Space]) -> int | None:
    """Return the lowest host number that is free in all networks, or None."""
    number = 0
    while True:
        found = [space.next_free(number) for space in spaces]
        if any(candidate is None for candidate in found):
            return None
        highest = max(candidate for candidate in found if candidate is not None)
        if highest == number:
            return number
        number = highest


def _merge(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the same numbers as sorted ranges that neither touch nor overlap."""
    merged: list[tuple[int, int]] = []
    for start, end in sorted(ranges):
        if merged and start <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(end, merged[-1][1])
        else:
            merged.append((start, end))
    return merged
