"""Where a peer is: its outer address, and the address of ours that it talks to.

The local half makes replies leave from the address that the packet came to (ip(7) IP_PKTINFO, ipv6(7) IPV6_PKTINFO). An
endpoint is a plain value: two packets came the same way exactly when their endpoints are equal.
"""

from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import NamedTuple


class Endpoint(NamedTuple):
    """One path to a peer; IPv4-mapped IPv6 addresses stand here as IPv4.

    address: the peer's outer address, 4 or 16 bytes.
    port: its UDP port.
    scope_id: the interface index of a link-local IPv6 address, else 0.
    local_address: our address that its packets come to, of the same length as `address`, or empty where not known.
    local_interface: the index of the interface that they came in by, or 0.
    """

    address: bytes
    port: int
    scope_id: int = 0
    local_address: bytes = b""
    local_interface: int = 0

    @property
    def remote(self) -> tuple[bytes, int, int]:
        """Where the peer is, whichever way its packets come: address, port, scope."""
        return self[:3]

    @property
    def host(self) -> IPv4Address | IPv6Address:
        """The peer's outer address as an object of the ipaddress module."""
        return ip_address(self.address)

    @property
    def identity(self) -> bytes:
        """Address and port as bytes: what a cookie is bound to (paper, section 5.4.7)."""
        return self.address + self.port.to_bytes(2, "big")

    def __str__(self) -> str:
        """Format as `wg` does: `192.0.2.1:51820`, `[2001:db8::1]:51820`."""
        host = str(self.host)
        return f"[{host}]:{self.port}" if len(self.address) == 16 else f"{host}:{self.port}"
