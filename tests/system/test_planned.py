"""Planned operations: a reload, restart or daemon-reexec loses nothing, and a stop drains and ends the service."""

import time
from collections.abc import Callable

import pytest

from oxidize.cpu_priority import LOW_NICE
from tests.support.traffic.ping import ping
from tests.support.traffic.server import wait_for
from tests.support.traffic.site import Site
from tests.system.machine import DAEMON, UNITS
from tests.system.service import OXIDIZE, Service

pytestmark = pytest.mark.handoff

Record = Callable[[str, object], None]
RELOADS = 20
RESTARTS = 5
GIVE_WAY = (
    "from os import getpriority; from oxidize.cpu_priority import CpuPriority; priority = CpuPriority(); "
    "before = getpriority(0, 0); priority.lower(); low = getpriority(0, 0); priority.restore(); "
    "print('nice', low, 'as before' if getpriority(0, 0) == before else 'lower than before')"
)


def test_twenty_reloads_of_the_unit_lose_no_packet(service: Service, record_property: Record) -> None:
    service.start()
    pids = [service.machine.main_pid()]
    handshake, traffic = service.handshake(), service.traffic()
    for _ in range(RELOADS):
        service.machine.systemctl("reload", DAEMON)
        pids.append(service.wait_for_main_process(other_than=pids[-1]))
        traffic.wait_until_caught_up()
    verdict = traffic.stop()
    record_property("verdict", str(verdict))
    verdict.assert_unharmed()
    assert service.handshake() == handshake
    assert len(set(pids)) == RELOADS + 1
    assert service.status()["generation"] == RELOADS + 1


def test_five_restarts_of_the_unit_lose_no_session(service: Service, record_property: Record) -> None:
    service.start()
    pid = service.machine.main_pid()
    handshake, traffic = service.handshake(), service.traffic()
    for _ in range(RESTARTS):
        service.machine.systemctl("restart", DAEMON)
        pid = service.wait_for_main_process(other_than=pid)
        traffic.wait_until_caught_up()
    verdict = traffic.stop()
    record_property("verdict", str(verdict))
    verdict.assert_unharmed()
    assert service.handshake() == handshake
    assert service.machine.show("NRestarts") == "0"


def test_a_reload_works_after_daemon_reexec(service: Service) -> None:
    service.start()
    pid = service.machine.main_pid()
    handshake, traffic = service.handshake(), service.traffic()
    service.machine.systemctl("daemon-reexec")
    traffic.wait_until_caught_up()
    assert service.wait_for_main_process() == pid
    service.machine.systemctl("reload", DAEMON)
    pid = service.wait_for_main_process(other_than=pid)
    service.machine.systemctl("daemon-reexec")
    service.machine.systemctl("restart", DAEMON)
    service.wait_for_main_process(other_than=pid)
    traffic.wait_until_caught_up()
    traffic.stop().assert_unharmed()
    assert service.handshake() == handshake


def test_a_reload_applies_changed_settings(service: Service) -> None:
    service.start()
    machine = service.machine
    first, handshake = machine.main_pid(), service.handshake()
    service.add_release("next")
    service.switch_to("next")
    service.drop_in("[Service]\nEnvironment=OXIDIZE_TEST=changed\nLimitNOFILE=4321\nWatchdogSec=7\n")
    service.write_config(mtu=1400)
    machine.systemctl("reload", DAEMON)
    second = service.wait_for_main_process(other_than=first)
    environment = machine.run("cat", f"/proc/{second}/environ").split("\0")
    assert "OXIDIZE_TEST=changed" in environment
    assert "4321" in machine.run("cat", f"/proc/{second}/limits")
    assert "/releases/next/" in machine.run("cat", f"/proc/{second}/cmdline")
    wait_for("the MTU to be changed", lambda: " mtu 1400 " in machine.run("ip", "link", "show", "oxidize0"))
    ping(service.lab, service.client.namespace, Site.SERVER4, 2)
    assert service.handshake() == handshake


def test_a_reload_during_a_reload_loses_nothing(service: Service) -> None:
    service.start()
    pid = service.machine.main_pid()
    handshake, traffic = service.handshake(), service.traffic()
    reloads = [service.machine.start("systemctl", "reload", DAEMON) for _ in range(3)]
    for reload in reloads:
        _, errors = reload.communicate(timeout=60)
        assert reload.returncode == 0, f"{errors}\n{service.machine.journal()}"
    service.wait_for_main_process(other_than=pid)
    traffic.wait_until_caught_up()
    traffic.stop().assert_unharmed()
    assert service.handshake() == handshake


def test_a_stop_forgets_sessions_and_a_start_serves_again(service: Service) -> None:
    service.write_config(drain_timeout_secs=0.5)
    service.start()
    first, handshake = service.machine.main_pid(), service.handshake()
    units = " ".join(UNITS)
    assert service.machine.run(OXIDIZE, "stop") == f"stopped: {DAEMON}, by `systemctl stop {units}`\n"
    assert service.machine.processes() == set()
    assert [service.machine.show("ActiveState", unit) for unit in UNITS] == ["inactive"] * len(UNITS)
    assert service.machine.show("Result") == "success"
    assert "51820" not in service.machine.run("ss", "-Huln")
    assert service.machine.try_run(OXIDIZE, "status").status == 1

    service.machine.systemctl("start", DAEMON)
    service.wait_for_main_process(other_than=first)
    assert (service.status()["generation"], service.status()["sessions"]) == (1, 0)
    time.sleep(max(0.0, handshake + 1 - time.time()))  # handshakes are told apart by their second
    service.reconnect()
    assert service.handshake() > handshake


def test_a_stop_drains_the_sessions(service: Service) -> None:
    service.write_config(drain_timeout_secs=4)
    service.start()
    handshake, traffic = service.handshake(), service.traffic(rate=1000)
    stop = service.machine.start("systemctl", "stop", *UNITS)
    wait_for("/health to say draining", lambda: service.health() == (503, {"status": "draining", "ready": False}))
    traffic.wait_for_replies(1000)
    assert service.handshake() == handshake
    traffic.stop().assert_unharmed()
    _, errors = stop.communicate(timeout=30)
    assert stop.returncode == 0, errors
    assert service.machine.show("Result") == "success"
    assert service.machine.processes() == set()


def test_a_drain_by_hand_leaves_the_server_running_until_it_is_stopped(service: Service) -> None:
    service.start()
    pid, restarts = service.machine.main_pid(), service.machine.show("NRestarts")
    drained = service.machine.run(OXIDIZE, "drain")  # no client sends, so the drain ends after some idle seconds
    assert "drained" in drained
    assert service.health() == (503, {"status": "draining", "ready": False})
    assert (service.machine.main_pid(), service.machine.show("NRestarts")) == (pid, restarts)
    service.machine.run(OXIDIZE, "drain", "--cancel")
    assert service.health() == (200, {"status": "healthy", "ready": True})
    service.machine.run(OXIDIZE, "drain")
    service.stop()
    assert service.machine.show("Result") == "success"
    assert service.machine.processes() == set()


def test_a_successor_in_the_unit_may_give_way_and_ends_that(service: Service) -> None:
    # The right stands for LimitNICE=, which a machine within a container may not raise.
    service.drop_in(
        "[Service]\n"
        "CapabilityBoundingSet=CAP_SYS_NICE\nAmbientCapabilities=CAP_SYS_NICE\n"
        f'ExecStartPre=/opt/oxidize/current/bin/python -c "{GIVE_WAY}"\n'
    )
    service.start()
    assert f"nice {LOW_NICE} as before" in service.machine.journal()
    assert service.machine.show("LimitNICE") == "20"  # of RLIMIT_NICE: a nice value of 0 (getrlimit(2))
