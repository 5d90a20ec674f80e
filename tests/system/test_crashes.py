"""Crashes: a process that is killed or stalls loses no session and at most one batch of packets."""

from collections.abc import Callable

import pytest

from oxidize.protocol.constants import BATCH_PACKETS_MAX
from oxidize.runtime.crash_loop import STARTS_WITHOUT_DELAY
from tests.system.machine import DAEMON
from tests.system.service import Service

pytestmark = pytest.mark.handoff

KILLS = 5
# The queue of the socket must hold what comes until the watchdog bites and the next process serves.
WATCHDOG_SECS = 2
STALLED_PACKETS_PER_SECOND = 2_000


def test_five_kills_lose_no_session(service: Service, record_property: Callable[[str, object], None]) -> None:
    service.start()
    pid = service.machine.main_pid()
    handshake, traffic = service.handshake(), service.traffic()
    for kills in range(1, KILLS + 1):
        service.machine.kill(pid)
        pid = service.wait_for_main_process(other_than=pid)
        traffic.wait_until_caught_up(forgiven=kills * 2 * BATCH_PACKETS_MAX)
    verdict = traffic.stop()
    record_property("verdict", str(verdict))
    verdict.assert_unharmed(crashes=KILLS)
    assert service.handshake() == handshake
    assert service.machine.show("NRestarts") == str(KILLS)


def test_a_crash_loop_delays_ready_and_keeps_the_sessions(service: Service) -> None:
    service.start()
    handshake, pid = service.handshake(), service.machine.main_pid()
    for _ in range(STARTS_WITHOUT_DELAY + 2):
        service.machine.kill(pid)
        pid = service.wait_for_main_process(other_than=pid)
    assert service.machine.journal().count("crashed repeatedly") == 2
    assert service.handshake() == handshake
    status = service.status()
    assert (status["sessions"], status["generation"]) == (1, STARTS_WITHOUT_DELAY + 3)
    assert service.machine.show("ActiveState") == "active"


@pytest.mark.parametrize("reloads", [0, 2])
def test_the_watchdog_kills_a_stalled_loop_in_any_generation(service: Service, reloads: int) -> None:
    service.drop_in(f"[Service]\nWatchdogSec={WATCHDOG_SECS}\n")
    service.start()
    for _ in range(reloads):
        service.machine.systemctl("reload", DAEMON)
    pid = service.wait_for_main_process()
    handshake, traffic = service.handshake(), service.traffic(rate=STALLED_PACKETS_PER_SECOND)
    service.machine.kill(pid, "STOP")
    service.wait_for_main_process(other_than=pid)
    traffic.wait_until_caught_up(forgiven=2 * BATCH_PACKETS_MAX)
    traffic.stop().assert_unharmed(crashes=1)
    assert service.handshake() == handshake
    assert "Watchdog timeout" in service.machine.journal()


def test_the_watchdog_does_not_kill_a_serving_process(service: Service) -> None:
    service.drop_in(f"[Service]\nWatchdogSec={WATCHDOG_SECS}\n")
    service.start()
    service.machine.systemctl("reload", DAEMON)
    pid = service.wait_for_main_process()
    service.machine.run("sleep", str(1.5 * WATCHDOG_SECS))
    assert service.wait_for_main_process() == pid
