"""What the service needs for its next process only, and does not have: it serves, says so, and gets it back.

One machine for all: each part begins with a service that lacks nothing, and the client keeps its session throughout.
"""

import contextlib
import os
import socket
from pathlib import Path

import pytest

from oxidize.protocol.constants import BATCH_PACKETS_MAX
from tests.support.traffic.server import Outcome
from tests.system.machine import DAEMON
from tests.system.service import OXIDIZE, Service
from tests.system.traffic import BESIDE_DEPLOYMENTS

pytestmark = pytest.mark.handoff

HTTP = ("127.0.0.1", 9090)
FOLDER = "/run/oxidize"
FILL_RUN = (
    "mount -o remount,size=1m,nr_inodes=700 /run; number=0; while : > /run/full-$number; do number=$((number+1)); done"
)
MAKE_ROOM = "rm -f /run/full-*"


def serves(service: Service) -> bool:
    """Return whether /health answers that the service is healthy."""
    try:
        return service.health() == (200, {"status": "healthy", "ready": True})
    except OSError:
        return False


def scores(service: Service) -> dict[str, int]:
    """Return the OOM score of each process of the service, by its pid outside of the machine."""
    found = {}
    for folder, _, _ in os.walk(service.machine.cgroup / "system.slice" / DAEMON):
        for pid in Path(folder, "cgroup.procs").read_text().split():
            with contextlib.suppress(OSError):  # it has ended
                found[pid] = int(Path("/proc", pid, "oom_score_adj").read_text())
    return found


def reload(service: Service) -> Outcome:
    return service.machine.try_run("systemctl", "reload", DAEMON)


def test_the_service_serves_without_what_vanished_and_gets_it_back(service: Service) -> None:
    machine = service.machine
    with service.namespace.entered():
        taken = socket.create_server(HTTP)
    service.start()
    handshake, traffic = service.handshake(), service.traffic(BESIDE_DEPLOYMENTS)

    # Another program has the port of the HTTP socket: the unit starts, and the server binds it once it is free.
    assert machine.try_run("systemctl", "is-active", "oxidize-http.socket").output.strip() == "failed"
    assert machine.journal().count("serving without /health and /metrics until their address can be bound") == 1
    assert "no /health, no /metrics, tried again" in machine.run(OXIDIZE, "status")
    taken.close()
    machine.wait_for("/health", lambda: serves(service))

    # The folder of the takeover socket is removed: the service is named, and a reload has it made again.
    machine.run("rm", "-r", FOLDER)
    pid = machine.main_pid()
    for command in (("status",), ("drain",), ("peer", "list")):
        told = machine.try_run(OXIDIZE, *command)
        assert f"pid {pid} runs all the same" in told.errors, told
        assert f"is the main process of {DAEMON}" in told.errors, told
        assert f"`systemctl reload {DAEMON}`" in told.errors, told
    assert reload(service).status == 0
    pid = service.wait_for_main_process(other_than=pid)

    # No room in /run: a reload is refused with the reason, and a crash is survived.
    machine.try_run("sh", "-c", FILL_RUN)
    assert reload(service).status == 1
    assert "No space left on device" in machine.journal("-n", "10")
    assert service.wait_for_main_process() == pid
    machine.kill(pid)
    pid = service.wait_for_main_process(other_than=pid)
    traffic.wait_until_caught_up(forgiven=2 * BATCH_PACKETS_MAX)
    machine.run("sh", "-c", MAKE_ROOM)
    machine.wait_for("the path", lambda: machine.try_run(OXIDIZE, "status").status == 0)
    assert reload(service).status == 0
    pid = service.wait_for_main_process(other_than=pid)

    traffic.stop().assert_unharmed(crashes=1)
    assert service.handshake() == handshake
    assert serves(service)

    # The command of a reload and the successor are what the kernel ends first; it serves with the score of before.
    assert machine.show("OOMPolicy") == "continue"
    reloading = machine.start("systemctl", "reload", DAEMON)
    raised: set[str] = set()
    while reloading.poll() is None:
        raised |= {pid for pid, score in scores(service).items() if score == 1000}
    assert reloading.wait() == 0
    reloading.communicate()
    service.wait_for_main_process(other_than=pid)
    assert len(raised) >= 2
    machine.wait_for("the score of before", lambda: set(scores(service).values()) == {0})
