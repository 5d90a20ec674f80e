"""Deployments without a service manager: real processes and releases, run by any user."""

import json
import os
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from oxidize.deploy.releases import DESCRIPTION
from tests.support.traffic.clients import EchoClient, Traffic
from tests.support.traffic.server import Lab, Server, kill, wait_for

pytestmark = pytest.mark.handoff

PACKETS_PER_SECOND = 300.0


class Installation:
    """A prefix with releases of the code under test; one of them serves."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.prefix = server.lab.folder / "prefix"
        self.state = server.lab.folder / "state"

    def add(self, name: str, built_unix: float, broken: str = "") -> Path:
        """Add a release with code that runs before its own, and return its program."""
        folder = self.prefix / "releases" / name
        (folder / "bin").mkdir(parents=True)
        python = folder / "bin/python"
        python.symlink_to(Path(sys.executable).resolve())
        (folder / "pyvenv.cfg").write_text((Path(sys.prefix) / "pyvenv.cfg").read_text())
        packages = folder / Path(sysconfig.get_path("purelib")).relative_to(sys.prefix)
        packages.parent.mkdir(parents=True)
        packages.symlink_to(sysconfig.get_path("purelib"))
        program = folder / "bin/oxidize"
        program.write_text(f"#!{python}\n{broken}\nfrom oxidize.cli.commands import main\nmain()\n")
        program.chmod(0o755)
        (folder / DESCRIPTION).write_text(json.dumps({"version": "0", "built_unix": built_unix, "revision": "r"}))
        return program

    def command(self, *arguments: str) -> tuple[str, ...]:
        where = ("--prefix", str(self.prefix), "--state-dir", str(self.state), "-c", str(self.server.config_path))
        return (str(self.prefix / "current/bin/oxidize"), *arguments, *where)

    def run(self, *arguments: str, expected: int = 0) -> dict[str, Any]:
        """Run a command and return its JSON output."""
        done = subprocess.run(
            self.command(*arguments, "--json"), capture_output=True, check=False, text=True, timeout=90
        )
        assert done.returncode == expected, f"{done.stdout}{done.stderr}{self.server.log_path.read_text()}"
        told: dict[str, Any] = json.loads(done.stdout)
        return told

    def serving(self) -> str:
        return Path(self.server.status()["release_folder"]).name


@pytest.fixture
def installation(tmp_path: Path, clients: list[EchoClient]) -> Iterator[Installation]:
    with Lab(tmp_path) as lab:
        made = Installation(Server(lab, [client.table() for client in clients], metrics_listen="127.0.0.1:0"))
        program = made.add("one", 1.0)
        (made.prefix / "current").symlink_to("releases/one")
        made.server.start(program=[str(program)])
        yield made


def test_a_release_is_deployed_and_rolled_back_under_traffic(
    installation: Installation, clients: list[EchoClient]
) -> None:
    installation.add("two", 2.0)
    with Traffic(installation.server, clients, PACKETS_PER_SECOND) as traffic:
        told = installation.run("deploy", "--release=two", "--settle=1")
        assert (told["result"], told["sessions"], installation.serving()) == ("success", 3, "two")
        traffic.wait_for_more()
        told = installation.run("rollback", "--settle=1")
        assert (told["result"], told["target"], installation.serving()) == ("success", "one", "one")
        assert installation.server.status()["generation"] == 3
        traffic.wait_for_more()
        traffic.assert_unharmed()
    listed = installation.run("releases")
    assert {each["name"]: each["marks"] for each in listed["releases"]} == {
        "one": ["running", "current"],
        "two": ["left"],
    }
    assert listed["holder"] is None


@pytest.mark.parametrize(
    ("broken", "result", "expected"),
    [
        ("import sys; sys.exit('broken on purpose')", "refused", "broken on purpose"),
        ("import sys\nif 'server' in sys.argv: sys.exit(3)", "failed", "ended without a reason"),
    ],
    ids=["cannot be run", "does not start"],
)
def test_a_bad_release_leaves_the_previous_one_serving(
    installation: Installation, clients: list[EchoClient], broken: str, result: str, expected: str
) -> None:
    # The successor is started by `python -m oxidize`: what breaks it breaks the module as well.
    program = installation.add("two", 2.0, broken)
    if result == "failed":
        put_into_module(program, broken)
    pid = installation.server.status()["pid"]
    with Traffic(installation.server, clients, PACKETS_PER_SECOND) as traffic:
        told = installation.run("deploy", "--release=two", "--settle=1", expected=1)
        assert (told["result"], installation.serving()) == (result, "one")
        assert expected in told["reason"]
        assert installation.server.status()["pid"] == pid
        assert os.readlink(installation.prefix / "current") == "releases/one"  # noqa: PTH115 - as it stands there
        traffic.wait_for_more()
        traffic.assert_unharmed()


@pytest.mark.parametrize(
    "code",
    [
        "s.describe_process = lambda node: b'null'\ns.describe_vitals = lambda node: b'null'",
        "s._identity = lambda node: {'log_level': 'louder'}",
    ],
    ids=["answers rubbish", "does not say who it is"],
)
def test_a_release_with_wrong_answers_to_queries_is_rolled_back(installation: Installation, code: str) -> None:
    put_into_module(installation.add("two", 2.0), f"import oxidize.runtime.status as s\n{code}")
    told = installation.run("deploy", "--release=two", "--settle=1", expected=1)
    assert (told["result"], installation.serving()) == ("rolled back", "one")


def put_into_module(program: Path, broken: str) -> None:
    """Run code at the start of every interpreter of a release (site; Debian's has a `sitecustomize` of its own)."""
    (packages,) = program.parents[1].glob("lib/python*/site-packages")
    target = packages.resolve()
    packages.unlink()
    packages.mkdir()
    (packages / "broken.pth").write_text(f"import site; site.addsitedir({str(target)!r})\nimport broken_on_purpose\n")
    (packages / "broken_on_purpose.py").write_text(broken.replace("sys.exit(3)", "__import__('os')._exit(3)") + "\n")


def test_a_reload_that_outlives_a_killed_deployment_keeps_the_lock(installation: Installation) -> None:
    mark = installation.server.lab.folder / "mark"
    slow = f"import sys, time, pathlib\nif 'reload' in sys.argv: pathlib.Path({str(mark)!r}).touch(); time.sleep(3)"
    installation.add("two", 2.0, slow)
    pid = installation.server.lab.spawn(installation.command("deploy", "--release=two", "--settle=1"), "deploy")
    wait_for("the reload to have begun", mark.exists)
    kill(pid, signal.SIGKILL)
    installation.server.lab.wait_ended(pid)
    done = subprocess.run(installation.command("rollback"), capture_output=True, check=False, text=True, timeout=60)
    assert (done.returncode, "another build or deployment is under way" in done.stderr) == (1, True)
    wait_for("the reload to have ended", lambda: installation.serving() == "two")
    wait_for("the lock to be free", lambda: installation.run("releases")["holder"] is None)
    told = installation.run("deploy", "--release=two", "--settle=1")
    assert told["steps"][0]["text"].endswith("two serves; it was not watched: `oxidize rollback` goes back")
