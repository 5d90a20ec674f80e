"""What systemd says of our own unit when it is asked: its main process, and the job that is under way. And its reload.

The rule: not to know is no failure. Without D-Bus, without the right to ask, or under another manager the answer is
None, and the caller does what is safe. NOTIFY_SOCKET is unset for the question, so that nobody takes it for ours. What
comes back may be printed: a unit's StatusText is whatever its process said.

Source: systemctl(1), systemd.unit(5); `MainPID` and `Job` of org.freedesktop.systemd1(5).
"""

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from oxidize.errors import Phase, TakeoverError
from oxidize.text import printable

SYSTEMD_SOCKET = "/run/systemd/notify"  # of the system manager; whoever else has a NOTIFY_SOCKET is not asked
CGROUP = Path("/proc/self/cgroup")
QUESTION_TIMEOUT_SECS = 2.0  # it takes 3 to 7 ms
RELOAD_TIMEOUT_SECS = 120.0  # more than TimeoutStartSec= of the unit, which bounds a reload


def name(cgroup: str) -> str | None:
    """Return the service that a process belongs to, by its line of /proc/PID/cgroup (cgroups(7))."""
    for line in cgroup.splitlines():
        hierarchy, controllers, path = line.split(":", 2)
        last = path.rsplit("/", 1)[-1]
        if (hierarchy == "0" or controllers == "name=systemd") and last.endswith(".service"):
            return last
    return None


def own_name() -> str | None:
    """Return the service that this process belongs to, without ".service"; None where there is none."""
    try:
        found = name(CGROUP.read_text())
    except OSError:
        return None
    return found.removesuffix(".service") if found is not None else None


def main_pid(environ: Mapping[str, str] = os.environ) -> int | None:
    """Return the main process of our unit as systemd sees it, or None where it cannot be known."""
    answer = _ask(environ, "show", "--property=MainPID", "--value")
    return int(answer) if answer is not None and answer.isdecimal() and answer != "0" else None


def will_go_on(environ: Mapping[str, str] = os.environ) -> bool:
    """Tell whether systemd will start our unit again when this process ends; False where it cannot be known.

    Only a stop ends a unit of Restart=always. A restart has a job of its own; and without any job systemd has seen a
    main process die, and ends what is left of the unit to begin anew.
    """
    answer = _ask(environ, "list-jobs", "--no-legend", "--plain", "--no-pager")
    unit = _own_unit(environ)
    rows = [line.split() for line in (answer or "").splitlines()]
    return answer is not None and not any(row[1:3] == [unit, "stop"] for row in rows)


def service_of(pid: int) -> str | None:
    """Return the service that a process belongs to, or None where it belongs to none or cannot be known."""
    try:
        return name(Path("/proc", str(pid), "cgroup").read_text())
    except OSError:
        return None


def property_of(service: str, name: str) -> str | None:
    """Return a property of a service, such as "MainPID"; None where the service manager cannot be asked."""
    try:
        done = subprocess.run(
            ["systemctl", "show", f"--property={name}", "--value", service],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=QUESTION_TIMEOUT_SECS,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return printable(done.stdout.strip()) if done.returncode == 0 else None


def reload(service: str) -> None:
    """Reload a service and wait for the end of it; raises TakeoverError with what systemd and the service say."""
    try:
        done = subprocess.run(
            ["systemctl", "reload", service],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=RELOAD_TIMEOUT_SECS,
            start_new_session=True,  # Ctrl-C would end the waiting, and not the reload
            check=False,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise TakeoverError(Phase.RUNNING_SYSTEMCTL, str(error)) from error
    if done.returncode == 0:
        return
    reason = printable(" ".join(done.stderr.split())) or f"exit status {done.returncode}"
    said = property_of(service, "StatusText")
    raise TakeoverError(Phase.RUNNING_SYSTEMCTL, f"{reason} ({said})" if said else reason)


def _own_unit(environ: Mapping[str, str]) -> str | None:
    if environ.get("NOTIFY_SOCKET") != SYSTEMD_SOCKET:
        return None
    try:
        return name(CGROUP.read_text())
    except OSError:
        return None


def _ask(environ: Mapping[str, str], verb: str, *options: str) -> str | None:
    unit = _own_unit(environ)
    if unit is None:
        return None
    asking = {key: value for key, value in environ.items() if key != "NOTIFY_SOCKET"}
    try:
        done = subprocess.run(
            ["systemctl", verb, *options, unit],
            env=asking,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=QUESTION_TIMEOUT_SECS,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
