"""A small HTTP/1.1 server without a thread, driven by its owner's epoll loop.

The rule: what a connection needs is imported for the first one; the rest is that of `net.stream_server`.
"""

import socket
from collections.abc import Callable

from oxidize.net.http_response import Respond
from oxidize.net.stream_server import Limits, Register, ServedConnection, StreamServer, Unregister

CONNECTIONS_MAX = 64  # a further one closes the oldest idle one
CONNECTION_SECS_MAX = 5.0  # from accept to close, for every client


class HttpServer(StreamServer):
    """Answers the requests that arrive at a listening socket, one for each connection."""

    def __init__(
        self,
        listener: socket.socket,
        respond: Respond,
        register: Register,
        unregister: Unregister,
        clock: Callable[[], float],
    ) -> None:
        def connect(accepted: socket.socket, deadline: float) -> ServedConnection:
            from oxidize.net.http_connection import Connection  # noqa: PLC0415  # the rule

            return Connection(accepted, respond, deadline)

        limits = Limits(CONNECTIONS_MAX, CONNECTION_SECS_MAX)
        super().__init__(listener, connect, limits, register, unregister, clock)
