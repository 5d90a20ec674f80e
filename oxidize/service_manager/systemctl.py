"""Queries to systemctl: a unit's main PID, its pending job, its properties; and its reload.

The rule: a missing answer is not an error. Without D-Bus, without the right to ask, or under another service manager
the answer is None, and the caller does what is safe. NOTIFY_SOCKET is unset for a query, so that systemctl is not taken
for the service. Answers may be printed: a unit's StatusText is whatever its process set.

Source: systemctl(1), systemd.unit(5); `MainPID` and `Job` of org.freedesktop.systemd1(5).
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from oxidize.errors import Phase, TakeoverError
from oxidize.text import printable

if TYPE_CHECKING:
    import subprocess

SYSTEMD_SOCKET = "/run/systemd/notify"  # of the system manager; no other manager is queried
CGROUP = Path("/proc/self/cgroup")
QUERY_TIMEOUT_SECS = 2.0  # a query takes 3 to 7 ms
RELOAD_TIMEOUT_SECS = 120.0  # more than TimeoutStartSec= of the unit, which bounds a reload


def service_in(cgroup: str) -> str | None:
    """Return the service that a process belongs to, by its line of /proc/PID/cgroup (cgroups(7))."""
    for line in cgroup.splitlines():
        hierarchy, controllers, path = line.split(":", 2)
        last = path.rsplit("/", 1)[-1]
        if (hierarchy == "0" or controllers == "name=systemd") and last.endswith(".service"):
            return last
    return None


def own_name() -> str | None:
    """Return the service that this process belongs to, without ".service"; None where there is none."""
    found = _read_service(CGROUP)
    return found.removesuffix(".service") if found is not None else None


def service_of(pid: int) -> str | None:
    """Return the service that a process belongs to, or None where it belongs to none or cannot be known."""
    return _read_service(Path("/proc", str(pid), "cgroup"))


def main_pid() -> int | None:
    """Return the main process of this process's unit as systemd sees it, or None where it cannot be known."""
    answer = _query_own_unit("show", "--property=MainPID", "--value")
    return int(answer) if answer is not None and answer.isdecimal() and answer != "0" else None


def was_restarted() -> bool:
    """Return whether systemd has started this process by itself, after another one; False where it cannot be known."""
    answer = _query_own_unit("show", "--property=NRestarts", "--value")
    return answer is not None and answer.isdecimal() and int(answer) > 0


def will_restart(*, otherwise: bool = False) -> bool:
    """Return whether systemd will start this unit again when this process ends.

    Only a stop ends a unit of Restart=always. A restart has a job of its own; and without any job systemd has seen a
    main process die, and ends what is left of the unit before it starts it again. otherwise: returned where it cannot
    be known.
    """
    has_stop = _has_stop_job()
    return otherwise if has_stop is None else not has_stop


def is_stopped() -> bool:
    """Return whether an end of this process is a planned one: it belongs to no unit, or its unit was told to stop.

    False where the unit cannot be asked for, and where the whole machine stops.
    """
    if _query("show", "--property=SystemState", "--value") == "stopping":
        return False
    return _own_unit() is None or _has_stop_job() is True


def _has_stop_job() -> bool | None:
    """Return whether the unit of this process is to stop, or None where it cannot be known."""
    answer = _query_own_unit("list-jobs", "--no-legend", "--plain", "--no-pager")
    if answer is None:
        return None
    unit = _own_unit()
    return any(line.split()[1:3] == [unit, "stop"] for line in answer.splitlines())


def property_of(service: str, name: str) -> str | None:
    """Return a property of a service, such as "MainPID"; None where the service manager cannot be queried."""
    answer = _query("show", f"--property={name}", "--value", service)
    return printable(answer) if answer is not None else None


def reload(service: str) -> None:
    """Reload a service and wait for the end of it; raises TakeoverError with the reasons of systemd and the service."""
    try:
        # In a session of its own: Ctrl-C would end the waiting, and not the reload.
        done = _run("reload", service, timeout_secs=RELOAD_TIMEOUT_SECS, start_new_session=True)
    except OSError as error:
        raise TakeoverError(Phase.RUNNING_SYSTEMCTL, str(error)) from error
    if done.returncode == 0:
        return
    reason = printable(" ".join(done.stderr.split())) or f"exit status {done.returncode}"
    status = property_of(service, "StatusText")
    raise TakeoverError(Phase.RUNNING_SYSTEMCTL, f"{reason} ({status})" if status else reason)


def _read_service(cgroup: Path) -> str | None:
    try:
        return service_in(cgroup.read_text())
    except OSError:
        return None


def _own_unit() -> str | None:
    return _read_service(CGROUP) if os.environ.get("NOTIFY_SOCKET") == SYSTEMD_SOCKET else None


def _query_own_unit(*arguments: str) -> str | None:
    unit = _own_unit()
    return _query(*arguments, unit) if unit is not None else None


def _query(*arguments: str) -> str | None:
    """Return what `systemctl` prints, or None where it fails."""
    try:
        done = _run(*arguments, timeout_secs=QUERY_TIMEOUT_SECS)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _run(*arguments: str, timeout_secs: float, start_new_session: bool = False) -> "subprocess.CompletedProcess[str]":
    """Run systemctl; raises OSError, also where it takes longer."""
    import subprocess  # noqa: PLC0415  # a start after a crash asks nothing before its first packet

    try:
        return subprocess.run(
            ["systemctl", *arguments],
            env={key: value for key, value in os.environ.items() if key != "NOTIFY_SOCKET"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_secs,
            start_new_session=start_new_session,
            check=False,
        )
    except subprocess.SubprocessError as error:
        raise OSError(str(error)) from error
