"""The private directory of one run: the server's configuration and all keys. It is removed at the end.

Rule: keys are made for one run, kept in files of mode 0600 in a directory of mode 0700, and never printed.
"""

import base64
import os
import shutil
import tempfile
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from demo.clients import ClientSettings, FleetSettings

TUNNEL_NETWORK = IPv4Network("10.77.0.0/16")
SERVER_ADDRESS = TUNNEL_NETWORK[1]
DRAIN_TIMEOUT_SECS = 1.0  # there are no sessions to drain once the clients have ended

_SERVER = """\
[server]
listen = "127.0.0.1:0"
address = ["{address}/{prefix}"]
private_key_file = "server.key"
takeover_socket = "takeover.sock"
network = "userspace"
metrics_listen = ""
drain_timeout_secs = {drain}
"""
_PEER = """
[[peer]]
name = "{name}"
public_key = "{public_key}"
preshared_key_file = "{name}.psk"
allowed_ips = ["{address}/32"]
"""


class Workspace:
    """The directory; `config_path` is the server's configuration, which `write` makes."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="oxidize-demo-"))  # mode 0700
        self.config_path = self.directory / "server.toml"
        self.takeover_socket = self.directory / "takeover.sock"

    def write(self, clients: int, rate: float, seconds: float) -> FleetSettings:
        """Write the server's files and return its clients' settings, without the port that the kernel will choose."""
        server_key = X25519PrivateKey.generate()
        self._write_key("server.key", server_key.private_bytes_raw())
        text = _SERVER.format(address=SERVER_ADDRESS, prefix=TUNNEL_NETWORK.prefixlen, drain=DRAIN_TIMEOUT_SECS)
        settings = []
        for i in range(clients):
            client_key, preshared_key = X25519PrivateKey.generate(), os.urandom(32)
            name, address = f"client-{i + 1}", client_address(i)
            self._write_key(f"{name}.psk", preshared_key)
            public_key = base64.b64encode(client_key.public_key().public_bytes_raw()).decode()
            text += _PEER.format(name=name, public_key=public_key, address=address)
            settings.append(ClientSettings(client_key.private_bytes_raw().hex(), preshared_key.hex(), str(address)))
        self.config_path.write_text(text, "utf-8")
        return FleetSettings(
            server_host="",
            server_port=0,
            server_public_key=server_key.public_key().public_bytes_raw().hex(),
            server_address=str(SERVER_ADDRESS),
            clients=tuple(settings),
            packets_per_second=rate,
            seconds=seconds,
        )

    def _write_key(self, name: str, key: bytes) -> None:
        fd = os.open(self.directory / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(base64.b64encode(key) + b"\n")

    def close(self) -> None:
        """Remove the directory; idempotent."""
        shutil.rmtree(self.directory, ignore_errors=True)


def client_address(index: int) -> IPv4Address:
    """Return the tunnel address of client `index`, counted from 0."""
    return TUNNEL_NETWORK[2 + index]
