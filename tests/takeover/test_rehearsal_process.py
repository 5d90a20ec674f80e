"""The queries of a deployment to a running server, and rehearsals of a takeover, with real processes under traffic."""

import contextlib
import http.client
import json
import mmap
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from oxidize import __version__
from oxidize.control.query import IDENTITY, PEERS, STATE, STATUS, VITALS, fetch
from oxidize.deploy.vitals import Vitals
from oxidize.errors import TakeoverError, WriterBusyError
from oxidize.protocol.constants import REJECT_AFTER_TIME
from oxidize.runtime.parts import boot_id
from oxidize.state.session_state import SessionState
from oxidize.takeover import Answer, query_with_fds
from oxidize.takeover.channel import close_fds
from tests.support.sparse_files import content
from tests.support.traffic.clients import EchoClient, Traffic, clock
from tests.support.traffic.server import Lab, PeerTable, Server, fault, go_on, kill, stalled_pid, wait_for

NOBODY = 65_534

pytestmark = pytest.mark.handoff


@pytest.fixture
def server(lab: Lab, clients: list[EchoClient]) -> Server:
    return Server(lab, [client.table() for client in clients], metrics_listen="127.0.0.1:0")


@contextlib.contextmanager
def state_of(server: Server) -> Iterator[Answer]:
    answer = query_with_fds(server.takeover_socket, STATE)
    assert answer is not None
    try:
        yield answer
    finally:
        close_fds(named.fd for named in answer.fds)


def rehearsed(server: Server) -> dict[str, Any]:
    done = server.command("rehearse", "--json")
    assert (done.status, done.errors) == (0, "")
    found: dict[str, Any] = json.loads(done.output)
    return found


def get(listen: str, path: str) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection(listen, timeout=20)
    with contextlib.closing(connection):
        connection.request("GET", path)
        response = connection.getresponse()
        response.read()
        return response


# --- Vitals ---


def test_vitals_have_the_fields_that_a_deployment_reads(server: Server, clients: list[EchoClient]) -> None:
    pid = server.start()
    with Traffic(server, clients, 100.0):
        before = Vitals.of(fetch(server.takeover_socket, VITALS))
        server.replace()
        answer = fetch(server.takeover_socket, VITALS)
    vitals, status = Vitals.of(answer), server.status()
    assert (before.pid, before.generation, before.blackout_ms) == (pid, 1, None)
    assert (vitals.pid, vitals.generation, vitals.state) == (status["pid"], 2, "healthy")
    assert (vitals.release, vitals.release_folder) == (__version__, sys.prefix)
    assert (vitals.sessions, vitals.peers) == (3, 3)
    assert before.at < vitals.at <= clock()
    assert 0 <= vitals.uptime_secs < vitals.at - before.at
    assert vitals.total("sent_packets") >= before.total("sent_packets") > 0
    assert vitals.blackout_ms == status["takeovers"][-1]["blackout_ms"]
    assert vitals.metrics_listen is not None
    assert get(vitals.metrics_listen, "/health").status == 200
    assert answer["role"] == "server"
    assert answer["started_unix"] == status["started_unix"]


def test_a_status_says_when_a_session_ends_by_age(server: Server, clients: list[EchoClient]) -> None:
    server.start()
    assert [peer["session_ends_unix"] for peer in server.status()["peers"]] == [0.0] * 3
    before = time.time()
    with Traffic(server, clients, 100.0):
        after = time.time()
        for _ in range(2):
            peers = server.status()["peers"]
            assert all(before <= peer["session_ends_unix"] - REJECT_AFTER_TIME <= after for peer in peers)
            server.replace()


def test_a_status_is_vitals_and_more_and_vitals_name_no_peer(server: Server) -> None:
    server.write_config(metrics_listen="")
    server.start()
    answers = {what: fetch(server.takeover_socket, what) for what in (STATUS, PEERS, VITALS, IDENTITY)}
    assert answers[VITALS].keys() < answers[STATUS].keys()
    assert answers[STATUS].keys() - answers[VITALS].keys() == {
        *("interface", "network", "nat", "nat_rules", "listen", "public_key", "connection"),
        *("peers", "inactive_peers", "wg_problem"),
    }
    assert Vitals.of(answers[VITALS]).metrics_listen is None
    assert answers[IDENTITY]["release_folder"] == sys.prefix
    whole, short = answers[STATUS], answers[PEERS]
    assert {name: short[name] for name in ("pid", "listen")} == {name: whole[name] for name in ("pid", "listen")}
    told = ("public_key", "has_session")
    assert short["peers"]
    assert short["peers"] == [{name: peer[name] for name in told} for peer in whole["peers"]]


# --- The state ---


def test_the_handed_out_state_can_be_read_but_not_written(server: Server) -> None:
    server.start()
    with state_of(server) as answer:
        assert [(named.name, named.kind) for named in answer.fds] == [("journal", "memfd"), ("arena", "memfd")]
        for named in answer.fds:
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.pwrite(named.fd, b"x", 0)
            with pytest.raises(PermissionError):
                mmap.mmap(named.fd, 4096, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        said = json.loads(answer.content)
        assert Vitals.of(said).generation == 1
        assert len(os.pread(answer.find("journal").fd, said["journal_end"], 0)) == said["journal_end"]


def state_files(pid: int) -> list[tuple[str, Path]]:
    """Return the descriptors of a process's state: number and target."""
    found = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # a connection that ended since it was listed
            match = re.fullmatch(r"/memfd:oxidize-(journal|arena) \(deleted\)", str(entry.readlink()))
            if match:
                found.append((match[1], entry))
    return sorted(found)


def writable(pid: int) -> dict[str, int]:
    """Return writable descriptors of a process's state, which only its own user can open."""
    for _, entry in state_files(pid):
        entry.chmod(0o600)
    return {name: os.open(entry, os.O_RDWR | os.O_CLOEXEC) for name, entry in dict(state_files(pid)).items()}


def test_a_server_that_hands_out_its_state_remains_its_only_writer(server: Server) -> None:
    server.start()
    for _ in range(2):
        with state_of(server):
            pass
        rehearsed(server)
        pid = server.status()["pid"]
        fds = writable(pid)
        state = SessionState.open(
            fds["journal"], fds["arena"], boot_id=boot_id(), public_key=server.identity.public, now=clock()
        )
        with contextlib.closing(state), pytest.raises(WriterBusyError):
            state.become_writer()
        server.replace()


def test_repeated_queries_leak_no_descriptors(server: Server) -> None:
    pid = server.start()
    before = state_files(pid)
    with state_of(server):
        pass
    after_one = state_files(pid)
    assert sorted(name for name, _ in set(after_one) - set(before)) == ["arena", "journal"]
    for _ in range(3):
        with state_of(server):
            pass
    assert state_files(pid) == after_one


def test_a_server_in_a_takeover_refuses_its_state_but_answers_with_vitals(
    server: Server, clients: list[EchoClient], tmp_path: Path
) -> None:
    pid = server.start()
    with Traffic(server, clients, 20.0) as traffic:
        before, after = tmp_path / "before", tmp_path / "after"
        reloading = server.start_reload(env=fault("oxidize.takeover.successor:Successor.ready", "stall", before))
        stalled = stalled_pid(before)
        assert rehearsed(server)["sessions"] == 3  # it restores, and its predecessor serves
        kill(stalled)
        assert server.finish_reload(reloading).status == 1
        traffic.wait_for_more()
        reloading = server.start_reload(
            env=fault("oxidize.takeover.successor:Successor.ready", "stall", after, "after")
        )
        stalled_pid(after)
        with pytest.raises(TakeoverError, match="a takeover is under way: ask again"), state_of(server):
            pass
        done = server.command("rehearse")
        assert (done.status, done.output) == (1, "")
        assert "a takeover is under way: ask again" in done.errors
        assert Vitals.of(fetch(server.takeover_socket, VITALS)).pid == pid
        go_on(after)
        assert server.finish_reload(reloading).status == 0
        traffic.wait_for_more()
        assert rehearsed(server)["generation"] == 2
        traffic.assert_unharmed()


# --- Rehearsing ---


def content_of(server: Server) -> dict[str, bytes]:
    """Return the contents of the server's journal and arena."""
    with state_of(server) as answer:
        return {named.name: content(named.fd) for named in answer.fds}


def test_a_rehearsal_under_traffic_keeps_all_and_changes_nothing(server: Server, clients: list[EchoClient]) -> None:
    pid = server.start()
    with Traffic(server, clients, 200.0) as traffic:
        journal = content_of(server)["journal"]
        folder = sorted(server.lab.folder.iterdir())
        for _ in range(3):
            found = rehearsed(server)
            traffic.wait_for_more()
        expected = {"release": __version__, "sessions": 3, "sessions_now": 3, "refused": {}}
        expected |= {"unknown_fields": 0, "unknown_types": 0, "generation": 1, "pid": pid}
        assert found == expected
        assert content_of(server)["journal"] == journal
        assert sorted(server.lab.folder.iterdir()) == folder
        assert server.processes() == {pid}
        status = server.status()
        assert (status["pid"], status["generation"], status["takeovers"]) == (pid, 1, [])
        traffic.assert_unharmed()

        def nothing_changed() -> bool:
            before = content_of(server)
            rehearsed(server)
            return content_of(server) == before

        # Repeated if one of the server's own timers has run in between.
        wait_for("a rehearsal that leaves every byte as it was", nothing_changed)


def test_a_rehearsal_prints_what_would_be_lost(server: Server, clients: list[EchoClient]) -> None:
    pid = server.start()
    with Traffic(server, clients, 100.0) as traffic:
        del server.peers[1]
        server.write_config()
        done = server.command("rehearse")
        assert (done.status, done.errors) == (0, "")
        assert done.output.splitlines() == [
            f"release {__version__} would keep 2 of 3 sessions (generation 1, pid {pid})",
            "1 session: not configured any more",
        ]
        server.peers.insert(1, clients[1].table())
        server.write_config()
        assert rehearsed(server)["sessions"] == 3
        assert server.status()["sessions"] == 3
        traffic.assert_unharmed()


def test_a_rehearsal_without_a_running_server_is_an_error_of_one_line(server: Server) -> None:
    done = server.command("rehearse")
    assert (done.status, done.output) == (1, "")
    (line,) = done.errors.splitlines()
    assert line.startswith(f"oxidize: nothing runs: no process listens at {server.takeover_socket}; start it with")


def test_a_configuration_with_mistakes_is_not_rehearsed(server: Server) -> None:
    server.start()
    server.write_config(mtu=9)
    done = server.command("rehearse")
    assert (done.status, done.output) == (2, "")
    assert "server.mtu = 9: expected" in done.errors


def test_a_rehearsal_with_another_private_key_says_so_and_changes_nothing(server: Server, tmp_path: Path) -> None:
    pid = server.start()
    other = server.identity.make()
    (tmp_path / "other.key").touch(mode=0o600)
    server._secret("other.key", other.private)
    server.write_config(private_key_file="other.key")
    done = server.command("rehearse", "--json")
    assert (done.status, done.errors) == (0, "")
    assert json.loads(done.output)["sessions"] == 0
    server.write_config()
    assert server.status()["pid"] == pid


# --- Errors that were logged ---


def errors_logged(server: Server) -> int:
    return Vitals.of(fetch(server.takeover_socket, VITALS)).total("errors_logged")


def errors_before(server: Server) -> int | None:
    return Vitals.of(fetch(server.takeover_socket, VITALS)).errors_before


def test_the_count_of_errors_continues_across_a_takeover(server: Server, tmp_path: Path) -> None:
    server.start(fault("oxidize.metrics:Metrics.render", "raise", tmp_path / "mark"))
    listen = server.status()["metrics_listen"]
    for number in (1, 2):
        assert get(listen, "/metrics").status == 500
        assert errors_logged(server) == number
    assert errors_before(server) == 0
    server.replace()
    assert get(listen, "/metrics").status == 200
    assert errors_logged(server) == 2


def test_the_errors_of_successor_and_predecessor_are_told_apart(server: Server, tmp_path: Path) -> None:
    broken = fault("oxidize.metrics:Metrics.render", "raise", tmp_path / "mark")
    server.start(broken)
    listen = server.status()["metrics_listen"]
    for _ in range(3):
        assert get(listen, "/metrics").status == 500
    where = "oxidize.state.session_state:SessionState.become_writer"
    assert server.reload(fault(where, "raise", tmp_path / "other")).status == 1  # and so the predecessor thaws
    assert (errors_before(server), errors_logged(server)) == (0, 3)
    assert server.reload(broken).status == 0
    assert (errors_before(server), errors_logged(server)) == (3, 3)
    assert get(listen, "/metrics").status == 500
    assert (errors_before(server), errors_logged(server)) == (3, 4)


def test_a_predecessor_counts_no_errors_after_the_hand_off(server: Server, tmp_path: Path) -> None:
    pid = server.start(fault("oxidize.runtime.handover:Handover.finish", "raise", tmp_path / "mark"))
    assert server.reload().status == 0
    assert server.lab.wait_ended(pid) == 1
    assert "ends because of a bug" in server.log_path.read_text()
    assert errors_logged(server) == 0


def test_a_frozen_predecessor_counts_no_errors(server: Server, clients: list[EchoClient], tmp_path: Path) -> None:
    server.start()
    with Traffic(server, clients, 20.0) as traffic:
        where = "oxidize.state.session_state:SessionState.become_writer"
        assert server.reload(fault(where, "raise", tmp_path / "mark")).status == 1
        traffic.wait_for_more()
        (line,) = (line for line in server.log_path.read_text().splitlines() if "failed after the freeze" in line)
        assert " ERROR " in line  # while the words may be a successor's
        assert errors_logged(server) == 0
        traffic.assert_unharmed()


# --- As whom ---


def as_nobody(server: Server, *arguments: str) -> list[str]:
    """Return a command of `oxidize` that runs as an ordinary user, after all imports."""
    modules = "oxidize.cli.commands, oxidize.cli.rehearse, oxidize.runtime.daemon, oxidize.runtime.rehearsal"
    drop = f"os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})"
    code = f"import os, pydantic.plugin._loader, {modules}; 'a'.encode('idna'); {drop}; oxidize.cli.commands.main()"
    return [sys.executable, "-P", "-c", code, *arguments, "-c", str(server.config_path)]


@pytest.mark.root
def test_root_and_the_services_own_user_may_rehearse() -> None:
    with tempfile.TemporaryDirectory() as name, Lab(Path(name)) as lab:
        server = Server(lab, [PeerTable("alice", os.urandom(32), ("10.9.0.2/32",))])
        for path in (lab.folder, *lab.folder.iterdir()):
            os.chown(path, NOBODY, NOBODY)
        pid = lab.spawn(as_nobody(server, "server", "--no-holder"), "server")
        wait_for("the server", server.takeover_socket.exists)
        expected = f"release {__version__} would keep 0 of 0 sessions (generation 1, pid {pid})\n"
        done = subprocess.run(as_nobody(server, "rehearse"), capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (0, expected, "")
        by_root = server.command("rehearse")
        assert (by_root.status, by_root.output, by_root.errors) == (0, expected, "")
