"""What other programs take away from the installed services is put back, within the restrictions of their units.

One machine, with a server that has nat and a client with a full tunnel: systemd boots once for all disturbances.
"""

import json
from pathlib import Path

import pytest

from tests.support.traffic.namespaces import Namespace, join, set_addresses
from tests.support.traffic.ping import ping
from tests.support.traffic.server import Identity, b64, wait_for
from tests.support.traffic.site import Site
from tests.support.traffic.wireguard_go import WireguardGo
from tests.system.machine import CLIENT, DAEMON
from tests.system.service import OXIDIZE, Service

pytestmark = pytest.mark.needs("nft")

PORT = 51999
INNER, BEYOND = "10.8.0.1", "203.0.113.9"  # in the client's tunnel, and beyond it
UPLINK, GATEWAY = "198.51.100.2", "198.51.100.1"
OURS = """for i in oxidize0 oxidize1; do ip -o addr show dev $i scope global; ip -o link show dev $i; done
    for f in -4 -6; do ip $f rule; ip $f route show table all proto 151; done; nft list tables"""
DISTURBANCES = {
    "links down": "ip link set oxidize0 down; ip link set oxidize1 down",
    "addresses flushed": "ip addr flush dev oxidize0; ip addr flush dev oxidize1",
    "another MTU": "ip link set oxidize0 mtu 1300; ip link set oxidize1 mtu 1300",
    "all of nftables flushed": "nft flush ruleset",
    "rules removed": "for p in 30000 30001 30002 30003; do ip rule del pref $p; ip -6 rule del pref $p; done; true",
    # As networkd does with its default ManageForeignRoutes= and ManageForeignRoutingPolicyRules=
    "rules and routes removed": """for f in -4 -6; do ip $f rule flush protocol 151
        ip $f route flush table all proto 151; done""",
}


class Both:
    """The two services, running. far: the host of the client's server, by which the machine reaches everything."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.machine = service.machine
        self.identity = Identity.make()
        self.far = Namespace(service.lab.stack)
        join(self.far, "far0", service.namespace, "up0")
        set_addresses(self.far, "far0", [f"{GATEWAY}/24"])
        set_addresses(service.namespace, "up0", [f"{UPLINK}/24"])
        self.machine.run("ip", "route", "add", "default", "via", GATEWAY)
        self.far_server = WireguardGo(service.lab, self.far, [f"{INNER}/24", f"{BEYOND}/32"])
        self.far_server.set_peer(self.identity.public, "10.8.0.2/32,fd08::2/128")
        self.far_server.wg("set", self.far_server.name, "listen-port", str(PORT))
        service.write_config(nat=True, drain_timeout_secs=0.5)
        self.machine.run("/lib/systemd/systemd-sysctl", "60-oxidize.conf")
        self._configure_client()
        service.start()
        self.machine.systemctl("start", CLIENT)
        self.reach()

    def _configure_client(self) -> None:
        folder = self.machine.root / "etc/oxidize"
        key = folder / "client.key"
        key.touch(mode=0o600)
        key.write_text(b64(self.identity.private) + "\n")
        self.machine.run("chown", "oxidize-client:", "/etc/oxidize/client.key")
        values = {
            "server": f"{GATEWAY}:{PORT}",
            "server_public_key": b64(self.far_server.identity.public),
            "private_key_file": "client.key",
            "address": ["10.8.0.2/24", "fd08::2/64"],
            "allowed_ips": ["0.0.0.0/0", "::/0"],
        }
        lines = ["[client]", *(f"{name} = {json.dumps(value)}" for name, value in values.items())]
        (folder / "client.toml").write_text("\n".join(lines) + "\n")

    def ours(self) -> str:
        """Return all that the two services have set up in the kernel."""
        return self.machine.run("sh", "-c", OURS)

    def status(self, *options: str) -> tuple[str, list[str], int]:
        """Return the state, what is missing, and the number of repairs."""
        status = json.loads(self.machine.run(OXIDIZE, "status", "--json", *options))
        return status["state"], status["network_missing"], status["totals"]["network_repairs"]

    def states(self) -> list[str]:
        return [self.status()[0], self.status("--client")[0]]

    def reach(self) -> None:
        """Reach both servers through the tunnels, and what lies beyond."""
        ping(self.service.lab, self.service.client.namespace, Site.SERVER4, 2)
        for target in (INNER, BEYOND):
            ping(self.service.lab, self.service.namespace, target, 2)

    def pids(self) -> list[int]:
        return [self.machine.main_pid(unit) for unit in (DAEMON, CLIENT)]


def test_whatever_is_taken_from_the_installed_services_is_put_back(service: Service) -> None:
    both = Both(service)
    pids, before = both.pids(), both.ours()
    assert both.states() == ["healthy", "healthy"]
    _check_that_what_cannot_be_put_back_is_told(both)
    for name, command in DISTURBANCES.items():
        both.machine.run("sh", "-c", command)
        wait_for(f"the network of before: {name}", lambda: both.ours() == before)
        both.reach()
    wait_for("the states", lambda: both.states() == ["healthy", "healthy"])
    assert both.pids() == pids
    for unit, options in ((DAEMON, ()), (CLIENT, ("--client",))):
        log, repairs = both.machine.journal(unit=unit), both.status(*options)[2]
        assert repairs >= 3
        assert 1 <= log.count("put back what was missing") <= repairs
        for part in ("interface oxidize", "policy routing"):
            assert len([line for line in log.splitlines() if "again and again" in line and part in line]) <= 1
    assert "again and again" in both.machine.journal(unit=CLIENT)


def _check_that_what_cannot_be_put_back_is_told(both: Both) -> None:
    machine = both.machine
    switches = {Path("/proc/sys/net/ipv4/ip_forward"): 0, Path("/proc/sys/net/ipv6/conf/oxidize1/disable_ipv6"): 1}

    def switch(*, broken: bool) -> None:
        for path, value in switches.items():
            machine.run("sh", "-c", f"echo {value if broken else 1 - value} > {path}")

    switch(broken=True)
    wait_for("the states", lambda: both.states() == ["degraded", "degraded"])
    wait_for("both parts of the client", lambda: len(both.status("--client")[1]) == 2)
    (server,), client = both.status()[1], both.status("--client")[1]
    assert "net.ipv4.ip_forward" in server
    assert ["disable_ipv6" in line for line in client] == [True, True]  # the address, and the default route
    assert both.service.health()[0] == 503
    for unit in (DAEMON, CLIENT):
        assert machine.show("StatusText", unit).startswith("degraded: ")
    switch(broken=False)
    wait_for("the states", lambda: both.states() == ["healthy", "healthy"])
    assert both.service.health()[0] == 200
    assert not machine.show("StatusText", CLIENT).startswith("degraded")
