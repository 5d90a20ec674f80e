"""A node gives ownership up and takes it back: what it must do at those moments, with real sockets and state."""

import errno
import fcntl
import json
import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from oxidize.client.host_setup import HostSetup
from oxidize.clock import boot_time
from oxidize.errors import OxidizeError, SnapshotError, StorageError, TakeoverError
from oxidize.hostnet import dns_config, part
from oxidize.hostnet.part import Steps
from oxidize.protocol.changes import PeerStaged
from oxidize.protocol.constants import KEEPALIVE_TIMEOUT
from oxidize.protocol.counters import ENDED_ON_PURPOSE, KEEPALIVE_OWED_NS, Total
from oxidize.protocol.endpoint import Endpoint
from oxidize.runtime import handover as handover_module
from oxidize.runtime import status
from oxidize.runtime.http_binding import FIRST_PAUSE_SECS
from oxidize.runtime.network_keeper import NetworkKeeper
from oxidize.runtime.node import Node
from oxidize.runtime.succession import Succession
from oxidize.takeover.messages import Hello
from tests.support.network import packet
from tests.support.node_stand import Stand


@pytest.fixture
def stand(tmp_path: Path) -> Iterator[Stand]:
    with ExitStack() as undo:
        yield Stand(tmp_path, undo)


def test_a_freeze_records_the_packets_that_wait_and_the_endpoint_that_moved(stand: Stand) -> None:
    stand.node.serve()
    handover = stand.handover()
    new = stand.successor()
    now = boot_time()
    stand.node.device.send_packets([packet("10.9.0.1", "10.9.0.2", b"waits")], now)
    for port in (1001, 1002):  # the second move within a second is held back
        stand.node.device._table.move_endpoint(stand.peer, Endpoint(bytes([127, 0, 0, 1]), port), now)
    commit = handover.freeze({})
    stand.own(new)
    new.check_journal(commit)
    (peer,) = new.device.peers.values()
    assert list(peer.staged) == [packet("10.9.0.1", "10.9.0.2", b"waits")]
    assert peer.endpoint is not None
    assert peer.endpoint.port == 1002


def test_a_freeze_sends_what_the_device_has_queued(stand: Stand) -> None:
    stand.node.serve()
    handover = stand.handover()
    stand.begin_session()
    stand.node.device.send_packets([packet("10.9.0.1", "10.9.0.2")], boot_time())
    handover.freeze({})
    assert stand.peer_socket.recv(2048)[0] == 4  # a data message
    assert stand.node.device.take_transmits() == []


def test_packets_are_recorded_from_the_offer_on_and_leave_the_records_when_it_is_withdrawn(stand: Stand) -> None:
    stand.node.serve()
    handover = stand.handover()
    for number in range(128):
        stand.node.device.send_packets([packet("10.9.0.1", "10.9.0.2", bytes([number]) * 1300)], boot_time())

    def staged() -> list[int]:
        changes = stand.state.changes()
        return [len(change.packets) for change in changes if isinstance(change, PeerStaged) and change.packets]

    handover.offer(Hello("test", 1, (1,)))
    for _ in range(100):
        stand.loop.run_once(0.01)
        if staged():
            break
    assert staged() == [128]
    assert len(stand.peer.staged) == 128
    handover.offer_withdrawn("a test")
    for _ in range(100):
        stand.loop.run_once(0.01)
        if not staged():
            break
    assert staged() == []
    assert len(stand.peer.staged) == 128


def test_the_timers_that_a_predecessor_noted_after_the_restore_are_kept(stand: Stand) -> None:
    stand.node.serve()
    stand.begin_session()
    new = stand.successor()
    owed_at = boot_time()
    stand.state.arena.counters[stand.peer.slot + KEEPALIVE_OWED_NS] = int(owed_at * 1e9)  # leaves no record
    stand.handover().freeze({})
    stand.own(new)
    unused: Any = SimpleNamespace(done=lambda report: None, is_coordinated=False, store=int)
    succession = Succession(stand.settings, unused, stand.loop, unused, unused, unused)
    succession._announce(new, None, {"sessions": 1, "refused": {}, "warnings": []})
    deadline = new.device.next_deadline()
    assert deadline is not None
    assert deadline == pytest.approx(owed_at + KEEPALIVE_TIMEOUT, abs=1e-6)


def send_junk(node: Node) -> None:
    """Send a datagram that is dropped, and counted as received."""
    host, _, port = node.udp.local_address.rpartition(":")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"junk", (host, int(port)))


def run(stand: Stand) -> None:
    """Run the loop until nothing is ready: on loopback what is sent is there at once."""
    for _ in range(20):
        stand.loop.run_once(0)


def test_a_node_reads_until_it_is_frozen_and_again_once_it_has_thawed(stand: Stand) -> None:
    stand.node.serve()
    handover = stand.handover()
    counts = []
    for step in (lambda: None, lambda: handover.freeze({}), lambda: handover.thaw("a test")):
        step()
        send_junk(stand.node)
        run(stand)
        counts.append(stand.node.counters[Total.RECEIVED_DATAGRAMS])
    assert counts == [1, 1, 3], "what comes during the freeze waits in the socket"


def test_a_frozen_node_answers_no_http_request_before_it_has_thawed(stand: Stand) -> None:
    stand.node.http_listener = socket.create_server(("127.0.0.1", 0))  # which the node closes
    stand.node.http_listener.setblocking(False)
    stand.node.open_http()
    stand.node.serve()
    handover = stand.handover()
    handover.freeze({})
    with socket.create_connection(stand.node.http_listener.getsockname()) as connection:
        connection.setblocking(False)
        connection.sendall(b"GET /health HTTP/1.0\r\n\r\n")
        run(stand)
        with pytest.raises(BlockingIOError):
            connection.recv(1)
        handover.thaw("a test")
        run(stand)
        assert b" 200 " in connection.recv(4096)


def test_a_node_whose_metrics_address_is_taken_answers_there_once_it_is_free(stand: Stand) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = taken.getsockname()
        stand.settings = stand.settings._replace(metrics_listen=address)
        node = stand.successor()
        stand.node.serve()
        stand.handover().freeze({})
        stand.own(node)
        binding = node._http_binding
        binding.handle_timeout(boot_time() + FIRST_PAUSE_SECS)
        answer = json.loads(status.describe_vitals(node))
        assert answer["metrics_listen"] is None
        assert "Address already in use" in answer["metrics_listen_problem"]
    binding.handle_timeout(boot_time() + 4 * FIRST_PAUSE_SECS)
    answer = json.loads(status.describe_vitals(node))
    assert (answer["metrics_listen"], answer["metrics_listen_problem"]) == (f"127.0.0.1:{address[1]}", None)
    with socket.create_connection(address) as connection:
        connection.sendall(b"GET /health HTTP/1.0\r\n\r\n")
        run(stand)
        assert b" 200 " in connection.recv(4096)


def test_a_node_is_the_writer_except_while_it_is_frozen(stand: Stand) -> None:
    stand.node.serve()
    handover = stand.handover()
    is_writer = []
    for step in (lambda: None, lambda: handover.freeze({}), lambda: handover.thaw("a test")):
        step()
        is_writer.append(stand.state.journal.is_writer)
    assert is_writer == [True, False, True]


@pytest.mark.parametrize("end", ["withdrawn", "thawed"])
def test_the_regions_of_the_journal_change_sides_again_when_no_successor_reads(stand: Stand, end: str) -> None:
    stand.node.serve()
    handover = stand.handover()

    def changes_of_sides() -> int:
        for number in range(2):
            stand.node.device._table.record_endpoint(stand.peer, float(number))  # the one before is dead
            while stand.state.maintain(purge=True):
                pass
        return stand.state.journal.position[0]

    before = changes_of_sides()
    assert before > 0
    handover.offer(Hello("test", 1, (1,)))
    held = changes_of_sides()
    assert held == changes_of_sides(), "a successor reads"
    if end == "withdrawn":
        handover.offer_withdrawn("a test")
    else:
        handover.freeze({})
        handover.thaw("a test")
    assert changes_of_sides() > held


def test_each_failed_takeover_is_counted_and_recorded(stand: Stand) -> None:
    stand.node.serve()
    handover = stand.handover()
    handover.offer(Hello("test", 1, (1,)))
    handover.offer_withdrawn("no READY")
    handover.freeze({})
    handover.thaw("killed")
    assert stand.node.counters[Total.TAKEOVERS_FAILED] == 2
    entries = [(each["result"], each["reason"]) for each in stand.state.takeovers()]
    assert entries == [("failure", "no READY"), ("failure", "killed")]


def test_no_offer_is_made_to_a_release_that_cannot_read_the_state(stand: Stand) -> None:
    handover = stand.handover()
    stand.state.journal.envelope["min_reader"] = 7
    for versions in ((), (5, 6)):
        with pytest.raises(TakeoverError, match="expected 7 or later"):
            handover.offer(Hello("test", 1, versions))
    handover.offer(Hello("test", 1, (6, 7)))


def test_a_journal_that_was_not_read_to_the_end_is_refused(stand: Stand) -> None:
    new = stand.successor()
    end = new.session_state.end
    new.check_journal({"journal_end": end})
    with pytest.raises(SnapshotError, match=f"read up to {end}, expected {end + 1}"):
        new.check_journal({"journal_end": end + 1})


def test_an_end_that_was_requested_is_told_from_a_crash(stand: Stand) -> None:
    stand.node.serve()
    assert not stand.node.counters[ENDED_ON_PURPOSE]
    stand.node.handle_termination(signal.SIGTERM)  # which drains first, and no session is there
    run(stand)
    assert stand.node.counters[ENDED_ON_PURPOSE]
    assert stand.loop.stopped


@pytest.mark.parametrize("drained_before", [False, True])
def test_an_end_names_its_signal_also_where_a_drain_was_over(
    stand: Stand, caplog: pytest.LogCaptureFixture, drained_before: bool
) -> None:
    stand.node.serve()
    if drained_before:
        stand.node.drain()
        run(stand)
        assert stand.node.drain_left_secs == 0
    with caplog.at_level("INFO"):
        stand.node.handle_termination(signal.SIGINT)
        run(stand)
    said = [(record.getMessage(), record.__dict__["oxidize_fields"].get("signal")) for record in caplog.records]
    assert (said[0], said[-1]) == (("told to end: drains first", "SIGINT"), ("ends", "SIGINT"))


def test_a_node_whose_network_is_incomplete_is_not_healthy(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    node = stand.node
    node.serve()
    assert node.respond("GET", "/health").status == 200
    monkeypatch.setattr(NetworkKeeper, "missing", ["interface ox0, route +10.50.0.0/16: another interface has it"])
    assert node.respond("GET", "/health").status == 503
    described = json.loads(b"".join(status.describe(node)))
    assert described["state"] == "degraded"
    assert described["network_missing"] == node.keeper.missing
    assert b"oxidize_network_missing 1.0" in node.respond("GET", "/metrics").body


class SlowPart:
    """A part that lacks something, with a datagram on its way and an act of the test in each slice."""

    name = "interface ox0"

    def __init__(self, node: Node, act: Callable[[int], None] = lambda _: None, pause: float = 0.0) -> None:
        self.received: list[int] = []  # datagrams, at the end of each slice but the last
        self._node = node
        self._act = act
        self._pause = pause
        node.interface = self  # type: ignore[assignment]  # a part of the test's own
        clock = boot_time
        node.keeper = NetworkKeeper([self], node.counters, clock, lambda: node.is_serving, lambda: None)

    def compare(self, *, repair: bool) -> Steps[list[str]]:
        assert repair
        for number in range(3):
            send_junk(self._node)
            self._act(number)
            yield self._pause
            self.received.append(self._node.counters[Total.RECEIVED_DATAGRAMS])
        return ["route +10.50.0.0/16"]


@pytest.mark.parametrize("pause", [0.0, 0.01])
@pytest.mark.parametrize("is_repair", [False, True])
def test_traffic_is_served_between_the_slices_of_a_change_of_the_interface(
    stand: Stand, is_repair: bool, pause: float
) -> None:
    stand.node.serve()
    slow = SlowPart(stand.node, pause=pause)
    worked: list[int] = []
    stand.node.settle_interface(lambda: worked.append(1), is_repair=is_repair)
    assert slow.received == [1, 2, 3]
    assert len(worked) == 3
    assert stand.node.counters[Total.NETWORK_REPAIRS] == is_repair
    assert stand.node.keeper.missing == []


def test_a_change_of_the_interface_ends_once_a_successor_owns(stand: Stand) -> None:
    stand.node.serve()
    slow = SlowPart(stand.node, lambda number: stand.node.give_up_ownership() if number == 1 else None)
    with pytest.raises(OxidizeError, match="takeover is under way"):
        stand.node.settle_interface(is_repair=True)
    assert len(slow.received) == 1
    assert stand.node.counters[Total.NETWORK_REPAIRS] == 0


# --- Draining ---


def state_of(node: Node) -> tuple[str, bool]:
    return node.state_name, node.device.accepting


def test_a_node_that_was_told_to_end_withdraws_its_offer_and_makes_none(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand.node.serve()
    handover = stand.handover()
    withdrawn: list[str] = []
    monkeypatch.setattr(handover.predecessor, "withdraw", withdrawn.append)
    stand.begin_session()
    stand.node.handle_termination(signal.SIGTERM)
    assert withdrawn == ["the server was told to end"]
    with pytest.raises(TakeoverError, match="was told to end"):
        handover.offer(Hello("test", 1, (1,)))
    assert not stand.loop.stopped


def test_a_drain_is_the_successors_also_if_it_begins_after_the_offer(stand: Stand) -> None:
    stand.node.serve()
    handover = stand.handover()
    stand.begin_session()
    new = stand.successor()
    stand.node.drain()
    handover.freeze({})
    stand.own(new)
    assert state_of(new) == ("draining", False)
    new.accept()
    assert state_of(new) == ("healthy", True)
    assert new.drain_left_secs is None


@pytest.mark.parametrize("cancelled", [False, True])
def test_a_thawed_node_drains_unless_its_dead_successor_was_told_to_accept(stand: Stand, cancelled: bool) -> None:
    stand.node.serve()
    handover = stand.handover()
    stand.begin_session()
    stand.node.drain()
    new = stand.successor()
    handover.freeze({})
    stand.own(new)
    if cancelled:
        new.accept()
    new.give_up_ownership()
    new.session_state.stop_writing()
    handover.thaw("a test")
    assert stand.node.state_name == ("healthy" if cancelled else "draining")
    assert stand.node.device.accepting is cancelled


@pytest.mark.parametrize("crash", [False, True])
def test_a_restart_begins_accepting_and_a_crash_continues_the_drain(stand: Stand, crash: bool) -> None:
    stand.node.serve()
    stand.begin_session()
    stand.node.drain()
    new = stand.successor()
    if not crash:
        stand.node._end()
    stand.state.stop_writing()  # as its end does
    stand.own(new)
    assert new.state_name == ("draining" if crash else "healthy")


def test_a_node_that_does_not_own_cancels_no_drain(stand: Stand) -> None:
    stand.node.serve()
    handover = stand.handover()
    stand.begin_session()
    stand.node.drain()
    handover.freeze({})
    with pytest.raises(Exception, match="a takeover is under way"):
        stand.node.accept()


# --- What a dead successor changed outside of the process ---


def thawed(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Thaw a node; return the list of what is done outside of the process then, each by its name."""
    done: list[str] = []
    stand.node.host_setup = HostSetup(stand.settings, 1, None)
    monkeypatch.setattr(stand.node.nat, "apply", lambda: done.append("nat"))
    monkeypatch.setattr(handover_module, "store_again", lambda tunnel, nat: done.append("store"))
    monkeypatch.setattr(stand.node.host_setup, "apply_again", lambda pause: done.append("host"))
    stand.node.serve()
    handover = stand.handover()
    handover.freeze({})
    handover.thaw("a test")
    return done


def test_a_thawed_node_puts_back_what_its_successor_may_have_changed(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = thawed(stand, monkeypatch)
    assert done == []  # it serves first
    stand.loop.run_once(0)
    assert done == ["nat", "store", "host"]
    stand.loop.run_once(0)
    assert len(done) == 3


def test_a_node_that_has_given_up_ownership_again_puts_nothing_back(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = thawed(stand, monkeypatch)
    stand.node.give_up_ownership()
    stand.loop.run_once(0)
    assert done == []


def test_a_program_that_sets_something_up_is_ended_once_a_successor_owns(stand: Stand) -> None:
    """As `resolvectl` in the middle of which a takeover happens, whose successor runs one of its own."""
    stand.node.serve()
    handover = stand.handover()
    polls: list[float] = []

    def pause(secs: float) -> None:
        polls.append(secs)
        if len(polls) == 2:
            handover.freeze({})
        stand.node.pause(min(secs, 0.001))

    began = boot_time()
    with pytest.raises(OxidizeError, match="a takeover is under way"):
        part.run(dns_config._run(["sleep", "600"]), pause)
    assert len(polls) == 2
    assert boot_time() - began < 500  # the program was killed


# --- A thaw without memory for the writer's lock ---


def refusing(monkeypatch: pytest.MonkeyPatch, refusals: int, number: int) -> list[float]:
    """Let the kernel refuse the writer's lock so often; return the pauses that are made."""
    pauses: list[float] = []
    lockf = fcntl.lockf

    def refuse(fd: int, command: int) -> None:
        if command & fcntl.LOCK_EX and len(pauses) < refusals:
            raise OSError(number, os.strerror(number))
        lockf(fd, command)

    monkeypatch.setattr("fcntl.lockf", refuse)
    monkeypatch.setattr("time.sleep", pauses.append)
    return pauses


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOMEM])
def test_a_passing_lack_of_memory_for_the_writers_lock_only_delays_a_thaw(
    stand: Stand, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    stand.node.serve()
    handover = stand.handover()
    handover.freeze({})
    pauses = refusing(monkeypatch, 3, number)
    handover.thaw("a test")
    assert len(pauses) == 3
    assert stand.node.is_serving
    assert stand.state.is_writer


def test_a_thaw_does_not_wait_for_a_lock_that_no_time_gives(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    stand.node.serve()
    handover = stand.handover()
    handover.freeze({})
    pauses = refusing(monkeypatch, 3, errno.EINVAL)
    with pytest.raises(StorageError):
        handover.thaw("a test")
    assert (pauses, stand.node.is_serving) == ([], False)
