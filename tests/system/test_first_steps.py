"""What a first-time operator meets, and what the machine around the service may do to it."""

from functools import partial

import pytest

from tests.support.traffic.server import wait_for
from tests.system.machine import DAEMON, Machine
from tests.system.service import RELEASES, Service
from tests.system.traffic import BESIDE_DEPLOYMENTS

LINES_AT_ONCE = 500  # of the log, as warnings about a signal
JOURNAL = ("systemd-journald.socket", "systemd-journald-dev-log.socket", "systemd-journald.service")


def test_a_mistake_in_the_first_configuration_is_named_and_its_correction_serves(service: Service) -> None:
    machine = service.machine
    assert f"start it with `systemctl start {DAEMON}`" in machine.try_run("oxidize", "status").errors
    service.write_config(adress="10.9.0.1/24")
    assert machine.try_run("systemctl", "start", "oxidize.socket", DAEMON).status == 1
    wait_for("the service to wait", lambda: machine.show("StatusText").startswith("waiting for a correction: "))
    assert "did you mean address" in machine.show("StatusText")
    restarts, pid = machine.show("NRestarts"), machine.show("MainPID")
    service.write_config()
    wait_for("the corrected service to serve", lambda: machine.show("ActiveState") == "active")
    assert int(machine.show("NRestarts")) == int(restarts) + 1
    assert machine.show("MainPID") != pid
    (release,) = service.releases()
    assert machine.run("oxidize", "--version") == f"oxidize, version {release}\n"
    assert f"release {release}" in machine.show("StatusText")
    for _ in range(2):
        assert machine.run("cat", f"/proc/{machine.main_pid()}/comm") == "oxidize\n"
        machine.systemctl("reload", DAEMON)


@pytest.mark.handoff
def test_a_stopped_journal_signals_a_removed_link_and_a_lost_python_are_told_of(service: Service) -> None:
    service.start()
    service.machine.systemctl("reload", DAEMON)
    stop_the_journal_and_send_signals(service)
    remove_the_link(service)
    lose_the_python(service)


def stop_the_journal_and_send_signals(service: Service) -> None:
    """Stop the journal's reader under traffic: lines are lost and counted, and no packet is."""
    machine, pid = service.machine, service.machine.main_pid()
    journald = machine.main_pid("systemd-journald.service")
    traffic = service.traffic(BESIDE_DEPLOYMENTS)  # signals and commands need processor time, too
    machine.kill(journald, "STOP")

    def lost_after_more_lines() -> int:
        line = f"for i in $(seq {LINES_AT_ONCE}); do kill -s USR1 {pid}; done"
        machine.run("bash", "-c", line)
        return int(service.status()["totals"]["log_lines_lost"])

    lost = wait_for("lost lines", lost_after_more_lines)
    for name in ("USR2", "ALRM"):
        machine.kill(pid, name)
    traffic.wait_until_caught_up()
    machine.kill(journald, "CONT")
    machine.wait_for("the report", lambda: "lines of this log were lost" in machine.journal(f"_PID={pid}"))
    for name in ("SIGUSR1", "SIGUSR2", "SIGALRM"):
        machine.kill(pid, name.removeprefix("SIG"))
        line = f"{name} changes nothing: use `oxidize reload`"
        machine.wait_for(line, partial(is_logged, machine, line))
    machine.systemctl("stop", *JOURNAL)  # which ends its streams, too: standard error is one
    machine.wait_for("more lost lines", lambda: lost_after_more_lines() > lost)
    machine.systemctl("start", *JOURNAL)
    traffic.wait_until_caught_up()
    traffic.stop().assert_unharmed()
    assert lost > 0
    assert (machine.main_pid(), machine.show("NRestarts")) == (pid, "0")


def is_logged(machine: Machine, line: str) -> bool:
    return line in machine.journal()


def remove_the_link(service: Service) -> None:
    """Remove the interface of a generation that came by a reload: its end says why, and another one serves."""
    machine, pid = service.machine, service.machine.main_pid()
    machine.run("ip", "link", "del", "oxidize0")
    service.wait_for_main_process(other_than=pid)
    machine.wait_for("the reason", lambda: "was removed while in use" in machine.journal(f"_PID={pid}"))


def lose_the_python(service: Service) -> None:
    """Remove the interpreter of the release: what is started says so in one line, and what runs serves.

    A unit that is killed comes back with the sessions as soon as another release is installed.
    """
    machine, pid = service.machine, service.machine.main_pid()
    (release,) = service.releases()
    service.add_release("1.0.0-again")
    python = machine.root / RELEASES / release / "bin/python"
    python.unlink()
    python.symlink_to("/usr/bin/python9.9")
    for command in ("check", "releases"):
        outcome = machine.try_run("oxidize", command)
        (line,) = outcome.errors.splitlines()
        assert outcome.status == 1
        assert "no longer leads to an interpreter" in line
        assert "`make install`" in line
    assert machine.try_run("systemctl", "reload", DAEMON).status == 1
    assert machine.main_pid() == pid
    machine.kill(pid)
    said = f"oxidize: /opt/oxidize/releases/{release}/bin/python no longer leads to an interpreter"
    machine.wait_for("the unit to say so", lambda: said in machine.journal("-n5"))
    service.switch_to("1.0.0-again")  # as `make install` does
    service.wait_for_main_process(other_than=pid)
    assert service.status()["sessions"] == 1, "the session was in the store meanwhile"
