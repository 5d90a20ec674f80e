"""What is installed where: the package alone in a wheel, and for `make demo` only what the demonstration imports."""

import re
import tomllib
from itertools import pairwise
from pathlib import Path

from setuptools import find_packages

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


def test_no_text_tells_anybody_to_install_the_package_oxidize_of_pypi() -> None:
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["name"] == "oxidize-relay"
    texts = [
        path
        for pattern in ("*.md", "*.toml", "Makefile", "docs/**/*.md", "systemd/*", "oxidize/**/*.py", "demo/*.py")
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
