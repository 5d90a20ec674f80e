"""`make sim WORLDS=N [SEED=s]`: run N worlds from the seed s on, or from one that is drawn, then plant every bug.

As many processes share them as there are processors. A world that fails ends its share, and no other.
"""

import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from random import SystemRandom

from tests.support.sim.install import installed
from tests.support.sim.planted import PLANTED, worlds_until_found
from tests.support.sim.runner import failed_seeds, run_worlds

WORLDS = 10_000
SHARE = 250  # worlds
TELL_SECS = 30.0


def main() -> int:
    worlds = int(os.environ.get("WORLDS") or WORLDS)
    given = os.environ.get("SEED")
    first = int(given) if given else SystemRandom().randrange(1 << 40)
    print(f"worlds: {worlds}, from seed {first} on", flush=True)
    seeds = [*([] if given else failed_seeds()), *range(first, first + worlds)]
    with ProcessPoolExecutor() as pool:
        failed = run_all(pool, [seeds[at : at + SHARE] for at in range(0, len(seeds), SHARE)])
        if not given:
            failed += plant_all(pool, first)
    return 1 if failed else 0


def run_all(pool: ProcessPoolExecutor, shares: Sequence[Sequence[int]]) -> int:
    """Run shares of seeds, print the counts and each failure; return how many shares failed."""
    started = told = time.monotonic()
    counts: Counter[str] = Counter()
    failed = 0
    running: list[Future[Counter[str]]] = [pool.submit(run_worlds, share) for share in shares]
    for done in as_completed(running):
        try:
            counts += done.result()
        except AssertionError as error:
            failed += 1
            print(error, flush=True)
        if time.monotonic() >= told + TELL_SECS:
            told = time.monotonic()
            print(f"  {counts['worlds']:,} worlds, {told - started:.0f} s", flush=True)
    secs = time.monotonic() - started
    for what, number in sorted(counts.items()):
        print(f"  {number:12,} {what}")
    print(f"{secs:.0f} s, {counts['worlds'] / secs:.1f} worlds a second, {failed} failed", flush=True)
    return failed


def plant_all(pool: ProcessPoolExecutor, first_seed: int) -> int:
    """Plant each bug; return how many are not found."""
    running = {name: pool.submit(find, name, first_seed) for name in PLANTED}
    missed = 0
    for name, future in running.items():
        found = future.result()
        missed += found is None
        text = f"found in world {found[0]}: {found[1]:.90}" if found else "NOT FOUND"
        print(f"  {name}: {text}", flush=True)
    return missed


def find(name: str, first_seed: int) -> tuple[int, str] | None:
    """Return the number of worlds until a planted bug is found, and what it breaks; None if it is not."""
    with installed():
        return worlds_until_found(PLANTED[name], first_seed)


if __name__ == "__main__":
    sys.exit(main())
