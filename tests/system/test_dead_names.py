"""Names of peers: a dead one stops nothing that an operator does, and one that moves is followed."""

from collections.abc import Callable

import pytest

from oxidize.protocol.constants import BATCH_PACKETS_MAX
from tests.support.traffic.ping import Ping
from tests.support.traffic.server import Identity, PeerTable
from tests.system.machine import DAEMON
from tests.system.service import OXIDIZE, Service
from tests.system.traffic import BESIDE_DEPLOYMENTS

pytestmark = pytest.mark.handoff

NAME = "site.dyn.oxidize-test.invalid:51820"  # RFC 6761, section 6.4: no name server has it
FOLLOWED_SECS = 60.0  # silence, KEEPALIVE_TIMEOUT and REKEY_TIMEOUT; then a handshake that is not answered
TOLD = "a peer's endpoint cannot be looked up; retrying"


def waits(service: Service) -> bool:
    """Return whether status and metrics name the peer as waiting, and no other one."""
    waiting = [peer["name"] for peer in service.status()["peers"] if peer["waits_for_name"]]
    return waiting == ["site"] and 'oxidize_peer_waiting_for_name{peer="site"} 1' in service.metrics()


def lines_of(service: Service, pid: int) -> int:
    """Return how often a process has told of the name."""
    return service.machine.journal(f"_PID={pid}").count(TOLD)


def test_a_dead_name_stops_neither_start_crash_restart_reload_peer_add_nor_deployment(
    service: Service, record_property: Callable[[str, object], None]
) -> None:
    machine = service.machine
    service.peers.append(PeerTable("site", Identity.make().public, ("10.77.0.0/24",), endpoint=NAME))
    service.write_config()
    service.add_release("good")
    service.start()
    pids = [machine.main_pid()]
    handshake, traffic = service.handshake(), service.traffic(BESIDE_DEPLOYMENTS)
    steps: dict[str, Callable[[], object]] = {
        "kill": lambda: machine.kill(pids[-1]),
        "restart": lambda: machine.systemctl("restart", DAEMON),
        "reload": lambda: machine.systemctl("reload", DAEMON),
        "peer add": lambda: machine.run(OXIDIZE, "peer", "add", "laptop", "--endpoint", "vpn.example.org"),
        "deploy": lambda: machine.run(OXIDIZE, "deploy", "--release=good", "--settle=3", seconds=180),
    }
    for name, step in steps.items():
        machine.wait_for(f"the peer to wait for its name, before: {name}", lambda: waits(service))
        step()
        pids.append(service.wait_for_main_process(other_than=pids[-1]))
        traffic.wait_until_caught_up(forgiven=2 * BATCH_PACKETS_MAX)
    machine.wait_for("the peer to wait for its name", lambda: waits(service))
    verdict = traffic.stop()
    record_property("verdict", str(verdict))
    verdict.assert_unharmed(crashes=1)
    assert service.handshake() == handshake
    assert [lines_of(service, pid) for pid in pids] == [1] * len(pids), machine.journal()
    status = service.status()
    assert (status["sessions"], status["generation"]) == (1, len(pids))
    assert str(status["release_folder"]).endswith("/good")


def test_a_name_that_moves_is_followed_when_its_peer_stops_answering(service: Service) -> None:
    """The peer is passive: it does not know where the server is, and answers only what reaches it."""
    machine, client = service.machine, service.client
    name, moved = "site.oxidize-test.invalid", "2001:db8:1::3"
    hosts = machine.root / "etc/hosts"
    before = hosts.read_text()
    hosts.write_text(f"{before}\n{client.outer6} {name}\n")
    service.peers[:] = [client.table(endpoint=f"{name}:{client.wireguard.listen_port()}")]
    service.write_config()
    client.connect(knows_endpoint=False)
    machine.systemctl("start", DAEMON)
    pinging = Ping(service.lab, service.namespace, client.inner4, "to-the-site")
    pinging.wait_for_replies(10)
    assert str(client.peer_status()["endpoint"]).startswith(f"[{client.outer6}]:")
    client.move(client.outer4, moved)
    hosts.write_text(f"{before}\n{moved} {name}\n")
    answered = pinging.replies()
    machine.wait_for("answers from the other address", lambda: pinging.replies() >= answered + 10, FOLLOWED_SECS)
    assert str(client.peer_status()["endpoint"]).startswith(f"[{moved}]:")
    told = machine.journal()
    assert f"a peer's endpoint was looked up peer=client-1 name={name}:" in told
    pinging.stop()
