"""The endpoint of the server in a client's configuration, guessed if the operator gives none.

The rule: a guess is reported as a guess. A machine knows the addresses of its interfaces, but neither its name nor what
a router translates the addresses to.
"""

import contextlib
import socket
from ipaddress import ip_address

from oxidize.config.values import HostAddress, PublicEndpoint

# Documentation addresses (RFC 5737, RFC 3849): a UDP socket that is connected there sends nothing, but has a source.
_SOMEWHERE = ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1"))


def guess() -> HostAddress | None:
    """Return the address from which this machine reaches the internet; public before private, IPv4 before IPv6."""
    found = []
    for family, target in _SOMEWHERE:
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((target, 9))
            address = ip_address(str(probe.getsockname()[0]).partition("%")[0])
            if not address.is_loopback:
                found.append(address)
    return next((address for address in found if address.is_global), found[0] if found else None)


def format_endpoint(endpoint: PublicEndpoint, port: int) -> str:
    """Return "host:port", with `port` if the endpoint has none, and with brackets around an IPv6 address."""
    host, own_port = endpoint
    return f"{f'[{host}]' if ':' in host else host}:{port if own_port is None else own_port}"
