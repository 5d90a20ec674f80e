"""One deployment from its beginning to its end, with a simulated server."""

from pathlib import Path

import pytest

from oxidize.deploy import SETTLE_SECS, history
from oxidize.deploy.commands import Rehearsed
from oxidize.deploy.deployment import BASELINE_SECS
from oxidize.deploy.history import PendingDeployment
from oxidize.deploy.progress import Step
from oxidize.deploy.releases import Release
from oxidize.deploy.vitals import Vitals
from oxidize.errors import DecodeError, DeployError
from tests.support.deploy_world import Behaviour, World, add_release

UNDER_WAY = PendingDeployment(
    at_unix=0.0, who="alice", action="deploy", source="one", target="two", step=Step.ROLL_BACK.value
)


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Yield an installation of one release, "one", that serves."""
    played = World(tmp_path)
    played.serve(add_release(tmp_path, "one", 1.0))
    return played


def current(world: World) -> str:
    found = world.releases.current()
    assert found is not None
    return found.name


def running(world: World) -> str:
    assert world.running is not None
    return world.running.name


def add(world: World, behaviour: Behaviour | None = None) -> Release:
    world.behaviours["two"] = behaviour or Behaviour()
    return add_release(world.prefix, "two", 2.0)


def steps(world: World) -> list[tuple[Step, bool]]:
    return [(done.step, done.ok) for done in world.progress.results]


def test_a_good_release_is_built_rehearsed_switched_to_and_watched(world: World) -> None:
    world.commands.to_build = ["two"]
    began = world.time
    entry = world.deployer().deploy(None)
    assert (entry.result, entry.source, entry.target, entry.reason) == (history.SUCCESS, "one", "two", "")
    assert (entry.sessions, entry.blackout_ms, entry.who) == (2, 1.5, "alice")
    assert (current(world), running(world), world.reloads) == ("two", "two", ["two"])
    assert steps(world) == [
        (step, True) for step in (Step.BUILD, Step.CHECK, Step.REHEARSAL, Step.TRAFFIC, Step.SWITCH, Step.WATCH)
    ]
    assert world.time - began >= BASELINE_SECS + SETTLE_SECS
    assert world.history.entries() == [entry]
    assert world.history.under_way() is None


@pytest.mark.parametrize(
    ("behaviour", "expected"),
    [
        pytest.param(Behaviour(ends_after_secs=2.0), "was replaced by generation 4", id="crashes"),
        pytest.param(Behaviour(packets_per_sec=0.0), "packets received: 0 a second", id="drops all, silently"),
        pytest.param(
            Behaviour(drops_per_sec=100.0),
            "packets dropped since the switch: network write failed",
            id="drops and counts",
        ),
        pytest.param(Behaviour(kernel_drops_per_sec=10.0), "dropped by the kernel", id="does not empty the queue"),
        pytest.param(Behaviour(errors=1), "1 line logged as errors", id="logs errors"),
        pytest.param(Behaviour(unready="503 starting"), "/health: 503 starting", id="not ready"),
        pytest.param(Behaviour(lost_peers=["bob"]), "1 session lost: bob", id="loses a session"),
        pytest.param(Behaviour(is_mute=True), "gives no answer", id="hangs"),
        pytest.param(Behaviour(is_mute=True, ends_after_secs=11.0), "gives no answer", id="hangs until it is ended"),
        pytest.param(Behaviour(answers=DecodeError("not JSON")), "not JSON", id="answers what cannot be read"),
        pytest.param(
            Behaviour(answers=ZeroDivisionError()), "a bug of the deployment", id="raises an unexpected error"
        ),
        pytest.param(Behaviour(logs_per_sec=1.0), "logged as errors", id="logs errors later"),
    ],
)
def test_a_bad_release_is_rolled_back_by_takeover(world: World, behaviour: Behaviour, expected: str) -> None:
    add(world, behaviour)
    entry = world.deployer().deploy("two")
    assert entry.result == history.ROLLED_BACK
    assert expected in entry.reason
    assert (current(world), running(world)) == ("one", "one")
    assert world.history.entries() == [entry]
    assert world.history.under_way() is None
    assert steps(world)[-1] == (Step.ROLL_BACK, True)


def test_a_release_that_never_serves_leaves_the_previous_one_running(world: World) -> None:
    add(world, Behaviour(refuses="broken on purpose"))
    pid = world.pid
    entry = world.deployer().deploy("two")
    assert (entry.result, running(world), current(world)) == (history.FAILED, "one", "one")
    assert "broken on purpose" in entry.reason
    assert (world.pid, world.reloads) == (pid, ["two"])


def test_a_release_that_cannot_be_rolled_back_is_reported_as_lost(world: World) -> None:
    add(world, Behaviour(errors=1))
    world.behaviours["one"] = Behaviour(refuses="cannot read the state")
    entry = world.deployer().deploy("two")
    assert (entry.result, running(world), current(world)) == (history.LOST, "two", "one")
    assert "the rollback to one failed" in entry.reason
    assert "cannot read the state" in entry.reason


def test_a_wrong_main_process_is_a_reason(world: World) -> None:
    add(world, Behaviour(on_reload=lambda: setattr(world, "main_pid_is_wrong", True)))
    entry = world.deployer().deploy("two")
    assert "the main process of the service is" in entry.reason
    assert (entry.result, running(world)) == (history.ROLLED_BACK, "one")


@pytest.mark.parametrize("what", ["problem", "rehearsal_problem"])
def test_a_failed_check_before_the_switch_refuses_the_release(world: World, what: str) -> None:
    add(world)
    setattr(world.commands, what, "server.toml: mtu = 5: expected more")
    entry = world.deployer(forced=what == "problem").deploy("two")
    assert (entry.result, entry.reason) == (history.REFUSED, "server.toml: mtu = 5: expected more")
    assert (current(world), world.reloads) == ("one", [])


def test_a_release_that_keeps_fewer_sessions_is_refused_unless_forced(world: World) -> None:
    add(world)
    world.commands.rehearsed = Rehearsed(1, 2, {"not configured any more": 1})
    entry = world.deployer().deploy("two")
    assert entry.result == history.REFUSED
    assert "1 of 2 sessions (1 not configured any more)" in entry.reason
    assert world.reloads == []
    world.behaviours["two"].lost_peers = ["bob"]
    assert world.deployer(forced=True).deploy("two").result == history.SUCCESS
    assert any("forced" in note for note in world.progress.notes)


def test_the_health_check_can_ignore_traffic(world: World) -> None:
    add(world, Behaviour(packets_per_sec=0.0))
    assert world.deployer(check_traffic=False).deploy("two").result == history.SUCCESS


def test_each_rollback_goes_further_back_and_never_to_a_bad_release(world: World) -> None:
    for name in ("two", "three"):
        world.commands.to_build = [name]
        assert world.deployer().deploy(None).result == history.SUCCESS
    for expected in ("two", "one"):
        entry = world.deployer().rollback()
        assert (entry.result, entry.action, running(world)) == (history.SUCCESS, history.ROLLBACK, expected)
    entry = world.deployer().rollback()
    assert (entry.result, running(world), current(world)) == (history.REFUSED, "one", "one")
    assert "no release is left" in entry.reason
    world.commands.to_build = ["four"]
    world.deployer().deploy(None)
    assert world.deployer().rollback().target == "one"


def test_a_release_that_already_serves_is_not_deployed(world: World) -> None:
    entry = world.deployer().deploy("one")
    assert (entry.result, entry.reason) == (history.SUCCESS, "one serves already: nothing was done")
    assert (world.reloads, steps(world)) == ([], [])
    assert world.history.entries() == [], "a deployment that did nothing is none"


def test_a_deployment_of_the_serving_release_that_mends_current_is_recorded(world: World) -> None:
    world.releases.point_current_at(add(world))
    entry = world.deployer().deploy("one")
    assert (entry.result, current(world), world.reloads) == (history.SUCCESS, "one", [])
    assert world.history.entries() == [entry]


def test_a_deployment_of_the_serving_release_makes_a_bad_one_a_rollback_target_again(world: World) -> None:
    world.commands.to_build = ["two", "three"]
    world.deployer().deploy(None)
    world.deployer().rollback()
    world.serve(world.releases.find("two"))  # by hand
    world.releases.point_current_at(world.releases.find("two"))
    assert world.deployer().deploy("two").reason == "two serves already: nothing was done"
    assert world.deployer().deploy(None).target == "three"
    assert world.deployer().rollback().target == "two"


def test_a_process_that_runs_from_no_release_is_not_replaced(world: World) -> None:
    add(world)
    world.running = Release(Path("/home/alice/checkout/.venv"), "0.1.0", 0.0, "")
    entry = world.deployer().deploy("two")
    assert entry.result == history.REFUSED
    assert "expected a release below" in entry.reason
    assert world.reloads == []


def test_an_unknown_release_is_refused_with_a_list_of_releases(world: World) -> None:
    assert "expected one of one;" in world.deployer().deploy("five").reason
    assert world.history.entries() == []


def test_a_deployment_without_a_server_only_changes_current(world: World) -> None:
    add(world)
    world.running = None
    entry = world.deployer().deploy("two")
    assert (entry.result, current(world), world.reloads) == (history.SUCCESS, "two", [])
    assert world.progress.notes == ["no server is running: the next start runs this release"]


def test_a_server_that_cannot_be_reached_is_named_and_nothing_is_switched(world: World) -> None:
    add(world)
    world.running, world.cannot_be_reached = None, "no process listens, but pid 7 runs all the same"
    entry = world.deployer().deploy("two")
    assert (entry.result, entry.reason, current(world)) == (history.REFUSED, world.cannot_be_reached, "one")
    world.is_starting = True  # a unit whose process does not listen
    assert world.deployer().deploy("two").reason == world.cannot_be_reached


def test_a_release_that_keeps_crashing_can_be_rolled_back(world: World) -> None:
    world.commands.to_build = ["two"]
    world.deployer().deploy(None)
    one = world.releases.find("one")
    world.running, world.is_starting = None, True  # between two of its crashes
    passing = world.clock.sleep

    def sleep(seconds: float) -> None:
        passing(seconds)
        if world.releases.current() == one and world.running is None:
            world.serve(one)  # by the service manager

    world.clock = type(world.clock)(world.clock.now, world.clock.unix, sleep)
    entry = world.deployer().rollback()
    assert (entry.result, running(world)) == (history.SUCCESS, "one")


def test_an_interruption_after_the_switch_rolls_back(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    add(world)
    sample = world.unready

    def interrupted(vitals: Vitals) -> str:
        if vitals.release_folder.endswith("/two"):
            raise KeyboardInterrupt
        return sample(vitals)

    monkeypatch.setattr(world, "unready", interrupted)
    entry = world.deployer().deploy("two")
    assert (entry.result, entry.reason) == (history.ROLLED_BACK, "interrupted")
    assert (running(world), current(world)) == ("one", "one")


def test_a_bug_of_the_deployment_after_the_switch_rolls_back(world: World) -> None:
    add(world)

    def fails() -> None:
        raise ZeroDivisionError

    world.behaviours["two"].on_reload = fails
    entry = world.deployer().deploy("two")
    assert (entry.result, running(world), current(world)) == (history.FAILED, "one", "one")
    assert "a bug of the deployment" in entry.reason


def test_an_interruption_before_the_switch_changes_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    add(world)
    monkeypatch.setattr(world.commands, "rehearse", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    entry = world.deployer().deploy("two")
    assert (entry.result, entry.reason) == (history.REFUSED, "interrupted before anything was switched")
    assert (current(world), world.reloads) == ("one", [])


def test_releases_that_are_no_rollback_target_are_removed(world: World) -> None:
    for name in ("two", "three", "four", "five", "six"):
        world.commands.to_build = [name]
        assert world.deployer().deploy(None).result == history.SUCCESS
    assert {release.name for release in world.releases.all()} == {"six", "five", "four", "three"}
    assert steps(world)[-1] == (Step.TIDY, True)


def test_bad_releases_are_removed_before_those_that_served(world: World) -> None:
    world.commands.to_build = ["two"]
    world.deployer().deploy(None)
    for name in ("bad-1", "bad-2", "bad-3", "bad-4"):
        world.behaviours[name] = Behaviour(errors=1)
        world.commands.to_build = [name]
        assert world.deployer().deploy(None).result == history.ROLLED_BACK
    left = {release.name for release in world.releases.all()}
    assert {"two", "one"} <= left
    assert len(left) == 4
    assert world.deployer().rollback().target == "one"


def test_a_rollback_waits_for_a_reload_that_is_under_way(world: World) -> None:
    add(world)

    def is_slow() -> None:
        world.reloading_until = world.time + 5.0
        raise DeployError("systemctl was killed")

    world.behaviours["two"].on_reload = is_slow
    began = world.time
    assert world.deployer().deploy("two").result == history.FAILED
    assert world.time - began >= 5.0


def test_a_full_disk_stops_a_deployment_before_the_switch_and_never_after_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(world, Behaviour(errors=1))
    begin = world.history.begin
    full_at = Step.SWITCH

    def fails(under_way: PendingDeployment) -> None:
        if under_way.step == full_at.value or under_way.step == Step.ROLL_BACK.value:
            raise DeployError("no space left")
        begin(under_way)

    monkeypatch.setattr(world.history, "begin", fails)
    assert (world.deployer().deploy("two").result, world.reloads, current(world)) == (history.FAILED, [], "one")
    full_at = Step.WATCH
    monkeypatch.setattr(world.history, "append", lambda entry: fails(UNDER_WAY))
    entry = world.deployer().deploy("two")
    assert (entry.result, running(world), current(world)) == (history.ROLLED_BACK, "one", "one")
    assert world.progress.notes == ["not written down: no space left"] * 4
