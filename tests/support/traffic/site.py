"""A server in a network namespace, and wireguard-go clients in others, joined by veth pairs.

Outer addresses: client k is 192.0.2.(4k+2) and 2001:db8:k::2, the server the address before. Inner: the server is
10.9.0.1 and fd09::1, client k is 10.9.0.(k+1) and fd09::(k+1). (RFC 5737, RFC 3849, RFC 4193.)
"""

import secrets
from typing import Any, Protocol

from tests.support.traffic.namespaces import Namespace, join, set_addresses
from tests.support.traffic.server import Identity, Lab, PeerTable, Server, b64
from tests.support.traffic.wireguard_go import WireguardGo

PORT = 51820


class ClientServer(Protocol):
    """The server of a client."""

    identity: Identity

    def status(self) -> dict[str, Any]: ...


class ServerSide(Protocol):
    """What a client is joined to: a `Site`, or another owner of a server in a namespace."""

    lab: Lab
    namespace: Namespace

    @property
    def server(self) -> ClientServer: ...


class Site:
    """A server's namespace with room for clients."""

    SERVER4, SERVER6 = "10.9.0.1", "fd09::1"

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.namespace = Namespace(lab.stack)
        self.server = Server(
            lab,
            [],
            listen=f"[::]:{PORT}",
            network="tun",
            interface=f"ox{secrets.token_hex(5)}",
            address=[f"{self.SERVER4}/24", f"{self.SERVER6}/64"],
            metrics_listen="127.0.0.1:9090",
            inside=self.namespace.entered,
        )
        self.clients: list[Client] = []

    def add_client(self, *, preshared_key: bytes | None = None) -> "Client":
        """Start a wireguard-go and add it to the configuration of the server, which is not started yet."""
        client = Client(self, len(self.clients) + 1, preshared_key)
        self.clients.append(client)
        self.server.peers.append(client.table())
        self.server.write_config()
        return client


class Client:
    """A wireguard-go in its namespace."""

    def __init__(self, site: ServerSide, number: int, preshared_key: bytes | None) -> None:
        self.site = site
        self.number = number
        self.preshared_key = preshared_key
        self.inner4, self.inner6 = f"10.9.0.{number + 1}", f"fd09::{number + 1:x}"
        base = 4 * number
        self.outer4, self.server4 = f"192.0.2.{base + 2}", f"192.0.2.{base + 1}"
        self.outer6, self.server6 = f"2001:db8:{number:x}::2", f"2001:db8:{number:x}::1"
        self.namespace = Namespace(site.lab.stack)
        self.link = "outer0"
        join(site.namespace, f"client{number}", self.namespace, self.link)
        set_addresses(site.namespace, f"client{number}", [f"{self.server4}/30", f"{self.server6}/64"])
        self.move(self.outer4, self.outer6)
        self.wireguard = WireguardGo(site.lab, self.namespace, [f"{self.inner4}/24", f"{self.inner6}/64"])

    def table(self, *, endpoint: str | None = None, keepalive: int = 0) -> PeerTable:
        """Return the table of this client for the server's configuration."""
        networks = (f"{self.inner4}/32", f"{self.inner6}/128")
        public_key = self.wireguard.identity.public
        return PeerTable(f"client-{self.number}", public_key, networks, self.preshared_key, endpoint, keepalive)

    def connect(self, *, ipv6: bool = False, keepalive: int = 0, knows_endpoint: bool = True) -> None:
        """Configure the server as this client's peer."""
        endpoint = f"[{self.server6}]:{PORT}" if ipv6 else f"{self.server4}:{PORT}"
        self.wireguard.set_peer(
            self.site.server.identity.public,
            f"{Site.SERVER4}/32,{Site.SERVER6}/128",
            endpoint=endpoint if knows_endpoint else None,
            preshared_key=self.preshared_key,
            keepalive=keepalive,
        )

    def move(self, outer4: str, outer6: str) -> None:
        """Change the addresses of the outer link."""
        set_addresses(self.namespace, self.link, [f"{outer4}/30", f"{outer6}/64"])

    def peer_status(self) -> dict[str, Any]:
        """Return this client's entry in the server's status."""
        key = b64(self.wireguard.identity.public)
        found: dict[str, Any]
        (found,) = (peer for peer in self.site.server.status()["peers"] if peer["public_key"] == key)
        return found
