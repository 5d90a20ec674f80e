"""Whatever bytes come to the socket of wg, and in whatever parts: each request is answered once, and none raises."""

import select
import socket
from collections.abc import Iterator

from hypothesis import given
from hypothesis import strategies as st

from oxidize.net.uapi_connection import KEPT_BYTES_MAX, UapiConnection

LINES = st.sampled_from([b"get=1\n", b"set=1\n", b"\n", b"\n\n", b"public_key=00\n", b"\xff", b"=", b"x" * 3000])
PARTS = st.lists(st.lists(LINES | st.binary(max_size=8), max_size=4).map(b"".join), max_size=8)


def split(stream: bytes) -> list[bytes]:
    """Return the complete requests of a stream: each ends with the first empty line."""
    *whole, _ = stream.split(b"\n\n")
    return [request + b"\n\n" for request in whole]


@given(PARTS)
def test_every_complete_request_is_answered_once_and_in_order(parts: list[bytes]) -> None:
    asked: list[bytes] = []

    def answer(request: bytes, uid: int) -> Iterator[bytes]:
        asked.append(request)
        yield b"errno=0\n\n"

    client, accepted = socket.socketpair()
    with client, accepted:
        accepted.setblocking(False)
        connection = UapiConnection(accepted, answer, 1.0)
        poll = select.poll()
        for part in filter(None, parts):
            client.send(part)
            while True:
                poll.register(accepted, connection.events)
                if not poll.poll(0):
                    break
                assert connection.advance()
    assert asked == [request[:KEPT_BYTES_MAX] for request in split(b"".join(parts))]
