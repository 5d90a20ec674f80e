"""The repair of a deployment that was killed, at each step."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from oxidize.deploy import history
from oxidize.deploy.deployment import Deployer
from oxidize.deploy.history import Deployment
from oxidize.deploy.progress import Progress, Step
from oxidize.deploy.releases import DESCRIPTION, is_started_from
from oxidize.deploy.rollback import repair
from tests.support.deploy_world import Behaviour, World, add_release
from tests.support.traffic.server import wait_for


class Killed(BaseException):
    """The end of the process, which no code may handle."""


class KilledAt(Progress):
    """Kills the deployment when `last_step` begins."""

    def __init__(self, step: Step) -> None:
        super().__init__()
        self.last_step = step

    def begin(self, step: Step) -> None:
        if step is self.last_step:
            raise Killed


@pytest.fixture
def world(tmp_path: Path) -> World:
    played = World(tmp_path)
    played.serve(add_release(tmp_path, "one", 1.0))
    add_release(tmp_path, "two", 2.0)
    return played


def killed_at(world: World, step: Step, **options: object) -> None:
    """Deploy "two" until the process is killed as this step begins."""

    world.progress = KilledAt(step)
    with pytest.raises(Killed):
        world.deployer(**options).deploy("two")


def serving(world: World) -> tuple[str, str]:
    """Return the names of the serving release and of the one that `current` leads to."""
    found = world.releases.current()
    assert found is not None
    assert world.running is not None
    return world.running.name, found.name


def repaired(world: World) -> list[str]:
    """Repair, and return the notes and texts of its progress."""
    progress = Progress()
    repair(world.releases, world.history, world, world.clock, progress)
    assert all(result.step is Step.REPAIR for result in progress.results)
    return [*progress.notes, *(result.text for result in progress.results)]


def test_without_an_interruption_there_is_nothing_to_repair(world: World) -> None:
    assert repaired(world) == []
    assert world.history.entries() == []


@pytest.mark.parametrize(
    ("step", "expected", "words"),
    [
        (Step.CHECK, "one", "nothing was switched"),
        (Step.REHEARSAL, "one", "nothing was switched"),
        (Step.TRAFFIC, "one", "nothing was switched"),
        (Step.SWITCH, "one", "nothing was switched"),
        (Step.WATCH, "two", "it was not watched"),
    ],
)
def test_a_repair_makes_current_lead_to_the_serving_release(
    world: World, step: Step, expected: str, words: str
) -> None:
    killed_at(world, step)
    (line,) = repaired(world)
    assert f"interrupted at the step {step.value}" in line
    assert words in line
    assert serving(world) == (expected, expected)
    assert [(entry.result, entry.target) for entry in world.history.entries()] == [(history.INTERRUPTED, "two")]
    assert world.history.under_way() is None
    assert repaired(world) == []


def test_a_kill_between_the_link_and_the_reload_is_repaired(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(self: World, program: Path) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(World, "reload", killed)
        with pytest.raises(Killed):
            world.deployer().deploy("two")
    assert serving(world) == ("one", "two")
    (line,) = repaired(world)
    assert "one serves, and current leads to it again" in line
    assert serving(world) == ("one", "one")


def test_a_repair_waits_for_a_reload_that_outlives_the_deployment(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(self: World, program: Path) -> None:
        self.reloading_until = self.time + 3.0
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(World, "reload", killed)
        with pytest.raises(Killed):
            world.deployer().deploy("two")
    passing = world.clock.sleep

    def sleep(seconds: float) -> None:
        passing(seconds)
        if world.time >= world.reloading_until and world.running is not None and world.running.name == "one":
            world.serve(world.releases.find("two"))

    world.clock = type(world.clock)(world.clock.now, world.clock.unix, sleep)
    (line,) = repaired(world)
    assert "it was not watched" in line
    assert serving(world) == ("two", "two")


def test_an_interrupted_rollback_is_completed(world: World) -> None:
    world.behaviours["two"] = Behaviour(errors=1)
    killed_at(world, Step.ROLL_BACK)
    assert serving(world) == ("two", "two")
    (line,) = repaired(world)
    assert "one serves again" in line
    assert serving(world) == ("one", "one")


def test_a_rollback_that_cannot_be_completed_is_reported_once(world: World) -> None:
    world.behaviours["two"] = Behaviour(errors=1)
    killed_at(world, Step.ROLL_BACK)
    world.behaviours["one"] = Behaviour(refuses="no")
    (line,) = repaired(world)
    assert "the rollback to one failed" in line
    assert [entry.result for entry in world.history.entries()] == [history.LOST]
    assert repaired(world) == []


def test_a_repair_does_not_wait_for_a_stopped_server(world: World) -> None:
    world.behaviours["two"] = Behaviour(errors=1)
    killed_at(world, Step.ROLL_BACK)
    world.running, now = None, world.time
    (line,) = repaired(world)
    assert "no server is running; current leads to one again" in line
    assert (world.time, [entry.result for entry in world.history.entries()]) == (now, [history.ROLLED_BACK])


def test_a_repair_keeps_the_release_that_an_operator_has_started(world: World) -> None:
    world.behaviours["two"] = Behaviour(errors=1)
    killed_at(world, Step.ROLL_BACK)
    world.serve(add_release(world.prefix, "three", 3.0))
    (line,) = repaired(world)
    assert "three serves" in line
    assert serving(world) == ("three", "three")


def test_a_process_that_runs_from_no_release_is_not_repaired(world: World) -> None:
    killed_at(world, Step.WATCH)
    assert world.running is not None
    world.running = replace(world.running, folder=Path("/home/alice/checkout/.venv"))
    (line,) = repaired(world)
    assert "runs from none of the releases" in line


def test_without_a_server_current_leads_to_the_previous_release_again(world: World) -> None:
    killed_at(world, Step.WATCH)
    world.running = None
    (line,) = repaired(world)
    assert "no server is running; current leads to one again" in line
    found = world.releases.current()
    assert found is not None
    assert found.name == "one"


def test_interrupted_builds_and_links_are_removed(world: World) -> None:
    half = world.prefix / "releases/half"
    (half / "bin").mkdir(parents=True)
    (world.prefix / "current.new").symlink_to("releases/half")
    assert repaired(world) == ["removed half: its build was interrupted"]
    assert not half.exists()
    assert not (world.prefix / "current.new").is_symlink()


def test_an_interrupted_build_that_a_process_runs_from_is_kept(world: World) -> None:
    (world.prefix / "releases/two" / DESCRIPTION).unlink()
    program = world.prefix / "releases/two/bin/python"
    program.symlink_to("/bin/cat")
    read_end, write_end = os.pipe()
    pid = os.posix_spawn(program, [str(program)], os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, read_end, 0)])
    try:
        wait_for("its command line to be there", lambda: is_started_from(pid, world.prefix / "releases/two"))
        assert world.releases.remove_remains() == []
    finally:
        os.close(write_end)
        os.close(read_end)
        os.waitpid(pid, 0)
    assert world.releases.remove_remains() == ["two"]


def test_a_server_that_does_not_answer_is_identified_by_its_process(world: World) -> None:
    killed_at(world, Step.WATCH)
    world.behaviours["two"] = Behaviour(is_mute=True)
    (line,) = repaired(world)
    assert "two serves; it was not watched" in line


def test_the_next_deployment_starts_from_the_serving_release(world: World) -> None:
    killed_at(world, Step.WATCH)
    repaired(world)
    world.progress = Progress()
    world.commands.to_build = ["three"]
    entry: Deployment = Deployer.deploy(world.deployer(), None)
    assert (entry.result, entry.source, entry.target) == (history.SUCCESS, "two", "three")
    assert world.deployer().rollback().target == "two"
