"""Kernels without IPv6: what is not asked for is not needed.

The rule: a kernel that was started with `ipv6.disable=1`, or built without IPv6, serves a configuration of IPv4 alone,
defaults included, and so does one on which IPv6 is switched off; a new server or client says so. Where the
configuration names an IPv6 address that the kernel would have to know, that is an error.

Sources: socket(2) on EAFNOSUPPORT; the kernel's ip-sysctl on disable_ipv6, with which sockets of IPv6 can be made.
"""

import contextlib
import errno
import socket
from collections.abc import Iterator
from pathlib import Path

from oxidize.errors import ConfigError
from oxidize.protocol.endpoint import Endpoint

SWITCHES = Path("/proc/sys/net/ipv6/conf")  # of this network namespace
_REMEDY = "this kernel has no IPv6: remove it, or start the kernel without ipv6.disable=1"


def has_ipv6() -> bool:
    """Return whether the kernel makes sockets of IPv6."""
    try:
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).close()
    except OSError as error:
        return error.errno != errno.EAFNOSUPPORT
    return True


def why_only_ipv4() -> str | None:
    """Return why nothing can be reached by IPv6, None where it can be or where that cannot be known."""
    if not has_ipv6():
        return "this kernel has no IPv6: only IPv4 is served"
    with contextlib.suppress(OSError):
        # "all" is what was written there last, not what holds; "default" is for the interfaces that come later.
        switches = [each / "disable_ipv6" for each in SWITCHES.iterdir() if each.name != "all"]
        if switches and all(switch.read_text().strip() == "1" for switch in switches):
            return "IPv6 is switched off (net.ipv6.conf.*.disable_ipv6 = 1): only IPv4 is served"
    return None


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
