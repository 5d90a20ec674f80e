"""Commands that a deployment runs: the build of a release, and the release's own commands before it serves.

The rule: a release that has not been tried runs as the user of the service and never as root. What it prints when it
fails is shown to the operator.
"""

import json
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from oxidize.deploy.releases import Release, Releases, interpreter_problem
from oxidize.errors import DeployError
from oxidize.oom_score import OomScore
from oxidize.text import printable

BUILD_TIMEOUT_SECS = 3600.0
COMMAND_TIMEOUT_SECS = 120.0
SERVER_MODULE = "oxidize.runtime.daemon"  # the other commands do not import it
LINES_SHOWN = 20  # the last lines of a failed build
OUTPUT_BYTES_MAX = 1 << 20  # of one command of a release
READ_BYTES = 1 << 16
ERROR_CHARACTERS_SHOWN = 4000  # the last ones: a traceback ends with the error
# The environment of a command that runs as another user: nothing of this process's environment is passed on.
ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
LOCKED_VARIABLE = "OXIDIZE_LOCKED"  # tells systemd/install.sh that this process holds the lock

Owner = tuple[int, int] | None  # user and group ids


@dataclass(frozen=True, slots=True)
class Rehearsed:
    """Sessions that a release would keep. now: sessions of the running server. refused: sessions lost, by reason."""

    sessions: int
    now: int
    refused: Mapping[str, int]


class Commands:
    """Runs commands. source: a checkout, None if nothing is built."""

    def __init__(self, releases: Releases, config_path: Path, source: Path | None, lock_fd: int) -> None:
        self._releases = releases
        self._config_path = config_path.absolute()
        self._source = source
        self._lock_fd = lock_fd

    def build(self) -> Release:
        """Build a release of the checkout; raises DeployError with the end of the output."""
        # A build that outlives this process keeps the lock, so that its unfinished release is not removed as a remnant.
        # The kernel ends it before a server where memory runs out.
        with OomScore():
            done = self._make("release", timeout=BUILD_TIMEOUT_SECS, pass_fds=[self._lock_fd])
        lines = done.stdout.strip().splitlines()
        built = self._releases.of_process(lines[-1]) if lines else None
        if built is None:
            raise DeployError(f"make release in {self._source} printed {lines[-1:]}; expected the folder of a release")
        return built

    def changed_units(self) -> list[str]:
        """Return the units of the checkout that differ from the installed ones; none without a checkout."""
        return self._make("changed-units").stdout.split() if self._source is not None else []

    def check(self, release: Release, owner: Owner) -> str:
        """Make a release import its code and check the configuration; return what it prints.

        Raises DeployError with every mistake, or with the import error.
        """
        try:
            run([release.folder / "bin/python", "-P", "-c", f"import {SERVER_MODULE}"], owner)
        except DeployError as error:
            if problem := interpreter_problem(release):
                raise DeployError(problem) from error
            raise
        return run([release.program, "check", "-c", self._config_path], owner)

    def rehearse(self, release: Release, owner: Owner) -> Rehearsed:
        """Make a release restore a copy of the live sessions; raises DeployError if it cannot."""
        printed = run([release.program, "rehearse", "-c", self._config_path, "--json"], owner)
        try:
            found = json.loads(printed)
            return Rehearsed(int(found["sessions"]), int(found["sessions_now"]), dict(found["refused"]))
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
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
            raise DeployError("\n".join([f"make {goal} in {self._source} failed:", *map(printable, printed)]))
        return done


def run(
    command: Sequence[Path | str],
    owner: Owner,
    *,
    timeout_secs: float = COMMAND_TIMEOUT_SECS,
    pass_fds: Sequence[int] = (),
) -> str:
    """Run a command as the owner and return its output; raises DeployError with its standard error.

    It gets no terminal, because a process that has root's terminal can type into it (ioctl_tty(2), TIOCSTI).
    """
    user, group = owner if owner is not None and os.geteuid() == 0 else (None, None)
    environment = ENVIRONMENT if user is not None else dict(os.environ)
    words = [str(word) for word in command]
    try:
        process = subprocess.Popen(
            words,
            cwd="/",
            env=environment,
            user=user,
            group=group,
            extra_groups=[] if user is not None else None,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            pass_fds=pass_fds,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise DeployError(f"{words[0]}: {error}") from error
    with process:
        try:
            output, errors = _output_of(process, words[0], timeout_secs)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    if process.returncode != 0:
        reason = errors or f"{words[0]}: exit status {process.returncode}, without any output"
        raise DeployError(reason.replace("oxidize: ", ""))
    return output


def _output_of(process: "subprocess.Popen[bytes]", name: str, timeout_secs: float) -> tuple[str, str]:
    """Wait for the end of a command; return its standard output and error. Bounded in time and size."""
    pipes = [(cast(IO[bytes], pipe), bytearray()) for pipe in (process.stdout, process.stderr)]
    deadline = time.monotonic() + timeout_secs
    with selectors.DefaultSelector() as selector:
        for pipe, printed in pipes:
            selector.register(pipe, selectors.EVENT_READ, printed)
        while selector.get_map():
            left = deadline - time.monotonic()
            if left <= 0:
                raise DeployError(f"{name}: not finished within {timeout_secs:.0f} s; it hangs")
            for key, _ in selector.select(left):
                part = os.read(key.fd, READ_BYTES)
                key.data.extend(part)
                if not part:
                    selector.unregister(key.fileobj)
                if len(key.data) > OUTPUT_BYTES_MAX:
                    raise DeployError(f"{name}: prints more than {OUTPUT_BYTES_MAX} bytes; expected a few lines")
    try:
        process.wait(max(deadline - time.monotonic(), 0.0))
    except subprocess.TimeoutExpired:
        raise DeployError(f"{name}: not finished within {timeout_secs:.0f} s; it hangs") from None
    output, errors = (bytes(printed).decode(errors="replace").strip() for _, printed in pipes)
    return printable(output, OUTPUT_BYTES_MAX), printable(errors[-ERROR_CHARACTERS_SHOWN:])
