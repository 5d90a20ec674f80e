"""A private key that an operator has changed in the file: a reload takes it up, and says so before and after."""

from dataclasses import replace
from pathlib import Path

import pytest

from oxidize.control.key_change import KEY_CHANGED
from tests.support.traffic.clients import EchoClient
from tests.support.traffic.oxidize_client import OxidizeClient
from tests.support.traffic.server import (
    OXIDIZE,
    Identity,
    Lab,
    Outcome,
    PeerTable,
    Server,
    b64,
    fault,
    kill,
    stalled_pid,
    wait_for,
)


def connect(server: Server, *clients: EchoClient) -> None:
    for client in clients:
        client.connect(server)
        exchange(client)


def exchange(client: EchoClient) -> None:
    """Send a request and wait for its answer."""
    answered = len(client.replies)
    client.send_next()

    def look() -> bool:
        client.receive()
        return len(client.replies) > answered

    wait_for("an answer", look)


def change_key(server: Server) -> Identity:
    """Write another private key where the configuration names it; return the one before."""
    before, server.identity = server.identity, Identity.make()
    server._secret("server.key", server.identity.private)
    return before


def wait_for_drops(server: Server, reason: str, number: int) -> None:
    wait_for(f"{number} of {reason}", lambda: server.status()["drops"][reason] == number)


def assert_told(done: Outcome, *texts: str) -> None:
    assert done.status == 0, done
    for text in texts:
        assert text in done.errors, done


def test_a_changed_private_key_is_taken_up_by_a_reload_which_says_so_before_and_after(
    server: Server, clients: list[EchoClient]
) -> None:
    told, untold, idle = clients
    held = server.lab.spawn((*OXIDIZE, "server", "-c", str(server.config_path)), "server")
    wait_for("the server to serve", server.takeover_socket.exists)
    connect(server, told, untold)
    before, earlier = change_key(server), server.status()
    keys = f"before, and still of pid {earlier['pid']}: {b64(before.public)}; then: {b64(server.identity.public)}"
    announced = f"{KEY_CHANGED}: a reload ends all sessions; each peer gets no answer until it has this server's new "
    assert_told(server.command("check"), announced, keys)
    rehearsed = server.command("rehearse")
    assert "would keep 0 of 2 sessions" in rehearsed.output
    assert f"2 sessions: {KEY_CHANGED}" in rehearsed.output
    exchange(told)  # nothing has changed yet

    assert_told(
        server.reload(), announced, keys, f"{KEY_CHANGED}: 2 sessions ended", f"2 peers not moved: {KEY_CHANGED}"
    )
    after = server.status()
    assert after["public_key"] == b64(server.identity.public)
    assert (after["sessions"], after["generation"]) == (0, earlier["generation"] + 1)
    assert after["totals"]["received_packets"] == earlier["totals"]["received_packets"] + 1, "the totals continue"
    assert [peer["endpoint"] for peer in after["peers"]] == [peer["endpoint"] for peer in earlier["peers"]]
    assert f"WARNING oxidize.runtime.succession {KEY_CHANGED}: 2 sessions ended" in server.log_path.read_text()

    strays, wrong = after["drops"]["unknown_index"], after["drops"]["mac1_invalid"]
    untold.send_next()  # in the session of the old key
    wait_for_drops(server, "unknown_index", strays + 1)
    idle.connect_to(before.public, server.port)
    idle.send_next()  # a handshake with the old key
    wait_for_drops(server, "mac1_invalid", wrong + 1)
    assert (untold.waiting, idle.waiting) == (1, 1), "silence"
    told.connect_to(server.identity.public, server.port)
    exchange(told)
    assert server.status()["sessions"] == 1

    # The new state is the stored one: a crash costs no session, and neither does the next reload.
    kill(server.status()["pid"])
    wait_for("the next process", lambda: server.takeover_socket.exists() and is_restored(server))
    exchange(told)
    done = server.reload()
    assert (done.status, done.errors) == (0, "")
    exchange(told)
    assert told.handshakes == 1
    assert server.command("stop").status == 0
    assert server.lab.wait_ended(held) == 0


def is_restored(server: Server) -> bool:
    return server.log_path.read_text().count("restored=True sessions=1") == 1


@pytest.mark.parametrize(
    ("where", "when"),
    [
        pytest.param("oxidize.takeover.successor:Successor.ready", "before", id="before READY"),
        pytest.param("oxidize.takeover.successor:Successor.ready", "after", id="after COMMIT"),
        pytest.param("oxidize.takeover.successor:Successor.taken", "before", id="before TAKEN"),
    ],
)
def test_sessions_continue_where_the_successor_with_the_other_key_dies(
    server: Server, clients: list[EchoClient], tmp_path: Path, where: str, when: str
) -> None:
    server.start()
    connect(server, clients[0])
    before = change_key(server)
    mark = tmp_path / "stalled"
    reloading = server.start_reload(env=fault(where, "stall", mark, when))
    kill(stalled_pid(mark))
    assert server.finish_reload(reloading).status == 1
    exchange(clients[0])
    status = server.status()
    assert (status["generation"], status["sessions"], status["public_key"]) == (1, 1, b64(before.public))
    assert server.reload().status == 0
    assert server.status()["sessions"] == 0


def test_a_second_process_with_another_key_and_the_same_takeover_socket_ends_nothing(
    server: Server, clients: list[EchoClient]
) -> None:
    server.start()
    connect(server, clients[0])
    change_key(server)
    second = server.lab.spawn((*OXIDIZE, "server", "--no-holder", "-c", str(server.config_path)), "second")
    assert server.lab.wait_ended(second) == 1
    assert "its sessions belong to another private key" in (server.lab.folder / "second.log").read_text()
    exchange(clients[0])
    assert server.status()["sessions"] == 1


def test_a_client_takes_a_changed_private_key_up_and_connects_once_the_server_knows_it(lab: Lab) -> None:
    identity = Identity.make()
    peer = PeerTable("laptop", identity.public, ("10.9.0.2/32",))
    server = Server(lab, [peer])
    server.start()
    client = OxidizeClient(
        lab,
        f"127.0.0.1:{server.port}",
        server.identity.public,
        address=["10.9.0.2/24"],
        allowed_ips=["10.9.0.0/24"],
        identity=identity,
        network="userspace",
        persistent_keepalive=1,
    )
    client.start()
    wait_for("the session", lambda: client.status()["connection"]["state"] == "connected")
    before, changed = client.status(), Identity.make()
    (lab.folder / "client.key").write_text(b64(changed.private) + "\n")
    done = client.command("reload", "--client")
    assert_told(done, f"{KEY_CHANGED}: 1 session ended; the server gets no answer until it has this client's new")
    after = client.status()
    assert after["public_key"] == b64(changed.public) != before["public_key"]
    assert after["connection"]["state"] != "connected"
    server.peers = [replace(peer, public_key=changed.public)]
    server.write_config()
    assert server.reload().status == 0
    wait_for("the session of the new key", lambda: client.status()["connection"]["state"] == "connected")
    client.stop()
