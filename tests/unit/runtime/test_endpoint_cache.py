"""The endpoint cache: endpoints are loaded as they were written, and a bad file costs nothing else."""

import base64
import json
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from ipaddress import ip_network
from pathlib import Path

import pytest

from oxidize.protocol.endpoint import Endpoint
from oxidize.protocol.peer import Peer
from oxidize.protocol.peer_settings import PeerSettings
from oxidize.runtime import endpoint_cache
from oxidize.runtime.endpoint_cache import (
    FILE_BYTES_MAX,
    FORMAT,
    STEP_PAUSE_SECS,
    STEP_PEERS,
    WRITE_SECS,
    EndpointCache,
    load_endpoints,
)
from tests.support.network import Host, World

V4 = Endpoint(bytes([198, 51, 100, 7]), 4242)
V6 = Endpoint(bytes.fromhex("20010db8000000000000000000000007"), 51820)
LINK_LOCAL = Endpoint(bytes.fromhex("fe800000000000000000000000000007"), 51820, 3)


class FakeLog:
    def __init__(self) -> None:
        self.warnings: list[dict[str, str]] = []

    def warning(self, event: str, **fields: str) -> None:
        self.warnings.append(fields)


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> FakeLog:
    fake = FakeLog()
    monkeypatch.setattr(endpoint_cache, "log", fake)
    return fake


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "endpoints.json"


def server_with(endpoints: Iterable[Endpoint | None]) -> Host:
    """Return a server with one peer for each of `endpoints`."""
    world = World()
    server = world.host()
    for number, endpoint in enumerate(endpoints, start=2):
        key = number.to_bytes(32, "big")
        network = ip_network((10 << 24) + number)
        server.peers.append(PeerSettings(key, allowed_ips=(network,), endpoint=None))
        if endpoint is not None:
            server.peers[-1] = PeerSettings(key, allowed_ips=(network,), endpoint=endpoint)
    server.start()
    return server


def without_endpoints(server: Host) -> Host:
    """Return a server of the same configuration, which knows no endpoint."""
    again = World().host()
    again.peers = [PeerSettings(peer.public_key, allowed_ips=peer.allowed_ips) for peer in server.peers]
    again.start()
    return again


def uninterrupted(peers: Iterable[Peer]) -> Iterator[Peer]:
    yield from peers


def endpoints_of(server: Host) -> list[Endpoint | None]:
    return [peer.endpoint for peer in server.device.peers.values()]


def cache_of(server: Host, path: Path) -> EndpointCache:
    return EndpointCache(path, server.device, lambda: server.world.now)


def run(cache: EndpointCache, seconds: float, now: float) -> list[float]:
    """Let time pass; return the times of the deadlines."""
    moments = []
    end = now + seconds
    while (due := cache.next_deadline()) <= end:
        moments.append(due)
        cache.handle_timeout(due)
    return moments


# --- Round trips ---


def test_endpoints_are_loaded_as_they_were_written(path: Path, log: FakeLog) -> None:
    server = server_with([V4, None, V6])
    cache_of(server, path).write_now()
    again = without_endpoints(server)
    load_endpoints(path, again.device, uninterrupted, again.world.now)
    assert endpoints_of(again) == [V4, None, V6]
    assert log.warnings == []


def test_a_loaded_endpoint_reaches_the_successor_and_is_asked_for_a_session(path: Path) -> None:
    server = server_with([V4])
    cache_of(server, path).write_now()
    again = without_endpoints(server)
    load_endpoints(path, again.device, uninterrupted, again.world.now)
    again.replace()
    assert endpoints_of(again) == [V4]


def test_a_configured_or_learned_endpoint_takes_precedence_over_the_cache(path: Path) -> None:
    server = server_with([V4, V4._replace(port=1)])
    cache_of(server, path).write_now()
    again = server_with([V6, None])
    load_endpoints(path, again.device, uninterrupted, again.world.now)
    assert endpoints_of(again) == [V6, V4._replace(port=1)]


def test_a_link_local_endpoint_is_not_cached(path: Path) -> None:
    server = server_with([LINK_LOCAL, V4])
    cache_of(server, path).write_now()
    assert "fe80" not in path.read_text()
    assert len(json.loads(path.read_text())["endpoints"]) == 1


def test_the_cache_holds_no_private_key(path: Path) -> None:
    server = server_with([V4])
    cache_of(server, path).write_now()
    document = json.loads(path.read_text())
    assert document == {"format": FORMAT, "endpoints": {base64.b64encode((2).to_bytes(32, "big")).decode(): str(V4)}}
    assert base64.b64encode(server.private_key).decode() not in path.read_text()


# --- When it is written ---


def test_the_cache_is_written_only_after_an_endpoint_change(path: Path) -> None:
    server = server_with([V4])
    remembered = cache_of(server, path)
    assert run(remembered, WRITE_SECS - 1.0, server.world.now) == []
    run(remembered, WRITE_SECS, server.world.now)
    assert path.exists()
    path.unlink()
    run(remembered, 10 * WRITE_SECS, server.world.now)
    assert not path.exists()
    remembered.write_now()
    assert not path.exists()
    server.device.endpoints.use_cached(next(iter(server.device.peers.values())), V6, server.world.now)
    server.device._table.move_endpoint(next(iter(server.device.peers.values())), V6, server.world.now)
    run(remembered, 12 * WRITE_SECS, server.world.now)
    assert json.loads(path.read_text())["endpoints"].popitem()[1] == str(V6)


def test_many_peers_are_written_in_steps_and_the_file_appears_with_the_last(path: Path) -> None:
    count = 3 * STEP_PEERS + 1
    server = server_with([V4._replace(port=port) for port in range(1, count + 1)])
    remembered = cache_of(server, path)
    begin = remembered.next_deadline()
    for step in range(4):
        assert list(path.parent.iterdir()) == []
        assert remembered.next_deadline() == pytest.approx(begin + step * STEP_PAUSE_SECS)
        remembered.handle_timeout(remembered.next_deadline())
    assert len(json.loads(path.read_text())["endpoints"]) == count
    assert remembered.next_deadline() > begin + WRITE_SECS


def test_an_endpoint_that_changes_during_a_write_is_in_the_next_one(path: Path) -> None:
    server = server_with([V4._replace(port=port) for port in range(1, STEP_PEERS + 2)])
    remembered = cache_of(server, path)
    remembered.handle_timeout(remembered.next_deadline())
    first = next(iter(server.device.peers.values()))
    server.device._table.move_endpoint(first, V6, server.world.now)
    run(remembered, 3 * WRITE_SECS, server.world.now)
    assert str(V6) in json.loads(path.read_text())["endpoints"].values()


# --- The file itself ---


def test_only_the_owner_may_read_the_cache_whatever_the_umask(path: Path) -> None:
    before = os.umask(0)
    try:
        cache_of(server_with([V4]), path).write_now()
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_cache_is_replaced_as_a_whole_and_leaves_no_other_file(path: Path) -> None:
    server = server_with([V4])
    path.write_text("old")
    path.with_name("endpoints.json.new").write_text("half, of a process that was killed")
    with path.open() as reader:
        cache_of(server, path).write_now()
        assert reader.read() == "old"
    assert json.loads(path.read_text())["format"] == FORMAT
    assert list(path.parent.iterdir()) == [path]


def test_the_cache_is_not_written_through_a_planted_symlink(path: Path) -> None:
    precious = path.parent / "precious"
    precious.write_text("precious")
    path.with_name("endpoints.json.new").symlink_to(precious)
    path.symlink_to(precious)
    cache_of(server_with([V4]), path).write_now()
    assert precious.read_text() == "precious"
    assert not path.is_symlink()


def test_an_unwritable_folder_is_logged_once(tmp_path: Path, log: FakeLog) -> None:
    path = tmp_path / "none" / "endpoints.json"
    server = server_with([V4, V4])
    remembered = cache_of(server, path)
    peer = next(iter(server.device.peers.values()))
    for number in range(1, 4):
        server.device._table.move_endpoint(peer, V4._replace(port=number), server.world.now)
        run(remembered, number * 2 * WRITE_SECS, server.world.now)
    assert [warning["path"] for warning in log.warnings] == [str(path)]
    path.parent.mkdir()
    server.device._table.move_endpoint(peer, V6, server.world.now)
    remembered.write_now()
    assert path.exists()


# --- What may stand in a file ---

KEY = base64.b64encode((2).to_bytes(32, "big")).decode()


def document(endpoints: object, version: object = FORMAT) -> bytes:
    return json.dumps({"format": version, "endpoints": endpoints}).encode()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        document({KEY: str(V4)})[:-5],
        b"\xff\xfe\x00",
        b"null",
        b"[]",
        b"7",
        b'"format"',
        b"{}",
        b'{"format": 1}',
        document([KEY]),
        document(None),
        document("x"),
        document({KEY: str(V4)}, FORMAT + 1),
        document({KEY: str(V4)}, "1"),
        document({KEY: str(V4)}, None),
        b'{"format": ' + b"9" * 10_000 + b"}",
        b"[" * 200_000,
        b'{"format": 1, "endpoints": {"a": ' + b"[" * 200_000,
        b" " * (FILE_BYTES_MAX + 1),
    ],
    ids=lambda content: repr(content[:24]),
)
def test_an_unreadable_cache_is_logged_and_costs_its_endpoints_only(content: bytes, path: Path, log: FakeLog) -> None:
    path.write_bytes(content)
    server = without_endpoints(server_with([V4]))
    load_endpoints(path, server.device, uninterrupted, server.world.now)
    assert endpoints_of(server) == [None]
    assert len(log.warnings) == 1
    assert log.warnings[0]["path"] == str(path)


@pytest.mark.parametrize(
    "place",
    [
        "",
        "198.51.100.7",
        ":",
        "vpn.example.org:51820",
        "198.51.100.7:0",
        "198.51.100.7:65536",
        "198.51.100.7:99999999999999999999",
        "198.51.100.7:" + "9" * 5000,
        "198.51.100.7:x",
        "\ud800:51820",
        "é" * 100 + ":1",
        "x" * 100_000 + ":1",
        7,
        None,
        [],
        {},
        True,
    ],
    ids=lambda place: ascii(place)[:24],
)
def test_an_invalid_endpoint_costs_that_peer_only(place: object, path: Path, log: FakeLog) -> None:
    other = base64.b64encode((3).to_bytes(32, "big")).decode()
    path.write_bytes(document({KEY: place, other: str(V6), "not a key": str(V4), "": "", "\ud800": "\ud800"}))
    server = without_endpoints(server_with([V4, V6]))
    load_endpoints(path, server.device, uninterrupted, server.world.now)
    assert endpoints_of(server) == [None, V6]


def test_a_first_start_without_a_cache_logs_nothing(path: Path, log: FakeLog) -> None:
    server = without_endpoints(server_with([V4]))
    load_endpoints(path, server.device, uninterrupted, server.world.now)
    load_endpoints(path / "below", server.device, uninterrupted, server.world.now)
    assert endpoints_of(server) == [None]
    assert [warning["path"] for warning in log.warnings] in ([], [str(path / "below")])


def a_folder(path: Path) -> None:
    path.mkdir()


def a_pipe_without_a_writer(path: Path) -> None:
    os.mkfifo(path)


def a_file_without_an_end(path: Path) -> None:
    path.symlink_to("/dev/zero")


def a_link_to_itself(path: Path) -> None:
    path.symlink_to(path)


@pytest.mark.parametrize("make", [a_folder, a_pipe_without_a_writer, a_file_without_an_end, a_link_to_itself])
def test_a_cache_path_that_is_no_file_costs_nothing_else(
    make: Callable[[Path], None], path: Path, log: FakeLog
) -> None:
    make(path)
    server = without_endpoints(server_with([V4]))
    load_endpoints(path, server.device, uninterrupted, server.world.now)
    assert endpoints_of(server) == [None]
    assert len(log.warnings) == 1
    cache_of(server_with([V4]), path).write_now()
    assert path.is_file() or len(log.warnings) == 2
