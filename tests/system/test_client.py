"""The service of the client: reloaded, restarted, killed and stopped, with wireguard-go as its server."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.traffic.namespaces import Namespace, join, set_addresses
from tests.support.traffic.ping import ping
from tests.support.traffic.server import Identity, Lab, b64, wait_for
from tests.support.traffic.wireguard_go import WireguardGo
from tests.system.machine import CLIENT, Machine, prioritize
from tests.system.service import OXIDIZE
from tests.system.traffic import NumberedTraffic

ROOT = Path(__file__).parents[2]
RELOADS = 10
RESTARTS = 3
# The TUN device keeps 2,000 packets for the half second or so that a restart takes.
RATE = 1_000
SLOW_RATE = 100  # where a restart is one step of many: the device keeps 20 s of it
INNER_SERVER, INNER_CLIENT, PORT = "10.9.0.1", "10.9.0.2", 51820
INTERFACE = "oxidize1"


class ClientService:
    """A booted machine with a configured client that is not started, and a running server."""

    def __init__(self, lab: Lab, seed: Path) -> None:
        self.lab = lab
        self.namespace, self.server_side = Namespace(lab.stack), Namespace(lab.stack)
        self.machine = Machine(lab, self.namespace, seed)
        join(self.server_side, "clients0", self.namespace, "outer0")
        set_addresses(self.server_side, "clients0", ["192.0.2.1/24"])
        set_addresses(self.namespace, "outer0", ["192.0.2.2/24"])
        self.identity = Identity.make()
        self.server = WireguardGo(lab, self.server_side, [f"{INNER_SERVER}/24"])
        self.server.set_peer(self.identity.public, f"{INNER_CLIENT}/32")
        self.server.wg("set", self.server.name, "listen-port", str(PORT))
        prioritize(self.server.pid)
        self.server.enlarge_buffers()
        self._configure()

    def _configure(self) -> None:
        folder = self.machine.root / "etc/oxidize"
        key = folder / "client.key"
        key.touch(mode=0o600)
        key.write_text(b64(self.identity.private) + "\n")
        values = {
            "server": f"192.0.2.1:{PORT}",
            "server_public_key": b64(self.server.identity.public),
            "private_key_file": "client.key",
            "address": f"{INNER_CLIENT}/24",
            "allowed_ips": ["10.9.0.0/24"],
        }
        lines = ["[client]", *(f"{name} = {json.dumps(value)}" for name, value in values.items())]
        (folder / "client.toml").write_text("\n".join(lines) + "\n")
        self.machine.run("chown", "oxidize-client:", "/etc/oxidize/client.key")

    def start(self) -> int:
        self.machine.systemctl("start", CLIENT)
        ping(self.lab, self.namespace, INNER_SERVER, 2)
        return self.machine.main_pid(CLIENT)

    def wait_for_main_process(self, other_than: int) -> int:
        """Wait until another main process serves alone; return its pid."""

        def look() -> int | None:
            pid = self.machine.main_pid(CLIENT)
            settled = pid not in (0, other_than) and self.machine.processes(CLIENT) == {pid}
            return pid if settled and self.machine.show("ActiveState", CLIENT) == "active" else None

        return wait_for("another main process", look)

    def traffic(self, rate: int = RATE) -> NumberedTraffic:
        return NumberedTraffic(self.lab, self.namespace, self.server_side, INNER_SERVER, rate)


@pytest.fixture
def client(tmp_path: Path, seed: Path) -> Iterator[ClientService]:
    with Lab(tmp_path) as lab:
        yield ClientService(lab, seed)


def test_reloads_of_the_client_lose_no_packet(client: ClientService) -> None:
    pid = client.start()
    handshake, traffic = client.server.latest_handshake(), client.traffic()
    for _ in range(RELOADS):
        client.machine.systemctl("reload", CLIENT)
        pid = client.wait_for_main_process(pid)
        traffic.wait_until_caught_up()
    traffic.stop().assert_unharmed()
    assert client.server.latest_handshake() == handshake
    status = json.loads(client.machine.run(OXIDIZE, "status", "--client", "--json"))
    assert (status["generation"], status["connection"]["state"]) == (RELOADS + 1, "connected")


def test_restarts_and_kills_of_the_client_lose_no_session(client: ClientService) -> None:
    pid = client.start()
    handshake, traffic = client.server.latest_handshake(), client.traffic()
    for _ in range(RESTARTS):
        client.machine.systemctl("restart", CLIENT)
        pid = client.wait_for_main_process(pid)
        traffic.wait_until_caught_up()
    for number in range(1, RESTARTS + 1):
        client.machine.kill(pid)
        pid = client.wait_for_main_process(pid)
        traffic.wait_until_caught_up(forgiven=64 * number)
    traffic.stop().assert_unharmed(crashes=RESTARTS)
    assert client.server.latest_handshake() == handshake


def test_a_stopped_client_leaves_nothing_behind(client: ClientService) -> None:
    client.start()
    told = client.machine.run(OXIDIZE, "stop", "--client")
    assert told == f"stopped: {CLIENT}, by `systemctl stop {CLIENT}`\n"
    assert client.machine.processes(CLIENT) == set()
    assert client.machine.show("Result", CLIENT) == "success"
    assert INTERFACE not in client.machine.run("ip", "-o", "link")
    client.start()


def test_server_and_client_cannot_read_the_files_of_each_other(client: ClientService) -> None:
    machine = client.machine
    machine.run("sh", "-c", "umask 077; echo key > /etc/oxidize/server.key; systemd-tmpfiles --create oxidize.conf")
    client.start()
    for user, own, other in (("oxidize", "server", "client"), ("oxidize-client", "client", "server")):
        as_user = ("setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups")
        for suffix in ("toml", "key"):
            assert machine.try_run(*as_user, "cat", f"/etc/oxidize/{own}.{suffix}").status == 0
            assert "Permission denied" in machine.try_run(*as_user, "cat", f"/etc/oxidize/{other}.{suffix}").errors
    refused = machine.try_run("setpriv", "--reuid=oxidize", "--clear-groups", OXIDIZE, "status", "--client")
    assert (refused.status, "Permission denied" in refused.errors) == (2, True), refused
    status = (machine.root / f"proc/{machine.main_pid(CLIENT)}/status").read_text()
    for line in ("CapPrm:\t0000000000001000", "CapBnd:\t0000000000001000", "NoNewPrivs:\t1", "Seccomp:\t2"):
        assert line in status


def test_an_installation_with_one_user_for_both_services_is_upgraded(client: ClientService) -> None:
    """As release 0.1 left it: the client runs as the server's user, and its files belong to that user."""
    machine, folder = client.machine, client.machine.root / "etc/oxidize"
    unit = machine.root / f"etc/systemd/system/{CLIENT}"
    text = unit.read_text()
    assert "\nUser=oxidize-client\n" in text
    unit.write_text(text.replace("\nUser=oxidize-client\n", "\nUser=oxidize\n"))
    toml = (folder / "client.toml").read_text()
    (folder / "client.toml").write_text(toml.replace('"client.key"', '"laptop.key"'))
    machine.run("mv", "/etc/oxidize/client.key", "/etc/oxidize/laptop.key")
    machine.run("chown", "oxidize:oxidize", "/etc/oxidize/laptop.key")
    machine.systemctl("daemon-reload")
    pid = client.start()
    handshake, traffic = client.server.latest_handshake(), client.traffic(SLOW_RATE)

    source = machine.root / "srv/source"
    shutil.copytree(ROOT / "systemd", source / "systemd")
    shutil.copy(ROOT / "Makefile", source)
    told = machine.try_run("make", "-C", "/srv/source", "units")
    assert told.status == 0, told
    assert "oxidize-client.service has a user of its own now: systemctl restart oxidize-client\n" in told.output
    assert machine.run(
        "stat", "-c", "%a %U %G", *(f"/etc/oxidize{name}" for name in ("", "/laptop.key"))
    ).splitlines() == [
        "751 root oxidize",
        "600 oxidize-client oxidize-client",
    ]
    assert machine.main_pid(CLIENT) == pid
    machine.systemctl("restart", CLIENT)
    pid = client.wait_for_main_process(pid)
    assert machine.run("stat", "-c", "%U", f"/proc/{pid}").strip() == "oxidize-client"
    traffic.wait_until_caught_up()
    machine.systemctl("reload", CLIENT)
    client.wait_for_main_process(pid)
    traffic.wait_until_caught_up()
    traffic.stop().assert_unharmed()
    assert client.server.latest_handshake() == handshake
    again = machine.try_run("make", "-C", "/srv/source", "units")
    assert (again.status, "user of its own" in again.output) == (0, False)


def test_a_client_that_gave_up_is_not_restarted(client: ClientService) -> None:
    config = client.machine.root / "etc/oxidize/client.toml"
    config.write_text(config.read_text() + "max_reconnect_attempts = 2\n")
    client.server.stop()
    client.machine.try_run("systemctl", "start", CLIENT)  # it may have given up before it has started
    client.machine.wait_for("the client to give up", lambda: client.machine.show("ActiveState", CLIENT) == "failed")
    assert client.machine.show("ExecMainStatus", CLIENT) == "3"
    assert "max_reconnect_attempts" in client.machine.journal(unit=CLIENT)
