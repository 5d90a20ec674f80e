"""Readiness of a server, asked over HTTP at its /health.

The rule: the answer is not trusted. One deadline covers connecting, sending and reading, the size of the answer is
limited, no name is looked up, and the returned text is printable.

Source: RFC 9112, by h11.
"""

import socket
import time
from collections.abc import Callable

import h11

from oxidize.config.values import InvalidValueError, listen_address
from oxidize.text import printable

READ_BYTES = 4096  # at once
ANSWER_BYTES_MAX = 65_536
BODY_BYTES_MAX = 4096  # kept for the reason
REASON_CHARACTERS_MAX = 500
READY_STATUS = 200


def why_unready(address: str, timeout_secs: float, now: Callable[[], float] = time.monotonic) -> str:
    """Return in one line why the server at "host:port" is not ready; "" if its /health answers 200.

    address: as the server reports it, an IP address and a port; anything else is a reason. now: seconds.
    """
    try:
        where = listen_address(address)
    except InvalidValueError:
        where = ("", 0)
    if not where[1]:
        return _line(f"metrics_listen = {address!r}: expected an IP address and a port")
    family = socket.AF_INET6 if ":" in where[0] else socket.AF_INET
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


def _left(deadline: float, now: Callable[[], float]) -> float:
    left = deadline - now()
    if left <= 0:
        raise TimeoutError
    return left


def _line(text: str) -> str:
    return printable(" ".join(text.split()), REASON_CHARACTERS_MAX)
