"""Run each benchmark in a separate process: `make bench`, or `python -m benchmarks blackout` for one of them."""

import subprocess
import sys
from pathlib import Path


def main() -> None:
    known = {path.stem.removeprefix("bench_"): path for path in sorted(Path(__file__).parent.glob("bench_*.py"))}
    wanted = sys.argv[1:] or list(known)
    if unknown := [name for name in wanted if name not in known]:
        raise SystemExit(f"{', '.join(unknown)}: expected some of {', '.join(known)}")
    failed = []
    for name in wanted:
        print(f"--- {name}", flush=True)
        if subprocess.run([sys.executable, "-m", f"benchmarks.bench_{name}"], check=False).returncode != 0:
            failed.append(name)
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
