"""Settings of all tests: a skipped test says what it lacks, and in CI as root a skip is a failure.

Markers: `root` (namespaces and TUN), `needs("wg", ...)` (programs that must be installed), `handoff` (a process is
replaced under traffic: `make test-handoff`).
"""

import gc
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import Phase, settings

from tests.mutants.mutant import PLANTED
from tests.support.interrupts import InterruptedOnce, PassesInterrupts
from tests.support.open_fds import no_leaked_fds
from tests.support.traffic.releases import WHEELS, Release, unpack

TUN = Path("/dev/net/tun")

# No deadline per example: a shared machine may stall for longer than any. `make check` bounds the total.
settings.register_profile("oxidize", deadline=None, print_blob=True)
# With a planted bug the first failure is enough: to look for the smallest one takes minutes.
settings.register_profile(
    "planted",
    settings.get_profile("oxidize"),
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
    report_multiple_bugs=False,
)
settings.load_profile("planted" if PLANTED in os.environ else "oxidize")


def pytest_configure(config: pytest.Config) -> None:
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # tests start a thousand processes: compile their source once
    if hasattr(config, "workerinput"):  # pytest-xdist sets it in the processes that run tests
        config.pluginmanager.register(InterruptedOnce())
    elif config.option.numprocesses:
        config.pluginmanager.register(PassesInterrupts())


@pytest.fixture
def no_leak() -> Iterator[None]:
    """Check that the test and its fixtures close every file descriptor that they open."""
    with no_leaked_fds():
        yield


def _lacking(item: pytest.Item) -> str | None:
    """Return what this machine or user lacks to run `item`, None if nothing."""
    if item.get_closest_marker("root"):
        if os.geteuid() != 0:
            return "lacks root: network namespaces and TUN need it"
        if not TUN.exists():
            return f"lacks {TUN}: load the kernel's tun module"
    programs = {name for marker in item.iter_markers("needs") for name in marker.args}
    missing = sorted(name for name in programs if shutil.which(name) is None)
    if missing:
        return f"lacks the programs {', '.join(missing)}: `make test` installs them"
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        reason = _lacking(item)
        if reason is not None:
            item.add_marker(pytest.mark.skip(reason=reason))


def pytest_collection_finish() -> None:
    """Let the collector look only at what the tests make: a look at all that is imported and collected takes 150 ms."""
    gc.collect()
    gc.freeze()


def _forbidden_skips(config: pytest.Config) -> int:
    """Return the number of skipped tests in CI as root, where every requirement is met, else 0."""
    if not os.environ.get("CI") or os.geteuid() != 0:
        return 0
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    return len(reporter.stats.get("skipped", [])) if reporter is not None else 0


def pytest_sessionfinish(session: pytest.Session) -> None:
    if session.exitstatus == pytest.ExitCode.OK and _forbidden_skips(session.config):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    skipped = _forbidden_skips(config)
    if skipped:
        terminalreporter.write_line(f"FAILED: {skipped} skipped; CI as root skips nothing (reasons below)", red=True)


@pytest.fixture(params=WHEELS, ids=lambda wheel: wheel.name.split("-")[1])
def golden(request: pytest.FixtureRequest, tmp_path: Path) -> Release:
    """Return a release in service, once for each."""
    return unpack(request.param, tmp_path)
