"""A client and a server in two namespaces with one link between them, which a test can disturb.

The client is 192.0.2.2 and 2001:db8::2 outside and 10.9.0.2 inside, the server 192.0.2.1, 2001:db8::1 and 10.9.0.1.
(RFC 5737, RFC 3849.) The server is Debian's wireguard-go or Oxidize. nftables in the client's namespace
produces loss: it drops datagrams to and from the server's port.
"""

import contextlib
import secrets
import subprocess
import time
from collections.abc import Iterator
from typing import Any

from tests.support.traffic.namespaces import Namespace, join, set_addresses
from tests.support.traffic.oxidize_client import OxidizeClient
from tests.support.traffic.server import Lab, PeerTable, Server
from tests.support.traffic.wireguard_go import WireguardGo

PORT = 51820
OUTER_PREFIX = 24


class DirectLink:
    """Two namespaces joined by a veth pair."""

    SERVER, CLIENT = "192.0.2.1", "192.0.2.2"
    SERVER6, CLIENT6 = "2001:db8::1", "2001:db8::2"
    INNER_SERVER, INNER_CLIENT = "10.9.0.1", "10.9.0.2"
    LINK, SERVER_LINK = "outer0", "clients0"

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.server_side, self.client_side = Namespace(lab.stack), Namespace(lab.stack)
        join(self.server_side, self.SERVER_LINK, self.client_side, self.LINK)
        self.place_server(self.SERVER, self.SERVER6)
        self.place_client(self.CLIENT, self.CLIENT6)

    # --- Disturbances ---

    def place_server(self, address: str, address6: str) -> None:
        """Replace the addresses of the server."""
        set_addresses(self.server_side, self.SERVER_LINK, [f"{address}/{OUTER_PREFIX}", f"{address6}/64"])

    def place_client(self, address: str, address6: str) -> None:
        """Replace the addresses of the client."""
        set_addresses(self.client_side, self.LINK, [f"{address}/{OUTER_PREFIX}", f"{address6}/64"])

    def set_link(self, state: str) -> None:
        """Set the client's link "down" or "up"."""
        self._run("ip", "link", "set", self.LINK, state)
        if state == "up":
            self.place_client(self.CLIENT, self.CLIENT6)  # a link that is down loses its IPv6 addresses

    @contextlib.contextmanager
    def losing(self, percent: int) -> Iterator[None]:
        """Drop `percent` of the datagrams in each direction while entered."""
        table = "inet oxidize_test_loss"
        self._run("nft", f"add table {table}")
        for hook, port in (("input", "sport"), ("output", "dport")):
            self._run("nft", f"add chain {table} {hook} {{ type filter hook {hook} priority 0; }}")
            self._run("nft", f"add rule {table} {hook} udp {port} {PORT} numgen random mod 100 < {percent} drop")
        try:
            yield
        finally:
            self._run("nft", f"delete table {table}")

    def _run(self, *command: str) -> None:
        with self.client_side.entered():
            subprocess.run(command, check=True, capture_output=True, timeout=10)

    # --- Client and servers ---

    def client(self, server_public_key: bytes, server: str | None = None, **options: Any) -> OxidizeClient:
        """Return a client that is not started; options: keys of its configuration."""
        return OxidizeClient(
            self.lab,
            server or f"{self.SERVER}:{PORT}",
            server_public_key,
            address=[f"{self.INNER_CLIENT}/24"],
            allowed_ips=["10.9.0.0/24"],
            inside=self.client_side.entered,
            interface=f"ox{secrets.token_hex(5)}",
            **options,
        )


class GoServer:
    """wireguard-go as the server of one client."""

    def __init__(self, link: DirectLink) -> None:
        self.wireguard = WireguardGo(link.lab, link.server_side, [f"{DirectLink.INNER_SERVER}/24"])
        self.public_key = self.wireguard.identity.public
        self._client_key = b""

    def serve(self, client_public_key: bytes) -> None:
        """Configure the client as a peer, and listen."""
        self._client_key = client_public_key
        self._configure()

    def stop(self) -> None:
        """End the server and its sessions; its port is unbound."""
        self.wireguard.stop()

    def start(self) -> None:
        """Restart the server after `stop`."""
        self.wireguard.start()
        self._configure()

    def _configure(self) -> None:
        self.wireguard.set_peer(self._client_key, f"{DirectLink.INNER_CLIENT}/32")
        self.serves_since = time.time()  # seconds since the epoch
        self.wireguard.wg("set", self.wireguard.name, "listen-port", str(PORT))
        self.wireguard.enlarge_buffers()


class OxidizeServer:
    """`oxidize server` as the server of one client, without a holder of its socket and state.

    remembers: whether it stores endpoints (`endpoints_file`).
    """

    def __init__(self, link: DirectLink, *, remembers: bool) -> None:
        self._link = link
        self.server = Server(
            link.lab,
            [],
            listen=f"[::]:{PORT}",
            network="tun",
            interface=f"ox{secrets.token_hex(5)}",
            address=[f"{DirectLink.INNER_SERVER}/24"],
            inside=link.server_side.entered,
        )
        self._options = {"endpoints_file": str(link.lab.folder / "endpoints.json") if remembers else ""}
        self.public_key = self.server.identity.public

    def serve(self, client_public_key: bytes) -> None:
        """Configure the client as a peer, and listen."""
        self.server.peers = [PeerTable("client", client_public_key, (f"{DirectLink.INNER_CLIENT}/32",))]
        self.server.write_config(**self._options)
        self.start()

    def stop(self) -> None:
        """End the server by SIGTERM; without a holder its port is unbound and its sessions are lost."""
        self.server.stop()

    def start(self) -> None:
        """Restart the server after `stop`."""
        self.server.start()
