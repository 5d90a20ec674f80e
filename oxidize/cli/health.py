"""Readiness of a server, asked over HTTP at its /health.

The rule: the answer is not trusted. One deadline covers connecting, sending and reading, the size of the answer is
limited, no name is looked up, and the returned text is printable.

Source: RFC 9112, by h11; getaddrinfo(3), AI_NUMERICHOST.
"""

import re
import socket
import time
from collections.abc import Callable
from typing import Any

import h11

from oxidize.text import printable

READ_BYTES = 4096  # at once
ANSWER_BYTES_MAX = 65_536
BODY_BYTES_MAX = 4096  # kept for the reason
REASON_CHARACTERS_MAX = 500
READY_STATUS = 200

# "127.0.0.1:9090" or "[::1]:9090".
_ADDRESS = re.compile(r"(?:\[(?P<v6>[^\]]*:[^\]]*)\]|(?P<v4>[^\[\]:]*)):(?P<port>[0-9]{1,5})", re.ASCII)


def why_unready(address: str, timeout_secs: float, now: Callable[[], float] = time.monotonic) -> str:
    """Return in one line why the server at "host:port" is not ready; "" if its /health answers 200.

    address: as the server reports it, an IP address and a port; anything else is a reason. now: seconds.
    """
    found = _resolved(address)
    if found is None:
        return _line(f"metrics_listen = {address!r}: expected an IP address and a port")
    family, where = found
    answer = _Answer()
    deadline = now() + timeout_secs
    try:
        with socket.socket(family, socket.SOCK_STREAM) as connection:
            connection.settimeout(_left(deadline, now))
            connection.connect(where)
            connection.settimeout(_left(deadline, now))
            connection.sendall(answer.request(address))
            while not answer.is_enough:
                connection.settimeout(_left(deadline, now))
                answer.feed(connection.recv(READ_BYTES))
    except TimeoutError:
        if answer.status is None:
            return _line(f"http://{address} does not answer within {timeout_secs:g} s")
    except (OSError, h11.ProtocolError) as error:
        if answer.status is None:
            return _line(f"http://{address} does not answer: {error}")
    if answer.status is None:
        return _line(f"http://{address} does not answer in HTTP")
    return "" if answer.status == READY_STATUS else _line(f"{answer.status} {answer.body.decode(errors='replace')}")


class _Answer:
    """An HTTP answer that is being received. status: None until it is known."""

    def __init__(self) -> None:
        self._connection = h11.Connection(h11.CLIENT)
        self._bytes_read = 0
        self._is_over = False
        self.status: int | None = None
        self.body = b""

    def request(self, host: str) -> bytes:
        """Return the bytes of the request."""
        headers = [("Host", host), ("Connection", "close")]
        asked = self._connection.send(h11.Request(method="GET", target="/health", headers=headers))
        return (asked or b"") + (self._connection.send(h11.EndOfMessage()) or b"")

    @property
    def is_enough(self) -> bool:
        """Whether the rest of the answer makes no difference."""
        return self.status == READY_STATUS or self._is_over or len(self.body) >= BODY_BYTES_MAX

    def feed(self, data: bytes) -> None:
        """Parse received bytes, b"" for the end; raises h11.ProtocolError if the answer is invalid or too long."""
        self._bytes_read += len(data)
        if self._bytes_read > ANSWER_BYTES_MAX:
            raise h11.RemoteProtocolError(f"more than {ANSWER_BYTES_MAX} bytes")
        self._connection.receive_data(data)
        while not self.is_enough:
            match self._connection.next_event():
                case h11.NEED_DATA:
                    return
                case h11.Response(status_code=status):
                    self.status = status
                case h11.Data(data=more):
                    self.body += bytes(more)
                case h11.InformationalResponse():
                    pass
                case _:
                    self._is_over = True


def _resolved(address: str) -> tuple[socket.AddressFamily, tuple[Any, ...]] | None:
    """Return the address family and the socket address, or None if this is not an IP address and port."""
    match = _ADDRESS.fullmatch(address)
    if match is None or not 0 < int(match["port"]) <= 0xFFFF:
        return None
    family = socket.AF_INET6 if match["v6"] is not None else socket.AF_INET
    host = match["v6"] or match["v4"]
    if not host:
        return None
    try:
        found = socket.getaddrinfo(host, int(match["port"]), family, socket.SOCK_STREAM, 0, socket.AI_NUMERICHOST)
    except (OSError, ValueError):
        return None
    return family, found[0][4]


def _left(deadline: float, now: Callable[[], float]) -> float:
    left = deadline - now()
    if left <= 0:
        raise TimeoutError
    return left


def _line(text: str) -> str:
    return printable(" ".join(text.split()), REASON_CHARACTERS_MAX)
