"""Answers to queries that carry descriptors: only a caller that asked for them keeps any."""

import array
import importlib
import os
import socket
import struct
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import msgpack
import pytest

from oxidize.errors import TakeoverError
from oxidize.takeover import Answer, NamedFd, query, query_with_fds
from oxidize.takeover.channel import FDS_PER_MESSAGE_MAX, Channel, close_fds, connect
from oxidize.takeover.messages import DEPTH_MAX, Reply, encode
from oxidize.takeover.query_reply import ANSWER_BYTES_MAX
from tests.support.open_fds import no_leaked_fds
from tests.support.takeover_peer import WAIT_SECS, Stand, clock

T = TypeVar("T")


@pytest.fixture
def stand(stand: Stand) -> Stand:
    stand.serve()
    return stand


def asked(stand: Stand, ask: Callable[[], T]) -> T:
    """Return the result of a query made in a thread while the server's loop runs here."""
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(ask)
        stand.run_until(asking.done)
        return asking.result()


def with_fds(stand: Stand) -> Answer:
    answer = asked(stand, lambda: query_with_fds(stand.path, "fds"))
    assert answer is not None
    return answer


def test_an_answer_carries_descriptors_in_order_with_their_names(stand: Stand) -> None:
    stand.host.answer_fds = (
        NamedFd("in", stand.reading, "pipe", {"framing": "none"}),
        NamedFd("out", stand.host.out, "pipe"),
    )
    answer = with_fds(stand)
    assert answer.content == b"with descriptors"
    assert [(fd.name, fd.kind, fd.options) for fd in answer.fds] == [
        ("in", "pipe", {"framing": "none"}),
        ("out", "pipe", {}),
    ]
    os.write(answer.find("out").fd, b"through")
    assert os.read(answer.find("in").fd, 10) == b"through"
    with pytest.raises(TakeoverError, match=r"no 'udp'; it has \['in', 'out'\]"):
        answer.find("udp")
    assert not any(os.get_inheritable(named.fd) for named in answer.fds)
    close_fds(named.fd for named in answer.fds)
    os.write(stand.host.out, b"still")
    assert os.read(stand.reading, 10) == b"still"


def test_an_answer_without_descriptors_has_none(stand: Stand) -> None:
    answer = asked(stand, lambda: query_with_fds(stand.path, "status"))
    assert answer == Answer(b'{"serves": true}')


def test_a_query_for_bytes_alone_keeps_no_descriptor(stand: Stand) -> None:
    stand.host.answer_fds = (NamedFd("out", stand.host.out, "pipe"),)
    with no_leaked_fds():
        assert asked(stand, lambda: query(stand.path, "fds")) == b"with descriptors"


def test_an_answer_carries_as_many_descriptors_as_one_message_can(stand: Stand) -> None:
    named = [NamedFd(str(number), stand.host.out, "pipe") for number in range(FDS_PER_MESSAGE_MAX)]
    stand.host.answer_fds = tuple(named[:-1])
    answer = with_fds(stand)
    assert [each.name for each in answer.fds] == [each.name for each in named[:-1]]
    close_fds(each.fd for each in answer.fds)
    stand.host.answer_fds = tuple(named)
    with pytest.raises(TakeoverError, match="253 descriptors; expected at most 252"):
        with_fds(stand)


@pytest.mark.parametrize(
    ("named", "says"),
    [
        (NamedFd("out", 1, "pipe", {"x": object()}), "a object, expected a map"),
        (NamedFd("out", 1, "pipe", {"x": bytes(70_000)}), "shorten it"),
    ],
)
def test_an_answer_with_descriptors_that_cannot_be_named_is_refused(stand: Stand, named: NamedFd, says: str) -> None:
    stand.host.answer_fds = (named,)
    with pytest.raises(TakeoverError, match=says):
        with_fds(stand)
    assert asked(stand, lambda: query(stand.path, "status")) == b'{"serves": true}'


# --- The process that answers is another release, or no server at all ---


def answered_by_hand(path: Path, data: bytes, fds: Sequence[int], now: Callable[[], float] = clock) -> Answer | None:
    """Return the result of a query with this answer."""
    return answered_by_hands(path, [(data, fds)], now)


def answered_by_hands(
    path: Path, messages: Sequence[tuple[bytes, Sequence[int]]], now: Callable[[], float] = clock
) -> Answer | None:
    """Return the result of a query whose answer is these messages, all sent before it reads."""
    are_there, send = threading.Event(), Channel.send

    def send_late(*arguments: Any) -> None:
        assert are_there.wait(WAIT_SECS)
        send(*arguments)

    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener,
        pytest.MonkeyPatch.context() as patch,
        ThreadPoolExecutor(1) as pool,
    ):
        patch.setattr(Channel, "send", send_late)
        patch.setattr(sys.modules[query_with_fds.__module__], "boot_time", now)
        listener.bind(str(path))
        listener.listen()
        listener.settimeout(WAIT_SECS)
        asking = pool.submit(query_with_fds, path, "state")
        connection, _ = listener.accept()
        with connection:
            for data, fds in messages:
                rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
                connection.sendmsg([data], rights)
            are_there.set()
            return asking.result()


@pytest.fixture
def memfd() -> Iterator[int]:
    memfd = os.memfd_create("answer")
    os.write(memfd, b"content")
    with no_leaked_fds():
        yield memfd
    os.close(memfd)


def test_a_reply_of_an_older_release_has_no_names(tmp_path: Path, memfd: int) -> None:
    reply = msgpack.packb({"type": "reply"})
    assert answered_by_hand(tmp_path / "socket", reply, [memfd]) == Answer(b"content")


ENTRY = {"name": "journal", "kind": "memfd", "options": {}}
NESTED: dict[str, object] = {}
for _ in range(DEPTH_MAX):
    NESTED = {"deeper": NESTED}


@pytest.mark.parametrize(
    ("fields", "count", "says"),
    [
        ({}, 0, "Reply with 0 descriptors is no answer"),
        ({}, 2, "Reply with 2 descriptors is no answer"),
        ({"fds": [ENTRY]}, 1, "Reply with 1 descriptors is no answer"),
        ({"fds": [ENTRY]}, 3, "Reply with 3 descriptors is no answer"),
        ({"fds": None}, 2, "reply.fds is a NoneType; expected list"),
        ({"fds": [{**ENTRY, "name": 1}]}, 2, "reply.fds.name is a int"),
        ({"fds": [{**ENTRY, "options": NESTED}]}, 2, "deep"),
    ],
)
def test_a_malformed_answer_leaks_no_descriptor(
    tmp_path: Path, memfd: int, fields: dict[str, object], count: int, says: str
) -> None:
    data = msgpack.packb({"type": "reply", **fields})
    with pytest.raises(TakeoverError, match=says):
        answered_by_hand(tmp_path / "socket", data, [memfd] * count)


def test_an_oversized_answer_leaks_no_descriptor(tmp_path: Path, memfd: int) -> None:
    os.truncate(memfd, ANSWER_BYTES_MAX + 1)
    reply = msgpack.packb({"type": "reply", "fds": [ENTRY]})
    with pytest.raises(TakeoverError, match="expected at most"):
        answered_by_hand(tmp_path / "socket", reply, [memfd, memfd])


def test_a_query_limits_the_length_of_its_answer(stand: Stand, tmp_path: Path, memfd: int) -> None:
    def ask(bytes_max: int) -> bytes | None:
        return asked(stand, lambda: query(stand.path, "big", bytes_max=bytes_max))

    assert ask(5 << 20) == b"big " * (5 << 18)
    with pytest.raises(TakeoverError, match="an answer of 5242880 bytes; expected at most 5242879"):
        ask((5 << 20) - 1)


@pytest.fixture(params=["pipe", "socket", "folder", "file", "device"])
def no_memfd(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[int]:
    """A descriptor that is no memory file: reading some of these fails or blocks."""
    (tmp_path / "file").write_text("content")
    made: dict[str, Callable[[], Sequence[int]]] = {
        "pipe": os.pipe,
        "socket": lambda: [each.detach() for each in socket.socketpair()],
        "folder": lambda: [os.open(tmp_path, os.O_RDONLY)],
        "file": lambda: [os.open("/proc/self/status", os.O_RDONLY)],
        "device": lambda: [os.open("/dev/zero", os.O_RDONLY)],
    }
    fds = made[request.param]()
    with no_leaked_fds():
        yield fds[0]
    close_fds(fds)


def test_a_descriptor_that_is_no_memory_file_is_no_answer(tmp_path: Path, no_memfd: int) -> None:
    reply = msgpack.packb({"type": "reply"})
    with pytest.raises(TakeoverError, match=r"an answer that cannot be read: .*; expected a memfd"):
        answered_by_hand(tmp_path / "socket", reply, [no_memfd])


def test_an_answer_is_read_until_the_deadline(tmp_path: Path, memfd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    late = [0.0]
    pread = os.pread

    def slow(fd: int, size: int, offset: int) -> bytes:
        late[0] += 3.0
        return pread(fd, min(size, 3), offset)

    monkeypatch.setattr(os, "pread", slow)
    with pytest.raises(TakeoverError, match="7 bytes, of which 3 could be read in time"):
        answered_by_hand(tmp_path / "socket", msgpack.packb({"type": "reply"}), [memfd], lambda: clock() + late[0])


@pytest.mark.parametrize("data", [msgpack.packb({"type": "refused", "reason": "not now"}), b"rubbish"])
@pytest.mark.parametrize("comes", ["with it", "behind it"])
def test_an_unexpected_socket_is_closed_without_lingering(tmp_path: Path, data: bytes, comes: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as unasked:
        unasked.connect(server.getsockname())
        unasked.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("@ii", 1, 3600))
        messages = [(data, [unasked.fileno()])] if comes == "with it" else [(data, []), (b"more", [unasked.fileno()])]
        with pytest.raises(TakeoverError):
            answered_by_hands(tmp_path / "socket", messages)
        # The option belongs to the socket, and so to every descriptor of it: were ours the last, close would not wait.
        lingers, _ = struct.unpack("@ii", unasked.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8))
        assert not lingers


def test_a_listener_that_ends_with_the_query_in_its_backlog_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "socket"
    module = importlib.import_module("oxidize.takeover.queries")  # its package has a function of this name

    def connect_and_end(path: Path, timeout: float) -> Channel | None:
        channel = connect(path, timeout)
        listener.close()
        return channel

    monkeypatch.setattr(module, "connect", connect_and_end)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(path))
        listener.listen()
        assert query(path, "status") is None


def test_a_refusal_with_descriptors_leaks_none(tmp_path: Path, memfd: int) -> None:
    refused = msgpack.packb({"type": "refused", "reason": "not now"})
    with pytest.raises(TakeoverError, match="not now"):
        answered_by_hand(tmp_path / "socket", refused, [memfd])


def test_a_release_without_descriptors_can_read_a_reply() -> None:
    assert msgpack.unpackb(encode(Reply())) == {"type": "reply", "fds": []}
