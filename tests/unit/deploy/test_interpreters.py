"""A release whose Python has gone or changed says so in one line, with what to do."""

import json
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from oxidize.deploy.releases import Releases, interpreter_problem

LAUNCHER = Path(__file__).parents[3] / "systemd/launcher.in"
HERE = f"python{sys.version_info.major}.{sys.version_info.minor}"


def make_release(prefix: Path, built_with: str) -> Path:
    """Make the folders of a release, whose interpreter is this machine's, without the package in it."""
    folder = prefix / "releases/1"
    (folder / "bin").mkdir(parents=True)
    (folder / "lib" / built_with / "site-packages").mkdir(parents=True)
    (folder / "pyvenv.cfg").write_text(f"home = {Path(sys.executable).resolve().parent}\n")
    (folder / "bin/python").symlink_to(Path(sys.executable).resolve())
    text = LAUNCHER.read_text()
    for name, value in (("RELEASE", str(folder)), ("PYTHON", "Python 9.9"), ("ENTRY", "main")):
        text = text.replace(f"@{name}@", value)
    (folder / "bin/oxidize").write_text(text)
    (folder / "bin/oxidize").chmod(0o755)
    (folder / "release.json").write_text(json.dumps({"version": "1", "built_unix": 1, "revision": "r"}))
    return folder


def run(folder: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([folder / "bin/oxidize", "check"], capture_output=True, text=True, check=False, timeout=60)


def test_the_program_names_a_python_that_has_gone(tmp_path: Path) -> None:
    folder = make_release(tmp_path, "python9.9")
    (folder / "bin/python").unlink()
    (folder / "bin/python").symlink_to("/usr/bin/python9.9")
    done = run(folder)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"oxidize: {folder}/bin/python no longer leads to an interpreter: expected Python 9.9, ")
    assert "`make install`" in line


def test_the_program_names_a_python_of_another_version(tmp_path: Path) -> None:
    folder = make_release(tmp_path, "python9.9")
    done = run(folder)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(
        f"oxidize: {folder}/bin/python is {HERE.replace('python', 'Python ')} now: expected Python 9.9"
    )
    assert "`make install`" in line


def test_the_program_runs_with_its_python(tmp_path: Path) -> None:
    folder = make_release(tmp_path, HERE)
    package = folder / "lib" / HERE / "site-packages/oxidize/cli"
    package.mkdir(parents=True)
    (package / "entry.py").write_text("import sys\n\n\ndef main():\n    print(sys.argv)\n")
    done = run(folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"['{folder}/bin/oxidize', 'check']\n"


def test_no_later_python_warns_of_the_text_for_the_shell() -> None:
    """Python 3.12 and later print a warning about an unknown escape, which 3.11 hides."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compile(LAUNCHER.read_text().replace("@ENTRY@", "main"), str(LAUNCHER), "exec")


def test_an_import_that_fails_for_another_reason_is_not_blamed_on_python(tmp_path: Path) -> None:
    folder = make_release(tmp_path, HERE)
    package = folder / "lib" / HERE / "site-packages/oxidize/cli"
    package.mkdir(parents=True)
    (package / "entry.py").write_text("import a_missing_package\n")
    assert run(folder).stderr.splitlines()[-1] == "ModuleNotFoundError: No module named 'a_missing_package'"


@pytest.mark.parametrize("built_with", [HERE, "python9.9"])
def test_the_list_of_releases_knows_which_ones_cannot_run(tmp_path: Path, built_with: str) -> None:
    folder = make_release(tmp_path, built_with)
    (release,) = Releases(tmp_path).all()
    expected = f"{folder}/bin/python: {HERE}: expected python9.9, as it was built with; install it again"
    problem = interpreter_problem(release)
    assert problem.startswith(expected) if built_with != HERE else not problem
    (folder / "bin/python").unlink()
    assert interpreter_problem(release).startswith(
        f"{folder}/bin/python: No such file or directory: expected {built_with}"
    )
