"""A process that cannot start for a mistake in its configuration: how often it comes back."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from oxidize.control.reload_channel import Control
from oxidize.errors import ConfigError
from oxidize.oom_score import OomScore
from oxidize.runtime import daemon
from oxidize.runtime.failed_start import CORRECTION_WAIT_SECS, await_correction


class Naps:
    """Counts virtual seconds; `then` is called once, after the first nap."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.then: Callable[[], object] = lambda: None

    def __call__(self, seconds: float) -> None:
        self.seconds += seconds
        then, self.then = self.then, lambda: None
        then()


@pytest.mark.parametrize("what", ["written", "replaced", "a key of another owner", "removed"])
def test_a_wait_for_a_correction_ends_with_any_change_in_the_folder(tmp_path: Path, what: str) -> None:
    path, key, naps = tmp_path / "server.toml", tmp_path / "server.key", Naps()
    path.write_text("old")
    key.write_text("key")

    def change() -> None:
        if what == "replaced":
            (tmp_path / "new").write_text("old")
            (tmp_path / "new").rename(path)
        elif what == "written":
            os.utime(path, ns=(1, 1))
        elif what == "removed":
            path.unlink()
        else:
            key.chmod(0o600)

    naps.then = change
    await_correction(path, naps)
    assert 0 < naps.seconds < 1


def test_a_wait_for_a_correction_is_limited(tmp_path: Path) -> None:
    naps = Naps()
    await_correction(tmp_path / "none" / "server.toml", naps)
    assert naps.seconds == CORRECTION_WAIT_SECS


@pytest.mark.parametrize(("was_restarted", "waits"), [(False, 0), (True, 1)])
def test_only_a_start_that_the_manager_repeats_waits_for_a_correction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, was_restarted: bool, waits: int
) -> None:
    """The start that an operator asked for fails at once."""
    awaited: list[Path] = []
    told: list[str] = []
    naps = Naps()
    monkeypatch.setattr("oxidize.logs.configure", lambda _: None)
    monkeypatch.setattr("oxidize.service_manager.notify.is_managed", lambda: True)
    monkeypatch.setattr("oxidize.service_manager.notify.notify", lambda *lines: told.extend(lines))
    monkeypatch.setattr("oxidize.service_manager.systemctl.was_restarted", lambda: was_restarted)
    monkeypatch.setattr(daemon, "await_correction", awaited.append)
    monkeypatch.setattr("time.sleep", naps)
    path = tmp_path / "server.toml"
    path.write_text('[server]\nadress = "10.9.0.1/24"\n')
    with pytest.raises(ConfigError) as caught:
        daemon.run("server", path, "info", Control(None), OomScore())
    assert "did you mean address" in caught.value.problems[0], "the useful one comes first"
    assert (awaited, len(told)) == ([path] * waits, waits)
    assert all(line == f"STATUS=waiting for a correction: {caught.value.problems[0]}" for line in told)
    assert naps.seconds == (0 if waits else daemon.FAILED_START_PAUSE_SECS)


def test_a_process_is_called_oxidize(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The kernel's name of this process, which the test restores."""
    comm = Path("/proc/self/comm")
    before = comm.read_text()
    try:
        daemon._name_process()
        assert comm.read_text() == "oxidize\n"
    finally:
        comm.write_text(before)
    monkeypatch.setattr(daemon, "PROCESS_NAME", tmp_path / "none" / "comm")
    daemon._name_process()
