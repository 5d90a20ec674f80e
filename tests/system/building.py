"""Equip a machine for building releases as an ordinary operator: a checkout, wheels, and `sudo`.

Rule: nothing is downloaded inside, since the machine has no network. The commands are those of any machine; programs
that are missing here are replaced by scripts.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.system.machine import Machine

ROOT = Path(__file__).parents[2]
OPERATOR = "alice"
CHECKOUT = "/srv/oxidize"
ORIGIN = "/srv/origin.git"
AUTHOR = "/srv/author"  # where commits are made that the checkout is to pull
WHEELS = "/srv/wheels"
BUILD_TOOLS = ("setuptools", "wheel", "packaging")
NEEDED_PROGRAMS = ("git", "make", "curl", "useradd")
# As Debian's login shells and its sudo have it.
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
ENVIRONMENT = {
    "PATH": PATH,
    "LC_ALL": "C.UTF-8",
    "HOME": f"/home/{OPERATOR}",
    "PIP_CONFIG_FILE": os.devnull,
    "PIP_NO_INDEX": "1",
    "PIP_FIND_LINKS": WHEELS,
}
# Real privilege, by a copy of setpriv with the set-user-ID bit: what the operator runs without it is not root's.
SUDO = """#!/bin/sh
user=root
test "$1" != -u || { user=$2; shift 2; }
home=$(getent passwd "$user" | cut -d: -f6)
export SUDO_USER="$(id -un)" HOME="$home"
exec /usr/local/libexec/sudo-setpriv --reuid="$user" --regid="$user" --init-groups -- "$@"
"""


def download(folder: Path) -> Path:
    """Download the packages of a build by the hashes of the locks; return the folder."""
    blocks = re.split(r"\n(?=\S)", (ROOT / "requirements-dev.lock").read_text())
    tools = [block for block in blocks if block.partition("==")[0] in BUILD_TOOLS]
    assert len(tools) == len(BUILD_TOOLS), f"expected {BUILD_TOOLS} in requirements-dev.lock, found {len(tools)}"
    lock = folder / "build-tools.lock"
    lock.write_text("\n".join(tools) + "\n")
    wheels = folder / "wheels"
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "download", "--quiet")
    hashed = ("--require-hashes", "--no-build-isolation", "--use-pep517", "--no-deps", "--dest", str(wheels))
    locks = ("-r", str(lock), "-r", str(ROOT / "requirements.lock"))
    done = subprocess.run((*pip, *hashed, *locks), capture_output=True, check=False, text=True, timeout=300)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return wheels


class Workshop:
    """A machine with an operator, a checkout of this source tree, and an origin to pull from."""

    def __init__(self, machine: Machine, wheels: Path) -> None:
        self.machine = machine
        machine.run("useradd", "--create-home", "--shell", "/bin/bash", OPERATOR)
        shutil.copytree(wheels, machine.root / WHEELS.lstrip("/"))
        self._put_sudo()
        self._put_checkout()

    def command(self, *command: str) -> tuple[str, ...]:
        """Return a command that runs the given one inside as the operator."""
        as_operator = ("setpriv", f"--reuid={OPERATOR}", f"--regid={OPERATOR}", "--init-groups")
        # Tests that are started in the background run with SIGINT ignored, which no shell undoes.
        environment = ("env", "--default-signal=INT", "-i", *(f"{name}={value}" for name, value in ENVIRONMENT.items()))
        return self.machine.command(*as_operator, *environment, *command)

    def interrupt(self, group: int) -> None:
        """Send SIGINT to a process group, as a terminal does for Ctrl-C."""
        self.machine.run("kill", "-s", "INT", "--", f"-{group}")

    def put_program(self, name: str, text: str) -> None:
        """Install a script in the PATH of all users."""
        path = self.machine.root / "usr/local/bin" / name
        path.write_text(text)
        path.chmod(0o755)

    def _put_sudo(self) -> None:
        self.put_program("sudo", SUDO)
        helper = "/usr/local/libexec/sudo-setpriv"
        self.machine.run("install", "-D", "-m", "4755", "/usr/bin/setpriv", helper)

    def _put_checkout(self) -> None:
        source = self.machine.root / AUTHOR.lstrip("/")
        listed = ("git", "-c", f"safe.directory={ROOT}", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
        for name in subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0"):
            if name and (ROOT / name).is_file():
                (source / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, source / name)
        for folder in (ORIGIN, CHECKOUT):
            (self.machine.root / folder.lstrip("/")).mkdir()
        self.machine.run("chown", "-R", f"{OPERATOR}:", AUTHOR, ORIGIN, CHECKOUT)
        self._git(ORIGIN, "init", "--quiet", "--bare", "--initial-branch=main")
        self._git(AUTHOR, "init", "--quiet", "--initial-branch=main")
        self._git(AUTHOR, "remote", "add", "origin", ORIGIN)
        self._commit("Begin")
        self._git(CHECKOUT, "clone", "--quiet", ORIGIN, ".")

    def publish(self, path: str, code: str) -> None:
        """Append code to a file and push it to the origin."""
        with (self.machine.root / AUTHOR.lstrip("/") / path).open("a") as file:
            file.write(code)
        self._commit(f"Change {path}")

    def _commit(self, message: str) -> None:
        self._git(AUTHOR, "add", "--all")
        who = ("-c", "user.name=Author", "-c", "user.email=author@example.org")
        self._git(AUTHOR, *who, "commit", "--quiet", "-m", message)
        self._git(AUTHOR, "push", "--quiet", "origin", "main")

    def _git(self, folder: str, *arguments: str) -> None:
        done = subprocess.run(
            self.command("git", "-C", folder, *arguments),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, f"git {' '.join(arguments)}: {done.stdout}{done.stderr}"
