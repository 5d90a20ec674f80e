"""Deployments of good and bad releases under traffic: the right release serves in the end, and nothing is lost.

Two exceptions: a release that drops packets loses them until the rollback, and one that crashes loses its batch.
"""

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.system.broken_releases import (
    ANSWERS_RUBBISH,
    CANNOT_BE_READ_BY_THE_SUCCESSOR,
    CANNOT_BE_RUN,
    CANNOT_READ,
    CRASHES,
    DOES_NOT_START,
    DROPS,
    LOGS_ERRORS,
    NEVER_READY,
    WRITES_MORE,
)
from tests.system.machine import DAEMON
from tests.system.service import OXIDIZE, Service
from tests.system.traffic import BESIDE_DEPLOYMENTS

pytestmark = pytest.mark.handoff

Record = Callable[[str, object], None]
SETTLE = "--settle=3"


def deploy(service: Service, *arguments: str, command: str = "deploy", expected: int = 0) -> dict[str, Any]:
    """Run a deployment and return its JSON output; the log has it, unless it did nothing."""
    before = len(service.log())
    outcome = service.machine.try_run(OXIDIZE, command, "--json", *arguments, seconds=180)
    assert outcome.status == expected, f"{outcome}\n{service.machine.journal()}"
    told: dict[str, Any] = json.loads(outcome.output)
    entry = {name: value for name, value in told.items() if name not in ("steps", "notes")}
    written = service.log()[before:]
    if all(step["step"] == "repair" for step in told["steps"]):  # of what was killed before this one
        assert entry not in written
    else:
        assert written[-1] == entry
    return told


def serving(service: Service) -> tuple[str, str]:
    """Return the serving release and the one that `current` points to."""
    folder = str(service.status()["release_folder"])
    return folder.rpartition("/")[2], service.current()


def test_a_good_release_is_deployed_without_loss(service: Service, record_property: Record) -> None:
    service.start()
    first, pid = service.current(), service.machine.main_pid()
    service.add_release("good")
    handshake, traffic = service.handshake(), service.traffic(BESIDE_DEPLOYMENTS)
    told = deploy(service, "--release=good")
    traffic.wait_until_caught_up()
    verdict = traffic.stop()
    record_property("verdict", f"{verdict}; blackout {told['blackout_ms']:.1f} ms; {told['seconds']:.1f} s in all")
    verdict.assert_unharmed()
    assert (told["result"], told["source"], told["target"], told["sessions"]) == ("success", first, "good", 1)
    assert 0 < told["blackout_ms"] < 1000
    assert told["notes"] == []
    assert serving(service) == ("good", "good")
    assert service.wait_for_main_process(other_than=pid)
    assert (service.machine.show("NRestarts"), service.handshake()) == ("0", handshake)
    assert (service.status()["generation"], service.health()[0]) == (2, 200)


@pytest.mark.parametrize(
    ("broken", "result", "expected"),
    [
        pytest.param(CANNOT_BE_RUN, "refused", "broken on purpose", id="cannot be run"),
        pytest.param(DOES_NOT_START, "failed", "broken on purpose", id="does not start"),
        pytest.param(NEVER_READY, "failed", "did not get there within", id="never gets ready"),
        pytest.param(CANNOT_READ, "refused", "wants a reader of 1", id="cannot read the state"),
        pytest.param(
            CANNOT_BE_READ_BY_THE_SUCCESSOR, "failed", "reads state of formats [0]", id="cannot read it, after all"
        ),
    ],
)
def test_a_release_that_never_serves_leaves_the_old_one_serving(
    service: Service, broken: dict[str, str], result: str, expected: str
) -> None:
    service.start()
    first, pid = service.current(), service.machine.main_pid()
    service.add_release("bad", broken)
    handshake, traffic = service.handshake(), service.traffic(BESIDE_DEPLOYMENTS)
    told = deploy(service, "--release=bad", SETTLE, expected=1)
    assert (told["result"], told["source"], told["target"]) == (result, first, "bad")
    assert expected in told["reason"]
    assert service.has_got_there()
    assert service.wait_for_main_process() == pid
    assert serving(service) == (first, first)
    traffic.wait_until_caught_up()
    traffic.stop().assert_unharmed()
    assert (service.machine.show("NRestarts"), service.handshake()) == ("0", handshake)


def test_a_release_that_crashes_after_two_seconds_is_rolled_back(service: Service) -> None:
    service.start()
    first, pid = service.current(), service.machine.main_pid()
    service.add_release("bad", CRASHES)
    handshake, traffic = service.handshake(), service.traffic(BESIDE_DEPLOYMENTS)
    told = deploy(service, "--release=bad", expected=1)
    assert (told["result"], told["target"]) == ("rolled back", "bad")
    assert "restored from the store" in told["reason"] or "no server is running" in told["reason"]
    assert serving(service) == (first, first)
    service.wait_for_main_process(other_than=pid)
    assert service.has_got_there()
    crashes = int(service.machine.show("NRestarts"))
    assert crashes >= 1
    traffic.wait_until_caught_up(forgiven=crashes * 128)
    traffic.stop().assert_unharmed(crashes=crashes)
    assert service.handshake() == handshake


def test_a_release_that_drops_packets_is_rolled_back(service: Service, record_property: Record) -> None:
    service.start()
    first = service.current()
    service.add_release("bad", DROPS)
    handshake, traffic = service.handshake(), service.traffic(BESIDE_DEPLOYMENTS)
    told = deploy(service, "--release=bad", expected=1)
    assert (told["result"], told["target"], told["sessions"]) == ("rolled back", "bad", 1)
    assert "packets received: 0 a second" in told["reason"]
    assert serving(service) == (first, first)
    traffic.wait_for_replies(BESIDE_DEPLOYMENTS)
    verdict = traffic.stop()
    record_property("verdict", str(verdict))
    assert service.has_got_there()
    (run,) = verdict.lost_runs  # from the switch to the rollback, and none after it
    assert verdict.lost_up == run[1] - run[0] + 1
    assert (verdict.lost_down, verdict.duplicated, verdict.reordered) == (0, 0, 0)
    assert (service.machine.show("NRestarts"), service.handshake()) == ("0", handshake)


def test_a_release_with_malformed_answers_is_rolled_back(service: Service) -> None:
    service.start()
    first, pid = service.current(), service.machine.main_pid()
    service.add_release("bad", ANSWERS_RUBBISH | LOGS_ERRORS)
    handshake, traffic = service.handshake(), service.traffic(BESIDE_DEPLOYMENTS)
    told = deploy(service, "--release=bad", expected=1)
    assert (told["result"], serving(service)) == ("rolled back", (first, first))
    service.switch_to("bad")  # and once more by hand, so that it is what a rollback finds
    service.machine.systemctl("reload", DAEMON)
    pid = service.wait_for_main_process(other_than=pid)
    told = deploy(service, "--settle=1", command="rollback")
    assert (told["result"], told["source"], told["target"]) == ("success", "bad", first)
    assert any("could not be measured" in note for note in told["notes"])
    assert serving(service) == (first, first)
    assert service.has_got_there()
    service.wait_for_main_process(other_than=pid)
    traffic.wait_until_caught_up()
    traffic.stop().assert_unharmed()
    assert (service.machine.show("NRestarts"), service.handshake()) == ("0", handshake)


def test_rolling_back_twice_reads_the_state_of_a_later_release(service: Service) -> None:
    service.start()
    first = service.current()
    service.add_release("second")
    service.add_release("third", WRITES_MORE)
    handshake, traffic = service.handshake(), service.traffic(BESIDE_DEPLOYMENTS)
    for release in ("second", "third"):
        deploy(service, f"--release={release}", "--settle=1")
    assert service.has_got_there()
    for release in ("second", first):
        told = deploy(service, "--settle=1", command="rollback")
        assert (told["result"], told["target"], told["sessions"]) == ("success", release, 1)
        assert serving(service) == (release, release)
    told = deploy(service, "--settle=1", command="rollback", expected=1)
    assert (told["result"], serving(service)) == ("refused", (first, first))
    traffic.wait_until_caught_up()
    traffic.stop().assert_unharmed()
    assert (service.handshake(), service.machine.show("NRestarts")) == (handshake, "0")
    assert [(entry["action"], entry["result"]) for entry in service.log()] == [
        ("deploy", "success"),
        ("deploy", "success"),
        ("rollback", "success"),
        ("rollback", "success"),
    ]


def test_a_release_that_loses_sessions_needs_force(service: Service) -> None:
    service.start()
    first = service.current()
    service.add_release("good")
    peers, service.peers = service.peers, []
    service.write_config()
    told = deploy(service, "--release=good", "--settle=1", expected=1)
    assert (told["result"], serving(service)) == ("refused", (first, first))
    assert "0 of 1 session" in told["reason"]
    assert "--force" in told["reason"]
    told = deploy(service, "--release=good", "--settle=1", "--force", "--ignore-traffic")
    assert (told["sessions"], serving(service)) == (0, ("good", "good"))
    service.peers = peers


# --- Killed ---

# Runs the command line and ends like `kill -9` where it is told to: as a step begins, or around the reload.
KILLED = """
import os, signal, subprocess, sys
from oxidize.cli.commands import main
from oxidize.deploy import deployment
from oxidize.deploy.progress import Progress
from oxidize.service_manager import systemctl

where = sys.argv.pop(1)
deployment.BASELINE_SECS = 0.5

def killed(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def begin(self, step):
    if step.value == where:
        killed()

Progress.begin = begin
if where == "before the reload":
    systemctl.reload = killed
if where == "during the reload":
    def reload(service):
        subprocess.run(["systemctl", "reload", "--no-block", service], check=True)
        killed()
    systemctl.reload = reload
main()
"""


# The steps that are under way where a deployment is killed between two.
STEPS_OF = {"before the reload": "switch", "during the reload": "switch"}


def deploy_killed(service: Service, where: str, release: str) -> None:
    python = "/opt/oxidize/current/bin/python"
    outcome = service.machine.try_run(python, "-P", "-c", KILLED, where, "deploy", f"--release={release}", "--settle=1")
    assert outcome.status == -9, outcome


def test_a_deployment_killed_at_any_step_leaves_a_server_serving(service: Service) -> None:
    service.start()
    first = service.current()
    service.add_release("next")
    service.add_release("bad", LOGS_ERRORS)
    handshake, traffic = service.handshake(), service.traffic(BESIDE_DEPLOYMENTS)
    for where, release, expected in (
        ("configuration", "next", first),
        ("rehearsal", "next", first),
        ("traffic", "next", first),
        ("switch", "next", first),
        ("before the reload", "next", first),
        ("roll back", "bad", first),
        ("during the reload", "next", "next"),
        ("watch", first, first),
        ("before the reload", "next", "next"),
    ):
        deploy_killed(service, where, release)
        assert service.machine.run(OXIDIZE, "--version").startswith("oxidize")
        if where == "before the reload" and expected == release:  # a crash or a restart comes before the repair
            service.machine.systemctl("restart", DAEMON)
            service.wait_for_main_process()
        told = deploy(service, f"--release={expected}")
        assert told["reason"] == f"{expected} serves already: nothing was done", where
        assert [step["step"] for step in told["steps"]] == ["repair"], where
        assert f"was interrupted at the step {STEPS_OF.get(where, where)}" in told["steps"][0]["text"], where
        assert (service.log()[-1]["target"], service.log()[-1]["result"]) == (
            release,
            "rolled back" if where == "roll back" else "interrupted",
        ), where
        assert serving(service) == (expected, expected), where
        traffic.wait_until_caught_up()
    assert service.has_got_there()
    traffic.stop().assert_unharmed()
    assert service.handshake() == handshake


def test_a_second_deployment_is_refused_and_the_first_can_be_interrupted(service: Service) -> None:
    service.start()
    first = service.current()
    service.add_release("next")
    handshake, traffic = service.handshake(), service.traffic(BESIDE_DEPLOYMENTS)
    deployment = service.machine.start(OXIDIZE, "deploy", "--release=next", "--settle=60")
    assert deployment.stdout is not None
    lines = []
    for line in deployment.stdout:
        lines.append(line)
        if "watch ..." in line:
            break
    outcome = service.machine.try_run(OXIDIZE, "rollback")
    assert (outcome.status, "another build or deployment is under way" in outcome.errors) == (1, True)
    listed = service.machine.run(OXIDIZE, "releases")
    assert "a deployment by root is at the step watch" in listed
    (pid,) = service.machine.run("sh", "-c", "sed 's/pid \\([0-9]*\\),.*/\\1/' /opt/oxidize/.lock").split()
    service.machine.kill(int(pid), "INT")
    output, errors = deployment.communicate(timeout=60)
    assert deployment.returncode == 1, (lines, output, errors)
    assert "not deployed (rolled back)" in errors
    assert serving(service) == (first, first)
    traffic.wait_until_caught_up()
    traffic.stop().assert_unharmed()
    assert service.handshake() == handshake
