"""The cleanup guard: what it holds open, and which packet filter it removes."""

import os
import signal
from pathlib import Path

import pytest

from demo.processes import children, reap
from oxidize.hostnet import cleanup_guard, packet_filter, policy_routing
from oxidize.hostnet.cleanup_guard import Cleanup, start_guard
from oxidize.hostnet.part import Steps


def links(pid: int) -> dict[str, str]:
    """Return what each descriptor of a process leads to."""
    return {each.name: str(each.readlink()) for each in Path(f"/proc/{pid}/fd").iterdir()}


def test_a_guard_holds_its_pipe_and_the_clients_log_and_nothing_of_who_started_it(tmp_path: Path) -> None:
    before = children()
    log = os.open(tmp_path / "client.log", os.O_WRONLY | os.O_CREAT)
    read_end, write_end = os.pipe()  # as a shell's $(...) gives a command
    kept = os.dup(1), os.dup(2)
    try:
        os.dup2(write_end, 1)
        os.dup2(write_end, 2)
        guard = start_guard(Cleanup(interface_index=0, record=None), log)
        (pid,) = children() - before
    finally:
        for number, fd in enumerate(kept, start=1):
            os.dup2(fd, number)
            os.close(fd)
    try:
        held = links(pid)
        assert (held["1"], held["2"]) == ("/dev/null", str(tmp_path / "client.log"))
        assert str(Path(f"/proc/self/fd/{write_end}").readlink()) not in {held["1"], held["2"]}
    finally:
        os.kill(pid, signal.SIGKILL)
        reap(pid, block=True)
        for fd in (guard, log, read_end, write_end):
            os.close(fd)


def no_rules(*, indexes: list[int]) -> Steps[list[str]]:
    """Stand for `remove_policy` where there is nothing to remove."""
    assert indexes == [99_999]
    yield 0.0
    return []


@pytest.mark.parametrize("is_ending", [False, True])
def test_a_guard_spares_a_kill_switch_unless_the_client_was_about_to_end(
    monkeypatch: pytest.MonkeyPatch, is_ending: bool
) -> None:
    removed: list[tuple[list[str], bool]] = []
    monkeypatch.setattr(policy_routing, "remove_policy", no_rules)
    monkeypatch.setattr(
        packet_filter,
        "remove_filter",
        lambda names, *, spare_kill_switch: removed.append((names, spare_kill_switch)),
    )
    cleanup = Cleanup(interface_index=99_999, record=None, interface="oxnone", is_ending=is_ending)
    assert cleanup_guard._remove(cleanup) == 0
    assert removed == [(["oxnone"], not is_ending)]


def test_a_guard_leaves_the_filter_of_a_client_that_has_started_since(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy_routing, "remove_policy", no_rules)
    monkeypatch.setattr(packet_filter, "remove_filter", lambda *_, **__: pytest.fail("removed"))
    assert cleanup_guard._remove(Cleanup(interface_index=99_999, record=None, interface="lo")) == 0


def test_what_an_older_client_tells_a_guard_names_no_filter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy_routing, "remove_policy", no_rules)
    monkeypatch.setattr(packet_filter, "remove_filter", lambda *_, **__: pytest.fail("removed"))
    assert cleanup_guard._remove(Cleanup(interface_index=99_999, record=None)) == 0
