"""A client under systemd as an unprivileged user: its rules and DNS servers last as long as the unit, not a process."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from oxidize.config.paths import CLIENT_INTERFACE
from oxidize.config.values import FWMARK_DEFAULT
from oxidize.hostnet.netlink import ROUTE_PROTOCOL
from tests.support.traffic.namespaces import Namespace, join, set_addresses
from tests.support.traffic.server import Identity, Lab, b64, wait_for
from tests.system.machine import CLIENT as NAME
from tests.system.machine import Machine

OXIDIZE = "/opt/oxidize/current/bin/oxidize"
CONFIG = "/etc/oxidize/client.toml"
RESOLVCONF = '#!/bin/sh\n{ echo "resolvconf $*"; test "$1" = -d || tee /etc/resolv.conf; } >> /run/resolvconf.log\n'
RECORD = "tun.oxidize-client"
ADDED = [f"resolvconf -a {RECORD} -m 0 -x", "nameserver 10.9.0.1"]


class Client:
    """The unit on a booted machine."""

    def __init__(self, lab: Lab, seed: Path) -> None:
        namespace, outside = Namespace(lab.stack), Namespace(lab.stack)
        join(outside, "out0", namespace, "up0")
        set_addresses(outside, "out0", ["192.0.2.1/30"])
        set_addresses(namespace, "up0", ["192.0.2.2/30"])
        self.machine = Machine(lab, namespace, seed)
        self._put("/usr/local/bin/resolvconf", RESOLVCONF, "0755")
        self._put("/etc/oxidize/client.key", b64(Identity.make().private), "0400")
        self.machine.run("chown", "oxidize-client:", "/etc/oxidize/client.key")
        self.write_config(dns=["10.9.0.1"])

    def drop_in(self, text: str) -> None:
        """Add a drop-in to the unit."""
        self._put(f"/etc/systemd/system/{NAME}.d/test.conf", text)
        self.machine.systemctl("daemon-reload")

    def _put(self, path: str, text: str, mode: str = "0644") -> None:
        target = self.machine.root / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
        self.machine.run("chmod", mode, path)

    def write_config(self, *, dns: list[str], attempts: int = 0, interface: str = CLIENT_INTERFACE) -> None:
        text = f"""[client]
            server = "192.0.2.1:51820"
            server_public_key = "{b64(Identity.make().public)}"
            private_key_file = "client.key"
            address = "10.9.0.2/24"
            allowed_ips = ["0.0.0.0/0", "::/0"]
            dns = {dns}
            max_reconnect_attempts = {attempts}
            interface = "{interface}"
        """
        self._put(CONFIG, text)

    def systemctl(self, command: str) -> None:
        """Start, reload, restart or stop the unit, which must succeed."""
        outcome = self.machine.try_run("systemctl", command, NAME)
        assert outcome.status == 0, f"{outcome}\n{self.machine.journal('-u', NAME)}"

    def rules(self) -> list[str]:
        lines = (self.machine.run("ip", f"-{version}", "rule") for version in (4, 6))
        return [line for text in lines for line in text.splitlines() if f"proto {ROUTE_PROTOCOL}" in line]

    def told(self) -> list[str]:
        """Return the calls of resolvconf since the last time."""
        log = self.machine.root / "run/resolvconf.log"
        lines = log.read_text().splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        return lines

    def main_pid(self) -> int:
        return int(self.machine.show("MainPID", NAME))

    def wait_for_another(self, pid: int) -> int:
        def look() -> int:
            active = self.machine.show("ActiveState", NAME) == "active"
            return self.main_pid() if active and self.main_pid() not in (0, pid) else 0

        return wait_for("the next process", look) or 0


@contextmanager
def watched_rules(client: Client) -> Iterator[list[list[str]]]:
    """Poll the routing rules while entered; the list is complete at exit."""
    seen: list[list[str]] = []
    ending = threading.Event()

    def run() -> None:
        while not ending.is_set():
            seen.append(client.rules())

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield seen
    finally:
        ending.set()
        thread.join()


@pytest.fixture
def client(tmp_path: Path, seed: Path) -> Iterator[Client]:
    with Lab(tmp_path) as lab:
        yield Client(lab, seed)


def test_routing_rules_and_dns_servers_last_exactly_as_long_as_the_unit(client: Client) -> None:
    machine = client.machine
    client.systemctl("start")
    rules = client.rules()
    assert len(rules) == 7
    assert client.told() == ADDED

    pid = client.main_pid()
    client.systemctl("reload")
    assert client.wait_for_another(pid) != pid
    assert (client.rules(), client.told()) == (rules, ADDED)

    client.write_config(dns=[])
    client.systemctl("reload")
    assert client.told() == [f"resolvconf -d {RECORD} -f"]
    client.write_config(dns=["10.9.0.1"])

    for number in ("KILL", "TERM"):
        pid = client.main_pid()
        with watched_rules(client) as seen:
            machine.kill(pid, number)
            client.wait_for_another(pid)
        assert min(map(len, seen)) >= 7
        assert client.told() == ADDED
        wait_for("the port's rule to be the new process's", lambda: len(client.rules()) == 7)

    with watched_rules(client) as seen:
        client.systemctl("restart")
    assert min(map(len, seen)) >= 7

    client.systemctl("stop")
    assert client.rules() == []
    assert client.told()[-1] == f"resolvconf -d {RECORD} -f"


def test_a_renamed_interface_replaces_the_former_one(client: Client) -> None:
    client.systemctl("start")
    rules = client.rules()
    client.write_config(dns=[], interface="tunnel9")
    with watched_rules(client) as seen:
        client.systemctl("restart")
    assert min(map(len, seen)) >= 7
    assert client.rules() == rules
    assert "dev tunnel9" in client.machine.run("ip", "route", "show", "table", str(FWMARK_DEFAULT))
    client.systemctl("stop")
    assert client.rules() == []


def test_a_client_killed_to_stop_the_unit_leaves_nothing_behind(client: Client) -> None:
    client.drop_in("[Service]\nKillSignal=SIGKILL\n")
    client.systemctl("start")
    assert len(client.rules()) == 7
    client.systemctl("stop")
    assert client.rules() == []
    assert client.told()[-1] == f"resolvconf -d {RECORD} -f"


def test_a_client_stopped_between_a_crash_and_the_next_start_leaves_nothing_behind(client: Client) -> None:
    client.drop_in("[Service]\nRestartSec=600\n")
    client.systemctl("start")
    assert client.told() == ADDED
    client.machine.kill(client.main_pid())
    wait_for("the unit to wait", lambda: client.machine.show("SubState", NAME) == "auto-restart")
    assert (len(client.rules()), client.told()) == (7, [])
    client.systemctl("stop")
    wait_for("the rules to be gone", lambda: client.rules() == [])  # by another unit than the one stopped
    wait_for("the name servers to be gone", lambda: f"resolvconf -d {RECORD} -f" in client.told())


def test_a_client_that_gives_up_leaves_nothing_behind(client: Client) -> None:
    client.write_config(dns=["10.9.0.1"], attempts=10)  # 3 to 21 s: the unit's start has ended before
    client.systemctl("start")
    wait_for("the unit to end", lambda: client.machine.show("ActiveState", NAME) == "failed", 60.0)
    assert client.rules() == []
    assert client.told() == [*ADDED, f"resolvconf -d {RECORD} -f"]
