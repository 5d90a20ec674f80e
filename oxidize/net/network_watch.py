"""Detects possible changes of the host's network: of links, addresses, routes, rules, forwarding, nftables.

The rule: a message from the kernel is only a trigger. It is not parsed; instead the state is read as it is now. A link
that comes up causes a burst of messages, so the trigger waits for the burst to end.

Sources: rtnetlink(7) and linux/netfilter/nfnetlink.h for the groups, udp(7): connect on a UDP socket sends nothing and
chooses the source address.
"""

import contextlib
import socket
from collections.abc import Callable
from functools import partial

from oxidize import logs
from oxidize.net.event_loop import READABLE, Loop
from oxidize.net.udp_cmsg import path_to
from oxidize.protocol.endpoint import Endpoint

# --- linux/rtnetlink.h: RTMGRP_LINK, IPV4_IFADDR, IPV4_ROUTE, IPV4_RULE, IPV6_IFADDR, IPV6_ROUTE; RTNLGRP_IPV6_RULE is
# 19, and 24 and 25 are RTNLGRP_IPV4_NETCONF and RTNLGRP_IPV6_NETCONF, which tell of the sysctls of forwarding ---
_GROUPS = 0x1 | 0x10 | 0x40 | 0x80 | 0x100 | 0x400 | 1 << 18 | 1 << 23 | 1 << 24
# --- linux/netlink.h, linux/netfilter/nfnetlink.h: NFNLGRP_NFTABLES is 7; it needs CAP_NET_ADMIN ---
_NETFILTER, _NFTABLES_GROUP = 12, 1 << 6

QUIET_SECS = 0.02  # without a further message, before the callback
DELAY_SECS_MAX = 0.2  # of the callback in total
MESSAGE_BYTES = 65_536
MESSAGES_MAX = 256  # read before the other event sources are served

log = logs.get(__name__)


def source_address_for(endpoint: Endpoint, mark: int | None = None) -> bytes | None:
    """Return the local source address that the kernel uses for an endpoint, or None if there is no route.

    mark: the packets' mark, where policy routing uses it.
    """
    family = socket.AF_INET6 if len(endpoint.address) == 16 else socket.AF_INET
    path = path_to(endpoint, family)
    if path is None:
        return None
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as trial:
            if mark is not None:
                trial.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
            trial.connect(path[0])
            return socket.inet_pton(family, str(trial.getsockname()[0]).partition("%")[0])
    except OSError:
        return None


class NetworkWatch:
    """Calls `changed` with the loop's time, once a burst of changes of links, addresses, routes or rules is over.

    tables: whether to report changes of nftables tables too.
    """

    def __init__(self, loop: Loop, changed: Callable[[float], None], *, tables: bool = False) -> None:
        self._loop = loop
        self._changed = changed
        self._tables = tables
        self._sockets: list[socket.socket] = []
        self._due_at: float | None = None
        self._latest_at = 0.0

    def start(self) -> None:
        """Listen to the kernel; where it refuses, changes are only found by those who look. Idempotent."""
        if self._sockets:
            return
        if not self._listen(socket.NETLINK_ROUTE, _GROUPS, "changes of the network are not detected"):
            return
        if self._tables:
            self._listen(_NETFILTER, _NFTABLES_GROUP, "changes of nftables tables are not detected")
        self._loop.add_timed(self)

    def _listen(self, protocol: int, groups: int, otherwise: str) -> bool:
        with contextlib.ExitStack() as undo:
            try:
                watching = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, protocol)
                undo.callback(watching.close)
                watching.bind((0, groups))
                self._loop.register(watching.fileno(), READABLE, partial(self._receive, watching))
            except OSError as error:
                log.warning(otherwise, reason=str(error))
                return False
            undo.pop_all()
        self._sockets.append(watching)
        return True

    def stop(self) -> None:
        """Stop listening; idempotent."""
        if not self._sockets:
            return
        for watching in self._sockets:
            self._loop.unregister(watching.fileno())
            watching.close()
        self._sockets.clear()
        self._loop.remove_timed(self)

    def _receive(self, watching: socket.socket) -> None:
        for _ in range(MESSAGES_MAX):
            try:
                watching.recv(MESSAGE_BYTES)
            except BlockingIOError:
                break
            except OSError:  # ENOBUFS: messages were lost
                continue
        now = self._loop.now()
        if self._due_at is None:
            self._latest_at = now + DELAY_SECS_MAX
        self._due_at = min(now + QUIET_SECS, self._latest_at)

    # --- Called by the loop ---

    def next_deadline(self) -> float | None:
        """Return when the callback is due, or None."""
        return self._due_at

    def handle_timeout(self, now: float) -> None:
        """Report a change once the burst of netlink messages is over."""
        self._due_at = None
        self._changed(now)
