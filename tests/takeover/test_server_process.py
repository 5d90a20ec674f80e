"""Real server and client processes that are started, queried, reloaded and ended as by an operator."""

import base64
import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from demo.processes import reap, spawn
from oxidize.control.query import ACCEPT, DRAIN, IDENTITY, fetch
from oxidize.protocol.changes import KeypairState, PeerKeypairs, PeerSeen
from oxidize.state.session_state import SessionState
from tests.support.traffic.clients import EchoClient, Traffic
from tests.support.traffic.server import OXIDIZE, WAIT_SECS, Lab, PeerTable, Server, b64, wait_for

NOBODY = 65_534
SESSIONS = 3_000  # enough for a restore of many turns of the loop
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
O_CLOEXEC = os.O_CLOEXEC


@pytest.fixture
def server(lab: Lab, client: EchoClient) -> Server:
    return Server(lab, [client.table()], metrics_listen=f"127.0.0.1:{free_port()}")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def health(port: int) -> tuple[int, dict[str, object]]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=WAIT_SECS)
    try:
        connection.request("GET", "/health")
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def metrics_port(server: Server) -> int:
    (line,) = (line for line in server.config_path.read_text().splitlines() if line.startswith("metrics_listen"))
    return int(line.rstrip('"').rpartition(":")[2])


def run_to_end(server: Server, env: Mapping[str, str] | None = None) -> tuple[int | None, list[str]]:
    """Run a server that must fail to start; return its exit status and its lines of output."""
    pid = server.lab.spawn((*OXIDIZE, "server", "--no-holder", "-c", str(server.config_path)), "refused", env)
    status = server.lab.wait_ended(pid)
    log = server.lab.folder / "refused.log"
    lines = log.read_text().splitlines()
    log.unlink()
    return status, lines


# --- Starting, and what keeps it from that ---


def test_an_occupied_port_is_an_error_of_one_line(lab: Lab, server: Server, tmp_path: Path) -> None:
    server.start()
    listen = str(server.status()["listen"])
    server.write_config(listen=listen, takeover_socket="other.sock", metrics_listen="")
    status, lines = run_to_end(server)
    assert status == 2
    (line,) = lines
    assert line.startswith(f"oxidize: listen address 127.0.0.1 port {server.port}: the port is taken; stop its owner")


def test_a_folder_that_cannot_be_created_is_an_error_of_one_line(server: Server) -> None:
    (server.lab.folder / "file").write_text("")
    server.write_config(takeover_socket="file/takeover.sock")
    status, lines = run_to_end(server)
    assert status == 2
    (line,) = lines
    assert line.startswith(
        f"oxidize: takeover_socket = {server.lab.folder}/file/takeover.sock: its folder cannot be created"
    )


def test_a_missing_service_manager_is_an_error_of_one_line(server: Server) -> None:
    status, lines = run_to_end(server, {**os.environ, "NOTIFY_SOCKET": str(server.lab.folder / "none")})
    assert status == 2
    (line,) = lines
    assert line.startswith(f"oxidize: NOTIFY_SOCKET = {server.lab.folder}/none: No such file or directory")


def test_a_process_started_as_successor_never_starts_without_a_predecessor(server: Server) -> None:
    """Its coordinator found a predecessor, which has ended since."""
    coordinator, link = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with coordinator, link:
        command = [*OXIDIZE, "server", "--no-holder", "-c", str(server.config_path), "--control-fd", str(link.fileno())]
        done = subprocess.run(command, pass_fds=[link.fileno()], capture_output=True, timeout=WAIT_SECS, check=False)
        said = json.loads(coordinator.recv(65_536))
    assert (done.returncode, said["event"]) == (1, "failed")
    assert said["reason"].startswith(
        f"the server to be replaced has ended: no process listens at {server.takeover_socket}; this process does not"
    )
    assert not server.takeover_socket.exists()


@pytest.mark.root
def test_a_missing_permission_for_tun_is_an_error_of_one_line() -> None:
    # Everything is imported before: the interpreter's folders may be closed to that user, as pytest's are.
    code = (
        "import os, pydantic.plugin._loader, oxidize.cli.commands, oxidize.runtime.daemon; 'a'.encode('idna'); "
        f"os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY}); oxidize.cli.commands.main()"
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        server = Server(Lab(folder), [PeerTable("alice", os.urandom(32), ("10.9.0.2/32",))], network="tun")
        for path in (folder, *folder.iterdir()):
            os.chown(path, NOBODY, NOBODY)
        command = [OXIDIZE[0], "-P", "-c", code, "server", "--no-holder", "-c", str(server.config_path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=WAIT_SECS)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("oxidize: interface oxidize0: ")
    # Which of the two it lacks depends on whether the machine lets every user open /dev/net/tun, as udev does.
    assert "CAP_NET_ADMIN" in line or "DeviceAllow=/dev/net/tun" in line


def stored_state(server: Server) -> tuple[SessionState, list[PeerTable]]:
    """Return the state of a server with SESSIONS sessions, and their peers."""
    peers = [
        PeerTable(f"p{number}", os.urandom(32), (f"10.64.{number >> 8}.{number & 0xFF}/32",))
        for number in range(SESSIONS)
    ]
    state = SessionState.create("0.1.0", 1, BOOT_ID.read_text().strip(), server.identity.public)
    now = time.clock_gettime(time.CLOCK_BOOTTIME)
    for number, peer in enumerate(peers, 1):
        state.record(PeerSeen(peer.public_key, state.arena.allocate()))
        keys = (os.urandom(32), os.urandom(32))
        keypair = KeypairState(number, number, *keys, now, False, state.arena.allocate())
        state.record(PeerKeypairs(peer.public_key, None, keypair, None, time.time()))
    state.stop_writing()
    return state, peers


def test_health_reports_starting_while_thousands_of_sessions_are_restored(lab: Lab) -> None:
    server = Server(lab, [], address=["10.64.255.254/10"])
    state, peers = stored_state(server)
    server.peers = peers
    server.write_config()
    with contextlib.closing(state), socket.socket() as listener, socket.socket(type=socket.SOCK_DGRAM) as udp:
        for bound in (listener, udp):
            bound.bind(("127.0.0.1", 0))
            bound.setblocking(False)
        listener.listen()
        port = int(listener.getsockname()[1])
        fds = [("udp", udp.fileno()), ("http", listener.fileno()), *state.fds.items()]
        with server.log_path.open("wb") as log:
            pid = spawn(
                (*OXIDIZE, "server", "--no-holder", "-c", str(server.config_path)), os.environ, log.fileno(), fds
            )
        answers: list[tuple[int, object]] = []
        while not answers or answers[-1][0] != 200:
            assert reap(pid) is None, server.log_path.read_text()
            answers.append(health(port))
    assert (503, {"status": "starting", "ready": False}) in answers
    assert answers[-1] == (200, {"status": "healthy", "ready": True})
    status = server.status()
    assert (status["generation"], status["sessions"]) == (2, SESSIONS)
    assert status["takeovers"][-1]["way"] == "restored from the store"
    assert server.reload().output.startswith(
        f"reloaded: generation 3, pid {server.status()['pid']}: {SESSIONS} sessions "
    )


# --- Asking ---


def test_status_works_and_reload_fails_with_a_broken_configuration(server: Server) -> None:
    pid = server.start()
    good = server.config_path.read_text()
    for broken in (good.replace("[server]", "[server]\nnonsense = 1"), good + "[[[\n"):
        server.config_path.write_text(broken)
        (server.lab.folder / "server.key").chmod(0o644)
        shown = server.command("status")
        assert shown.status == 0
        assert f"pid {pid}" in shown.output
        refused = server.command("reload")
        assert refused.status == 2
        assert refused.errors.splitlines()[-1] == f"oxidize: not reloaded: generation 1, pid {pid}, still serves"
    assert server.status()["pid"] == pid


def test_queries_of_another_user_are_refused(server: Server) -> None:
    server.start()
    assert server.takeover_socket.stat().st_mode & 0o777 == 0o600


# --- Reloading ---


@pytest.mark.handoff
def test_reload_returns_while_the_successor_keeps_running(server: Server) -> None:
    """A reader of the output sees its end, because the successor inherits none of the descriptors."""
    server.start()
    read, write = os.pipe()
    try:
        command = subprocess.run(
            [*OXIDIZE, "reload", "-c", str(server.config_path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=[write],
            timeout=WAIT_SECS,
            text=True,
            check=True,
        )
        os.close(write)
        assert re.fullmatch(
            r"reloaded: generation 2, pid \d+: 0 sessions moved, blackout \d+\.\d ms, \d+\.\d\d s in all\n",
            command.stdout,
        )
        assert os.read(read, 1) == b""  # no process holds the other end
    finally:
        os.close(read)
    pid = server.status()["pid"]
    with (server.lab.folder / "server.log").open() as log:
        assert "took over" in log.read()
    for number in (1, 2):
        assert Path(f"/proc/{pid}/fd/{number}").readlink() == server.log_path


@pytest.mark.handoff
def test_no_descriptor_would_survive_an_exec(server: Server) -> None:
    server.start()
    pid = server.replace()["pid"]
    for entry in Path(f"/proc/{pid}/fdinfo").iterdir():
        if int(entry.name) > 2:
            (flags,) = re.findall(r"^flags:\s+([0-7]+)$", entry.read_text(), re.MULTILINE)
            where = Path(f"/proc/{pid}/fd/{entry.name}").readlink()
            assert int(flags, 8) & O_CLOEXEC, f"{entry.name} -> {where}"


@pytest.mark.handoff
def test_a_reload_keeps_the_log_level(server: Server) -> None:
    pid = server.lab.spawn(
        (*OXIDIZE, "server", "--no-holder", "-c", str(server.config_path), "--log-level", "debug"), "server"
    )
    wait_for("the server", server.takeover_socket.exists)
    assert pid != server.replace()["pid"]
    assert fetch(server.takeover_socket, "identity")["log_level"] == "debug"


@pytest.mark.handoff
def test_a_reload_that_cannot_work_says_why_once_and_the_old_process_serves(server: Server) -> None:
    pid = server.start()
    server.write_config(network="tun", interface="lo")  # `oxidize check` takes it, and the successor cannot make it
    refused = server.reload()
    lines = refused.errors.splitlines()
    assert (refused.status, refused.output) == (1, "")
    assert [line for line in lines if "interface lo: " in line] == lines[:1]
    assert lines[1:] == [f"oxidize: not reloaded: generation 1, pid {pid}, still serves"]


@pytest.mark.handoff
def test_a_server_emits_no_python_warning_from_start_to_end(server: Server) -> None:
    env = {**os.environ, "PYTHONWARNINGS": "error", "PYTHONDEVMODE": "1"}
    pid = server.start(env)
    outcome = server.reload(env)
    assert outcome.status == 0
    assert outcome.errors == ""
    server.lab.wait_ended(pid)
    successor = server.status()["pid"]
    os.kill(successor, signal.SIGTERM)
    assert server.lab.wait_ended(successor) == 0
    assert "Warning" not in server.log_path.read_text()


# --- Ending ---


def test_a_server_without_sessions_ends_at_once(server: Server) -> None:
    pid = server.start()
    os.kill(pid, signal.SIGTERM)
    assert server.lab.wait_ended(pid) == 0
    assert not server.takeover_socket.exists()


def test_a_server_with_sessions_drains_and_a_second_signal_ends_it(server: Server, client: EchoClient) -> None:
    pid = server.start()
    port = metrics_port(server)
    assert health(port) == (200, {"status": "healthy", "ready": True})
    late = EchoClient(3)
    with Traffic(server, [client], 200.0) as traffic:
        os.kill(pid, signal.SIGTERM)
        wait_for("draining", lambda: server.status()["state"] == "draining")
        assert health(port) == (503, {"status": "draining", "ready": False})
        traffic.wait_for_more()  # who has a session keeps it
        late.identity = client.identity
        late.connect(server)
        late.send_next()  # a handshake
        wait_for("the handshake to be refused", lambda: server.status()["drops"]["draining"])
        os.kill(pid, signal.SIGTERM)
        assert server.lab.wait_ended(pid) == 0
        with contextlib.suppress(ConnectionRefusedError):  # the traffic continues against the closed port
            traffic.stop()
    late.socket.close()
    assert "ends at once" in server.log_path.read_text()


def test_a_drain_survives_a_takeover_and_a_crash_and_can_be_cancelled_afterwards(
    server: Server, client: EchoClient
) -> None:
    server.start()
    with Traffic(server, [client], 100.0) as traffic:
        traffic.wait_for_more()
        left_secs = fetch(server.takeover_socket, DRAIN)["drain_left_secs"]
        server.replace()
        identity = fetch(server.takeover_socket, IDENTITY)
        assert 0.0 < identity["drain_left_secs"] < left_secs
        assert server.status()["state"] == "draining"
        traffic.wait_for_more()  # the session is served
        assert fetch(server.takeover_socket, ACCEPT)["drain_left_secs"] is None
        server.replace()
        assert server.status()["state"] == "healthy"
        traffic.wait_for_more()
    server.stop()


def test_a_server_that_was_told_to_end_refuses_a_successor_and_ends(server: Server, client: EchoClient) -> None:
    pid = server.start()
    with Traffic(server, [client], 100.0) as traffic:
        traffic.wait_for_more()
        os.kill(pid, signal.SIGTERM)
        wait_for("draining", lambda: server.status()["state"] == "draining")
        refused = server.reload()
        assert refused.status == 1
        assert "was told to end" in refused.errors
        assert server.status()["pid"] == pid
    assert server.lab.wait_ended(pid) == 0  # its session is idle


def test_draining_ends_at_its_time_limit(server: Server, client: EchoClient) -> None:
    server.write_config(drain_timeout_secs=1)
    pid = server.start()
    with Traffic(server, [client], 100.0) as traffic:
        os.kill(pid, signal.SIGTERM)
        assert server.lab.wait_ended(pid) == 0
        with contextlib.suppress(ConnectionRefusedError):
            traffic.stop()
    assert "drained sessions=1 in_time=false" in server.log_path.read_text().lower()


def test_sighup_changes_nothing_and_says_what_would(server: Server) -> None:
    pid = server.start()
    os.kill(pid, signal.SIGHUP)
    wait_for("the hint", lambda: "SIGHUP changes nothing: use `oxidize reload`" in server.log_path.read_text())
    assert server.status()["pid"] == pid


# --- Logs ---


def secrets_in(state: SessionState) -> set[bytes]:
    """Return all session keys of a state."""
    found = set()
    for change in state.changes():
        if isinstance(change, PeerKeypairs):
            for keypair in (change.previous, change.current, change.next):
                if keypair is not None:
                    found |= {keypair.send_key, keypair.receive_key}
    return found


@pytest.mark.handoff
def test_no_key_is_in_any_log_or_answer(lab: Lab, client: EchoClient) -> None:
    table = client.table()
    server = Server(lab, [table], metrics_listen=f"127.0.0.1:{free_port()}")
    lab.spawn((*OXIDIZE, "server", "--no-holder", "-c", str(server.config_path), "--log-level", "debug"), "server")
    wait_for("the server", server.takeover_socket.exists)
    with Traffic(server, [client], 100.0) as traffic:
        outcome = server.reload()
        traffic.wait_for_more()
        server.config_path.write_text(server.config_path.read_text() + "broken = 1\n")
        refused = server.command("reload")
        pid = server.status()["pid"]
        keys = secrets_in(copied_state(pid, server.identity.public))
        connection = http.client.HTTPConnection("127.0.0.1", metrics_port(server), timeout=WAIT_SECS)
        connection.request("GET", "/metrics")
        metrics = connection.getresponse().read().decode()
        connection.close()
        shown = [outcome.output, outcome.errors, refused.errors, metrics, json.dumps(server.status())]
        shown += [server.command("status").output, server.log_path.read_text()]
        traffic.assert_unharmed()
    assert len(keys) == 2
    for key in {*keys, server.identity.private, client.identity.private}:
        for form in (base64.b64encode(key).decode().rstrip("="), key.hex(), repr(key)[2:-1]):
            for text in shown:
                assert form.lower() not in text.lower()


def copied_state(pid: int, public_key: bytes) -> SessionState:
    """Read the state of a serving process as a successor does."""
    files = {}
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = str(entry.readlink())
        except FileNotFoundError:  # a connection that ended since it was listed
            continue
        match = re.fullmatch(r"/memfd:oxidize-(journal|arena) \(deleted\)", target)
        if match:
            files[match[1]] = entry
    fds = [os.open(files[name], os.O_RDWR | os.O_CLOEXEC) for name in ("journal", "arena")]
    now = time.clock_gettime(time.CLOCK_BOOTTIME)
    state = SessionState.open(*fds, boot_id=BOOT_ID.read_text().strip(), public_key=public_key, now=now)
    state.close()
    return state


# --- The client ---


@pytest.mark.handoff
def test_a_client_keeps_its_session_across_a_takeover(lab: Lab, client: EchoClient) -> None:
    server = Server(lab, [client.table()])
    server.start()
    folder = lab.folder
    for name, key in (("client.key", client.identity.private),):
        (folder / name).touch(0o600)
        (folder / name).write_text(b64(key))
    config = folder / "client.toml"
    config.write_text(
        f'[client]\nserver = "127.0.0.1:{server.port}"\nserver_public_key = "{b64(server.identity.public)}"\n'
        f'private_key_file = "client.key"\naddress = "{client.address}/24"\nallowed_ips = ["10.9.0.0/24"]\n'
        'network = "userspace"\ntakeover_socket = "client.sock"\npersistent_keepalive = 1\n'
    )
    client.socket.close()
    lab.spawn((*OXIDIZE, "client", "--no-holder", "-c", str(config)), "client")

    def of_client() -> dict[str, object]:
        done = subprocess.run(
            [*OXIDIZE, "status", "--client", "--json", "-c", str(config)], capture_output=True, check=False
        )
        return json.loads(done.stdout) if done.returncode == 0 else {"sessions": 0}

    wait_for("the client's session", lambda: of_client()["sessions"])
    before = of_client()
    assert before["role"] == "client"
    handshakes = server.status()["totals"]["handshakes_responder"]
    done = subprocess.run(
        [*OXIDIZE, "reload", "--client", "-c", str(config)], capture_output=True, check=False, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("reloaded: generation 2, ")
    assert ": 1 session moved, " in done.stdout
    after = of_client()
    assert (after["generation"], after["sessions"], after["listen"]) == (2, 1, before["listen"])
    keepalives = server.status()["totals"]["received_keepalives"]
    wait_for("a keepalive", lambda: server.status()["totals"]["received_keepalives"] > keepalives)
    assert server.status()["totals"]["handshakes_responder"] == handshakes
    os.kill(int(str(after["pid"])), signal.SIGTERM)
    assert lab.wait_ended(int(str(after["pid"]))) == 0
