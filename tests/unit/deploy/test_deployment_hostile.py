"""Deployments under bad conditions: a bad previous release, other operators, and misbehaving peers and outsiders."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from oxidize.deploy import history
from oxidize.deploy.commands import Rehearsed
from oxidize.deploy.deployment import Deployer
from oxidize.deploy.history import Deployment
from oxidize.deploy.interrupts import Interrupts
from oxidize.deploy.progress import Progress, Step
from oxidize.deploy.releases import Release
from oxidize.errors import DecodeError, DeployError, Phase, TakeoverError
from tests.support.deploy_world import Behaviour, World, add_release


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Yield an installation of "one" and "two", of which "one" serves."""
    played = World(tmp_path)
    played.serve(add_release(tmp_path, "one", 1.0))
    add_release(tmp_path, "two", 2.0)
    return played


def deploy(world: World, name: str = "two", **options: object) -> Deployment:
    deployer: Deployer = world.deployer(**options)
    return deployer.deploy(name)


def serving(world: World) -> tuple[str, str]:
    found = world.releases.current()
    assert found is not None
    assert world.running is not None
    return world.running.name, found.name


def during(world: World, at: float, what: Callable[[], object]) -> None:
    """Call an action once, after this many seconds of the world's clock."""
    passing, due = world.clock.sleep, world.time + at
    pending = [what]

    def sleep(seconds: float) -> None:
        passing(seconds)
        if pending and world.time >= due:
            pending.pop()()

    world.clock = replace(world.clock, sleep=sleep)


# --- The way back from what is bad ---


@pytest.mark.parametrize(
    "behaviour",
    [
        Behaviour(is_mute=True),
        Behaviour(answers=DecodeError("not JSON")),
        Behaviour(answers=RecursionError()),
        Behaviour(unready="503 draining"),
        Behaviour(logs_per_sec=5.0),
        Behaviour(packets_per_sec=0.0),
        Behaviour(drops_per_sec=1000.0),
        Behaviour(kernel_drops_per_sec=1000.0),
        Behaviour(ends_after_secs=0.2),
    ],
)
def test_a_rollback_succeeds_from_any_bad_release(world: World, behaviour: Behaviour) -> None:
    if behaviour.answers is not None and not isinstance(behaviour.answers, DecodeError):
        behaviour.answers = TakeoverError(Phase.QUERYING, "recursion")  # what `find` makes of it
    assert deploy(world).result == history.SUCCESS
    world.behaviours["two"] = behaviour
    entry = world.deployer().rollback()
    assert (entry.result, entry.target, serving(world)) == (history.SUCCESS, "one", ("one", "one"))


def test_a_rollback_that_cannot_be_rehearsed_is_still_tried(world: World) -> None:
    assert deploy(world).result == history.SUCCESS
    world.commands.rehearsal_problem = "the server does not hand out its state"
    assert world.deployer().rollback().result == history.SUCCESS
    assert any("does not hand out its state" in note for note in world.progress.notes)


def test_a_rollback_that_would_lose_sessions_is_refused_unless_it_is_forced(world: World) -> None:
    assert deploy(world).result == history.SUCCESS
    world.commands.rehearsed = Rehearsed(1, 2, {})
    assert world.deployer().rollback().result == history.REFUSED
    assert serving(world) == ("two", "two")
    assert world.deployer(forced=True).rollback().result == history.SUCCESS


def test_a_rollback_is_not_undone_because_of_traffic(world: World) -> None:
    assert deploy(world).result == history.SUCCESS
    world.behaviours["one"] = Behaviour(packets_per_sec=0.0, drops_per_sec=100.0, kernel_drops_per_sec=10.0)
    assert world.deployer().rollback().result == history.SUCCESS


def test_force_deploys_a_fix_over_a_server_that_does_not_answer(world: World) -> None:
    world.behaviours["one"] = Behaviour(is_mute=True)
    assert deploy(world).result == history.REFUSED
    assert deploy(world, forced=True).result == history.SUCCESS
    assert serving(world) == ("two", "two")


def test_errors_of_the_predecessor_do_not_count_against_the_release(world: World) -> None:
    world.behaviours["one"] = Behaviour(logs_per_sec=3.0)
    assert deploy(world).result == history.SUCCESS


# --- Other operators ---


def test_a_draining_server_is_not_replaced(world: World) -> None:
    world.behaviours["one"] = Behaviour(unready="503 draining")
    entry = deploy(world)
    assert (entry.result, world.reloads) == (history.REFUSED, [])
    assert "neither starting nor draining" in entry.reason


def test_a_reload_by_another_operator_during_the_watch_is_no_reason(world: World) -> None:
    during(world, 6.0, lambda: world.reload(Path()))
    assert deploy(world).result == history.SUCCESS
    assert world.reloads == ["two", "two"]


def test_a_release_by_another_operator_during_the_watch_is_a_reason(world: World) -> None:
    three = add_release(world.prefix, "three", 3.0)
    during(world, 6.0, lambda: world.serve(three))
    entry = deploy(world)
    assert (entry.result, serving(world)) == (history.ROLLED_BACK, ("one", "one"))
    assert "three serves; expected" in entry.reason


def serve_during_the_build(world: World, release: Release) -> None:
    """Make a release begin to serve while "four" is built."""
    world.commands.on_build = lambda: world.serve(release)
    world.commands.to_build = ["four"]


def test_a_release_that_began_to_serve_during_the_build_is_the_rollback_target(world: World) -> None:
    serve_during_the_build(world, add_release(world.prefix, "three", 3.0))
    world.behaviours["four"] = Behaviour(errors=1)
    entry = world.deployer().deploy(None)
    assert (entry.result, entry.source, serving(world)) == (history.ROLLED_BACK, "three", ("three", "three"))


def test_a_server_that_started_during_the_build_is_replaced(world: World) -> None:
    world.running = None
    serve_during_the_build(world, world.releases.find("one"))
    assert world.deployer().deploy(None).result == history.SUCCESS
    assert serving(world) == ("four", "four")


def test_a_starting_server_is_not_mistaken_for_none(world: World) -> None:
    world.running, world.is_starting = None, True
    entry = deploy(world)
    assert (entry.result, "is starting" in entry.reason) == (history.REFUSED, True)
    found = world.releases.current()
    assert found is not None
    assert found.name == "one"


def test_a_server_that_is_replaced_during_the_measurement_is_not_replaced_again(world: World) -> None:
    three = add_release(world.prefix, "three", 3.0)
    during(world, 1.0, lambda: world.serve(three))
    entry = deploy(world)
    assert (entry.result, serving(world)) == (history.REFUSED, ("three", "three"))
    assert "by another operator" in entry.reason


def test_current_leads_to_a_release_that_already_serves(world: World) -> None:
    world.releases.point_current_at(world.releases.find("two"))
    assert deploy(world, "one").result == history.SUCCESS
    assert serving(world) == ("one", "one")


def test_a_server_clock_that_has_stopped_is_refused(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    vitals = world.vitals()
    assert vitals is not None
    monkeypatch.setattr(world, "vitals", lambda: vitals)
    entry = deploy(world)
    assert (entry.result, "has stopped" in entry.reason) == (history.REFUSED, True)


def behind(world: World, name: str, number: int, what: Callable[[object], object]) -> None:
    """Make `what` replace the result of one numbered call of a world's method, once "two" serves."""
    asked, calls = getattr(world, name), []

    def changed() -> object:
        found = asked()
        if world.running is not None and world.running.name == "two":
            calls.append(found)
            return what(found) if len(calls) == number else found
        return found

    setattr(world, name, changed)


def test_a_reload_between_two_queries_is_no_reason(world: World) -> None:
    def reloaded(found: object) -> object:
        world.reload(Path())
        return found

    behind(world, "vitals", 8, reloaded)
    assert deploy(world).result == history.SUCCESS


def test_a_service_manager_that_does_not_answer_once_is_no_reason(world: World) -> None:
    behind(world, "serving", 8, lambda _: None)
    assert deploy(world).result == history.SUCCESS


def test_an_unconfirmed_last_observation_is_repeated(world: World) -> None:
    for number in (4, 5):
        behind(world, "serving", number, lambda _: None)
    assert deploy(world, settle_secs=0.5).result == history.SUCCESS


# --- What fails on this machine ---


def test_a_release_that_cannot_be_removed_is_left_for_the_next_time(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, name in enumerate("vwxyz"):
        add_release(world.prefix, name, 0.1 * number)

    def refused(release: Release) -> None:
        raise PermissionError(13, "Permission denied", str(release.folder))

    monkeypatch.setattr(world.releases, "remove", refused)
    assert deploy(world).result == history.SUCCESS
    assert any("the next deployment tries again" in note for note in world.progress.notes)


def test_a_link_that_cannot_be_changed_loses_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(release: Release) -> None:
        raise DeployError("current: No space left on device")

    monkeypatch.setattr(world.releases, "point_current_at", full)
    entry = deploy(world)
    assert (entry.result, serving(world)) == (history.FAILED, ("one", "one"))
    assert "No space left" in entry.reason


def test_a_bug_of_the_deployment_before_the_switch_switches_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(world.commands, "check", lambda *_: 1 / 0)
    entry = deploy(world)
    assert (entry.result, serving(world)) == (history.REFUSED, ("one", "one"))
    assert "a bug of the deployment" in entry.reason


# --- What clients and outsiders do ---


def test_malformed_datagrams_are_no_reason(world: World) -> None:
    world.behaviours["two"] = Behaviour(rubbish_per_sec=5000.0)
    assert deploy(world).result == history.SUCCESS


def test_most_peers_falling_silent_is_a_reason_and_one_is_not(world: World) -> None:
    world.peers_of = ["alice", "bob", "carol"]
    world.commands.rehearsed = Rehearsed(3, 3, {})
    world.behaviours["two"] = Behaviour(silent=["bob"])
    assert deploy(world).result == history.SUCCESS
    add_release(world.prefix, "three", 3.0)
    world.behaviours["two"] = Behaviour()
    world.behaviours["three"] = Behaviour(silent=["alice", "carol"])
    entry = deploy(world, "three")
    assert (entry.result, entry.reason) == (
        history.ROLLED_BACK,
        "no packets from 2 of 3 peers since the switch that had sent some before",
    )


def test_a_low_rate_that_stops_for_the_whole_watch_is_a_reason(world: World) -> None:
    world.behaviours["one"] = Behaviour(packets_per_sec=5.0)
    world.behaviours["two"] = Behaviour(packets_per_sec=0.0)
    entry = deploy(world)
    assert "packets received: none since the switch; expected 50" in entry.reason
    world.behaviours["two"] = Behaviour(packets_per_sec=0.5)
    assert deploy(world).result == history.SUCCESS


def test_force_allows_only_the_announced_loss_of_sessions(world: World) -> None:
    world.commands.rehearsed = Rehearsed(1, 2, {"not configured any more": 1})
    world.behaviours["two"] = Behaviour(lost_peers=["bob"])
    assert deploy(world, forced=True).result == history.SUCCESS
    world.serve(world.releases.find("one"))
    world.behaviours["two"] = Behaviour(lost_peers=["alice", "bob"])
    entry = deploy(world, forced=True)
    assert (entry.result, "2 sessions lost: alice, bob" in entry.reason) == (history.ROLLED_BACK, True)


def test_a_release_that_never_served_has_no_blackout(world: World) -> None:
    world.behaviours["two"] = Behaviour(refuses="broken on purpose")
    entry = deploy(world)
    assert (entry.result, entry.blackout_ms, entry.sessions) == (history.FAILED, None, None)


def test_an_interruption_ends_the_watch_and_is_ignored_during_the_rollback(world: World) -> None:
    interrupts: Interrupts
    during(world, 4.0, lambda: interrupts._interrupt(2, None))
    deployer = world.deployer()
    interrupts = deployer.interrupts
    begin = world.progress.begin

    class Impatient(Progress):
        def begin(self, step: Step) -> None:
            if step is Step.ROLL_BACK:
                interrupts._interrupt(2, None)
            begin(step)

    deployer.progress = Impatient()
    entry = deployer.deploy("two")
    assert (entry.result, entry.reason, serving(world)) == (history.ROLLED_BACK, "interrupted", ("one", "one"))


def test_an_interruption_after_the_end_changes_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    deployer = world.deployer()
    append = world.history.append

    def interrupted(entry: Deployment) -> None:
        deployer.interrupts._interrupt(2, None)
        append(entry)

    monkeypatch.setattr(world.history, "append", interrupted)
    entry = deployer.deploy("two")
    assert (entry.result, serving(world), world.history.entries()) == (history.SUCCESS, ("two", "two"), [entry])
