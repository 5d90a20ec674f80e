"""The interface's settings: MTU, queue, addresses and routes, brought to what the configuration says.

The rule: reconcile, never reset. Only what differs is changed, so that every generation may run this on the interface
that its predecessor serves, and a run without a difference touches nothing. Of addresses all on our interface are ours
but the link-local ones, which the kernel makes; of routes only those that carry our protocol number.

Source: rtnetlink(7), linux/rtnetlink.h, linux/if_addr.h. It needs CAP_NET_ADMIN.
"""

import errno
import os
import socket
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from ipaddress import (
    IPv4Interface,
    IPv4Network,
    IPv6Interface,
    IPv6Network,
    ip_interface,
    ip_network,
)
from typing import Any

from oxidize.errors import OxidizeError

Interface = IPv4Interface | IPv6Interface
Network = IPv4Network | IPv6Network

# Packets that wait in the TUN device while nobody reads; the kernel's 500 overflow under one fast TCP stream.
TRANSMIT_QUEUE_PACKETS = 2_000
# Marks routes as ours (rtm_protocol): a number that neither rtnetlink.h nor iproute2's rt_protos gives to anybody.
ROUTE_PROTOCOL = 151

# --- linux/if.h, linux/if_addr.h, linux/rtnetlink.h ---
_IFF_UP = 0x1
_IFA_F_NODAD = 0x02  # usable at once: on a point-to-point device nobody could hold the same address
_RT_TABLE_MAIN = 254
_FAMILIES = (socket.AF_INET, socket.AF_INET6)

_REMEDIES = {
    errno.EPERM: "this needs CAP_NET_ADMIN: run as root, or set network = 'userspace'",
    errno.ENODEV: "the interface is not there",
    errno.EACCES: "IPv6 is switched off on this interface: set net.ipv6.conf.*.disable_ipv6 to 0, or use IPv4 only",
    errno.EINVAL: "the kernel refuses the value (IPv6 needs an MTU of 1280 or more)",
    errno.EEXIST: "another interface has it: remove that one, or change the configuration",
}


def preload() -> None:
    """Import what `configure_interface` needs, where that is better done early."""
    import pyroute2  # noqa: F401, PLC0415


def configure_interface(name: str, addresses: Sequence[Interface], mtu: int, routes: Sequence[Network]) -> list[str]:
    """Bring an interface to this state and up, and return what was changed, a line each; empty if all was right.

    mtu: bytes. routes: networks that lead into the interface; those inside a network of `addresses` need no route of
    their own and are passed over. Raises OxidizeError with the value that the kernel refused, and the remedy.
    """
    # Imported late: it takes some 200 ms, which commands that touch no interface need not spend.
    from pyroute2 import IPRoute  # noqa: PLC0415

    with IPRoute() as netlink:
        reconciler = _Reconciler(netlink, name)
        reconciler.reconcile_link(mtu)
        reconciler.reconcile_addresses(addresses)
        reconciler.reconcile_routes(routes_needed(addresses, routes))
        return reconciler.changes


def routes_needed(addresses: Iterable[Interface], routes: Iterable[Network]) -> set[Network]:
    """Return the routes that the networks of the interface's own addresses do not already give."""
    own = [address.network for address in addresses]
    return {route for route in routes if not any(_contains(network, route) for network in own)}


def _contains(outer: Network, inner: Network) -> bool:
    if isinstance(outer, IPv4Network):
        return isinstance(inner, IPv4Network) and inner.subnet_of(outer)
    return isinstance(inner, IPv6Network) and inner.subnet_of(outer)


class _Reconciler:
    """One run over one interface. `netlink` is a pyroute2 IPRoute, whose messages are typed as Any."""

    def __init__(self, netlink: Any, name: str) -> None:
        self.changes: list[str] = []
        self._netlink = netlink
        self._name = name
        (self._link,) = self._call("", lambda: netlink.link("get", ifname=name))
        self._index: int = self._link["index"]

    def reconcile_link(self, mtu: int) -> None:
        wanted: dict[str, object] = {}
        if self._link.get("mtu") != mtu:
            wanted["mtu"] = mtu
        if self._link.get("txqlen") != TRANSMIT_QUEUE_PACKETS:
            wanted["txqlen"] = TRANSMIT_QUEUE_PACKETS
        if not self._link["flags"] & _IFF_UP:
            wanted["state"] = "up"
        # One at a time: an error then names the setting that was refused.
        for key, value in wanted.items():
            self._change(f"{key} {value}", partial(self._netlink.link, "set", index=self._index, **{key: value}))

    def reconcile_addresses(self, addresses: Iterable[Interface]) -> None:
        wanted = set(addresses)
        hosts = {address.ip for address in wanted}
        stale = {address for address in self._addresses() - wanted if not address.ip.is_link_local}
        # IPv6 refuses an address a second time, even with another prefix length. The others go last: with its last
        # IPv4 address an interface loses all its routes.
        conflicting = {address for address in stale if address.ip in hosts}
        self._remove_addresses(conflicting)
        self._add_addresses(wanted)
        self._remove_addresses(stale - conflicting)
        if stale:
            # A primary IPv4 address takes along the secondary ones of its network.
            self._add_addresses(wanted)

    def reconcile_routes(self, wanted: set[Network]) -> None:
        present = self._routes()
        ours = {network for network, protocol in present if protocol == ROUTE_PROTOCOL}
        for network in sorted(ours - wanted, key=str):
            self._change(f"route -{network}", partial(self._route, "del", network), done=errno.ESRCH)
        for network in sorted(wanted - {network for network, _ in present}, key=str):
            self._change(f"route +{network}", partial(self._route, "add", network))

    def _addresses(self) -> set[Interface]:
        found = set()
        for message in self._call("", lambda: list(self._netlink.get_addr(index=self._index))):
            if message["family"] in _FAMILIES:
                # IFA_ADDRESS is the far end where IPv4 has a peer address; IFA_LOCAL is absent for IPv6.
                host = message.get("local") or message.get("address")
                found.add(ip_interface(f"{host}/{message['prefixlen']}"))
        return found

    def _routes(self) -> list[tuple[Network, int]]:
        """Return destination and protocol of the main table's routes into our interface."""
        found = []
        for message in self._call("", lambda: list(self._netlink.get_routes(oif=self._index))):
            ours = message.get("oif") == self._index and message.get("table") == _RT_TABLE_MAIN
            if ours and message["family"] in _FAMILIES:
                any_host = "0.0.0.0" if message["family"] == socket.AF_INET else "::"  # noqa: S104 - no bind
                found.append((ip_network(f"{message.get('dst') or any_host}/{message['dst_len']}"), message["proto"]))
        return found

    def _add_addresses(self, wanted: set[Interface]) -> None:
        for address in sorted(wanted - self._addresses(), key=str):
            flags = {"flags": _IFA_F_NODAD} if address.version == 6 else {}
            self._change(f"address +{address}", partial(self._address, "add", address, **flags))

    def _remove_addresses(self, stale: set[Interface]) -> None:
        for address in sorted(stale, key=str):
            # Gone already: it was secondary to the one removed before it.
            self._change(f"address -{address}", partial(self._address, "del", address), done=errno.EADDRNOTAVAIL)

    def _address(self, command: str, address: Interface, **flags: int) -> None:
        prefix = address.network.prefixlen
        self._netlink.addr(command, index=self._index, address=str(address.ip), prefixlen=prefix, **flags)

    def _route(self, command: str, network: Network) -> None:
        family = socket.AF_INET if network.version == 4 else socket.AF_INET6
        key = {"dst": str(network), "oif": self._index, "family": family, "table": _RT_TABLE_MAIN}
        self._netlink.route(command, proto=ROUTE_PROTOCOL, **key)

    def _change(self, description: str, action: Callable[[], object], done: int = 0) -> None:
        self._call(description, action, done)
        self.changes.append(description)

    def _call(self, description: str, action: Callable[[], Any], done: int = 0) -> Any:
        """Run a netlink request; `done` is the error that says that there was nothing left to do."""
        from pyroute2.netlink.exceptions import NetlinkError  # noqa: PLC0415 - late, as above

        try:
            return action()
        except NetlinkError as error:
            if error.code == done:
                return None
            remedy = _REMEDIES.get(error.code, os.strerror(error.code))
            subject = f"interface {self._name}" + (f", {description}" if description else "")
            raise OxidizeError(f"{subject}: {remedy}") from error
