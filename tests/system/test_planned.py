"""What an operator plans: reload, restart, daemon-reexec and a change of settings lose nothing."""

import pytest

from tests.system.machine import DAEMON
from tests.system.service import Service

pytestmark = pytest.mark.handoff

RELOADS = 20


def test_twenty_reloads(service: Service) -> None:
    service.start()
    pids = [service.machine.main_pid()]
    handshake, traffic = service.handshake(), service.traffic()
    for _ in range(RELOADS):
        service.machine.systemctl("reload", DAEMON)
        pids.append(service.wait_for_main_process(other_than=pids[-1]))
        traffic.wait_until_caught_up()
    verdict = traffic.stop()
    print(verdict)
    assert (verdict.lost, verdict.duplicated, verdict.reordered) == (0, 0, 0), str(verdict)
    assert service.handshake() == handshake
    assert len(set(pids)) == RELOADS + 1
