"""The source trees whose servers are compared, and the processor time that one of their processes has used.

Rule: each tree runs with the interpreter and the packages of its own .venv, never with this one's modules, and with
byte-code, as a release does.
Source: proc(5), /proc/pid/task/tid/schedstat.
"""

import argparse
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from tests.support.traffic.server import WITHOUT_HOLDER

HERE = Path(__file__).parents[1]
HELP_SECS_MAX = 30


@dataclass(frozen=True)
class Tree:
    """One source tree. label: its revision; options: of its `oxidize server`, so that no holder starts it."""

    folder: Path
    label: str
    python: str
    options: tuple[str, ...]

    @classmethod
    def of(cls, folder: Path) -> Self:
        """Look at a tree; raises SystemExit where it has no environment."""
        python = folder / ".venv" / "bin" / "python"
        if not python.exists():
            raise SystemExit(f"{python}: expected the interpreter of an environment; run `make venv` in {folder}")
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # for all processes of the trees
        _output([str(python), "-m", "compileall", "-q", "oxidize"], folder)
        help_text = _output([str(python), "-P", "-m", "oxidize", "server", "--help"], folder)
        has_holder = WITHOUT_HOLDER[0] in help_text
        return cls(folder, revision_of(folder), str(python), WITHOUT_HOLDER if has_holder else ())

    def program(self, core: int | None = None) -> tuple[str, ...]:
        """Return the command of this tree's `oxidize`. core: the processor that it is bound to, None for any."""
        bound = () if core is None else ("/usr/bin/taskset", "-c", str(core))
        return (*bound, self.python, "-P", "-m", "oxidize")


def _output(command: Sequence[str], folder: Path) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=HELP_SECS_MAX)
    return done.stdout


def revision_of(folder: Path) -> str:
    """Return the short hash of the tree's commit, with a plus sign for changes that are not committed."""
    revision = _output(["git", "rev-parse", "--short=7", "HEAD"], folder).strip()
    changed = _output(["git", "status", "--porcelain", "--untracked-files=no"], folder)
    return (revision or folder.name) + ("+" if changed else "")


def add_tree_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--server-tree",
        metavar="DIR",
        type=Path,
        action="append",
        help="a source tree with a .venv whose server is measured; give several to compare them in one run, by turns "
        "(default: this one)",
    )


def trees_of(arguments: argparse.Namespace) -> list[Tree]:
    """Return the trees that the options name; ratios are to the first."""
    return [Tree.of(folder.resolve()) for folder in arguments.server_tree or [HERE]]


def cpu_secs(pid: int) -> float:
    """Return the processor time of all threads of a process."""
    threads = Path("/proc", str(pid), "task").iterdir()
    return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / 1e9


def spare_cores() -> tuple[int, int]:
    """Return a processor for the server and one for everything else; raises SystemExit where there is only one."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise SystemExit(f"{len(cores)} processor: expected two, one for the server alone")
    return cores[0], cores[1]


def resident_mb(pid: int) -> float:
    """Return the resident memory of a process, in millions of bytes."""
    status = Path("/proc", str(pid), "status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) * 1024 / 1e6
