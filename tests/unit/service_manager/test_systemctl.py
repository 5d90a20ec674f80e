"""Queries to systemctl: only systemd as this process's manager is asked, and a missing answer is not an error."""

import stat
from pathlib import Path

import pytest

from oxidize.errors import TakeoverError
from oxidize.service_manager import systemctl

SYSTEMCTL = """#!/bin/sh
test -z "$NOTIFY_SOCKET" || exit 9
cat "$ANSWER"
"""


@pytest.fixture
def answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file with which a systemctl answers a process of oxidize-daemon.service."""
    program = tmp_path / "systemctl"
    program.write_text(SYSTEMCTL)
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    cgroup = tmp_path / "cgroup"
    cgroup.write_text("0::/system.slice/oxidize-daemon.service\n")
    monkeypatch.setattr(systemctl, "CGROUP", cgroup)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    answer = tmp_path / "answer"
    monkeypatch.setenv("NOTIFY_SOCKET", systemctl.SYSTEMD_SOCKET)
    monkeypatch.setenv("ANSWER", str(answer))
    return answer


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("0::/system.slice/oxidize-daemon.service", "oxidize-daemon.service"),
        ("4:cpu:/\n1:name=systemd:/system.slice/a.service\n0::/", "a.service"),
        ("0::/user.slice/user-0.slice/session-1.scope", None),
        ("4:cpu:/system.slice/a.service", None),
    ],
)
def test_the_unit_is_read_from_the_cgroup(line: str, expected: str | None) -> None:
    assert systemctl.service_in(line) == expected


def test_the_main_pid_is_read_from_systemctl(answer: Path) -> None:
    answer.write_text("4711\n")
    assert systemctl.main_pid() == 4711


@pytest.mark.parametrize("text", ["0\n", "", "[not set]\n"])
def test_an_answer_without_a_main_pid_is_none(answer: Path, text: str) -> None:
    answer.write_text(text)
    assert systemctl.main_pid() is None


def test_a_systemctl_that_fails_or_is_missing_gives_none(answer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert systemctl.main_pid() is None  # cat fails: there is no answer
    monkeypatch.setenv("PATH", "/nonexistent")
    assert systemctl.main_pid() is None
    assert not systemctl.will_restart()


def test_a_service_manager_other_than_systemd_is_not_queried(answer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer.write_text("4711\n")
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/holder/notify")
    assert systemctl.main_pid() is None
    monkeypatch.delenv("NOTIFY_SOCKET")
    assert systemctl.main_pid() is None


@pytest.mark.parametrize(
    ("jobs", "expected"),
    [
        ("12 oxidize-daemon.service restart running\n", True),
        ("12 oxidize-daemon.service try-restart waiting\n", True),
        ("12 oxidize-daemon.service stop running\n", False),
        ("11 oxidize.socket stop waiting\n12 oxidize-daemon.service stop running\n", False),
        ("12 other.service stop running\n", True),
        ("", True),
        ("No jobs running.\n", True),
    ],
)
def test_a_unit_restarts_unless_its_job_is_a_stop(answer: Path, jobs: str, expected: bool) -> None:
    answer.write_text(jobs)
    assert systemctl.will_restart() is expected


def test_where_systemd_does_not_answer_the_caller_says_whether_the_unit_restarts(answer: Path) -> None:
    assert systemctl.will_restart(otherwise=True)
    assert not systemctl.will_restart(otherwise=False)


@pytest.mark.parametrize(
    ("state", "jobs", "expected"),
    [
        ("running", "12 oxidize-daemon.service stop running", True),
        ("degraded", "12 oxidize-daemon.service restart running", False),
        ("running", "No jobs running.", False),  # a crash
        ("stopping", "12 oxidize-daemon.service stop running", False),  # a shutdown
    ],
)
def test_a_stop_of_the_unit_and_not_of_the_machine_is_known_of(
    answer: Path, monkeypatch: pytest.MonkeyPatch, state: str, jobs: str, expected: bool
) -> None:
    assert not systemctl.is_stopped()  # no answer
    (answer.parent / "systemctl").write_text(f'#!/bin/sh\ncase $1 in show) echo "{state}";; *) echo "{jobs}";; esac\n')
    assert systemctl.is_stopped() is expected
    monkeypatch.delenv("NOTIFY_SOCKET")
    assert systemctl.is_stopped() is (state != "stopping")  # of no unit


# --- Reloading ---


def test_a_reload_that_succeeds_returns(answer: Path) -> None:
    answer.write_text("")
    systemctl.reload("oxidize-daemon.service")


def test_a_failed_reload_carries_the_status_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "systemctl"
    program.write_text('#!/bin/sh\ncase $1 in reload) echo "Job failed." >&2; exit 1;; show) echo "serves on";; esac\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(TakeoverError, match=r"failed while running systemctl reload: Job failed\. \(serves on\)"):
        systemctl.reload("oxidize-daemon.service")
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(TakeoverError, match="systemctl"):
        systemctl.reload("oxidize-daemon.service")


def test_texts_of_systemd_and_the_service_are_made_printable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "systemctl"
    says = r"printf '\033[2J%b\377' "
    program.write_text(f"#!/bin/sh\ncase $1 in reload) {says} failed >&2; exit 1;; show) {says} status;; esac\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert systemctl.property_of("oxidize-daemon.service", "StatusText") == "\\x1b[2Jstatus\N{REPLACEMENT CHARACTER}"
    with pytest.raises(TakeoverError) as caught:
        systemctl.reload("oxidize-daemon.service")
    assert "\\x1b[2Jfailed" in str(caught.value)
    assert "\x1b" not in str(caught.value)


def test_a_process_that_has_ended_belongs_to_no_service() -> None:
    assert systemctl.service_of(0) is None
