"""Run each benchmark in a separate process: `make bench`, or `make bench NAMES="idle bulk"` for some of them.

A run of all of them takes about 25 minutes and writes docs/benchmarks/README.md. What follows the names, from the first
option on, is passed to each benchmark: `python -m benchmarks singles --runs 3`.
"""

import importlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from itertools import takewhile
from pathlib import Path

from benchmarks.owner import OWNER, owner
from benchmarks.page import Section, first_paragraphs, write_page
from benchmarks.results import RESULTS, read_rows
from benchmarks.trees import HERE, revision_of
from demo.processes import end_children

PAGE = HERE / "docs" / "benchmarks"
# In a run of all, which is to end within half an hour; alone each of these takes longer and tells more.
BRIEF = {"blackout": ("--secs", "60"), "ipv6": ("--runs", "3"), "scale": ("--runs", "2")}
CLEANED_SECS_MAX = 20.0  # for a benchmark that is interrupted; what is left then is killed


def run_one(name: str, options: Sequence[str], results: Path) -> Section:
    """Run one benchmark to its end, and print what it prints; return what it found."""
    print(f"--- {name}", flush=True)
    results.touch()
    environment = {**os.environ, RESULTS: str(results), OWNER: str(os.getpid())}
    command = [sys.executable, "-m", f"benchmarks.bench_{name}", *options]
    lines, began = [], time.monotonic()
    with subprocess.Popen(command, cwd=HERE, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                print(line, end="", flush=True)
                lines.append(line)
        except BaseException:  # cleans up, and raises it again
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(CLEANED_SECS_MAX)
            process.kill()
            raise
    print(f"({time.monotonic() - began:.0f} s)", flush=True)
    about = first_paragraphs(importlib.import_module(f"benchmarks.bench_{name}").__doc__ or "")
    return Section(name, about, "".join(lines), read_rows(results), process.returncode)


def main() -> None:
    known = [path.stem.removeprefix("bench_") for path in sorted(Path(__file__).parent.glob("bench_*.py"))]
    wanted = list(takewhile(lambda word: not word.startswith("-"), sys.argv[1:]))
    options = sys.argv[1 + len(wanted) :]
    if unknown := [name for name in wanted if name not in known]:
        raise SystemExit(f"{', '.join(unknown)}: expected some of {', '.join(known)}")
    sections = []
    with owner() as spared, tempfile.TemporaryDirectory(prefix="oxidize-bench-") as folder:
        for name in wanted or known:
            brief = () if wanted else BRIEF.get(name, ())
            sections.append(run_one(name, [*brief, *options], Path(folder, f"{name}.json")))
            end_children(spared)  # what a benchmark leaves that was killed
    if not wanted:
        print(f"written: {write_page(PAGE, sections, revision_of(HERE)).relative_to(HERE)}")
    if failed := [section.name for section in sections if section.status != 0]:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
