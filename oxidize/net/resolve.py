"""Endpoints from their text in the configuration: literal addresses, and names through the system's resolver.

Sources: getaddrinfo(3); RFC 6724 for the order of addresses.
"""

import socket

from oxidize.net.ipv6 import usable
from oxidize.net.udp_cmsg import endpoint_from
from oxidize.protocol.endpoint import Endpoint

PORT_MAX = 65_535


def split(text: str) -> tuple[str, int]:
    """Return host and port of "host:port" or "[address]:port"."""
    host, _, port = text.rpartition(":")
    return host.strip("[]"), int(port)


def literal(text: str) -> Endpoint | None:
    """Return the endpoint that "address:port" names; None for a host name or for malformed text."""
    try:
        host, port = split(text)
        found = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM, flags=socket.AI_NUMERICHOST)
    except (OSError, ValueError, OverflowError):
        return None
    return _endpoint(found[0][4]) if 0 < port <= PORT_MAX else None  # getaddrinfo takes the port modulo 65536


def look_up(text: str) -> list[Endpoint]:
    """Return the endpoints of "host:port", the preferred first; raises OSError if there are none. Blocks."""
    host, port = split(text)
    found = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
    return usable(list(dict.fromkeys(_endpoint(address) for *_, address in found)))


def _endpoint(address: tuple[str, int] | tuple[str, int, int, int] | tuple[int, bytes]) -> Endpoint:
    host, port = str(address[0]), int(address[1])
    scope_id = int(address[3]) if len(address) == 4 else 0
    return endpoint_from((host, port, 0, scope_id) if ":" in host else (host, port), b"")
