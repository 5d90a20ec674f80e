"""The interface's settings: state, MTU, queue, segments, addresses and routes, compared with the kernel's.

The rule: reconcile, never reset. Only what differs is changed, so that every generation may run this on the interface
that its predecessor serves, and a run without a difference touches nothing. All addresses of the interface are managed
here, except link-local ones, which the kernel makes; of its routes only those with this program's protocol number, in
whatever table. One is not: the default route that rules lead to, which belongs to `policy_routing`.

What is wanted is prepared once, before a process serves. A comparison works in slices, so that it may take place
between two batches of packets, with any number of routes.

Source: rtnetlink(7), linux/rtnetlink.h, linux/if_addr.h. It needs CAP_NET_ADMIN.
"""

import errno
import hashlib
import socket
from collections.abc import Collection, Iterable, Sequence
from functools import partial
from ipaddress import (
    IPv4Interface,
    IPv4Network,
    IPv6Interface,
    IPv6Network,
    ip_address,
)

from oxidize.config.values import MAIN_TABLE
from oxidize.errors import OxidizeError
from oxidize.hostnet.netlink import FAMILIES, ROUTE_PROTOCOL, remedy
from oxidize.hostnet.part import IncompleteError, Steps, run
from oxidize.hostnet.rtnetlink import (
    DUMPS_MAX,
    Key,
    Link,
    Request,
    RtnetlinkError,
    RtnetlinkSocket,
    change_address,
    change_route,
    family_of,
    read_all,
    set_link,
)

Interface = IPv4Interface | IPv6Interface
Network = IPv4Network | IPv6Network
Place = tuple[int, Key]  # of a route: the number of its table, and its destination

# Packets that wait in the TUN device while no process reads; the kernel's 500 overflow under one fast TCP stream.
TRANSMIT_QUEUE_PACKETS = 2_000
SEGMENTS_MAX = 65_535  # the kernel's own, for a new interface
# Routes, which the kernel changes in some 30 microseconds each, but some, when its tree changes shape, in 15 ms.
CHANGES_PER_SLICE = 4
KEYS_PER_SLICE = 2_000  # of a set that is sorted or compared

_REMEDIES = {
    errno.EACCES: "IPv6 is switched off on this interface: set net.ipv6.conf.*.disable_ipv6 to 0, or use IPv4 only",
    errno.EINVAL: "the kernel refuses the value (IPv6 needs an MTU of 1280 or more)",
    errno.EEXIST: "another interface has it: remove that one, or change the configuration",
}
# Nothing further can succeed after these.
_FATAL = frozenset({errno.EPERM, errno.ENODEV, errno.ENETDOWN})


def configure_interface(
    name: str, addresses: Sequence[Interface], mtu: int, routes: Sequence[Network], segments: int = SEGMENTS_MAX
) -> list[str]:
    """Bring an interface up and to this state at once; return the changes made, a line each.

    Parameters as of `InterfacePart`. Raises OxidizeError with the value that the kernel refused, and the remedy.
    """
    return run(InterfacePart(name, addresses, mtu, routes, segments).compare(repair=True))


def routes_needed(addresses: Iterable[Interface], routes: Iterable[Network]) -> set[Network]:
    """Return the routes that the networks of the interface's own addresses do not already provide."""
    own = [address.network for address in addresses]
    return {route for route in routes if not any(_contains(network, route) for network in own)}


def _contains(outer: Network, inner: Network) -> bool:
    if isinstance(outer, IPv4Network):
        return isinstance(inner, IPv4Network) and inner.subnet_of(outer)
    return isinstance(inner, IPv6Network) and inner.subnet_of(outer)


class InterfacePart:
    """The wanted state of one interface (`hostnet.part.Part`).

    mtu: bytes. routes: networks that lead into the interface, in `table`; in the main one those inside a network of
    `addresses` need no route of their own and are skipped. segments: into how many packets the kernel cuts at once what
    TCP sends, at most: as many as leave in one send, or each of its bursts would leave and arrive in two parts.
    policy_table: of the default routes that rules lead to, 0 for none. digest: of all of it, for a successor to compare
    with that of its own; a digest, since the routes of thousands of peers would not fit into the OFFER.
    """

    def __init__(
        self,
        name: str,
        addresses: Sequence[Interface],
        mtu: int,
        routes: Sequence[Network],
        segments: int,
        *,
        table: int = MAIN_TABLE,
        policy_table: int = 0,
    ) -> None:
        self.name = f"interface {name}"
        self._interface = name
        self._mtu = mtu
        self._segments = segments
        self._addresses = {(address.network.prefixlen, address.ip.packed) for address in addresses}
        self._policy_table = policy_table
        needed = routes_needed(addresses, routes) if table == MAIN_TABLE else set(routes)
        # Sorted now: with many routes it takes longer than a slice.
        keys = sorted(((route.prefixlen, route.network_address.packed) for route in needed), key=_order)
        self._routes: list[Place] = [(table, key) for key in keys]
        self._places = frozenset(self._routes)
        lines = [*sorted(map(str, addresses)), *sorted(map(str, needed)), str(mtu), str(segments)]
        lines += [f"table {table}"] if needed and table != MAIN_TABLE else []
        self.digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def compare(self, *, repair: bool) -> Steps[list[str]]:
        """Compare link, addresses and routes with the kernel's, in this order; see `Part`."""
        with RtnetlinkSocket() as kernel:
            comparison = _Comparison(kernel, self.name, repair=repair)
            link = comparison.find(self._interface)
            comparison.compare_link(link, self._mtu, self._segments)
            yield 0.0
            yield from comparison.compare_addresses(link.number, self._addresses)
            yield from comparison.compare_routes(link.number, self._routes, self._places, self._policy_table)
        if comparison.problems:
            raise IncompleteError(comparison.problems, comparison.changes)
        return comparison.changes


class _Comparison:
    """One comparison of one interface. changes: the differences. problems: those that could not be put right."""

    def __init__(self, kernel: RtnetlinkSocket, subject: str, *, repair: bool) -> None:
        self.changes: list[str] = []
        self.problems: list[str] = []
        self._kernel = kernel
        self._subject = subject
        self._repair = repair
        self._is_hopeless = False

    def find(self, name: str) -> Link:
        try:
            return self._kernel.link(name)
        except RtnetlinkError as error:
            raise OxidizeError(f"{self._subject}: {remedy(error.code, _REMEDIES)}") from error

    def compare_link(self, link: Link, mtu: int, segments: int) -> None:
        # One at a time, so that an error names the setting that was refused.
        if link.mtu != mtu:
            self._change([(f"mtu {mtu}", set_link(link.number, mtu=mtu))])
        if link.queue != TRANSMIT_QUEUE_PACKETS:
            request = set_link(link.number, queue=TRANSMIT_QUEUE_PACKETS)
            self._change([(f"txqlen {TRANSMIT_QUEUE_PACKETS}", request)])
        if link.segments not in {0, segments}:
            self._change([(f"gso_max_segs {segments}", set_link(link.number, segments=segments))])
        if not link.is_up:
            self._change([("state up", set_link(link.number, up=True))])

    def compare_addresses(self, index: int, wanted: set[Key]) -> Steps[None]:
        present = yield from self._read_addresses(index)
        hosts = {address for _, address in wanted}
        stale = {key for key in present - wanted if not ip_address(key[1]).is_link_local}
        # IPv6 refuses an address a second time, even with another prefix length. The others are removed last: with
        # its last IPv4 address an interface loses all its routes.
        conflicting = {key for key in stale if key[1] in hosts}
        self._change_addresses(index, conflicting, add=False)
        self._change_addresses(index, wanted - present, add=True)
        self._change_addresses(index, stale - conflicting, add=False)
        if stale and self._repair:
            # Removing a primary IPv4 address removes the secondary ones of its network.
            present = yield from self._read_addresses(index)
            self._change_addresses(index, wanted - present, add=True)

    def compare_routes(
        self, index: int, wanted: Sequence[Place], places: Collection[Place], policy_table: int
    ) -> Steps[None]:
        """Compare the routes. places: those of `wanted`. policy_table: whose default routes are not looked at."""
        present: set[Place] = set()
        managed: list[Place] = []
        for family in FAMILIES.values():
            yield from self._read_routes(family, index, policy_table, present, managed)
        yield from self._change_routes(index, managed, places, add=False)
        yield from self._change_routes(index, wanted, present, add=True)

    def _read_routes(
        self, family: int, index: int, policy_table: int, present: set[Place], managed: list[Place]
    ) -> Steps[None]:
        for _ in range(DUMPS_MAX):
            try:
                for found in self._kernel.routes_of(family, index=index):
                    for route in found:
                        if route.key[0] or route.table != policy_table:
                            place = (route.table, route.key)
                            present.add(place)
                            managed += [place] if route.protocol == ROUTE_PROTOCOL else []
                    yield 0.0
            except RtnetlinkError as error:
                if error.code != errno.EINTR:
                    raise OxidizeError(f"{self._subject}: routes: {remedy(error.code, _REMEDIES)}") from error
            else:
                return
        raise OxidizeError(f"{self._subject}: the routes change faster than they can be read; try again")

    def _read_addresses(self, index: int) -> Steps[set[Key]]:
        try:
            return set((yield from read_all(partial(self._kernel.addresses, index))))
        except RtnetlinkError as error:
            raise OxidizeError(f"{self._subject}: addresses: {remedy(error.code, _REMEDIES)}") from error

    def _change_addresses(self, index: int, keys: set[Key], *, add: bool) -> None:
        # It may be gone already, as a secondary address of the one removed before it.
        sign, done = ("+", 0) if add else ("-", errno.EADDRNOTAVAIL)
        for key in sorted(keys, key=_order):
            self._change([(f"address {sign}{_text(key)}", change_address(index, key, add=add))], done)

    def _change_routes(
        self, index: int, places: Sequence[Place], others: Collection[Place], *, add: bool
    ) -> Steps[None]:
        """Add or remove the routes in `places` that are not among `others`."""
        sign, done = ("+", 0) if add else ("-", errno.ESRCH)
        for start in range(0, len(places), KEYS_PER_SLICE):
            yield 0.0
            left = [place for place in places[start : start + KEYS_PER_SLICE] if place not in others]
            for first in range(0, len(left), CHANGES_PER_SLICE):
                if self._is_hopeless:
                    return
                requests = []
                for table, key in left[first : first + CHANGES_PER_SLICE]:
                    where = f" table {table}" if table != MAIN_TABLE else ""
                    request = change_route(index, key, table, ROUTE_PROTOCOL, add=add)
                    requests.append((f"route {sign}{_text(key)}{where}", request))
                self._change(requests, done)
                yield 0.0

    def _change(self, described: Sequence[tuple[str, Request]], done: int = 0) -> None:
        """Note differences, and put them right. done: the error which means that there was nothing left to do."""
        codes = self._kernel.change([request for _, request in described]) if self._repair else [0] * len(described)
        for (text, _), code in zip(described, codes, strict=True):
            if code in {0, done}:
                self.changes.append(text)
            else:
                self.problems.append(f"{self._subject}, {text}: {remedy(code, _REMEDIES)}")
                self._is_hopeless |= code in _FATAL


def _order(key: Key) -> tuple[int, bytes, int]:
    return len(key[1]), key[1], key[0]


def _text(key: Key) -> str:
    return f"{socket.inet_ntop(family_of(key[1]), key[1])}/{key[0]}"
