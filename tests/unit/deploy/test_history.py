"""The log of deployments, the lock, and the releases on disk."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from oxidize.deploy.history import LOG_BYTES_MAX, Deployment, History, PendingDeployment
from oxidize.deploy.lock import NAME, lock_holder, locked
from oxidize.deploy.releases import Releases
from oxidize.deploy.retention import KEPT, release_before, removable
from oxidize.errors import DeployError
from tests.support.deploy_world import add_release

ENTRY = Deployment(at_unix=1.5, who="alice", action="deploy", source="one", target="two", result="success")
UNDER_WAY = PendingDeployment(at_unix=1.5, who="alice", action="deploy", source="one", target="two", step="switch")


@pytest.fixture
def past(tmp_path: Path) -> History:
    made = History(tmp_path / "state")
    made.prepare()
    return made


def deployed(source: str, target: str, result: str = "success", action: str = "deploy") -> Deployment:
    return Deployment(at_unix=0.0, who="a", action=action, source=source, target=target, result=result)


# --- The log ---


def test_an_ended_deployment_is_read_back_and_none_is_under_way(past: History) -> None:
    past.begin(UNDER_WAY)
    assert past.under_way() == UNDER_WAY
    past.append(ENTRY)
    past.append(ENTRY)
    assert past.entries() == [ENTRY, ENTRY]
    assert past.under_way() is None


def test_a_truncated_line_does_not_affect_the_others(past: History) -> None:
    past.append(ENTRY)
    with past.log.open("a") as log:
        log.write('{"at_unix": 2, "who": "bo')
    past.append(ENTRY)
    assert past.entries() == [ENTRY, ENTRY]


@pytest.mark.parametrize("line", ["[]", "7", "{}", '"x"', "{", '{"at_unix": 1}', "\0"])
def test_invalid_lines_of_the_log_are_skipped(past: History, line: str) -> None:
    past.log.write_text(f"{line}\n")
    past.append(ENTRY)
    assert past.entries() == [ENTRY]


def test_fields_of_a_later_release_are_ignored(past: History) -> None:
    past.append(ENTRY)
    past.log.write_text(json.dumps(json.loads(past.log.read_text()) | {"region": "eu"}) + "\n")
    assert past.entries() == [ENTRY]


def test_the_log_has_a_size_limit(past: History) -> None:
    line = past.log
    past.append(ENTRY)
    line.write_text(line.read_text() * (LOG_BYTES_MAX // line.stat().st_size + 2))
    before = len(past.entries())
    past.append(ENTRY)
    assert len(past.entries()) == (before + 1) - (before + 1) // 2
    past.append(ENTRY)
    assert past.entries()[-1] == ENTRY


def test_a_link_in_the_place_of_the_log_is_not_followed(past: History, tmp_path: Path) -> None:
    past.log.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DeployError, match="deployments"):
        past.append(ENTRY)
    assert not (tmp_path / "elsewhere").exists()


def test_a_state_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DeployError, match="expected a folder that this user may write"):
        History(tmp_path / "file/state").prepare()


# --- The lock ---


def test_a_second_deployment_is_refused_with_the_holder_of_the_lock(tmp_path: Path) -> None:
    assert lock_holder(tmp_path) is None
    with locked(tmp_path, "pid 12, alice"), pytest.raises(DeployError, match=r"under way \(pid 12, alice\)"):
        locked(tmp_path, "pid 13, bob").__enter__()
    assert lock_holder(tmp_path) is None
    with locked(tmp_path, "pid 13, bob"):
        assert lock_holder(tmp_path) == "pid 13, bob"


def test_a_child_that_inherits_the_lock_keeps_it(tmp_path: Path) -> None:
    with locked(tmp_path, "pid 12, alice") as lock_fd:
        command = [sys.executable, "-c", "import sys; print(flush=True); sys.stdin.read()"]
        child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=[lock_fd])
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdout.readline()
    with pytest.raises(DeployError, match="under way"):
        locked(tmp_path, "pid 13, bob").__enter__()
    child.stdin.close()
    child.wait()
    child.stdout.close()
    with locked(tmp_path, "pid 13, bob"):
        pass


def test_a_child_that_does_not_inherit_the_lock_does_not_keep_it(tmp_path: Path) -> None:
    with locked(tmp_path, "pid 12, alice"):
        command = [sys.executable, "-c", "import sys; print(flush=True); sys.stdin.read()"]
        child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with locked(tmp_path, "pid 13, bob"):
        pass
    child.communicate()


def test_without_an_installation_there_is_nothing_to_lock(tmp_path: Path) -> None:
    with pytest.raises(DeployError, match="expected an installation"):
        locked(tmp_path / "none", "pid 12").__enter__()


def test_a_link_in_the_place_of_the_lock_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / NAME).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DeployError):
        locked(tmp_path, "pid 12").__enter__()
    assert not (tmp_path / "elsewhere").exists()


# --- The releases on disk ---


def test_current_always_leads_to_a_release(tmp_path: Path) -> None:
    releases = Releases(tmp_path)
    assert (releases.all(), releases.current()) == ([], None)
    one, two = add_release(tmp_path, "one", 1.0), add_release(tmp_path, "two", 2.0)
    assert releases.all() == [two, one]
    for release in (one, two, two):
        releases.point_current_at(release)
        assert releases.current() == release
        assert os.readlink(tmp_path / "current") == f"releases/{release.name}"  # noqa: PTH115 - as it stands there
    releases.remove(two)
    assert releases.current() is None
    assert releases.all() == [one]


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"version": 1}', '{"version": "1", "built_unix": "x"}'])
def test_a_folder_without_a_valid_description_is_no_release(tmp_path: Path, text: str) -> None:
    release = add_release(tmp_path, "one", 1.0)
    (release.folder / "release.json").write_text(text)
    assert Releases(tmp_path).all() == []


def test_a_loop_of_links_leads_to_no_release(tmp_path: Path) -> None:
    (tmp_path / "current").symlink_to("current")
    assert Releases(tmp_path).current() is None


# --- Back to what ---


def names(tmp_path: Path, *wanted: str) -> Releases:
    for number, name in enumerate(wanted):
        add_release(tmp_path, name, float(number))
    return Releases(tmp_path)


def before(releases: Releases, running: str, *entries: Deployment) -> str | None:
    found = release_before(running, releases.all(), entries)
    return found.name if found is not None else None


def test_without_a_log_rollback_targets_go_by_age(tmp_path: Path) -> None:
    releases = names(tmp_path, "a", "b", "c")
    assert [before(releases, name) for name in ("c", "b", "a")] == ["b", "a", None]


def test_a_rollback_target_is_what_served_whatever_its_age(tmp_path: Path) -> None:
    releases = names(tmp_path, "a", "b", "c")
    entries = [deployed("b", "c"), deployed("c", "a")]
    assert before(releases, "a", *entries) == "c"
    entries.append(deployed("a", "c", action="rollback"))
    assert before(releases, "c", *entries) == "b"
    entries.append(deployed("c", "b", action="rollback"))
    assert before(releases, "b", *entries) is None  # a was left, and is the only older one


def test_a_release_that_was_switched_to_by_hand_counts_as_serving(tmp_path: Path) -> None:
    releases = names(tmp_path, "a", "b", "c", "d")
    assert before(releases, "d", deployed("a", "b")) == "b"
    assert before(releases, "a", deployed("a", "b"), deployed("b", "c")) is None
    assert before(releases, "d", deployed("a", "b"), deployed("c", "d", "interrupted")) == "c"


@pytest.mark.parametrize("known", [[], [deployed("b", "c")]])
def test_no_rollback_returns_to_the_release_that_was_left(tmp_path: Path, known: list[Deployment]) -> None:
    releases = names(tmp_path, "a", "b", "c")
    entries = [*known, deployed("c", "b", action="rollback")]
    assert before(releases, "b", *entries) == "a"
    entries.append(deployed("b", "a", action="rollback"))
    assert before(releases, "a", *entries) is None


@pytest.mark.parametrize("result", ["failed", "rolled back", "lost"])
def test_a_bad_release_is_no_rollback_target(tmp_path: Path, result: str) -> None:
    releases = names(tmp_path, "a", "bad", "c")
    assert before(releases, "c", deployed("a", "bad", result), deployed("a", "c")) == "a"
    assert before(releases, "c", deployed("a", "bad", result)) == "a"
    assert before(releases, "a", deployed("bad", "a"), deployed("a", "bad", result)) is None
    assert before(releases, "bad", deployed("a", "bad", result)) == "a"


@pytest.mark.parametrize("result", ["refused", "interrupted"])
def test_a_refused_or_interrupted_release_may_be_a_rollback_target(tmp_path: Path, result: str) -> None:
    releases = names(tmp_path, "a", "b", "c")
    assert before(releases, "b", deployed("a", "b", result)) == "a"
    assert before(releases, "c", deployed("a", "b", result), deployed("b", "c")) == "b"


def test_a_removed_release_is_skipped(tmp_path: Path) -> None:
    releases = names(tmp_path, "a", "c")
    assert before(releases, "c", deployed("a", "b"), deployed("b", "c")) == "a"


def test_a_release_that_is_still_to_be_deployed_is_kept(tmp_path: Path) -> None:
    releases = names(tmp_path, "a", "b", "c", "d", "e", "bad", "new")
    entries = [deployed("d", "e"), deployed("e", "bad", "rolled back"), deployed("e", "new", "refused")]
    assert [release.name for release in removable("e", {"e"}, releases.all(), entries)] == ["bad", "a"]


def test_a_rollback_that_was_undone_goes_further_back_the_next_time(tmp_path: Path) -> None:
    releases = names(tmp_path, "a", "b", "c")
    assert before(releases, "c", deployed("b", "c")) == "b"
    assert before(releases, "c", deployed("b", "c"), deployed("c", "b", "rolled back", "rollback")) == "a"


def test_three_releases_are_kept_in_addition_to_the_running_one(tmp_path: Path) -> None:
    releases = names(tmp_path, "a", "b", "c", "d", "e", "f")
    gone = removable("f", {"f", "a"}, releases.all(), [])
    assert [release.name for release in gone] == ["b"]
    assert len(releases.all()) - len(gone) == 1 + KEPT + 1  # a is in use
