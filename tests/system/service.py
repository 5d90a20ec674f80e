"""The installed service on a machine, with one unmodified wireguard-go as its client.

Rule: every action is an operator's (systemctl, files). Assertions ask systemd, the kernel and the client; they ask the
server only for facts that no other source has.
"""

import json
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests.support.traffic.namespaces import Namespace
from tests.support.traffic.ping import ping
from tests.support.traffic.server import Identity, Lab, PeerTable, b64
from tests.support.traffic.site import Client, Site
from tests.system.machine import DAEMON, UNITS, Machine, prioritize
from tests.system.traffic import PACKETS_PER_SECOND, NumberedTraffic

CONFIG = "etc/oxidize/server.toml"
OXIDIZE = "/opt/oxidize/current/bin/oxidize"
RELEASES = "opt/oxidize/releases"
MARKS = "/run/oxidize/got-there"


class Service:
    """A booted machine with a configured service that is not started, and a running client.

    install: puts the product on the machine, where the seed has none.
    """

    def __init__(self, lab: Lab, seed: Path, install: Callable[[Machine], None] = lambda _: None) -> None:
        self.lab = lab
        self.namespace = Namespace(lab.stack)
        self.machine = Machine(lab, self.namespace, seed)
        install(self.machine)
        self.server = self
        self.identity = Identity.make()
        self.peers: list[PeerTable] = []
        self._marks: set[str] = set()
        self.client = Client(self, 1, None)
        self.peers.append(self.client.table())
        self.put_key()
        self.write_config()

    def put_key(self) -> None:
        key = self.machine.root / "etc/oxidize/server.key"
        key.touch(mode=0o600)
        key.write_text(b64(self.identity.private) + "\n")
        self.machine.run("chown", "oxidize:", "/etc/oxidize/server.key")

    def write_config(self, **options: object) -> None:
        """Write the configuration: the required keys of [server] and these options."""
        options = {"address": [f"{Site.SERVER4}/24", f"{Site.SERVER6}/64"], "private_key_file": "server.key"} | options
        lines = ["[server]", *(f"{key} = {json.dumps(value)}" for key, value in options.items())]
        for peer in self.peers:
            lines += ["", "[[peer]]", f'name = "{peer.name}"', f'public_key = "{b64(peer.public_key)}"']
            lines.append(f"allowed_ips = {json.dumps(peer.allowed_ips)}")
            if peer.endpoint is not None:
                lines.append(f'endpoint = "{peer.endpoint}"')
        (self.machine.root / CONFIG).write_text("\n".join(lines) + "\n")

    def drop_in(self, text: str) -> None:
        """Add a drop-in to the unit of the service."""
        folder = self.machine.root / f"etc/systemd/system/{DAEMON}.d"
        folder.mkdir(exist_ok=True)
        (folder / "test.conf").write_text(text)
        self.machine.systemctl("daemon-reload")

    # --- Releases ---

    def releases(self) -> list[str]:
        """Return the names of the installed releases."""
        return sorted(entry.name for entry in (self.machine.root / RELEASES).iterdir())

    def add_release(self, name: str, broken: Mapping[str, str] | None = None) -> None:
        """Install a copy of the current release; broken: code to add at the end of modules ("runtime.node").

        The code calls `got_there()` where it has its effect; see `has_got_there`.
        """
        broken = broken or {}
        current = self.releases()[0]
        root = self.machine.root / RELEASES
        assert not broken or any("got_there()" in code for code in broken.values())
        self.machine.run("cp", "-a", f"/{RELEASES}/{current}", f"/{RELEASES}/{name}")
        for part in ("bin/oxidize", "pyvenv.cfg"):
            file = root / name / part
            file.write_text(file.read_text().replace(current, name))
        described = root / name / "release.json"
        described.write_text(json.dumps(json.loads(described.read_text()) | {"built_unix": time.time()}))
        (package,) = (root / name / "lib").glob("python*/site-packages/oxidize")
        for module, code in broken.items():
            mark = f"{MARKS}-{module}"
            if "got_there()" in code:
                self._marks.add(mark)
            path = package.joinpath(*module.split(".")).with_suffix(".py")
            assert path.exists(), path
            for compiled in (path.parent / "__pycache__").glob(f"{path.stem}.*.pyc"):  # which holds in any case
                compiled.unlink()
            with path.open("a") as source:
                source.write(f"\n\ndef got_there():\n    open({mark!r}, 'w').close()\n\n\n{code}\n")

    def current(self) -> str:
        """Return the release that `current` leads to."""
        return self.machine.run("readlink", "/opt/oxidize/current").strip().removeprefix("releases/")

    def log(self) -> list[dict[str, Any]]:
        """Return the log of deployments; none before the first one."""
        shown = self.machine.run("sh", "-c", "! test -e $0 || cat $0", "/var/lib/oxidize/deployments.jsonl")
        return [json.loads(line) for line in shown.splitlines()]

    def has_got_there(self) -> bool:
        """Return whether the added code of all releases ran: a function that it replaces may have been renamed."""
        return self.machine.try_run("stat", "/", *self._marks).status == 0

    def switch_to(self, release: str) -> None:
        """Point `current` to a release atomically, as `make install` does."""
        self.machine.run("ln", "-s", f"releases/{release}", "/opt/oxidize/current.new")
        self.machine.run("mv", "-T", "/opt/oxidize/current.new", "/opt/oxidize/current")

    # --- Running ---

    def start(self) -> None:
        """Start the service and establish the client's session."""
        self.machine.systemctl("start", DAEMON)
        self.client.connect()
        prioritize(self.client.wireguard.pid)
        self.client.wireguard.enlarge_buffers()
        ping(self.lab, self.client.namespace, Site.SERVER4, 2)

    def reconnect(self) -> None:
        """Make a new session at once; left alone, the client uses a lost one for another 15 s."""
        self.client.wireguard.wg("set", self.client.wireguard.name, "peer", b64(self.identity.public), "remove")
        self.client.connect()
        ping(self.lab, self.client.namespace, Site.SERVER4, 2)

    def stop(self) -> None:
        self.machine.systemctl("stop", *UNITS)

    def traffic(self, rate: int = PACKETS_PER_SECOND) -> NumberedTraffic:
        """Start numbered datagrams between client and server at this rate in each direction."""
        return NumberedTraffic(self.lab, self.client.namespace, self.namespace, Site.SERVER4, rate)

    def status(self) -> dict[str, Any]:
        """Return the output of `oxidize status --json`."""
        found: dict[str, Any] = json.loads(self.machine.run(OXIDIZE, "status", "--json"))
        return found

    def health(self) -> tuple[int, dict[str, Any]]:
        """Return status and body of /health."""
        status, body = self._answer("/health")
        return status, json.loads(body)

    def metrics(self) -> str:
        """Return the body of /metrics."""
        return self._answer("/metrics")[1]

    def _answer(self, path: str) -> tuple[int, str]:
        with self.namespace.entered():
            connection = socket.create_connection(("127.0.0.1", 9090), timeout=10)
        with connection:
            connection.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
            answer = b"".join(iter(lambda: connection.recv(65536), b""))
        head, _, body = answer.partition(b"\r\n\r\n")
        return int(head.split()[1]), body.decode()

    def handshake(self) -> int:
        """Return the time of the client's last handshake."""
        return self.client.wireguard.latest_handshake()

    # --- What must be true ---

    def wait_for_main_process(self, other_than: int = 0) -> int:
        """Wait until the service is active and its main process is the only one; return its pid."""
        found = [0]

        def look() -> bool:
            main = self.machine.main_pid()
            found[0] = main
            active = self.machine.show("ActiveState") == "active"
            return active and main not in (0, other_than) and self.machine.processes() == {main}

        self.machine.wait_for(f"one process, the main one, other than {other_than}", look)
        return found[0]
