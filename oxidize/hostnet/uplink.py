"""The MTU of the way to a tunnel's other side, from which wg-quick computes that of the tunnel.

The rule is that of wg-quick(8): of the routes to all endpoints that are addresses, or else of the route to the
Internet, the MTU that the route has or its interface, the largest; less 80 bytes for IPv6, UDP and WireGuard's own.
Source: wg-quick's set_mtu_up; rtnetlink(7).
"""

import socket
from collections.abc import Iterable
from ipaddress import IPv4Address, ip_address
from itertools import islice
from typing import NamedTuple

from oxidize.config.values import HostAddress
from oxidize.errors import OxidizeError
from oxidize.hostnet.rtnetlink import RtnetlinkSocket

OVERHEAD = 80  # IPv6 40, UDP 8, WireGuard 32
OVERHEAD_IPV4 = 60
ENDPOINTS_MAX = 1_000  # whose routes are looked up, some 20 microseconds each
# Nothing is sent: the routes to hosts on the Internet.
_ANYWHERE = tuple(map(ip_address, ("1.1.1.1", "2606:4700:4700::1111")))


class Uplink(NamedTuple):
    """A way out of this machine. mtu: bytes. interface: its name."""

    mtu: int
    interface: str


def find_uplink(hosts: Iterable[HostAddress], *, but: str = "", mark: int = 0) -> Uplink | None:
    """Return the way with the largest MTU to `hosts`, or else the one to the Internet; None where there is none.

    but: the name of an interface that is none. mark: of the packets that are to take it.
    """
    try:
        with RtnetlinkSocket() as kernel:
            found = [_way_to(kernel, host, mark) for host in islice(hosts, ENDPOINTS_MAX)]
            ways = [way for way in found if way is not None and way.interface != but]
            if not ways:
                first = (_way_to(kernel, host, mark) for host in _ANYWHERE)
                ways = [way for way in first if way is not None and way.interface != but][:1]
    except (OSError, OxidizeError):
        return None
    return max(ways, default=None)


def _way_to(kernel: RtnetlinkSocket, host: HostAddress, mark: int) -> Uplink | None:
    address = host if isinstance(host, IPv4Address) else host.ipv4_mapped or host
    way = kernel.way_towards(address.packed, b"", mark)
    if way is None:
        return None
    name = socket.if_indextoname(way.link)
    return Uplink(way.mtu or kernel.link(name).mtu, name)
