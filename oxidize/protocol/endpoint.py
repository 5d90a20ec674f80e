"""The endpoint of a peer: its outer address, and the local address that its packets come to.

The rule: an endpoint is a plain value, and two packets came over the same path exactly when their endpoints are equal.
The local half makes replies leave from the address that the packet came to (ip(7) IP_PKTINFO, ipv6(7) IPV6_PKTINFO).
"""

from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import NamedTuple


class Endpoint(NamedTuple):
    """One path to a peer; IPv4-mapped IPv6 addresses are held as IPv4.

    address: the peer's outer address, 4 or 16 bytes.
    port: its UDP port.
    scope_id: the interface index of a link-local IPv6 address, else 0.
    local_address: the local address that its packets come to, as long as `address`, or empty if not known.
    local_interface: the index of the interface that its packets come in by, or 0.
    """

    address: bytes
    port: int
    scope_id: int = 0
    local_address: bytes = b""
    local_interface: int = 0

    @property
    def remote(self) -> tuple[bytes, int, int]:
        """Address, port and scope of the peer, without the local half."""
        return self[:3]

    @property
    def host(self) -> IPv4Address | IPv6Address:
        """The peer's outer address as an object of the ipaddress module."""
        return ip_address(self.address)

    @property
    def identity(self) -> bytes:
        """Address and port as bytes; a cookie is bound to them (paper, section 5.4.7)."""
        return self.address + self.port.to_bytes(2, "big")

    def __str__(self) -> str:
        """Format as `wg` does: `192.0.2.1:51820`, `[2001:db8::1]:51820`."""
        host = str(self.host)
        return f"[{host}]:{self.port}" if len(self.address) == 16 else f"{host}:{self.port}"
