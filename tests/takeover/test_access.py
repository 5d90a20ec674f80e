"""Peers that lose their access, and get it back, while others' traffic flows through the same server."""

import signal
import time
from collections.abc import Iterator

import pytest

from tests.support.traffic.clients import EchoClient, Traffic
from tests.support.traffic.server import Lab, Server, kill, wait_for
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
