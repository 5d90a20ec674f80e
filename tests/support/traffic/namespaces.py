"""Unnamed network namespaces: each exists as long as its descriptor and the processes inside.

Rule: nothing is mounted and nothing outside is changed. A thread enters a namespace to make sockets or start processes,
which stay there. Sources: setns(2), unshare(2), network_namespaces(7).
"""

import ctypes
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from ipaddress import ip_interface

from pyroute2 import IPRoute

from oxidize.hostnet.interface import configure_interface

CLONE_NEWNET = 0x4000_0000
_OWN = "/proc/thread-self/ns/net"
_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


class Namespace:
    """One network namespace, closed with the ExitStack that it is given."""

    def __init__(self, stack: ExitStack) -> None:
        home = os.open(_OWN, os.O_RDONLY)
        try:
            _check(_libc.unshare(CLONE_NEWNET))
            try:
                self._fd = os.open(_OWN, os.O_RDONLY)
            finally:
                _check(_libc.setns(home, CLONE_NEWNET))
        finally:
            os.close(home)
        stack.callback(os.close, self._fd)
        with self.entered(), IPRoute() as netlink:
            netlink.link("set", index=1, state="up")

    @property
    def path(self) -> str:
        """A path by which other processes can refer to this namespace."""
        return f"/proc/{os.getpid()}/fd/{self._fd}"

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Move this thread into the namespace while entered."""
        home = os.open(_OWN, os.O_RDONLY)
        try:
            _check(_libc.setns(self._fd, CLONE_NEWNET))
            try:
                yield
            finally:
                _check(_libc.setns(home, CLONE_NEWNET))
        finally:
            os.close(home)


@contextmanager
def _netlink(namespace: Namespace) -> Iterator[IPRoute]:
    with namespace.entered(), IPRoute() as netlink:
        yield netlink


def join(one: Namespace, one_name: str, other: Namespace, other_name: str) -> None:
    """Connect two namespaces by a veth pair, without addresses.

    Neither end carries super-packets (gso_max_segs 1), so a capture sees single datagrams.
    """
    with _netlink(one) as netlink:
        netlink.link("add", ifname=one_name, kind="veth", peer={"ifname": other_name, "net_ns_fd": other.path})
    for namespace, name in ((one, one_name), (other, other_name)):
        with _netlink(namespace) as netlink:
            (index,) = netlink.link_lookup(ifname=name)
            netlink.link("set", index=index, gso_max_segs=1, state="up")


def set_addresses(namespace: Namespace, name: str, addresses: Sequence[str], mtu: int = 1500) -> None:
    """Replace the addresses of an interface and bring it up; how it segments stays as it is."""
    with _netlink(namespace) as netlink:
        (link,) = netlink.get_links(ifname=name)
        segments = link.get_attr("IFLA_GSO_MAX_SEGS")
    with namespace.entered():
        configure_interface(name, [ip_interface(address) for address in addresses], mtu, [], segments)
