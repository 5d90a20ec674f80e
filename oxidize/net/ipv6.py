"""Kernels without IPv6: what is not asked for is not needed.

The rule: a kernel that was started with `ipv6.disable=1`, or built without IPv6, serves a configuration of IPv4 alone,
defaults included. Where the configuration names an IPv6 address that the kernel would have to know, that is an error.

Source: socket(2) on EAFNOSUPPORT. (`net.ipv6.conf.*.disable_ipv6` is another matter: sockets can be made with it.)
"""

import errno
import socket
from collections.abc import Iterator

from oxidize.errors import ConfigError
from oxidize.protocol.endpoint import Endpoint

_REMEDY = "this kernel has no IPv6: remove it, or start the kernel without ipv6.disable=1"


def has_ipv6() -> bool:
    """Return whether the kernel makes sockets of IPv6."""
    try:
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).close()
    except OSError as error:
        return error.errno != errno.EAFNOSUPPORT
    return True


def check_available(asked: Iterator[tuple[str, object]]) -> None:
    """Raise ConfigError with a line for each IPv6 address in use where the kernel has no IPv6.

    asked: keys of the configuration with addresses or networks of either version.
    """
    needing = [f"{key} = {value}: {_REMEDY}" for key, value in asked if ":" in str(value)]
    if needing and not has_ipv6():
        raise ConfigError(*needing)


def usable(endpoints: list[Endpoint]) -> list[Endpoint]:
    """Return the endpoints to which the kernel can send; raises OSError if there are some, and none of them is."""
    if all(len(endpoint.address) == 4 for endpoint in endpoints) or has_ipv6():
        return endpoints
    found = [endpoint for endpoint in endpoints if len(endpoint.address) == 4]
    if not found:
        raise OSError("the name has IPv6 addresses only, and this kernel has no IPv6")
    return found
