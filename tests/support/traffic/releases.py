"""Releases whose processes a test runs side by side: the present code, and the wheels of those in service.

The wheels are built once, when a release is cut (`pip wheel --no-deps .`), and never again. They run with the
dependencies of the present code.
"""

import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import oxidize

WHEELS = sorted((Path(__file__).parents[2] / "golden").glob("oxidize-*.whl"))


@dataclass(frozen=True, slots=True)
class Release:
    """A release that can run. folder: of its source, None for the present code."""

    version: str
    folder: Path | None = None

    @property
    def bare_options(self) -> tuple[str, ...]:
        """The options with which its `server` and `client` have no holder; the first release has none."""
        return () if self.version == "0.1.0" else ("--no-holder",)

    def environ(self, fault: Mapping[str, str] | None = None) -> dict[str, str]:
        """Return the environment that makes `python -P -m oxidize` run this release.

        fault: an environment of `server.fault`, whose folder comes first on PYTHONPATH.
        """
        environ = dict(os.environ if fault is None else fault)
        folders = [environ.get("PYTHONPATH"), os.fspath(self.folder) if self.folder is not None else None]
        path = os.pathsep.join(each for each in folders if each)
        return {**environ, "PYTHONPATH": path} if path else environ


PRESENT = Release(oxidize.__version__)


def unpack(wheel: Path, folder: Path) -> Release:
    """Return the release in a wheel, unpacked below `folder`."""
    version = wheel.name.split("-")[1]
    place = folder / f"release-{version}"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(place)
    return Release(version, place)
