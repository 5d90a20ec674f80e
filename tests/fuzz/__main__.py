"""Fuzz the targets for a time each, as many at once as there are processors: `make fuzz`.

The corpora grow in FOLDER, from run to run. What fails is printed, and stays in FOLDER; it belongs into
tests/fuzz/inputs/TARGET/, where a test replays it, together with the mend. Source: atheris, libFuzzer's options.
"""

import argparse
import logging
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.fuzz import TARGETS, load, stored_inputs

FOLDER = Path(".fuzz")
SECS = 600
INPUT_BYTES_MAX = 4096
INPUT_SECS_MAX = 20  # a harness that takes longer hangs, or does unbounded work
MEMORY_MIB_MAX = 2048


@dataclass(frozen=True)
class Outcome:
    """The result of one target."""

    name: str
    executions: int
    corpus: int
    failures: list[Path]
    status: int


def fuzz(name: str, arguments: list[str]) -> None:
    """Fuzz one target in this process, which libFuzzer ends."""
    import atheris  # only `make fuzz` installs it

    with atheris.instrument_imports(include=["oxidize", *TARGETS[name]]):
        target = load(name)
    logging.disable()  # a warning for every other input
    atheris.Setup([sys.argv[0], *arguments], target.run)
    atheris.Fuzz()


def _run(name: str, secs: int) -> Outcome:
    """Fuzz one target in a process of its own, and wait for it."""
    corpus, failures, seeds = (FOLDER / kind / name for kind in ("corpus", "failures", "seeds"))
    for folder in (corpus, failures):
        folder.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(seeds, ignore_errors=True)
    seeds.mkdir(parents=True)
    for number, seed in enumerate(load(name).seeds()):
        (seeds / f"{number:04}").write_bytes(seed)
    for stored in stored_inputs(name):
        (seeds / stored.name).write_bytes(stored.read_bytes())
    before = {*failures.iterdir()}
    command = [sys.executable, "-m", "tests.fuzz", "--worker", name, str(corpus), str(seeds)]
    command += [f"-max_total_time={secs}", f"-max_len={INPUT_BYTES_MAX}", f"-timeout={INPUT_SECS_MAX}"]
    command += [f"-rss_limit_mb={MEMORY_MIB_MAX}", f"-artifact_prefix={failures}/", "-print_final_stats=1"]
    with (FOLDER / f"{name}.log").open("w+") as log:
        status = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False).returncode
        log.seek(0)
        found = re.findall(r"^stat::number_of_executed_units: +(\d+)|^#(\d+)\t", log.read(), re.MULTILINE)
    executions = int(next(filter(None, found[-1]))) if found else 0
    new = sorted({*failures.iterdir()} - before)
    return Outcome(name, executions, len(list(corpus.iterdir())), new, status)


def main() -> int:
    """Run the targets that the command line names, or all; return the exit status: 1 if one found something."""
    if sys.argv[1:2] == ["--worker"]:
        fuzz(sys.argv[2], sys.argv[3:])
        return 0
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", choices=[*TARGETS, []], help="default: all")
    parser.add_argument("--secs", type=int, default=SECS, help=f"of each target; default {SECS}")
    options = parser.parse_args()
    names = options.targets or list(TARGETS)
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        outcomes = list(pool.map(lambda name: _run(name, options.secs), names))
    print(f"{'target':16}{'executions':>12}{'corpus':>8}  result")
    for outcome in outcomes:
        result = "nothing found" if outcome.status == 0 and not outcome.failures else f"see {FOLDER}/{outcome.name}.log"
        print(f"{outcome.name:16}{outcome.executions:12,}{outcome.corpus:8}  {result}")
        for path in outcome.failures:
            print(f"  {path}: keep it as tests/fuzz/inputs/{outcome.name}/WHAT.bin, which a test replays")
    return int(any(outcome.status or outcome.failures for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
