"""`nat = true` on a real systemd: its nftables table and flows outlive each process and end with the service."""

from dataclasses import dataclass
from ipaddress import ip_interface, ip_network
from pathlib import Path

import pytest

from oxidize.hostnet.interface import configure_interface
from tests.support.traffic.namespaces import Namespace, join, set_addresses
from tests.support.traffic.nftables import handles, tables
from tests.support.traffic.ping import Ping, ping
from tests.support.traffic.server import b64
from tests.support.traffic.wireguard_go import INNER_MTU
from tests.system.machine import DAEMON
from tests.system.service import Service

pytestmark = [pytest.mark.handoff, pytest.mark.needs("nft")]

TABLE = "inet oxidize-oxidize0"
APPLY_SYSCTLS = ("/lib/systemd/systemd-sysctl", "60-oxidize.conf")  # as `make install` does
UPLINK, BEYOND = "198.51.100.1", "198.51.100.2"
PING_INTERVAL_SECS = 0.1


@dataclass
class Relay:
    """The service with a host behind it that its client has a route to, without a route back."""

    service: Service
    beyond: Namespace

    def start(self) -> None:
        self.service.start()
        client = self.service.client
        networks = [ip_network("10.9.0.0/24"), ip_network("fd09::/64"), ip_network(f"{BEYOND}/32")]
        with client.namespace.entered():
            addresses = [ip_interface(address) for address in client.wireguard.addresses]
            configure_interface(client.wireguard.name, addresses, INNER_MTU, networks)
        key = b64(self.service.identity.public)
        client.wireguard.wg("set", client.wireguard.name, "peer", key, "allowed-ips", ",".join(map(str, networks)))
        self.reach()

    def reach(self) -> None:
        ping(self.service.lab, self.service.client.namespace, BEYOND, 3)


@pytest.fixture
def relay(service: Service) -> Relay:
    beyond = Namespace(service.lab.stack)
    join(service.namespace, "uplink0", beyond, "lan0")
    set_addresses(service.namespace, "uplink0", [f"{UPLINK}/24"])
    set_addresses(beyond, "lan0", [f"{BEYOND}/24"])
    service.write_config(nat=True, drain_timeout_secs=0.5)
    return Relay(service, beyond)


def test_the_nat_table_outlives_processes_and_ends_with_the_service(relay: Relay) -> None:
    service, machine = relay.service, relay.service.machine
    machine.run(*APPLY_SYSCTLS)
    relay.start()
    pid, made = service.wait_for_main_process(), handles(service.namespace)
    assert [line.split()[0] for line in made] == ["table", "chain", "chain"]
    pinging = Ping(service.lab, service.client.namespace, BEYOND, "ping-beyond", interval=PING_INTERVAL_SECS)
    for command in ("reload", "restart", "reload", "restart"):
        pinging.wait_for_replies(5)
        machine.systemctl(command, DAEMON)
        pid = service.wait_for_main_process(other_than=pid)
        assert handles(service.namespace) == made
    pinging.wait_for_replies(5)
    result = pinging.stop()
    assert (result.lost, result.duplicated, result.errors) == ((), (), ())
    for _ in range(2):
        machine.kill(pid)
        pid = service.wait_for_main_process(other_than=pid)
        assert handles(service.namespace) == made
        relay.reach()
    service.stop()
    assert tables(service.namespace) == []


def test_reloads_switch_nat_on_and_off_also_in_the_fd_store(relay: Relay) -> None:
    service, machine = relay.service, relay.service.machine
    machine.run(*APPLY_SYSCTLS)
    service.write_config()
    service.start()
    stored = int(machine.show("NFileDescriptorStore"))
    pid = service.wait_for_main_process()
    for is_on in (True, False, True):
        service.write_config(nat=is_on)
        machine.systemctl("reload", DAEMON)
        pid = service.wait_for_main_process(other_than=pid)
        assert tables(service.namespace) == ([TABLE] if is_on else [])
        assert int(machine.show("NFileDescriptorStore")) == stored + is_on
    made = handles(service.namespace)
    machine.kill(pid)
    service.wait_for_main_process(other_than=pid)
    assert handles(service.namespace) == made


def test_a_stale_nat_descriptor_in_the_fd_store_does_no_harm(relay: Relay) -> None:
    service, machine = relay.service, relay.service.machine
    machine.run(*APPLY_SYSCTLS)
    relay.start()
    pid = service.wait_for_main_process()
    # Such a release closes a descriptor of a name that it does not know, and forgets nothing in the store.
    service.add_release(
        "zz-old",
        {
            "runtime.cold_start": "assert notify.forget_fds\nnotify.forget_fds = lambda *names: got_there()",
            "runtime.succession": (
                "def adopt_nat(settings, udp, descriptor):\n"
                "    got_there(), os.close(descriptor)\n"
                "    from oxidize.hostnet.nat import Nat\n"
                "    return Nat(settings.interface, settings.addresses, None, udp.port, passed=None)"
            ),
        },
    )
    current = service.releases()[0]
    for release in ("zz-old", current):
        service.switch_to(release)
        machine.systemctl("reload", DAEMON)
        pid = service.wait_for_main_process(other_than=pid)
        assert tables(service.namespace) == [TABLE]  # the store's copy holds it
    assert service.has_got_there()
    assert "without all of its settings" not in machine.journal()
    relay.reach()


def test_a_server_with_nat_does_not_start_without_the_sysctl(relay: Relay) -> None:
    service, machine = relay.service, relay.service.machine
    for name in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
        with service.namespace.entered():
            Path("/proc/sys/net", name).write_text("0")
    machine.try_run("systemctl", "start", "--no-block", DAEMON)
    machine.wait_for("the reason in the journal", lambda: "`sysctl -w net.ipv4.ip_forward=1`" in machine.journal())
    assert tables(service.namespace) == []
    machine.run(*APPLY_SYSCTLS)
    service.wait_for_main_process()
    assert tables(service.namespace) == [TABLE]
