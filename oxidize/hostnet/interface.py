"""The interface's settings: MTU, queue, addresses and routes, reconciled with the configuration.

The rule: reconcile, never reset. Only what differs is changed, so that every generation may run this on the interface
that its predecessor serves, and a run without a difference touches nothing. All addresses of the interface are managed
here, except link-local ones, which the kernel makes; of its routes only those with this program's protocol number.

Source: rtnetlink(7), linux/rtnetlink.h, linux/if_addr.h. It needs CAP_NET_ADMIN.
"""

import errno
import socket
from collections.abc import Iterable, Sequence
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

from oxidize.hostnet import netlink
from oxidize.hostnet.netlink import FAMILIES, ROUTE_PROTOCOL, RT_TABLE_MAIN, Reconciler

Interface = IPv4Interface | IPv6Interface
Network = IPv4Network | IPv6Network

# Packets that wait in the TUN device while no process reads; the kernel's 500 overflow under one fast TCP stream.
TRANSMIT_QUEUE_PACKETS = 2_000

# --- linux/if.h, linux/if_addr.h ---
_IFF_UP = 0x1
_IFA_F_NODAD = 0x02  # usable at once: on a point-to-point device no other host could hold the same address

_REMEDIES = {
    errno.EACCES: "IPv6 is switched off on this interface: set net.ipv6.conf.*.disable_ipv6 to 0, or use IPv4 only",
    errno.EINVAL: "the kernel refuses the value (IPv6 needs an MTU of 1280 or more)",
    errno.EEXIST: "another interface has it: remove that one, or change the configuration",
}


def configure_interface(name: str, addresses: Sequence[Interface], mtu: int, routes: Sequence[Network]) -> list[str]:
    """Bring an interface up and to this state; return the changes made, a line each.

    mtu: bytes. routes: networks that lead into the interface; those inside a network of `addresses` need no route of
    their own and are skipped. Raises OxidizeError with the value that the kernel refused, and the remedy.
    """
    with netlink.connect() as connected:
        reconciler = _Interface(connected, name)
        reconciler.reconcile_link(mtu)
        reconciler.reconcile_addresses(addresses)
        reconciler.reconcile_routes(routes_needed(addresses, routes))
        return reconciler.changes


def routes_needed(addresses: Iterable[Interface], routes: Iterable[Network]) -> set[Network]:
    """Return the routes that the networks of the interface's own addresses do not already provide."""
    own = [address.network for address in addresses]
    return {route for route in routes if not any(_contains(network, route) for network in own)}


def _contains(outer: Network, inner: Network) -> bool:
    if isinstance(outer, IPv4Network):
        return isinstance(inner, IPv4Network) and inner.subnet_of(outer)
    return isinstance(inner, IPv6Network) and inner.subnet_of(outer)


class _Interface(Reconciler):
    """One run over one interface. `connected` is a pyroute2 IPRoute."""

    def __init__(self, connected: Any, name: str) -> None:
        super().__init__(connected, f"interface {name}", _REMEDIES)
        (self._link,) = self._request("", lambda: connected.link("get", ifname=name))
        self._index: int = self._link["index"]

    def reconcile_link(self, mtu: int) -> None:
        wanted: dict[str, object] = {}
        if self._link.get("mtu") != mtu:
            wanted["mtu"] = mtu
        if self._link.get("txqlen") != TRANSMIT_QUEUE_PACKETS:
            wanted["txqlen"] = TRANSMIT_QUEUE_PACKETS
        if not self._link["flags"] & _IFF_UP:
            wanted["state"] = "up"
        # One at a time, so that an error names the setting that was refused.
        for key, value in wanted.items():
            self._change(f"{key} {value}", partial(self._netlink.link, "set", index=self._index, **{key: value}))

    def reconcile_addresses(self, addresses: Iterable[Interface]) -> None:
        wanted = set(addresses)
        hosts = {address.ip for address in wanted}
        stale = {address for address in self._addresses() - wanted if not address.ip.is_link_local}
        # IPv6 refuses an address a second time, even with another prefix length. The others are removed last: with
        # its last IPv4 address an interface loses all its routes.
        conflicting = {address for address in stale if address.ip in hosts}
        self._remove_addresses(conflicting)
        self._add_addresses(wanted)
        self._remove_addresses(stale - conflicting)
        if stale:
            # Removing a primary IPv4 address removes the secondary ones of its network.
            self._add_addresses(wanted)

    def reconcile_routes(self, wanted: set[Network]) -> None:
        present = self._routes()
        managed = {network for network, protocol in present if protocol == ROUTE_PROTOCOL}
        for network in sorted(managed - wanted, key=str):
            self._change(f"route -{network}", partial(self._route, "del", network), done=errno.ESRCH)
        for network in sorted(wanted - {network for network, _ in present}, key=str):
            self._change(f"route +{network}", partial(self._route, "add", network))

    def _addresses(self) -> set[Interface]:
        found = set()
        for message in self._request("", lambda: list(self._netlink.get_addr(index=self._index))):
            if message["family"] in FAMILIES.values():
                # IFA_ADDRESS is the far end where IPv4 has a peer address; IFA_LOCAL is absent for IPv6.
                host = message.get("local") or message.get("address")
                found.add(ip_interface(f"{host}/{message['prefixlen']}"))
        return found

    def _routes(self) -> list[tuple[Network, int]]:
        """Return destination and protocol of the main table's routes into the interface."""
        found = []
        for message in self._request("", lambda: list(self._netlink.get_routes(oif=self._index))):
            managed = message.get("oif") == self._index and message.get("table") == RT_TABLE_MAIN
            if managed and message["family"] in FAMILIES.values():
                any_host = "0.0.0.0" if message["family"] == socket.AF_INET else "::"  # noqa: S104 - no bind
                found.append((ip_network(f"{message.get('dst') or any_host}/{message['dst_len']}"), message["proto"]))
        return found

    def _add_addresses(self, wanted: set[Interface]) -> None:
        for address in sorted(wanted - self._addresses(), key=str):
            flags = {"flags": _IFA_F_NODAD} if address.version == 6 else {}
            self._change(f"address +{address}", partial(self._address, "add", address, **flags))

    def _remove_addresses(self, stale: set[Interface]) -> None:
        for address in sorted(stale, key=str):
            # It may be gone already, as a secondary address of the one removed before it.
            self._change(f"address -{address}", partial(self._address, "del", address), done=errno.EADDRNOTAVAIL)

    def _address(self, command: str, address: Interface, **flags: int) -> None:
        prefix = address.network.prefixlen
        self._netlink.addr(command, index=self._index, address=str(address.ip), prefixlen=prefix, **flags)

    def _route(self, command: str, network: Network) -> None:
        key = {"dst": str(network), "oif": self._index, "family": FAMILIES[network.version], "table": RT_TABLE_MAIN}
        self._netlink.route(command, proto=ROUTE_PROTOCOL, **key)
