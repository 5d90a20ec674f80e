"""What a deployment runs: the build of a release, and the commands of the release itself before it serves.

The rule: a release that has not been tried runs as the user of the service and never as root, and whatever it prints
when it fails is what the operator reads.
"""

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from oxidize.deploy.releases import Release, Releases
from oxidize.deploy.server import is_root
from oxidize.errors import DeployError

BUILD_TIMEOUT_SECS = 3600.0
COMMAND_TIMEOUT_SECS = 120.0
SERVER_MODULE = "oxidize.runtime.daemon"  # which the other commands do without
LINES_SHOWN = 20  # of what a build that failed has printed last
# What another user's command is given of our environment: nothing that leads it to our files and sockets.
ENVIRONMENT_KEPT = ("PATH", "LANG", "LC_ALL", "TZ")
LOCKED_VARIABLE = "OXIDIZE_LOCKED"  # tells systemd/install.sh that we hold the lock

Owner = tuple[int, int] | None  # user and group ids


@dataclass(frozen=True, slots=True)
class Rehearsed:
    """What a release would keep. now: sessions of the server at that moment. refused: sessions by reason."""

    sessions: int
    now: int
    refused: Mapping[str, int]


class Commands:
    """Runs commands. source: a checkout, None where nothing is built."""

    def __init__(self, releases: Releases, config_path: Path, source: Path | None, lock_fd: int) -> None:
        self._releases = releases
        self._config_path = config_path.absolute()
        self._source = source
        self._lock_fd = lock_fd

    def build(self) -> Release:
        """Build a release of the checkout; raises DeployError with the end of what was printed."""
        # What outlives us keeps the lock, so that nobody takes its half of a release for a remainder.
        done = self._make("release", timeout=BUILD_TIMEOUT_SECS, pass_fds=[self._lock_fd])
        lines = done.stdout.strip().splitlines()
        built = self._releases.of_process(lines[-1]) if lines else None
        if built is None:
            raise DeployError(f"make release in {self._source} printed {lines[-1:]}; expected the folder of a release")
        return built

    def changed_units(self) -> list[str]:
        """Return the units of the checkout that differ from the installed ones; none where there is no checkout."""
        return self._make("changed-units").stdout.split() if self._source is not None else []

    def check(self, release: Release, owner: Owner) -> str:
        """Let a release load its code and check the configuration; return its verdict.

        Raises DeployError with every mistake, or with what the code lacks.
        """
        _run([release.folder / "bin/python", "-P", "-c", f"import {SERVER_MODULE}"], owner)
        return _run([release.program, "check", "-c", self._config_path], owner).strip()

    def rehearse(self, release: Release, owner: Owner) -> Rehearsed:
        """Let a release restore a copy of the live sessions; raises DeployError where it cannot."""
        printed = _run([release.program, "rehearse", "-c", self._config_path, "--json"], owner)
        try:
            found = json.loads(printed)
            return Rehearsed(int(found["sessions"]), int(found["sessions_now"]), dict(found["refused"]))
        except (ValueError, KeyError, TypeError) as error:
            raise DeployError(f"{release.name} rehearsed and printed {printed[:200]!r}; expected JSON") from error

    def _make(
        self, goal: str, *, timeout: float = COMMAND_TIMEOUT_SECS, pass_fds: Sequence[int] = ()
    ) -> "subprocess.CompletedProcess[str]":
        command = ["make", "--no-print-directory", "-C", str(self._source), goal, f"PREFIX={self._releases.prefix}"]
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "MFLAGS"))}
        try:
            done = subprocess.run(
                command,
                env=environment | {LOCKED_VARIABLE: "1"},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=timeout,
                pass_fds=pass_fds,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise DeployError(f"make {goal} in {self._source}: {error}") from error
        if done.returncode != 0:
            printed = (done.stdout + done.stderr).strip().splitlines()[-LINES_SHOWN:]
            raise DeployError("\n".join([f"make {goal} in {self._source} failed:", *printed]))
        return done


def _run(command: Sequence[Path | str], owner: Owner) -> str:
    """Run a command as the owner, and return what it prints; raises DeployError with what it prints as errors."""
    user, group = owner if owner is not None and is_root() else (None, None)
    environment = {name: value for name, value in os.environ.items() if user is None or name in ENVIRONMENT_KEPT}
    try:
        done = subprocess.run(
            [str(word) for word in command],
            cwd="/",
            env=environment,
            user=user,
            group=group,
            extra_groups=[] if user is not None else None,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=COMMAND_TIMEOUT_SECS,
            check=False,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise DeployError(f"{command[0]}: {error}") from error
    if done.returncode != 0:
        said = done.stderr.strip() or f"exit status {done.returncode}, without a word"
        raise DeployError(said.replace("oxidize: ", ""))
    return done.stdout
