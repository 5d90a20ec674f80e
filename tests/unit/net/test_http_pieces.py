"""A response in pieces: one is made in each turn, none ahead of the client, and a part is never taken for the whole."""

from collections.abc import Iterator
from itertools import pairwise

import h11
import pytest

from oxidize.net.http_response import Respond, Response
from tests.unit.net.test_http import World, parse, request


def in_pieces(pieces: list[bytes], made: list[bytes]) -> Respond:
    """Return a responder whose response has pieces; each is noted when it is made."""

    def more() -> Iterator[bytes]:
        for piece in pieces:
            made.append(piece)
            yield piece

    return lambda method, path: Response(200, b"first\n", more=more())


@pytest.mark.parametrize("version", ["1.1", "1.0"])
def test_a_response_in_pieces_arrives_whole(version: str) -> None:
    made: list[bytes] = []
    world = World(in_pieces([b"second\n", b"x" * 1_000_000, b"last\n"], made))
    answer = world.exchange(request().replace(b"HTTP/1.1", f"HTTP/{version}".encode()))
    _, headers, body = parse(answer)
    assert "content-length" not in headers
    assert (headers.get("transfer-encoding") == "chunked") == (version == "1.1")
    if version == "1.1":
        client = h11.Connection(h11.CLIENT)
        client.send(h11.Request(method="GET", target="/", headers=[("Host", "a")]))
        client.receive_data(answer)
        body = b""
        while not isinstance(event := client.next_event(), h11.EndOfMessage):
            assert isinstance(event, h11.Response | h11.Data)
            body += event.data if isinstance(event, h11.Data) else b""
    assert body == b"first\nsecond\n" + b"x" * 1_000_000 + b"last\n"
    assert world.server.busy == 0
    world.close()


def test_one_turn_makes_one_piece_and_a_client_that_does_not_read_makes_none() -> None:
    made: list[bytes] = []
    world = World(in_pieces([b"x" * 1000] * 50_000, made))
    client = world.connect()
    client.sendall(request())
    seen = []
    for _ in range(6):
        for descriptor, _ in world.epoll.poll(5):
            if callback := world.callbacks.get(descriptor):
                callback()
        seen.append(len(made))
    assert [later - earlier for earlier, later in pairwise(seen)] == [1] * 5
    world.run()
    assert len(made) < 50_000
    held_up = len(made)
    world.run()
    assert len(made) == held_up
    world.close()


def test_a_head_request_makes_no_piece() -> None:
    made: list[bytes] = []
    world = World(in_pieces([b"second\n"], made))
    _, headers, body = parse(world.exchange(request(method="HEAD")))
    assert (headers.get("transfer-encoding"), body, made) == ("chunked", b"", [])
    world.close()


def test_a_piece_that_cannot_be_made_leaves_the_response_without_its_end() -> None:
    def more() -> Iterator[bytes]:
        yield b"second\n"
        raise ConnectionAbortedError("a bug")

    world = World(lambda method, path: Response(200, b"first\n", more=more()))
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method="GET", target="/", headers=[("Host", "a")]))
    client.receive_data(world.exchange(request()))
    client.receive_data(b"")
    assert isinstance(client.next_event(), h11.Response)
    assert b"".join(bytes(client.next_event().data) for _ in range(2)) == b"first\nsecond\n"  # type: ignore[union-attr]  # h11.Data
    with pytest.raises(h11.RemoteProtocolError, match="without sending complete message body"):
        client.next_event()
    assert world.server.busy == 0
    world.close()
