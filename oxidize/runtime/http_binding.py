"""The listener of /health and /metrics while its address cannot be bound.

The rule: `metrics_listen` is no condition for serving. An address that cannot be bound, for another program has the
port or the address is not there yet, is told once and in `oxidize status`, and tried again with growing pauses for as
long as the node serves.
"""

import contextlib
import socket
from collections.abc import Callable

from oxidize import logs
from oxidize.errors import reason_of
from oxidize.runtime.parts import bind_http
from oxidize.settings import NodeSettings

FIRST_PAUSE_SECS = 1.0
LONGEST_PAUSE_SECS = 30.0  # each pause is twice as long as the one before, up to this

log = logs.get(__name__)


def bind_http_if_possible(settings: NodeSettings) -> socket.socket | None:
    """Return a listening socket for HTTP; None, with a warning, where it cannot be bound, or where it is switched off.

    A `HttpBinding` tries again later.
    """
    try:
        return bind_http(settings)
    except Exception as error:  # noqa: BLE001 - the tunnels need no HTTP, whatever the kernel says
        log.warning("serving without /health and /metrics until their address can be bound", reason=reason_of(error))
        return None


class HttpBinding:
    """Tries to bind `metrics_listen` while a node serves (`net.event_loop.Timed`).

    is_bound: whether a listener exists. adopt: takes a new one; it may raise OSError, and is then called again with
    another one.
    """

    def __init__(
        self,
        settings: NodeSettings,
        is_bound: Callable[[], bool],
        adopt: Callable[[socket.socket], None],
        clock: Callable[[], float],
    ) -> None:
        self._settings = settings
        self._is_bound = is_bound
        self._adopt = adopt
        self._pause_secs = FIRST_PAUSE_SECS
        self._due_at = clock() + FIRST_PAUSE_SECS
        self._reason = "not bound yet"

    @property
    def problem(self) -> str | None:
        """Why /health and /metrics are not answered, None where they are, or are switched off."""
        return self._reason if self._is_wanted() else None

    def next_deadline(self) -> float | None:
        """Return when the next attempt is due, or None where none is needed."""
        return self._due_at if self._is_wanted() else None

    def handle_timeout(self, now: float) -> None:
        """Make an attempt if one is due."""
        if not self._is_wanted() or now < self._due_at:
            return
        try:
            listener = bind_http(self._settings)
            if listener is None:
                return
            with contextlib.ExitStack() as undo:
                undo.callback(listener.close)
                self._adopt(listener)
                undo.pop_all()
        except Exception as error:  # noqa: BLE001 - the tunnels need no HTTP, whatever the kernel says
            self._reason = reason_of(error)
            self._pause_secs = min(2 * self._pause_secs, LONGEST_PAUSE_SECS)
            self._due_at = now + self._pause_secs
        else:
            log.info("answering /health and /metrics from now on", address=listener.getsockname()[:2])

    def _is_wanted(self) -> bool:
        return self._settings.metrics_listen is not None and not self._is_bound()
