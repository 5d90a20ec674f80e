"""A server as PID 1 of an OCI container: reload, crash, `peer add` and stop, by the runtime's own commands.

The root is assembled from this machine's files, read-only; only the configuration's folder is written to. The container
has the network of the test. Sources: the OCI runtime specification, config.md and config-linux.md; crun(1).
"""

import json
import os
import re
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from oxidize.takeover import who_listens
from tests.support.traffic.clients import EchoClient, Traffic
from tests.support.traffic.server import OXIDIZE, WAIT_SECS, Lab, Outcome, Server, is_gone, wait_for

pytestmark = [pytest.mark.root, pytest.mark.needs("crun"), pytest.mark.handoff]

CODE = Path(__file__).parents[2]
COMPOSE = CODE / "contrib/container/compose.yaml"
SYSTEM_FOLDERS = ("/usr", "/etc")
# crun refuses cgroup version 2 beside version 1: it is shown the one without the other.
UNIFIED = Path("/sys/fs/cgroup/unified")
ALONE = ("/usr/bin/unshare", "--mount", "/bin/sh", "-c", f'mount --bind {UNIFIED} /sys/fs/cgroup && exec "$@"', "sh")
LINKS = ("bin", "lib", "lib64", "sbin")  # into /usr


def specification(command: Sequence[str], folder: Path) -> dict[str, object]:
    """Return the configuration of a container that runs `command` and sees `folder` at its own path."""
    dropped, added = (re.findall(rf"{key}: \[(.*)\]", COMPOSE.read_text()) for key in ("cap_drop", "cap_add"))
    assert (dropped, added) == (["ALL"], ["NET_ADMIN"])
    capabilities = [f"CAP_{name}" for name in added]
    read_only = sorted({*SYSTEM_FOLDERS, str(CODE), sys.prefix, sys.base_prefix})
    return {
        "ociVersion": "1.0.0",
        "process": {
            "args": list(command),
            "env": ["PATH=/usr/sbin:/usr/bin"],
            "cwd": "/",
            "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), capabilities),
            "noNewPrivileges": True,
        },
        "root": {"path": "root", "readonly": True},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
            *(
                {"destination": path, "type": "bind", "source": path, "options": ["rbind", "ro"]}
                for path in read_only
            ),
            {"destination": str(folder), "type": "bind", "source": str(folder), "options": ["rbind", "rw"]},
        ],
        "linux": {"namespaces": [{"type": kind} for kind in ("pid", "mount", "ipc", "uts")]},
    }  # fmt: skip


class Container:
    """A running container of a server."""

    def __init__(self, server: Server, bundle: Path) -> None:
        self.server = server
        self.name = f"oxidize-test-{os.getpid()}-{secrets.token_hex(3)}"
        root = bundle / "root"
        root.mkdir(parents=True)
        for link in LINKS:
            (root / link).symlink_to(f"usr/{link}")
        command = (*OXIDIZE, "server", "-c", str(server.config_path))
        (bundle / "config.json").write_text(json.dumps(specification(command, server.lab.folder)))
        options = ("--cgroup-manager=disabled", "--root", str(bundle / "state"))
        self._crun = (*(ALONE if UNIFIED.exists() else ()), "/usr/bin/crun", *options)
        self.pid = server.lab.spawn((*self._crun, "run", "--bundle", str(bundle), self.name), "server")
        wait_for("the container to serve", lambda: self.run("status").status == 0)

    def run(self, *arguments: str) -> Outcome:
        """Run a command of `oxidize` in the container, as `docker exec` does."""
        return self.execute(*OXIDIZE, *arguments, "-c", str(self.server.config_path))

    def execute(self, *command: str) -> Outcome:
        done = subprocess.run(
            [*self._crun, "exec", self.name, *command], capture_output=True, text=True, check=False, timeout=WAIT_SECS
        )
        return Outcome(done.returncode, done.stdout, done.stderr)

    def signal(self, number: int) -> None:
        """Send a signal to PID 1, as `docker stop` does."""
        subprocess.run([*self._crun, "kill", self.name, str(int(number))], check=True, timeout=WAIT_SECS)


@pytest.fixture
def server(tmp_path: Path, clients: list[EchoClient]) -> Iterator[Server]:
    with Lab(tmp_path / "lab") as lab:
        lab.folder.mkdir()
        server = Server(lab, [client.table() for client in clients])
        server.write_config(drain_timeout_secs=0)
        yield server


@pytest.fixture
def clients() -> Iterator[list[EchoClient]]:
    clients = [EchoClient(number) for number in (2, 3)]
    yield clients
    for client in clients:
        client.socket.close()


def test_a_container_survives_reloads_crashes_and_peers_that_are_added(
    server: Server, clients: list[EchoClient], tmp_path: Path
) -> None:
    container = Container(server, tmp_path / "bundle")
    with Traffic(server, clients, 100.0) as traffic:
        outcome = container.run("reload")
        assert outcome.status == 0, outcome
        assert outcome.output.startswith("reloaded: generation 2, ")
        traffic.wait_for_more()
        serving = json.loads(container.run("status", "--json").output)["pid"]
        assert container.execute("/usr/bin/kill", "-KILL", str(serving)).status == 0
        wait_for("the next generation", lambda: '"generation": 3' in container.run("status", "--json").output)
        traffic.wait_for_more()
        outcome = container.run("peer", "add", "phone", "--endpoint", "vpn.example.net:51820")
        assert outcome.status == 0, outcome
        status = json.loads(container.run("status", "--json").output)
        assert status["generation"] == 4
        assert "phone" in {peer["name"] for peer in status["peers"]}
        traffic.wait_for_more()
        traffic.assert_unharmed(lost_at_most=1)  # by the kill
    outcome = container.run("stop")
    assert outcome.status == 0, outcome
    assert outcome.output.startswith("stopped: pid ")
    assert server.lab.wait_ended(container.pid) == 0


def test_the_runtimes_signals_end_a_container_and_all_of_its_generations(server: Server, tmp_path: Path) -> None:
    container = Container(server, tmp_path / "bundle")
    container.signal(signal.SIGTERM)
    assert server.lab.wait_ended(container.pid) == 0
    assert "ends signal=SIGTERM generation=1" in server.log_path.read_text()
    container = Container(server, tmp_path / "again")
    listener = who_listens(server.takeover_socket)
    assert listener is not None
    container.signal(signal.SIGKILL)
    wait_for("the end of the generation", lambda: is_gone(listener[0]))
    assert server.lab.wait_ended(container.pid) not in {0, None}
