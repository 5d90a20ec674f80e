"""Debian's unmodified wireguard-go in its own network namespace: the other side of the interoperability tests.

Rule: all namespaces share the directory of its control sockets, so every interface has a unique name, and leftovers are
removed. Sources: wg(8), wireguard-go's README.
"""

import os
import secrets
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from demo.processes import reap
from tests.support.traffic.namespaces import Namespace, set_addresses
from tests.support.traffic.receive_buffers import enlarge_buffers
from tests.support.traffic.server import WAIT_SECS, Identity, Lab, b64, wait_for

CONTROL = Path("/var/run/wireguard")
INNER_MTU = 1420


class WireguardGo:
    """One wireguard-go with one peer."""

    def __init__(
        self, lab: Lab, namespace: Namespace, addresses: Sequence[str], identity: Identity | None = None
    ) -> None:
        self.lab = lab
        self.namespace = namespace
        self.addresses = addresses
        self.identity = identity or Identity.make()
        self.name = f"ox{secrets.token_hex(5)}"
        self.pid = 0
        lab.stack.callback(self.stop)
        self.start()

    def start(self) -> None:
        """Start a process with this key and these addresses, and no peers."""
        env = {**os.environ, "WG_PROCESS_FOREGROUND": "1", "LOG_LEVEL": "verbose", "GOMAXPROCS": "2"}
        with self.namespace.entered():
            self.pid = self.lab.spawn(("/usr/bin/wireguard-go", "-f", self.name), self.name, env)

        def look() -> bool:
            ended = reap(self.pid)
            assert ended is None, f"wireguard-go has ended, {ended}: {self.log}"
            return (CONTROL / f"{self.name}.sock").exists()

        wait_for("wireguard-go's control socket", look)
        key = self.lab.folder / f"{self.name}.key"
        key.touch(mode=0o600)
        key.write_text(b64(self.identity.private))
        self.wg("set", self.name, "private-key", str(key))
        set_addresses(self.namespace, self.name, self.addresses, INNER_MTU)

    @property
    def log(self) -> str:
        return (self.lab.folder / f"{self.name}.log").read_text()

    def restart(self) -> None:
        """Replace the process by one with the same key and neither sessions nor peers."""
        self.stop()
        self.start()

    def stop(self) -> None:
        """End the process; idempotent."""
        if self.pid:
            pid, self.pid = self.pid, 0
            os.kill(pid, signal.SIGTERM)
            try:
                self.lab.wait_ended(pid, 5.0)
            finally:
                # Not the folder, even if it is empty: another wireguard-go may be about to bind its socket there.
                (CONTROL / f"{self.name}.sock").unlink(missing_ok=True)

    def wg(self, *arguments: str) -> str:
        """Run wg and return its output."""
        with self.namespace.entered():
            done = subprocess.run(
                ["/usr/bin/wg", *arguments], capture_output=True, check=False, text=True, timeout=WAIT_SECS
            )
        assert done.returncode == 0, f"wg {' '.join(arguments)}: {done.stderr}"
        return done.stdout

    def enlarge_buffers(self) -> None:
        """Enlarge the receive buffers of its UDP sockets."""
        enlarge_buffers(self.pid)

    def set_peer(
        self,
        public_key: bytes,
        allowed_ips: str,
        *,
        endpoint: str | None = None,
        preshared_key: bytes | None = None,
        keepalive: int = 0,
    ) -> None:
        """Add or change a peer."""
        options = ["allowed-ips", allowed_ips, "persistent-keepalive", str(keepalive)]
        if endpoint is not None:
            options += ["endpoint", endpoint]
        if preshared_key is not None:
            path = self.lab.folder / f"{self.name}.psk"
            path.touch(mode=0o600)
            path.write_text(b64(preshared_key))
            options += ["preshared-key", str(path)]
        self.wg("set", self.name, "peer", b64(public_key), *options)

    def listen_port(self) -> int:
        return int(self.wg("show", self.name, "listen-port"))

    def latest_handshake(self) -> int:
        """Return the time of the last handshake, seconds since the epoch; 0 for none."""
        return int(self.wg("show", self.name, "latest-handshakes").split()[1])

    def transfer(self) -> tuple[int, int]:
        """Return the bytes received and sent."""
        _, received, sent = self.wg("show", self.name, "transfer").split()
        return int(received), int(sent)

    def endpoint(self) -> str:
        """Return the endpoint of the peer."""
        return self.wg("show", self.name, "endpoints").split()[1]
