"""Changes to the kernel's network settings by rtnetlink, with a record of each and a remedy for each error.

The rule: an error which means that a request had nothing left to do is ignored; any other names the subject, the change
and the remedy.

Source: rtnetlink(7), linux/rtnetlink.h, errno(3).
"""

import errno
import os
import socket
from collections.abc import Callable, Collection, Mapping
from typing import Any

from oxidize.errors import OxidizeError

# Marks routes and rules as this program's (rtm_protocol): neither rtnetlink.h nor iproute2's rt_protos assigns it.
ROUTE_PROTOCOL = 151
RT_TABLE_MAIN = 254
FAMILIES = {4: int(socket.AF_INET), 6: int(socket.AF_INET6)}

_REMEDIES = {
    errno.EPERM: "this needs CAP_NET_ADMIN: run as root, or set network = 'userspace'",
    errno.ENODEV: "the interface is not there",
}


def preload() -> None:
    """Import what `connect` needs ahead of time."""
    import pyroute2  # noqa: F401, PLC0415  # late: see `connect`


def connect() -> Any:
    """Return a pyroute2 IPRoute, whose messages are typed as Any; a context manager."""
    from pyroute2 import IPRoute  # noqa: PLC0415  # some 200 ms, which few commands need to spend

    return IPRoute()


class Reconciler:
    """One run over one subject, which begins every error line. changes: what was changed, a line each."""

    def __init__(self, netlink: Any, subject: str, remedies: Mapping[int, str]) -> None:
        self.changes: list[str] = []
        self._netlink = netlink
        self._subject = subject
        self._remedies = remedies

    def _change(self, description: str, request: Callable[[], object], *, done: int = 0) -> None:
        """Make a change and note it. done: the error which means that there was nothing left to do."""
        self._request(description, request, done={done})
        self.changes.append(description)

    def _request(self, description: str, request: Callable[[], Any], *, done: Collection[int] = ()) -> Any:
        """Return what a request returns, None after an error in `done`; raises OxidizeError for any other."""
        from pyroute2.netlink.exceptions import NetlinkError  # noqa: PLC0415 - late, as above

        try:
            return request()
        except NetlinkError as error:
            if error.code in done:
                return None
            subject = ", ".join(filter(None, (self._subject, description)))
            raise OxidizeError(f"{subject}: {remedy(error.code, self._remedies)}") from error


def remedy(code: int, remedies: Mapping[int, str]) -> str:
    """Return the remedy for an errno, from `remedies` or those for any request, or else the kernel's own words."""
    return remedies.get(code) or _REMEDIES.get(code) or os.strerror(code)
