"""What is installed where: the package alone in a wheel, and for `make demo` only what the demonstration imports."""

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from packaging.metadata import Metadata
from setuptools import find_packages

from oxidize import __version__

ROOT = Path(__file__).parents[2]
TOOLS = {"hypothesis", "import-linter", "mypy", "pytest", "pyyaml", "ruff", "setuptools", "wheel"}
# A command that installs a package of the name `oxidize`, which is another project on PyPI.
STRANGERS = re.compile(r"\b(?:pip3?|pipx|uv|uvx)\b[^\n;&|]*\boxidize(?![-\w./:])")


def pinned(lock: str) -> set[str]:
    """Return the lines "name==version" of a lock."""
    return set(re.findall(r"^[\w-]+==\S+", (ROOT / lock).read_text(), re.MULTILINE))


def test_a_wheel_contains_every_package_of_oxidize_and_nothing_else() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    found = find_packages(str(ROOT), **project["tool"]["setuptools"]["packages"]["find"])
    expected = {path.parent.relative_to(ROOT) for path in (ROOT / "oxidize").rglob("*.py")}
    assert sorted(found) == sorted(".".join(path.parts) for path in expected)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[zipfile.ZipFile]:
    """The wheel that `make wheel` builds."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("oxidize", "scripts"):
        shutil.copytree(ROOT / name, folder / name)
    for name in ("pyproject.toml", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "wheel", "--quiet", "--no-index")
    subprocess.run((*pip, "--no-deps", "--no-build-isolation", "-w", folder, folder), check=True, capture_output=True)
    (built,) = folder.glob("oxidize_relay-*-py3-none-any.whl")
    with zipfile.ZipFile(built) as opened:
        yield opened


def test_pypi_takes_the_metadata_of_a_wheel_and_shows_a_page_without_dead_links(wheel: zipfile.ZipFile) -> None:
    """The rules of PyPI's upload are those that `packaging` validates (PEP 566, 639, 643)."""
    (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    found = Metadata.from_email(wheel.read(name), validate=True)
    assert (found.name, str(found.version), found.license_expression) == ("oxidize-relay", __version__, "MIT")
    assert str(found.requires_python) == ">=3.11"
    assert found.description_content_type == "text/markdown"
    page = found.description or ""
    assert "## What it needs" in page
    assert not re.findall(r"\]\((?!https://)", page), "the source is not beside this page"
    optional = {str(each.marker) for each in found.requires_dist or () if each.marker is not None}
    assert 'extra == "systemd"' in optional
    assert found.classifiers is not None
    assert "Typing :: Typed" in found.classifiers


def test_a_wheel_is_typed_and_has_no_other_folder_than_the_package(wheel: zipfile.ZipFile) -> None:
    names = wheel.namelist()
    assert "oxidize/py.typed" in names
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"oxidize", "oxidize_relay"}
    assert any(name.endswith("/licenses/LICENSE") for name in names)


def test_no_text_tells_anybody_to_install_the_package_oxidize_of_pypi() -> None:
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["name"] == "oxidize-relay"
    texts = [
        path
        for pattern in (
            "*.md",
            "*.toml",
            "Makefile",
            "docs/**/*.md",
            "scripts/**/*.md",
            "systemd/*",
            "oxidize/**/*.py",
            "demo/*.py",
        )
        for path in ROOT.glob(pattern)
    ]
    assert len(texts) > 100
    found = {str(path): STRANGERS.findall(path.read_text()) for path in texts if STRANGERS.search(path.read_text())}
    assert found == {}
    assert STRANGERS.search('run "pip install oxidize[systemd]"')
    assert STRANGERS.search("pipx install 'oxidize'")
    assert not STRANGERS.search("pip install oxidize-relay, or install Oxidize with `make install`")


def test_the_demonstration_needs_no_development_tools() -> None:
    names = {line.partition("==")[0] for line in pinned("requirements.lock")}
    assert not names & TOOLS


def test_the_locks_agree_on_every_version() -> None:
    locks = [pinned(f"requirements{suffix}.lock") for suffix in ("", "-dev", "-fuzz")]
    assert all(smaller < larger for smaller, larger in pairwise(locks))
