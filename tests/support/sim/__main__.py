"""`make sim WORLDS=N [SEED=s]`: run N worlds from the seed s on, or from one that is drawn, then plant every bug."""

import os
import sys
import time
from random import SystemRandom

from tests.support.sim.install import installed
from tests.support.sim.planted import PLANTED, worlds_until_found
from tests.support.sim.runner import failed_seeds, run_worlds

WORLDS = 10_000


def main() -> int:
    worlds = int(os.environ.get("WORLDS") or WORLDS)
    given = os.environ.get("SEED")
    first = int(given) if given else SystemRandom().randrange(1 << 40)
    print(f"worlds: {worlds}, from seed {first} on")
    started = time.monotonic()
    try:
        counts = run_worlds([*([] if given else failed_seeds()), *range(first, first + worlds)], print)
    except AssertionError as error:
        print(error)
        return 1
    secs = time.monotonic() - started
    for what, number in sorted(counts.items()):
        print(f"  {number:12,} {what}")
    print(f"{secs:.0f} s, {counts['worlds'] / secs:.1f} worlds a second")
    return 0 if given else plant_all(first)


def plant_all(first_seed: int) -> int:
    """Plant each bug; return 1 if one is not found."""
    missed = 0
    for name, plant in PLANTED.items():
        with installed():
            found = worlds_until_found(plant, first_seed)
        missed += found is None
        print(f"  {name}: " + (f"found in world {found[0]}: {found[1]:.90}" if found else "NOT FOUND"))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
