"""Check the model of the takeover (docs/model) with spin: every scenario, and every planted fault. `make model`.

The rule: a search counts only if it is complete, an option of the model that no scenario reaches is an error, and so is
a planted fault that its scenario does not find. Source: spin(1), "pan" options.
"""

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

MODEL = Path(__file__).parents[2] / "docs" / "model" / "takeover.pml"
DEPTH_MAX = 100_000  # steps of one run
HASH_BITS = 22
MEMORY_MIB_MAX = 900  # of one search; two run at once
STATES_BYTES_MAX = 2048  # of one state
SEARCH_SECS_MAX = 900
COMPILE_SECS_MAX = 120

SCENARIOS: Mapping[str, tuple[str, ...]] = {
    "a reload under a holder": ("COORDINATED", "STARTS=2", "FAULTS=2"),  # first: it takes longest
    "a reload without a service manager": ("COORDINATED", "FAULTS=3"),
    "its counters": ("COORDINATED", "FAULTS=1", "SEALS=3"),
    "a reload under systemd": ("COORDINATED", "STARTS=2", "SYSTEMD", "FAULTS=2"),
    "two successors": ("RIVAL", "FAULTS=1"),
    "two starts from the store beside a frozen server": ("COLD_STARTS", "GENERATIONS=3", "FAULTS=1"),
    "a reload of a server that drains": ("COORDINATED", "DRAIN", "FAULTS=1"),
}

# Each fault, with the smallest scenario that must find it.
PLANTS: Mapping[str, tuple[str, ...]] = {
    "READ_EARLY": ("COORDINATED", "FAULTS=0"),
    "THAW_BY_KILL": ("COORDINATED", "FAULTS=0"),
    "THAW_BY_CLOSE": ("COORDINATED", "FAULTS=1"),
    "THAW_WITHOUT_TAIL": ("COORDINATED", "FAULTS=0"),
    "LOCK_AFTER_READING": ("COLD_STARTS", "GENERATIONS=3", "FAULTS=0"),
    "FENCE_OPEN": ("COLD_STARTS", "GENERATIONS=3", "FAULTS=1"),
    "LOCK_KEPT": ("COORDINATED", "FAULTS=0"),
    "TIMERS_RUN": ("COORDINATED", "FAULTS=0", "SEALS=2"),
    "UNTOLD_LIVES": ("COORDINATED", "FAULTS=2"),
    "FORGET_FIRST": ("COORDINATED", "FAULTS=1"),
    "CHANNEL_BEFORE_DEATH": ("COORDINATED", "FAULTS=1"),
    "TAKEN_AFTER_KILL": ("COORDINATED", "FAULTS=0"),
    "HEIR_GIVES_UP": ("COORDINATED", "FAULTS=1"),
    "NOT_HELD": ("RIVAL", "FAULTS=0"),
    "KILLS_AFTER_GO": ("COORDINATED", "FAULTS=0"),
}

Line = tuple[str, int]  # process, line of the model
Option = tuple[Line, str]  # and the statement


@dataclass(frozen=True)
class Outcome:
    """The result of one search. violated: the assertion that does not hold, or empty."""

    states: int
    depth: int
    seconds: float
    violated: str
    is_complete: bool
    lines: frozenset[Line]
    unreached: frozenset[Option]


def check(defines: Iterable[str], *, is_long: bool = False) -> Outcome:
    """Search all states of the model with these definitions; raises RuntimeError if it cannot be built.

    is_long: whether the search takes longer than an optimising compiler.
    """
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="oxidize-model-") as folder:
        # -o3: statements that were merged with others would be listed as not reached.
        _run(["spin", "-o3", "-a", *(f"-D{each}" for each in defines), str(MODEL)], folder, COMPILE_SECS_MAX)
        options = [
            "-DNOREDUCE",
            "-DSAFETY",
            "-DCOLLAPSE",
            f"-DVECTORSZ={STATES_BYTES_MAX}",
            f"-DMEMLIM={MEMORY_MIB_MAX}",
        ]
        _run(["gcc", "-w", "-O1" if is_long else "-O0", *options, "-o", "pan", "pan.c"], folder, COMPILE_SECS_MAX)
        # -E: a process that waits for ever is no error by itself; the process End judges how a run ends.
        text = _run(["./pan", "-E", f"-m{DEPTH_MAX}", f"-w{HASH_BITS}"], folder, SEARCH_SECS_MAX)
        table = _run(["./pan", "-d"], folder, SEARCH_SECS_MAX)
    return Outcome(
        states=int(_found(r"^ *([\d.e+]+) states, stored", text) or 0),
        depth=int(_found(r"depth reached (\d+)", text) or 0),
        seconds=time.monotonic() - started,
        violated=_found(r"^pan:\d+: assertion violated \(+(\w+)", text) or _found(r"^pan:\d+: (.*)", text),
        is_complete="errors: " in text and not _found(r"(not completed|too small|out of memory)", text),
        lines=frozenset(_lines(table)),
        unreached=frozenset(_unreached(text)),
    )


def _run(command: list[str], folder: str, secs_max: int) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=secs_max)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stdout}{done.stderr}")
    return done.stdout


def _found(pattern: str, text: str) -> str:
    match = re.search(pattern, text, re.MULTILINE)
    return match[1] if match else ""


def _lines(table: str) -> Iterable[Line]:
    process = ""
    for line in table.splitlines():
        if line.startswith("proctype "):
            process = line.split()[-1]
        elif match := re.search(r"\S+\.pml:(\d+) =>", line):
            yield process, int(match[1])


def _unreached(text: str) -> Iterable[Option]:
    process = ""
    for line in text.splitlines():
        if line.startswith("unreached in"):
            process = line.split()[-1]
        elif (match := re.match(r'\t\S+:(\d+), state \d+, "(.*)"$', line)) and match[2] != "-end-":
            yield (process, int(match[1])), match[2]


def never_reached(outcomes: Iterable[Outcome]) -> list[Option]:
    """Return the options that no search has reached although it has them."""
    outcomes = list(outcomes)
    options = {option for outcome in outcomes for option in outcome.unreached}
    return sorted(
        option
        for option in options
        if all(option in outcome.unreached for outcome in outcomes if option[0] in outcome.lines)
    )


def main() -> int:
    """Print a table of all searches; return 1 if one found an error, or missed a planted one, or is incomplete."""
    names = [*SCENARIOS, *(f"planted: {name}" for name in PLANTS)]
    flags = [*SCENARIOS.values(), *((f"PLANT_{name}", *flags) for name, flags in PLANTS.items())]
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        outcomes = list(pool.map(lambda each: check(each, is_long="STARTS=2" in each), flags))
    print(f"{'scenario':52}{'states':>10}{'depth':>7}{'seconds':>9}  errors")
    problems = []
    for name, outcome in zip(names, outcomes, strict=True):
        is_planted = name.startswith("planted")
        print(f"{name:52}{outcome.states:10,}{outcome.depth:7}{outcome.seconds:9.1f}  {outcome.violated or 'none'}")
        if is_planted and not outcome.violated:
            problems.append(f"{name}: not found; expected the scenario to find it")
        elif not is_planted and outcome.violated:
            problems.append(f"{name}: {outcome.violated} does not hold; docs/model/README.md tells how to see the run")
        elif not is_planted and not outcome.is_complete:
            problems.append(f"{name}: the search is not complete; expected less than {MEMORY_MIB_MAX} MiB")
    for (process, line), statement in never_reached(outcomes[: len(SCENARIOS)]):
        problems.append(f"{MODEL.name}:{line}: {process}: {statement} is reached in no scenario; expected in one")
    for problem in problems:
        print(problem, file=sys.stderr)
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
