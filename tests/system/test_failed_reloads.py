"""Failed reloads: the predecessor keeps serving, nothing is lost, and the operator gets the reason everywhere."""

import pytest

from oxidize.protocol.constants import BATCH_PACKETS_MAX
from tests.support.traffic.server import wait_for
from tests.system.broken_releases import (
    COORDINATOR_KILLED_AFTER_MAINPID,
    DOES_NOT_START,
    EXITS,
    KILLED_AFTER_COMMIT,
    KILLED_AFTER_MAINPID,
    NEVER_READY,
)
from tests.system.machine import DAEMON
from tests.system.service import Service

pytestmark = pytest.mark.handoff


def fail_to_reload(service: Service, expected: str, *, may_restart: bool = False) -> None:
    """Make a reload under traffic that must fail without any other effect; then one that succeeds.

    may_restart: a main process was killed by a signal, and systemd 252 restarts the service unless another main process
    is announced first.
    """
    machine = service.machine
    pid = machine.main_pid()
    handshake, traffic = service.handshake(), service.traffic()
    outcome = machine.try_run("systemctl", "reload", DAEMON)
    assert outcome.status == 1, machine.journal()
    serving = service.wait_for_main_process()
    restarts = int(machine.show("NRestarts"))
    journal = machine.journal()
    assert expected in journal, journal
    assert "draining" not in journal, journal
    assert (serving, restarts) == (pid, 0) or (may_restart and restarts == 1), journal
    forgiven = restarts * 2 * BATCH_PACKETS_MAX
    assert service.has_got_there(), journal
    traffic.wait_until_caught_up(forgiven)
    service.switch_to(service.releases()[0])
    service.write_config()
    machine.systemctl("reload", DAEMON)
    service.wait_for_main_process(other_than=serving)
    traffic.wait_until_caught_up(forgiven)
    traffic.stop().assert_unharmed(crashes=restarts)
    assert service.handshake() == handshake
    assert int(machine.show("NRestarts")) == restarts


@pytest.mark.parametrize(
    ("broken", "expected"),
    [
        pytest.param(EXITS, "ended without a reason", id="exits"),
        pytest.param(DOES_NOT_START, "broken on purpose", id="raises"),
        pytest.param(NEVER_READY, "did not get there within", id="hangs"),
    ],
)
def test_a_reload_to_a_release_that_is_never_ready_fails(
    service: Service, broken: dict[str, str], expected: str
) -> None:
    service.start()
    service.add_release("zz-broken", broken)
    service.switch_to("zz-broken")
    fail_to_reload(service, expected)


@pytest.mark.parametrize(
    ("broken", "expected"),
    [
        pytest.param(
            KILLED_AFTER_MAINPID,
            "ended without a reason",
            id="successor, before COMMIT",
        ),
        pytest.param(KILLED_AFTER_COMMIT, "ended without a reason", id="successor, after COMMIT"),
        pytest.param(COORDINATOR_KILLED_AFTER_MAINPID, "code=killed, status=9/KILL", id="coordinator"),
    ],
)
def test_a_kill_after_mainpid_is_a_failed_reload(service: Service, broken: dict[str, str], expected: str) -> None:
    service.start()
    service.add_release("zz-broken", broken)
    service.switch_to("zz-broken")
    fail_to_reload(service, expected, may_restart=True)


def test_a_reload_with_a_wrong_configuration_fails(service: Service) -> None:
    service.start()
    service.write_config(mtu=5)
    fail_to_reload(service, "mtu")


def test_the_unit_status_says_why_a_reload_failed(service: Service) -> None:
    service.start()
    service.write_config(mtu=5)
    assert service.machine.try_run("systemctl", "reload", DAEMON).status == 1
    status = service.machine.try_run("systemctl", "status", "--full", DAEMON).output
    assert "not reloaded" in status
    assert "mtu" in status


def test_a_restart_during_a_reload_loses_nothing(service: Service) -> None:
    service.start()
    pid, good = service.machine.main_pid(), service.releases()[0]
    handshake, traffic = service.handshake(), service.traffic()
    service.add_release("zz-broken", {"runtime.startup": NEVER_READY["runtime.startup"]})
    service.switch_to("zz-broken")
    reload = service.machine.start("systemctl", "reload", DAEMON)
    wait_for("the successor to hang", service.has_got_there)
    assert len(service.machine.processes()) == 3
    service.switch_to(good)
    service.machine.systemctl("restart", DAEMON)
    reload.communicate(timeout=60)  # its status is the restart's: systemd makes one job of both
    service.wait_for_main_process(other_than=pid)
    traffic.wait_until_caught_up()
    traffic.stop().assert_unharmed()
    assert service.handshake() == handshake
