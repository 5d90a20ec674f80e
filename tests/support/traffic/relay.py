"""A server that relays: a client in front of it, and behind it a host without a route back to the client.

The host is 198.51.100.2 and 2001:db8:ffff::2; the server's address there ends with 1 (RFC 5737, RFC 3849).
"""

import socket
from dataclasses import dataclass
from ipaddress import ip_interface, ip_network
from pathlib import Path
from typing import Self

from oxidize.hostnet.interface import configure_interface
from tests.support.traffic.namespaces import Namespace, join, set_addresses
from tests.support.traffic.server import WAIT_SECS
from tests.support.traffic.site import PORT, Client, Site
from tests.support.traffic.wireguard_go import INNER_MTU

UPLINK4, UPLINK6 = "198.51.100.1", "2001:db8:ffff::1"
BEYOND4, BEYOND6 = "198.51.100.2", "2001:db8:ffff::2"
SYSCTLS = {4: "net/ipv4/ip_forward", 6: "net/ipv6/conf/all/forwarding"}


@dataclass
class World:
    """A site with one client and a host behind the server."""

    site: Site
    client: Client
    beyond: Namespace

    @classmethod
    def of(cls, site: Site) -> Self:
        """Return a world of a site without clients, whose server may forward and is not started."""
        client = site.add_client()
        beyond = Namespace(site.lab.stack)
        join(site.namespace, "uplink0", beyond, "lan0")
        set_addresses(site.namespace, "uplink0", [f"{UPLINK4}/24", f"{UPLINK6}/64"])
        set_addresses(beyond, "lan0", [f"{BEYOND4}/24", f"{BEYOND6}/64"])
        made = cls(site, client, beyond)
        made.forward()
        return made

    @property
    def interface(self) -> str:
        return str(self.site.server.status()["interface"])

    @property
    def table(self) -> str:
        return f"inet oxidize-{self.interface}"

    def configure(self, **options: object) -> None:
        self.site.server.write_config(**{"nat": True} | options)

    def connect(self, client: Client | None = None) -> None:
        """Make the server the client's gateway to the host behind it."""
        client = client or self.client
        self._route(client, f"{BEYOND4}/32", f"{BEYOND6}/128")

    def reach_also(self, *beyond: str) -> None:
        """Let the client have routes to further networks behind the server."""
        self._route(self.client, f"{BEYOND4}/32", f"{BEYOND6}/128", *beyond)

    def forget_beyond(self) -> None:
        """Leave the client without routes to what is behind the server."""
        self._route(self.client)

    def _route(self, client: Client, *beyond: str) -> None:
        networks = ["10.9.0.0/24", "fd09::/64", *beyond]
        client.wireguard.set_peer(
            self.site.server.identity.public, ",".join(networks), endpoint=f"{client.server4}:{PORT}"
        )
        with client.namespace.entered():
            addresses = [ip_interface(address) for address in client.wireguard.addresses]
            configure_interface(client.wireguard.name, addresses, INNER_MTU, list(map(ip_network, networks)))

    def start(self, **options: object) -> None:
        self.configure(**options)
        self.site.server.start()
        self.connect()

    def forward(self, **values: int) -> None:
        """Set the forwarding sysctls of the server's namespace."""
        with self.site.namespace.entered():
            for version, name in SYSCTLS.items():
                Path("/proc/sys", name).write_text(str(values.get(f"v{version}", 1)))


def source_seen(world: World, address: str) -> str:
    """Connect from the client to the host behind the server; return the source address that the host sees."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with world.beyond.entered():
        listener = socket.socket(family)
    with world.client.namespace.entered():
        connecting = socket.socket(family)
    with listener, connecting:
        for each in (listener, connecting):
            each.settimeout(WAIT_SECS)
        listener.bind((address, 0))
        listener.listen()
        connecting.connect(listener.getsockname())
        accepted, peer = listener.accept()
        accepted.close()
    return str(peer[0])
