"""Notices that this machine's way to a server has changed: a link went down or up, an address or a route came or went.

The rule: what the kernel says is only a reason to look. Its messages are not read; the way itself is asked for, which
is what a packet sent now would take. It says a lot at once when a link comes up, so a look waits until it is quiet.

Sources: rtnetlink(7) for the groups, udp(7): connect on a UDP socket sends nothing and chooses the source address.
"""

import socket
from collections.abc import Callable

from oxidize import logs
from oxidize.net.event_loop import READABLE, Loop
from oxidize.net.udp_cmsg import path_to
from oxidize.protocol.endpoint import Endpoint

# --- linux/rtnetlink.h: RTMGRP_LINK, IPV4_IFADDR, IPV4_ROUTE, IPV6_IFADDR, IPV6_ROUTE ---
_GROUPS = 0x1 | 0x10 | 0x40 | 0x100 | 0x400

QUIET_SECS = 0.02  # without a further message, before a look
PUT_OFF_SECS_MAX = 0.2  # of a look in all
MESSAGE_BYTES = 65_536
MESSAGES_MAX = 256  # read before the other sources have their turn


log = logs.get(__name__)


def source_address_for(endpoint: Endpoint, mark: int | None = None) -> bytes | None:
    """Return the address of ours that packets to an endpoint leave from now; None where no route leads there.

    mark: of the packets, where routing looks at it.
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
    """Calls `look` some time after the kernel said that anything about links, addresses or routes has changed."""

    def __init__(self, loop: Loop, look: Callable[[float], None]) -> None:
        self._loop = loop
        self._look = look
        self._socket: socket.socket | None = None
        self._due_at: float | None = None
        self._latest_at = 0.0

    def start(self) -> None:
        """Begin to listen; without, where the kernel refuses: then silence and errors have to do."""
        try:
            self._socket = socket.socket(
                socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE
            )
            self._socket.bind((0, _GROUPS))
        except OSError as error:
            log.warning("changes of the network are not seen", reason=str(error))
            self._socket = None
            return
        self._loop.register(self._socket.fileno(), READABLE, self._listen)
        self._loop.add_timed(self)

    def stop(self) -> None:
        """Listen no longer; idempotent."""
        if self._socket is not None:
            self._loop.unregister(self._socket.fileno())
            self._loop.remove_timed(self)
            self._socket.close()
            self._socket = None

    def _listen(self) -> None:
        if self._socket is None:
            return
        for _ in range(MESSAGES_MAX):
            try:
                self._socket.recv(MESSAGE_BYTES)
            except BlockingIOError:
                break
            except OSError:  # ENOBUFS: there was more than it could hold
                continue
        now = self._loop.now()
        if self._due_at is None:
            self._latest_at = now + PUT_OFF_SECS_MAX
        self._due_at = min(now + QUIET_SECS, self._latest_at)

    # --- What the loop asks for ---

    def next_deadline(self) -> float | None:
        """Return when the next look is due."""
        return self._due_at

    def handle_timeout(self, now: float) -> None:
        """Look."""
        self._due_at = None
        self._look(now)
