"""What the parts of the host's network have in common: the mark of this program, families, remedies for errors.

Source: rtnetlink(7), linux/rtnetlink.h, errno(3).
"""

import errno
import os
import socket
from collections.abc import Mapping

# Marks routes and rules as this program's (rtm_protocol): neither rtnetlink.h nor iproute2's rt_protos assigns it.
ROUTE_PROTOCOL = 151
FAMILIES = {4: int(socket.AF_INET), 6: int(socket.AF_INET6)}

_REMEDIES = {
    errno.EPERM: "this needs CAP_NET_ADMIN: run as root, or set network = 'userspace'",
    errno.ENODEV: "the interface is not there",
}


def remedy(code: int, remedies: Mapping[int, str]) -> str:
    """Return the remedy for an errno, from `remedies` or those for any request, or else the kernel's own words."""
    return remedies.get(code) or _REMEDIES.get(code) or os.strerror(code)
