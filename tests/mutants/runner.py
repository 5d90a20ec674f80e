"""Run the tests against each mutant, in copies of the tree.

The rule: a mutant is caught only by a test that fails, never by tests that cannot be collected or do not end; and the
tests that are named with the mutants must pass without any. The tree itself is never changed: each job has a copy in a
temporary folder, which is removed at the end, on an interruption too.

Mutation tools (mutmut, Cosmic Ray) generate thousands of changes of single operators and run for hours. They cannot
express most of these bugs, which are a missing step of a takeover or two steps in the wrong order, nor what each of
them would break. So the mutants are written by hand, and this module only runs them.
"""

import asyncio
import contextlib
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.mutants.mutant import PLANTED, Mutant, MutantError

JOBS = 2
NAMED_SECS_MAX = 120.0  # for the tests that are named with a mutant; most take two or three seconds
WIDER_SECS_MAX = 900.0  # for each wider group of tests, when those pass
INTERRUPT_SECS = 10.0  # for pytest to end its processes after an interruption

# This test compares the catalogue with the source, so it fails for every mutant.
CATALOGUE_TEST = "tests/unit/support/test_mutants.py"
NOT_COPIED = (
    ".git",
    ".venv",
    ".stamps",
    "__pycache__",
    ".*_cache",
    ".hypothesis",
    ".fuzz",
    "*.egg-info",
    "build",
    "dist",
)

_FAILED = re.compile(r"^(?:FAILED|ERROR) (.+?)(?: - |$)", re.MULTILINE)  # ERROR: in a fixture, such as a leak
_TESTS_FAILED = 1  # pytest's exit status; 0: all passed, others: an error outside of a test, as in a collection


@dataclass(frozen=True)
class Outcome:
    """What the tests said of a mutant. test: the one that failed, or empty; wider: whether it is not a named one."""

    mutant: Mutant
    test: str
    seconds: float
    wider: bool = False
    problem: str = ""  # why the mutant could not be run


async def run(root: Path, mutants: Sequence[Mutant], *, jobs: int = JOBS) -> int:
    """Run the mutants of a tree and print a table; return the exit status, as `__main__.main`."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="oxidize-mutants-") as folder:
        trees = [_copy(root, Path(folder) / str(number)) for number in range(max(1, min(jobs, len(mutants))))]
        problem = await _baseline(trees[0], mutants)
        if problem:
            print(problem)
            return 2
        outcomes: list[Outcome] = []
        waiting = iter(mutants)
        async with asyncio.TaskGroup() as group:
            for tree in trees:
                group.create_task(_work(tree, waiting, outcomes))
    bad = [each for each in outcomes if not each.test]
    print(
        f"{len(outcomes)} mutants in {time.monotonic() - started:.0f} s: {len(outcomes) - len(bad)} caught, "
        f"{sum(each.wider for each in outcomes)} of them by a test that is not named with them, {len(bad)} not"
    )
    return 1 if bad else 0


async def check(tree: Path, mutant: Mutant) -> Outcome:
    """Plant a mutant in a tree, run the tests until one fails, and take the mutant out again."""
    path, started = mutant.path(tree), time.monotonic()
    source = path.read_text()
    try:
        path.write_text(mutant.mutated(source))
        for number, (tests, secs_max) in enumerate(_stages(tree, mutant)):
            failed, problem = await _failing_test(tree, tests, secs_max)
            if failed or problem:
                return Outcome(mutant, failed, time.monotonic() - started, wider=number > 0, problem=problem)
    except MutantError as error:
        return Outcome(mutant, "", 0.0, problem=str(error))
    finally:
        path.write_text(source)
    return Outcome(mutant, "", time.monotonic() - started)


async def _work(tree: Path, waiting: Iterator[Mutant], outcomes: list[Outcome]) -> None:
    for mutant in waiting:
        outcome = await check(tree, mutant)
        outcomes.append(outcome)
        text = outcome.test or outcome.problem or "SURVIVED"
        if outcome.wider:
            text += " (not named with the mutant)"
        print(f"{mutant.name:<52} {outcome.seconds:6.1f} s  {text}", flush=True)


def _stages(tree: Path, mutant: Mutant) -> Iterator[tuple[list[str], float]]:
    """Yield the named tests, then wider groups, each with the time that it may take."""
    yield [f"tests/{name}" for name in mutant.caught_by], NAMED_SECS_MAX
    package = mutant.file.partition("/")[0]
    for folders in ((f"unit/{package}",), ("unit", "properties", "simulation", "golden"), ("takeover",)):
        paths = [f"tests/{folder}" for folder in folders if (tree / "tests" / folder).is_dir()]
        if paths:
            yield paths, WIDER_SECS_MAX


async def _baseline(tree: Path, mutants: Iterable[Mutant]) -> str:
    """Return why the copy cannot be used: it is not what Python imports, or a named test fails; empty if it can."""
    status, output = await _python(tree, ["-c", "import oxidize; print(oxidize.__file__)"], NAMED_SECS_MAX)
    if status != 0 or tree not in Path(output.strip()).parents:
        return f"python imports {output.strip()!r}; expected a file below {tree}"
    tests = sorted({f"tests/{name}" for mutant in mutants for name in mutant.caught_by})
    status, output = await _pytest(tree, tests, WIDER_SECS_MAX)
    return "" if status == 0 else f"{output}\nthe tests fail without any mutant (status {status}): mend them first"


async def _failing_test(tree: Path, tests: Sequence[str], secs_max: float) -> tuple[str, str]:
    """Run tests until one fails; return its name or empty, and why they could not be run or empty."""
    if not tests:
        return "", ""
    try:
        status, output = await _pytest(tree, ["--exitfirst", *tests], secs_max)
    except TimeoutError:
        return "", f"the tests did not end within {secs_max:g} s: name a test that fails"
    failed = _FAILED.search(output)
    if status == _TESTS_FAILED and failed:
        return failed[1].removeprefix("tests/"), ""
    return "", "" if status == 0 else f"pytest ended with status {status}: {output[-500:]}"


async def _pytest(tree: Path, arguments: Sequence[str], secs_max: float) -> tuple[int, str]:
    options = ["--quiet", "--tb=no", "-p", "no:cacheprovider", f"--ignore={CATALOGUE_TEST}"]
    return await _python(tree, ["-m", "pytest", *options, f"--basetemp={tree}.tmp", *arguments], secs_max)


async def _python(tree: Path, arguments: Sequence[str], secs_max: float) -> tuple[int, str]:
    """Run Python on a copy; return exit status and output; raises TimeoutError, with the process ended."""
    environment = {key: value for key, value in os.environ.items() if key != "CI"}  # there a skipped test fails
    # Two versions of a file may have the same size and time, by which compiled code is told to be up to date.
    environment |= {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1", PLANTED: "1"}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *arguments,
        cwd=tree,
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        output, _ = await asyncio.wait_for(process.communicate(), secs_max)
    finally:
        await _end(process)
    assert process.returncode is not None
    return process.returncode, output.decode(errors="replace")


async def _end(process: asyncio.subprocess.Process) -> None:
    """End a process that still runs, with those of its session; it may end its own ones first."""
    for number in (signal.SIGINT, signal.SIGKILL):
        if process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), INTERRUPT_SECS)


def _copy(root: Path, tree: Path) -> Path:
    shutil.copytree(root, tree, symlinks=True, ignore=shutil.ignore_patterns(*NOT_COPIED))
    return tree
