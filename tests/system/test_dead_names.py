"""A name that no resolver answers stops nothing that an operator does, and no client notices it."""

from collections.abc import Callable

import pytest

from oxidize.protocol.constants import BATCH_PACKETS_MAX
from tests.support.traffic.server import Identity, PeerTable
from tests.system.machine import DAEMON
from tests.system.service import OXIDIZE, Service
from tests.system.traffic import BESIDE_DEPLOYMENTS

pytestmark = pytest.mark.handoff

NAME = "site.dyn.oxidize-test.invalid:51820"  # RFC 6761, section 6.4: no name server has it
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
