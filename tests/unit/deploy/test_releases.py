"""The build of a release and its lock, with a fast stand-in for Python and pip; and the deployment script."""

import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from oxidize import __version__

ROOT = Path(__file__).parents[3]
UNITS = [
    "oxidize-daemon.service",
    "oxidize.socket",
    "oxidize-http.socket",
    "oxidize-wg.socket",
    "oxidize-client.service",
    "oxidize-client-wg.socket",
    "oxidize-kill-switch.service",
]
# Reports that a build has begun, and waits for a signal to continue; without these two a build does not wait.
PYTHON = """#!/bin/sh
set -eu
test "$1 $2" = "-m venv" || exit 0
mkdir -p "$3/bin" "$3/lib"
touch "$3/pyvenv.cfg"
cp "$0" "$3/bin/python"
test -z "${TEST_BEGUN-}" || { echo "$PPID" > "$TEST_BEGUN"; read -r status < "$TEST_GO"; exit "$status"; }
"""

pytestmark = pytest.mark.needs("git", "flock")


class Builder:
    """A checkout with a commit, and a prefix to install it below."""

    def __init__(self, folder: Path) -> None:
        self.source, self.prefix, self.python = folder / "source", folder / "prefix", folder / "python"
        self.begun, self.go = folder / "begun", folder / "go"
        for name in ("systemd", "scripts", "docs", "contrib"):
            shutil.copytree(ROOT / name, self.source / name)
        for name in (
            "Makefile",
            "pyproject.toml",
            "README.md",
            "SECURITY.md",
            "CHANGELOG.md",
            "LICENSE",
            "requirements.lock",
            "requirements-dev.lock",
        ):
            shutil.copy(ROOT / name, self.source)
        (self.source / "oxidize").mkdir()
        self.python.write_text(PYTHON)
        self.python.chmod(0o755)
        for fifo in (self.begun, self.go):
            os.mkfifo(fifo)
        self.git("init", "--quiet")
        self.git("add", ".")
        self.git("-c", "user.name=a", "-c", "user.email=a@example.org", "commit", "--quiet", "--message=a")
        self.revision = self.git("rev-parse", "--short", "HEAD").stdout.strip()

    def git(self, *arguments: str, **env: str) -> "subprocess.CompletedProcess[str]":
        command = ["git", "-C", str(self.source), *arguments]
        return subprocess.run(command, env=self.environment(**env), capture_output=True, check=not env, text=True)

    @staticmethod
    def environment(**env: str) -> dict[str, str]:
        inherited = {
            key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "GIT_", "OXIDIZE_"))
        }
        return inherited | {"GIT_CONFIG_GLOBAL": "/dev/null", "LC_ALL": "C.UTF-8"} | env

    def command(self, *arguments: str) -> list[str]:
        values = [f"PREFIX={self.prefix}", f"INSTALL_PYTHON={self.python}"]
        return ["make", "--no-print-directory", "-C", str(self.source), *values, *arguments]

    def make(self, *arguments: str, **env: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            self.command(*arguments), env=self.environment(**env), capture_output=True, check=False, text=True
        )

    @contextmanager
    def build(self) -> Iterator[tuple["subprocess.Popen[str]", int]]:
        """Start a build that waits in its first step; yield it and the pid of its shell; end all its processes."""
        env = self.environment(TEST_BEGUN=str(self.begun), TEST_GO=str(self.go))
        pipe = subprocess.PIPE
        begun = os.open(self.begun, os.O_RDONLY | os.O_NONBLOCK)
        build = subprocess.Popen(
            self.command("release"), env=env, stdout=pipe, stderr=pipe, text=True, start_new_session=True
        )
        try:
            assert build.stdout is not None
            select.select([begun, build.stdout.fileno()], [], [])
            os.set_blocking(begun, True)
            shell = os.read(begun, 100)
            assert shell, f"the build has ended: {build.communicate()}"
            yield build, int(shell)
        finally:
            os.close(begun)
            with suppress(ProcessLookupError):
                os.killpg(build.pid, signal.SIGKILL)
            build.communicate()

    def releases(self) -> list[Path]:
        """Return the folders of builds, complete or not."""
        return sorted((self.prefix / "releases").iterdir())


@pytest.fixture
def builder(tmp_path: Path) -> Builder:
    return Builder(tmp_path)


def test_a_release_is_described_and_nothing_else_is_changed(builder: Builder) -> None:
    done = builder.make("release")
    (folder,) = builder.releases()
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, str(folder)), done
    record = json.loads((folder / "release.json").read_text())
    assert (record["version"], record["revision"]) == (__version__, builder.revision)
    assert record["built_unix"] == pytest.approx(folder.stat().st_mtime, abs=2)
    assert folder.name.startswith(f"{__version__}-")
    assert folder.name.endswith(f"Z-{builder.revision}")
    assert sorted(path.name for path in builder.prefix.iterdir()) == [".lock", "releases"]
    assert (builder.prefix / ".lock").stat().st_mode & 0o777 == 0o600
    assert builder.git("status", "--porcelain", "--ignored").stdout == ""


def test_an_installation_points_at_a_whole_release(builder: Builder, tmp_path: Path) -> None:
    done = builder.make("install", f"DESTDIR={tmp_path}/package")
    assert done.returncode == 0, done
    prefix = Path(f"{tmp_path}/package{builder.prefix}")
    assert sorted(path.name for path in prefix.iterdir()) == ["current", "releases"]
    names = ["bin", "lib", "pyvenv.cfg", "release.json", "share"]
    assert sorted(path.name for path in (prefix / "current").iterdir()) == names
    assert not builder.prefix.exists()


def test_the_command_in_the_path_comes_and_goes_with_the_installation(builder: Builder, tmp_path: Path) -> None:
    package = tmp_path / "package"
    command = package / "usr/local/bin/oxidize"
    assert builder.make("install", f"DESTDIR={package}").returncode == 0
    assert command.readlink() == builder.prefix / "current/bin/oxidize"
    assert builder.make("uninstall", f"DESTDIR={package}").returncode == 0
    assert not command.is_symlink()


def test_manual_and_completions_lead_through_the_release_that_serves(builder: Builder, tmp_path: Path) -> None:
    package = tmp_path / "package"
    prefix = package / str(builder.prefix).lstrip("/")
    share = prefix / "releases/1.0.0/share"
    links = {
        "man/man1/oxidize-peer-add.1": "usr/local/share/man/man1/oxidize-peer-add.1",
        "bash-completion/completions/oxidize": "usr/share/bash-completion/completions/oxidize",
        "zsh/site-functions/_oxidize": "usr/local/share/zsh/site-functions/_oxidize",
        "fish/vendor_completions.d/oxidize.fish": "usr/share/fish/vendor_completions.d/oxidize.fish",
    }
    for name in (*links, "doc/oxidize/oxidize.md", "man/man1/pygmentize.1"):
        (share / name).parent.mkdir(parents=True, exist_ok=True)
        (share / name).touch()
    (prefix / "current").symlink_to("releases/1.0.0")
    other = package / "usr/local/share/man/man1/other.1"
    other.parent.mkdir(parents=True)
    other.touch()
    assert builder.make("units", f"DESTDIR={package}").returncode == 0
    usr = (path for path in (package / "usr").rglob("*") if path.is_symlink())
    found = {str(path.relative_to(package)): str(path.readlink()) for path in usr}
    expected = {link: f"{builder.prefix}/current/share/{name}" for name, link in links.items()}
    assert found == {"usr/local/bin/oxidize": f"{builder.prefix}/current/bin/oxidize", **expected}
    assert builder.make("uninstall", f"DESTDIR={package}").returncode == 0
    assert [path for path in package.rglob("*") if path.is_symlink()] == []
    assert other.exists()


@pytest.mark.parametrize("state", ["installed", "half-configured", "triggers-pending", "config-files", ""])
def test_make_install_leaves_what_dpkg_owns_alone(builder: Builder, tmp_path: Path, state: str) -> None:
    dpkg_query = tmp_path / "bin/dpkg-query"
    dpkg_query.parent.mkdir()
    # Every other package is there.
    dpkg_query.write_text(f"#!/bin/sh\ncase \"$*\" in *' oxidize') echo '{state}' ;; *) echo installed ;; esac\n")
    dpkg_query.chmod(0o755)
    path = f"{dpkg_query.parent}:{os.environ['PATH']}"
    assert builder.make("release", PATH=path).returncode == 0, "it is one more release"
    assert builder.make("units", f"DESTDIR={tmp_path}/elsewhere", PATH=path).returncode == 0
    if state in {"config-files", ""}:  # the rest would be done to this machine, and has its own tests
        return
    for goal in ("uninstall", "units", "install"):
        done = builder.make(goal, PATH=path)
        assert (done.returncode != 0, "the package oxidize is installed here" in done.stderr) == (True, True), done


def test_a_command_of_another_origin_is_kept_and_reported(builder: Builder, tmp_path: Path) -> None:
    command = tmp_path / "package/usr/local/bin/oxidize"
    command.parent.mkdir(parents=True)
    command.write_text("another program\n")
    values = [f"DESTDIR={tmp_path}/package"]
    done = builder.make("units", *values)
    expected = f"oxidize is not of this installation, and is kept: the command is {builder.prefix}/current/bin/oxidize"
    assert (done.returncode, expected in done.stderr) == (0, True), done
    assert builder.make("uninstall", *values).returncode == 0
    assert command.read_text() == "another program\n"


def test_an_uncommitted_change_is_part_of_the_name(builder: Builder) -> None:
    with (builder.source / "README.md").open("a") as file:
        file.write("changed\n")
    folder = Path(builder.make("release").stdout.splitlines()[-1])
    assert json.loads((folder / "release.json").read_text())["revision"] == f"{builder.revision}-dirty"


def test_a_checkout_of_another_user_has_a_revision(builder: Builder) -> None:
    env = {"GIT_TEST_ASSUME_DIFFERENT_OWNER": "1"}
    assert "dubious ownership" in builder.git("describe", "--always", **env).stderr
    assert builder.make("release", **env).stdout.strip().endswith(f"Z-{builder.revision}")


def test_a_build_that_fails_leaves_nothing(builder: Builder) -> None:
    with builder.build() as (build, _):
        builder.go.write_text("3\n")
        output, _ = build.communicate()
        assert (build.returncode != 0, output) == (True, "")
    assert builder.releases() == []


def test_a_terminated_build_leaves_nothing(builder: Builder) -> None:
    with builder.build() as (build, shell):
        os.kill(shell, signal.SIGTERM)
        builder.go.write_text("0\n")  # a shell heeds a signal when its command has ended
        build.communicate()
        assert build.returncode != 0
    assert builder.releases() == []


def test_a_killed_build_is_no_release_and_its_children_keep_the_lock(builder: Builder) -> None:
    with builder.build() as (build, shell):
        for pid in (build.pid, shell):
            os.kill(pid, signal.SIGKILL)
        build.wait()
        (cut_off,) = builder.releases()
        refused = builder.make("release")
        assert (refused.returncode != 0, refused.stdout) == (True, "")
        expected = f"another build or deployment is under way: pid {shell}, make release, since 20"
        assert [line for line in refused.stderr.splitlines() if line.startswith(expected)], refused
        assert not (cut_off / "release.json").exists()
        builder.go.write_text("0\n")
        build.communicate()  # the end of its pipes: the last of its processes has ended
    assert not (cut_off / "release.json").exists()
    assert builder.make("release").returncode == 0
    assert (builder.releases()[-1] / "release.json").exists()


def test_a_lock_that_is_held_is_respected_unless_the_caller_holds_it(builder: Builder) -> None:
    builder.prefix.mkdir()
    with (builder.prefix / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write("pid 1, oxidize deploy, since noon\n")
        lock.flush()
        refused = builder.make("release")
        assert refused.returncode != 0
        line = (
            "another build or deployment is under way: pid 1, oxidize deploy, since noon, try again when it has ended"
        )
        assert line in refused.stderr.splitlines()
        assert builder.make("release", OXIDIZE_LOCKED="1").returncode == 0
    assert (builder.prefix / ".lock").read_text() == "pid 1, oxidize deploy, since noon\n"


def test_units_that_differ_are_named(builder: Builder, tmp_path: Path) -> None:
    values = [f"DESTDIR={tmp_path}/package", "UNITDIR=/units"]
    assert builder.make("changed-units", *values).stdout.splitlines() == UNITS
    assert builder.make("units", *values).returncode == 0
    assert builder.make("changed-units", *values).stdout == ""
    folder = tmp_path / "package" / "units"
    assert f"{builder.prefix}/current/" in (folder / UNITS[0]).read_text()
    (folder / UNITS[3]).unlink()
    with (builder.source / "systemd" / UNITS[0]).open("a") as file:
        file.write("# changed\n")
    found = builder.make("changed-units", *values)
    assert (found.returncode, found.stdout.splitlines()) == (0, [UNITS[0], UNITS[3]])


# --- scripts/zero-downtime-deploy.sh ---

SCRIPT = ROOT / "scripts" / "zero-downtime-deploy.sh"


def deploy(prefix: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    env = Builder.environment(PREFIX=str(prefix))
    return subprocess.run([SCRIPT, *arguments], cwd=prefix, env=env, capture_output=True, check=False, text=True)


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    """A prefix with a command that prints its arguments, one a line."""
    put_command(tmp_path / "current")
    return tmp_path


def put_command(folder: Path, works: str = "exit 0") -> None:
    command = folder / "bin" / "oxidize"
    command.parent.mkdir(parents=True)
    command.write_text(f'#!/bin/sh\ntest "$1" != releases || {works}\nprintf \'%s\\n\' "$@"\necho $0 >&2; exit 5\n')
    command.chmod(0o755)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], ["deploy", "--source", str(ROOT), "--prefix", "PREFIX"]),
        (["--x", "two  words", ""], ["deploy", "--source", str(ROOT), "--prefix", "PREFIX", "--x", "two  words", ""]),
        (["--rollback"], ["rollback", "--prefix", "PREFIX"]),
        (["--to", "a b", "--rollback", "-y"], ["rollback", "--prefix", "PREFIX", "--to", "a b", "-y"]),
    ],
)
def test_the_script_runs_the_installed_command(prefix: Path, given: list[str], expected: list[str]) -> None:
    done = deploy(prefix, *given)
    printed = done.stdout.replace(str(prefix), "PREFIX").split("\n")[:-1]
    assert (done.returncode, printed, done.stderr) == (5, expected, f"{prefix}/current/bin/oxidize\n")


def test_the_script_rolls_back_a_broken_release_with_another_one(tmp_path: Path) -> None:
    put_command(tmp_path / "current", "exit 1")
    for name, works in (("1", "exit 0"), ("2", "exit 0"), ("3", "exit 1")):
        put_command(tmp_path / "releases" / name, works)
    done = deploy(tmp_path, "--rollback")
    program = f"{tmp_path}/releases/2/bin/oxidize"
    assert done.stderr.splitlines() == [f"{tmp_path}/current is broken; using {program}", program]
    assert done.stdout.split("\n")[:-1] == ["rollback", "--prefix", str(tmp_path)]


def test_the_script_reports_a_missing_installation(tmp_path: Path) -> None:
    done = deploy(tmp_path)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (1, "", 1)
    assert "nothing is installed yet" in done.stderr
    assert f"sudo make -C '{ROOT}' install" in done.stderr


@pytest.mark.parametrize("given", [["-h"], ["--rollback", "--help"]])
def test_the_script_has_a_help(prefix: Path, given: list[str]) -> None:
    done = deploy(prefix, *given)
    assert (done.returncode, done.stderr) == (0, "")
    assert "--rollback" in done.stdout
