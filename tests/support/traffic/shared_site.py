"""A site that the tests of a module share, for a server with wireguard-go clients takes a second to start.

Rule: each test states the whole configuration by `configure`, which a reload takes over where it differs, and makes new
sessions by `meet`, so that none depends on what the ones before have left.
"""

import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

from tests.support.traffic.namespaces import Namespace
from tests.support.traffic.server import WAIT_SECS, Lab, Outcome, PeerTable, b64, wait_for
from tests.support.traffic.site import Client, Site


class SharedSite(Site):
    """A server that serves, and its clients, which do not know its endpoint yet."""

    def __init__(self, lab: Lab, clients: int = 2) -> None:
        super().__init__(lab)
        for _ in range(clients):
            self.add_client()
        self.server.start()
        self._served = self.server.config_path.read_text()

    def configure(self, *peers: PeerTable, **options: object) -> None:
        """Have the server serve these peers and keys of [server]; all others are those of the begin."""
        self._write(peers, options)
        if self.server.config_path.read_text() != self._served:
            with self.namespace.entered():
                self.server.replace(here=True)
            self._served = self.server.config_path.read_text()

    def reload(self, *peers: PeerTable, **options: object) -> Outcome:
        """Have `oxidize reload` take over these peers and keys; return what it says."""
        self._write(peers, options)
        outcome = self.server.reload()
        if outcome.status == 0:
            self._served = self.server.config_path.read_text()
        return outcome

    def _write(self, peers: Sequence[PeerTable], options: Mapping[str, object]) -> None:
        self.server.peers = list(peers)
        self.server.write_config(**options)

    def join_all(self) -> None:
        """Configure all clients, by a reload, and the server as the peer of each."""
        self.configure(*(client.table() for client in self.clients))
        for client in self.clients:
            self.meet(client)

    def meet(self, client: Client, *networks: str, **options: Any) -> None:
        """Configure the server as a client's only peer, with these networks besides its addresses, and no session."""
        wireguard, server = client.wireguard, self.server.identity.public
        for known in wireguard.wg("show", wireguard.name, "peers").split():
            wireguard.wg("set", wireguard.name, "peer", known, "remove")
        client.connect(**options)
        if networks:
            allowed = ",".join([f"{self.SERVER4}/32", f"{self.SERVER6}/128", *networks])
            wireguard.wg("set", wireguard.name, "peer", b64(server), "allowed-ips", allowed)

    def call(self, client: Client, endpoint: str) -> None:
        """Have a client send to another endpoint of the server from now on."""
        client.wireguard.wg(
            "set", client.wireguard.name, "peer", b64(self.server.identity.public), "endpoint", endpoint
        )

    def totals(self) -> dict[str, int]:
        found: dict[str, int] = self.server.status()["totals"]
        return found

    def drops(self) -> dict[str, int]:
        """Return the drops that are not zero, by reason."""
        return {reason: number for reason, number in self.server.status()["drops"].items() if number}

    def wait_for_drop(self, reason: str, number: int) -> None:
        """Wait until so many drops are counted for a reason."""
        wait_for(f"{number} {reason}", lambda: self.drops().get(reason, 0) >= number)


def peer_table(client: Client, allowed_ips: Sequence[str], *, endpoint: str | None = None) -> PeerTable:
    """Return a client's table with other networks than its own addresses."""
    key = client.wireguard.identity.public
    return PeerTable(f"client-{client.number}", key, tuple(allowed_ips), endpoint=endpoint)


def run(namespace: Namespace, *command: str) -> str:
    """Run a program in a namespace, which must succeed, and return its output."""
    with namespace.entered():
        done = subprocess.run(command, capture_output=True, check=False, text=True, timeout=WAIT_SECS)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"
    return done.stdout


def errors_of_ping(namespace: Namespace, target: str, count: int = 2) -> list[str]:
    """Return the errors that ping shows for `count` requests."""
    command = ("/usr/bin/ping", "-n", "-c", str(count), "-i", "0.05", "-W", "1", target)
    with namespace.entered():
        done = subprocess.run(command, capture_output=True, check=False, text=True, timeout=WAIT_SECS)
    return [line for line in done.stdout.splitlines() if "nreachable" in line]
