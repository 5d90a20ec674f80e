"""Peers that lose their access, and get it back, while others' traffic flows through the same server."""

import contextlib
import os
import pty
import select
import signal
import subprocess
import time
from collections.abc import Iterator

import pytest

from tests.support.traffic.clients import EchoClient, Traffic
from tests.support.traffic.server import OXIDIZE, WAIT_SECS, Lab, Server, b64, kill, wait_for
from tests.takeover.test_foreground import start, stop, wait_until_serving

pytestmark = pytest.mark.handoff

LATER_SECS = 8.0  # until access ends: enough to start a server, and for a session, on a busy machine


@pytest.fixture
def guest() -> Iterator[EchoClient]:
    client = EchoClient(5)
    yield client
    client.socket.close()


@pytest.fixture
def server(lab: Lab, clients: list[EchoClient], guest: EchoClient) -> Server:
    """A server whose last peer is the guest."""
    server = Server(lab, [client.table() for client in [*clients, guest]])
    server.write_config(drain_timeout_secs=0)
    return server


def let_end(server: Server, unix: float) -> None:
    """Let the access of the guest end at a time."""
    moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(unix))
    server.config_path.write_text(server.config_path.read_text() + f"expires = {moment}\n")


def talk(guest: EchoClient) -> bool:
    """Send a request; return whether replies come for all of them."""
    guest.send_next()
    deadline = time.monotonic() + 1.0
    while guest.waiting and time.monotonic() < deadline:
        guest.receive()
        time.sleep(0.01)
    return not guest.waiting


def connects(server: Server, guest: EchoClient) -> bool:
    """Return whether a handshake of the guest, without any session, is answered."""
    guest.sent = 0
    guest.replies.clear()
    guest.connect(server)
    return talk(guest)


def inactive(server: Server) -> list[tuple[str, str]]:
    return [(peer["name"], peer["reason"]) for peer in server.status()["inactive_peers"]]


def test_access_ends_while_the_server_runs_and_stays_ended(
    server: Server, clients: list[EchoClient], guest: EchoClient
) -> None:
    let_end(server, time.time() + LATER_SECS)
    held = start(server)
    with Traffic(server, clients, 100.0) as traffic:
        assert connects(server, guest)
        assert inactive(server) == []
        wait_for("the end of access", lambda: inactive(server) == [("client-5", "expired")])
        assert server.status()["sessions"] == len(clients)
        assert "a peer's access has ended" in server.log_path.read_text()
        assert not talk(guest)
        assert not connects(server, guest)
        assert server.status()["drops"]["unknown_peer"] > 0
        traffic.wait_for_more()
        assert server.reload().status == 0
        assert not connects(server, guest)
        before = server.status()
        kill(before["pid"], signal.SIGKILL)
        wait_until_serving(server, after=before["generation"])
        assert inactive(server) == [("client-5", "expired")]
        assert not connects(server, guest)
        traffic.wait_for_more()
        traffic.assert_unharmed(lost_at_most=1)
    stop(server, held)


def test_access_that_ended_while_no_process_served_has_no_session_after_it(
    server: Server, clients: list[EchoClient], guest: EchoClient
) -> None:
    """The process is stopped for the time; what it had recorded is a live session."""
    ends_at = time.time() + LATER_SECS
    let_end(server, ends_at)
    held = start(server)
    with Traffic(server, clients, 100.0) as traffic:
        assert connects(server, guest)
        before = server.status()
        kill(before["pid"], signal.SIGSTOP)
        wait_for("the end of access", lambda: time.time() > ends_at)
        guest.send_next()  # waits in the queue of the next process
        kill(before["pid"], signal.SIGKILL)
        wait_until_serving(server, after=before["generation"])
        assert inactive(server) == [("client-5", "expired")]
        assert not talk(guest)
        traffic.wait_for_more()
        traffic.assert_unharmed(lost_at_most=1)
    stop(server, held)


def test_a_client_is_disabled_and_enabled_by_commands(
    server: Server, clients: list[EchoClient], guest: EchoClient
) -> None:
    held = start(server)
    with Traffic(server, clients, 100.0) as traffic:
        assert connects(server, guest)
        done = server.command("peer", "disable", "client-5")
        assert done.status == 0, done
        lines = done.errors.splitlines()
        assert (lines[0], lines[-1]) == ("disabled client-5", "its session has ended")
        assert "not moved" not in done.errors
        assert inactive(server) == [("client-5", "disabled")]
        assert not talk(guest)
        assert not connects(server, guest)
        assert "1 disabled: client-5" in server.command("status").output
        assert server.command("peer", "enable", "client-5").status == 0
        assert inactive(server) == []
        assert connects(server, guest)
        traffic.wait_for_more()
        traffic.assert_unharmed()
    stop(server, held)


class Terminal:
    """A command in a terminal of 80x24."""

    def __init__(self, server: Server, *arguments: str) -> None:
        self.leader, follower = pty.openpty()
        command = [*OXIDIZE, *arguments, "-c", str(server.config_path)]
        environ = {**os.environ, "COLUMNS": "80", "LINES": "24", "PYTHONUTF8": "1"}
        self.running = subprocess.Popen(
            command, stdin=follower, stdout=follower, stderr=follower, env=environ, start_new_session=True
        )
        os.close(follower)
        self.shown = b""

    def read_until(self, text: str) -> None:
        while text.encode() not in self.shown:
            readable, _, _ = select.select([self.leader], [], [], WAIT_SECS)
            assert readable, self.shown
            self.shown += os.read(self.leader, 65536)

    def end(self) -> int:
        with contextlib.suppress(OSError):  # EIO: the last writer is gone
            while part := os.read(self.leader, 65536):
                self.shown += part
        os.close(self.leader)
        return self.running.wait(WAIT_SECS)


def test_a_terminal_waits_until_the_new_client_has_connected(
    server: Server, clients: list[EchoClient], guest: EchoClient
) -> None:
    server.peers = [client.table() for client in clients]
    server.write_config(drain_timeout_secs=0)
    held = start(server)
    key = b64(guest.identity.public)
    with Traffic(server, clients, 100.0) as traffic:
        terminal = Terminal(server, "peer", "add", "guest", "--address", str(guest.address), "--public-key", key)
        terminal.read_until("waiting for guest to connect; Ctrl-C ends the waiting, and guest stays")
        # The configuration is not locked meanwhile.
        assert server.command("peer", "list").status == 0
        assert server.command("peer", "add", "another", "--no-reload").status == 0
        assert connects(server, guest)
        assert (terminal.end(), b"guest has connected from 127.0.0.1:" in terminal.shown) == (0, True)
        traffic.assert_unharmed()
    stop(server, held)


def test_an_end_of_the_waiting_leaves_the_client(server: Server) -> None:
    server.peers = server.peers[:-1]
    server.write_config(drain_timeout_secs=0)
    held = start(server)
    terminal = Terminal(server, "peer", "add", "phone")
    terminal.read_until("waiting for phone to connect")
    terminal.running.send_signal(signal.SIGINT)
    assert (terminal.end(), b"no longer waiting: phone stays, and can" in terminal.shown) == (0, True)
    assert "phone" in [peer["name"] for peer in server.status()["peers"]]
    terminal = Terminal(server, "peer", "renew", "phone", "--no-wait")
    assert (terminal.end(), b"waiting" in terminal.shown) == (0, False)
    stop(server, held)
