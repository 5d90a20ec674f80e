"""Debian packages of the product: the one that `make deb` builds, and later versions of it, good and bad.

Rule: a package is installed by dpkg inside a machine, whose files are an overlay in memory: the database of the host's
dpkg is read and never written.
"""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.support.traffic.server import Outcome
from tests.system.machine import Machine

ROOT = Path(__file__).parents[2]
NEEDED_PROGRAMS = ("make", "dpkg", "dpkg-deb", "dpkg-shlibdeps")
SHIPPED = "usr/lib/oxidize"
DPKG_SECS_MAX = 240.0
BUILD_SECS_MAX = 600.0
# Of where the machine reads packages from.
FOLDER = "srv"


@dataclass(frozen=True)
class Package:
    """A package: its file, its version, and the name of the release in it."""

    file: Path
    version: str
    release: str

    def install(self, machine: Machine, expected: int = 0) -> Outcome:
        """Run `dpkg -i` inside the machine, as apt does with the packages that it has."""
        shutil.copy(self.file, machine.root / FOLDER / self.file.name)
        return dpkg(machine, "-i", f"/{FOLDER}/{self.file.name}", expected=expected)


def dpkg(machine: Machine, *arguments: str, expected: int = 0) -> Outcome:
    """Run dpkg inside the machine; fail on another exit status."""
    outcome = machine.try_run("env", "DEBIAN_FRONTEND=noninteractive", "dpkg", *arguments, seconds=DPKG_SECS_MAX)
    assert outcome.status == expected, f"{outcome}\n{machine.journal()}"
    return outcome


def state(machine: Machine) -> str:
    """Return what dpkg has of the package, such as "install ok installed 1.0"; "" for nothing."""
    return machine.try_run("dpkg-query", "-W", "-f", "${Status} ${Version}", "oxidize").output


def build(folder: Path) -> Package:
    """Build the package of this source tree, as `make deb` does."""
    make = shutil.which("make")
    assert make is not None
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
    done = subprocess.run(
        [make, "deb", f"DIST={folder}"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        check=False,
        text=True,
        timeout=BUILD_SECS_MAX,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return described(Path(done.stdout.strip().splitlines()[-1]))


def described(file: Path) -> Package:
    """Return the package in a file."""
    listed = _run("dpkg-deb", "--contents", str(file))
    (release,) = set(re.findall(rf"\./{SHIPPED}/([^/\n]+)/release\.json$", listed, re.MULTILINE))
    return Package(file, _run("dpkg-deb", "--field", str(file), "Version").strip(), release)


def later(package: Package, folder: Path, number: int, broken: Mapping[str, str] | None = None) -> Package:
    """Make a later version of a package. broken: code to add at the end of modules, as `Service.add_release`."""
    tree = folder / f"later-{number}"
    _run("dpkg-deb", "--raw-extract", str(package.file), str(tree))
    version, release = f"{package.version}.{number}", f"{package.release}.{number}"
    (tree / SHIPPED / package.release).rename(tree / SHIPPED / release)
    whole = tree / SHIPPED / release
    texts = [tree / "DEBIAN" / name for name in ("control", "postinst", "prerm", "postrm")]
    texts += [path for path in (whole / "bin").iterdir() if not path.is_symlink()] + [whole / "pyvenv.cfg"]
    for path in texts:
        text = path.read_text()
        path.write_text(text.replace(package.release, release).replace(package.version, version))
    record = whole / "release.json"
    told = json.loads(record.read_text())
    record.write_text(json.dumps(told | {"built_unix": told["built_unix"] + number}))
    (modules,) = whole.glob("lib/python*/site-packages/oxidize")
    for module, code in (broken or {}).items():
        path = modules.joinpath(*module.split(".")).with_suffix(".py")
        for compiled in (path.parent / "__pycache__").glob(f"{path.stem}.*.pyc"):  # which holds in any case
            compiled.unlink()
        with path.open("a") as source:
            source.write(f"\n\ndef got_there():\n    pass\n\n\n{code}\n")
    (tree / "DEBIAN/md5sums").unlink()
    file = folder / f"oxidize_{version}.deb"
    _run("dpkg-deb", "--root-owner-group", "-Zgzip", "-z1", "--build", str(tree), str(file))
    shutil.rmtree(tree)
    return Package(file, version, release)


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, check=False, text=True, timeout=DPKG_SECS_MAX)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout
