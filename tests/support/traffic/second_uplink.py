"""A second link between two hosts, whose provider drops what comes from the address of the first one.

The near host is 203.0.113.1 and 2001:db8:77::1 there, the far one 203.0.113.2 and 2001:db8:77::2. (RFC 5737, RFC 3849.)
"""

from collections.abc import Iterator
from contextlib import contextmanager

from tests.support.traffic.namespaces import Namespace, join, set_addresses
from tests.support.traffic.shared_site import run

NEAR4, NEAR6 = "203.0.113.1", "2001:db8:77::1"
_FAR4, _FAR6 = "203.0.113.2", "2001:db8:77::2"


class SecondUplink:
    """The way by the second link to `target`, an address of the far host, which is not taken yet.

    near: the address of the near host on this link, of the family of `target`.
    """

    def __init__(self, host: Namespace, target: str) -> None:
        self._host = host
        is_ipv6 = ":" in target
        self.near, gateway = (NEAR6, _FAR6) if is_ipv6 else (NEAR4, _FAR4)
        self._route = (f"{target}/{128 if is_ipv6 else 32}", "via", gateway)

    def take(self) -> None:
        """Make it the better way."""
        run(self._host, "ip", "route", "add", *self._route)

    def leave(self) -> None:
        """Make the first link the only way again."""
        run(self._host, "ip", "route", "del", *self._route)


@contextmanager
def second_uplink(host: Namespace, far: Namespace, first: str, target: str) -> Iterator[SecondUplink]:
    """Join a host to another one a second time while entered. first: the address of the host on the first link."""
    join(host, "second0", far, "second1")
    set_addresses(host, "second0", [f"{NEAR4}/24", f"{NEAR6}/64"])
    set_addresses(far, "second1", [f"{_FAR4}/24", f"{_FAR6}/64"])
    family = "ip6" if ":" in first else "ip"
    run(far, "nft", "add table inet provider")
    run(far, "nft", "add chain inet provider input { type filter hook input priority filter; }")
    run(far, "nft", f"add rule inet provider input iifname second1 {family} saddr {first} drop")
    try:
        yield SecondUplink(host, target)
    finally:
        run(far, "nft", "delete table inet provider")
        run(far, "ip", "link", "del", "second1")
