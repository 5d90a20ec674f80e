"""Plant each mutant in a copy of this tree and run the tests that must find it: `make mutants`."""

import argparse
import asyncio
import sys
from pathlib import Path

from tests.mutants.catalogue import MUTANTS
from tests.mutants.runner import JOBS, run

ROOT = Path(__file__).parents[2]


def main() -> int:
    """Run the mutants.

    Return 1 if one survives or no longer applies, 2 if a test fails without any mutant, 130 for an interrupted run.
    """
    parser = argparse.ArgumentParser(prog="make mutants", description=__doc__)
    parser.add_argument("names", nargs="*", help="mutants to run; all of them without a name")
    parser.add_argument("--jobs", type=int, default=JOBS, help=f"copies in which tests run at once, {JOBS} by default")
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.names) - {mutant.name for mutant in MUTANTS})
    if unknown:
        parser.error(f"{', '.join(unknown)}: expected names of tests/mutants/catalogue.py")
    chosen = [mutant for mutant in MUTANTS if not arguments.names or mutant.name in arguments.names]
    try:
        return asyncio.run(run(ROOT, chosen, jobs=arguments.jobs))
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("interrupted: the copies are removed", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
