"""A client with a kill switch under systemd: from before a booting machine's first packet until a stop nothing leaves.

Programs send all the time, and a capture on the uplink sees what leaves in the clear. One boot serves all tests: each
begins and ends with a client that is stopped, apart from the first.
"""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.traffic.leaks import Leaks, Senders
from tests.support.traffic.namespaces import Namespace, join, set_addresses
from tests.support.traffic.nftables import tables
from tests.support.traffic.ping import ping
from tests.support.traffic.routed_client import EVERYTHING, FAR4, FAR6, PORT, SERVER4, SERVER6
from tests.support.traffic.server import Identity, Lab, b64, wait_for
from tests.support.traffic.wireguard_go import WireguardGo
from tests.system.machine import CLIENT, Machine

pytestmark = pytest.mark.needs("ping", "ip", "nft")

TABLE = ["inet oxidize-oxidize1"]
NETWORK = """[Unit]
DefaultDependencies=no
After=network-pre.target
Before=network.target
[Service]
Type=oneshot
ExecStart=ip link set up0 up
ExecStart=ip address add 192.0.2.2/30 dev up0
ExecStart=ip address add 2001:db8:1::2/64 dev up0 nodad
ExecStart=ip route add default via 192.0.2.1
ExecStart=ip -6 route add default via 2001:db8:1::1
"""
CRASHES = "[Service]\nExecStartPre=test ! -e /run/crash\n"
LIMITED = "[Unit]\nStartLimitIntervalSec=60\nStartLimitBurst=3\n"
WITHOUT_SYSTEMCTL = "[Service]\nEnvironment=PATH=/nonexistent\n"


class Laptop:
    """A machine with an enabled client, booted while programs send; its network comes up in the course of that."""

    def __init__(self, lab: Lab, seed: Path) -> None:
        self.lab = lab
        self.router, self.here = Namespace(lab.stack), Namespace(lab.stack)
        join(self.router, "down0", self.here, "up0")
        set_addresses(self.router, "down0", ["192.0.2.1/30", "2001:db8:1::1/64"])
        set_addresses(self.router, "lo", [f"{SERVER4}/32", f"{SERVER6}/128"], 65_536)
        with self.here.entered():
            subprocess.run(["ip", "link", "set", "up0", "down"], check=True)
        self.server = WireguardGo(lab, self.router, [f"{FAR4}/32", f"{FAR6}/128", "10.9.0.1/24", "fd09::1/64"])
        self.server.wg("set", self.server.name, "listen-port", str(PORT))
        identity = Identity.make()
        self.server.set_peer(identity.public, "10.9.0.2/32,fd09::2/128")
        self.leaks = lab.stack.enter_context(Leaks(self.here))
        self.senders = lab.stack.enter_context(Senders(self.here))
        self.machine = Machine(lab, self.here, self._enabled(seed, identity))

    def _enabled(self, seed: Path, identity: Identity) -> Path:
        """Return a copy of an installation whose client is configured and enabled."""
        folder = self.lab.folder / "seed"
        for name in ("etc", "usr"):
            shutil.copytree(seed / name, folder / name, symlinks=True)
        (folder / "opt").symlink_to(seed / "opt")
        values = {
            "server": f"{SERVER4}:{PORT}",
            "server_public_key": b64(self.server.identity.public),
            "private_key_file": "client.key",
            "address": ["10.9.0.2/24", "fd09::2/64"],
            "allowed_ips": EVERYTHING,
            "kill_switch": True,
        }
        lines = ["[client]", *(f"{name} = {json.dumps(value)}" for name, value in values.items())]
        (folder / "etc/oxidize/client.toml").write_text("\n".join(lines) + "\n")
        key = folder / "etc/oxidize/client.key"
        key.touch(mode=0o600)
        key.write_text(b64(identity.private) + "\n")
        units = folder / "etc/systemd/system"
        (units / "network.service").write_text(NETWORK)
        wanted = units / "stage.target.wants"
        wanted.mkdir()
        for unit in ("network.service", CLIENT):
            (wanted / unit).symlink_to(units / unit)
        return folder

    def drop_in(self, text: str) -> None:
        """Put a drop-in of the client's unit, in the place of the one before."""
        folder = self.machine.root / f"etc/systemd/system/{CLIENT}.d"
        folder.mkdir(exist_ok=True)
        (folder / "test.conf").write_text(text)
        self.machine.systemctl("daemon-reload")

    def crash(self) -> None:
        """Let the client end, and fail at each further start."""
        (self.machine.root / "run/crash").touch()
        self.machine.kill(self.machine.main_pid(CLIENT))

    def wait_connected(self, other_than: int = 0) -> int:
        """Wait until another process serves, and its tunnel is used; return its pid."""

        def look() -> int:
            pid = self.machine.main_pid(CLIENT)
            is_next = pid not in (0, other_than) and self.machine.show("ActiveState", CLIENT) == "active"
            return pid if is_next else 0

        pid = wait_for("the client", look)
        ping(self.lab, self.here, FAR4, 2)
        return pid

    def assert_tight(self) -> None:
        self.senders.send_on()
        assert (tables(self.here), self.leaks.seen) == (TABLE, set())

    def assert_open(self) -> None:
        """Check that the stop ends it: programs reach the uplink, and the capture sees them."""
        wait_for("the kill switch to be gone", lambda: not tables(self.here))  # by another unit than the one stopped
        assert "proto 151" not in self.machine.run("ip", "rule")
        self.senders.send_on()
        assert {FAR4, FAR6} <= {destination for _, _, destination, _ in self.leaks.seen}
        self.leaks.seen.clear()

    def start(self) -> int:
        """Start the client, before which packets have left; return its pid."""
        (self.machine.root / "run/crash").unlink(missing_ok=True)
        self.machine.systemctl("start", CLIENT)
        pid = self.wait_connected()
        self.leaks.seen.clear()
        return pid


@pytest.fixture(scope="module")
def laptop(tmp_path_factory: pytest.TempPathFactory, seed: Path) -> Iterator[Laptop]:
    with Lab(tmp_path_factory.mktemp("laptop")) as lab:
        yield Laptop(lab, seed)


def test_nothing_leaves_from_a_machines_first_packet_until_the_clients_stop(laptop: Laptop) -> None:
    pid = laptop.wait_connected()
    laptop.assert_tight()
    for command in ("reload", "restart"):
        laptop.machine.systemctl(command, CLIENT)
        pid = laptop.wait_connected(pid)
        laptop.assert_tight()
    laptop.machine.kill(pid)
    laptop.wait_connected(pid)
    laptop.assert_tight()
    assert laptop.leaks.own > 0
    laptop.machine.systemctl("stop", CLIENT)
    laptop.assert_open()


def test_where_systemd_does_not_answer_a_crash_and_a_restart_keep_the_kill_switch_and_a_stop_ends_it(
    laptop: Laptop,
) -> None:
    laptop.drop_in(WITHOUT_SYSTEMCTL)
    pid = laptop.start()
    laptop.machine.kill(pid)
    pid = laptop.wait_connected(pid)
    laptop.assert_tight()
    laptop.machine.systemctl("restart", CLIENT)
    laptop.wait_connected(pid)
    laptop.assert_tight()
    laptop.machine.systemctl("stop", CLIENT)
    laptop.assert_open()


@pytest.mark.parametrize(
    "drop_in",
    [CRASHES, CRASHES + "RestartSec=600\n", LIMITED + CRASHES],
    ids=["at any moment", "while it waits", "at the limit"],
)
def test_a_crash_loop_keeps_the_kill_switch_until_a_stop(laptop: Laptop, drop_in: str) -> None:
    laptop.drop_in(drop_in)
    laptop.start()
    laptop.crash()
    if drop_in.startswith(LIMITED):
        laptop.machine.wait_for("a failure", lambda: laptop.machine.show("ActiveState", CLIENT) == "failed")
    laptop.assert_tight()
    laptop.machine.systemctl("stop", CLIENT)
    laptop.assert_open()


def test_at_a_shutdown_the_kill_switch_is_not_removed(laptop: Laptop) -> None:
    laptop.drop_in("")
    laptop.start()
    pid = laptop.machine.pid
    laptop.machine.try_run("systemctl", "--no-block", "poweroff")
    laptop.machine.wait_for("the machine to be off", lambda: not Path(f"/proc/{pid}/root/etc").exists())
    assert (tables(laptop.here), laptop.leaks.seen) == (TABLE, set())
