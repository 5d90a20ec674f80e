"""What runs although no process listens at a takeover socket, and how to reach it.

The rule: a missing path proves nothing, for files vanish and their process stays. So the kernel is asked who holds the
lock of the path, also of a file that was removed, who has the UDP port, and which holder was started for the path; the
service manager is asked for the main process of the unit. The answer is for people: nothing is done to a process that
is found this way, but `oxidize stop` ends a holder.

Sources: proc(5), /proc/PID/cmdline, /proc/PID/fd, /proc/PID/fdinfo and /proc/net/udp.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from oxidize.service_manager import systemctl
from oxidize.takeover.path_lock import PathLock

PROC = Path("/proc")
HOLDER_NAME = "oxidize-holder"  # of `oxidize.holder.__main__`, in ps
HOLDER_MODULE = b"oxidize.holder"  # in its command line, whose last argument is the takeover socket
ROOT = 0
INIT = 1  # it holds the sockets of units, and serves nothing itself
# By the folder of the default takeover socket, RuntimeDirectory= of the unit.
UNITS = {"/run/oxidize": "oxidize-daemon.service", "/run/oxidize-client": "oxidize-client.service"}

_HAS_LOCK = "holds the lock"


def who_runs(takeover_socket: Path, udp_port: int = 0) -> list[str]:
    """Return a line for each process that runs all the same, with the way to reach it; none where none is found.

    udp_port: of the configuration, 0 for none. Processes of other users are seen by root alone.
    """
    found = dict(_found_in_proc(takeover_socket, udp_port))
    has_lock = {pid: why for pid, why in found.items() if any(each.startswith(_HAS_LOCK) for each in why)}
    if not has_lock:  # else the parent that keeps the sockets of that process (the holder) needs no line
        for pid in holders_of(takeover_socket):
            found.setdefault(pid, []).append(f"was started for {takeover_socket}")
    found = has_lock or found
    unit = UNITS.get(str(takeover_socket.parent))
    main_pid = systemctl.property_of(unit, "MainPID") if unit is not None else None
    if main_pid is not None and main_pid.isdecimal() and int(main_pid):
        found.setdefault(int(main_pid), []).append(f"is the main process of {unit}")
    return [f"pid {pid} runs all the same: it {', and '.join(why)}; {_way_to(pid)}" for pid, why in found.items()]


def holders_of(takeover_socket: Path) -> list[int]:
    """Return the pid of each holder that was started for a takeover socket, also of one that waits for its next start.

    Only holders of root, of this process's user and of the owner of the folder are believed.
    """
    path = os.fsencode(takeover_socket)
    users = {ROOT, os.geteuid()}
    with contextlib.suppress(OSError):
        users.add(takeover_socket.parent.stat().st_uid)
    found: dict[int, int] = {}  # with their parents
    for process in _processes():
        with contextlib.suppress(OSError):
            words = (process / "cmdline").read_bytes().rstrip(b"\0").split(b"\0")
            if HOLDER_MODULE in words and words[-1] == path and process.stat().st_uid in users and _is_here(process):
                found[int(process.name)] = int((process / "stat").read_text().rpartition(")")[2].split()[1])
    return [pid for pid, parent in found.items() if parent not in found]  # not what a holder has just forked


def way_to_start(takeover_socket: Path) -> str | None:
    """Return how the installed service is started that serves at this socket; None where none is installed."""
    unit = UNITS.get(str(takeover_socket.parent))
    if unit is None or systemctl.property_of(unit, "LoadState") != "loaded":
        return None
    return f"start it with `systemctl start {unit}`; `systemctl status {unit}` says why it does not serve"


def _way_to(pid: int) -> str:
    if _is_holder(pid):
        return f"it is a holder, and starts the next process: its log says why that fails; end it with `kill {pid}`"
    again = "it makes the path again as soon as it can, and its log says what prevents that: try again, or"
    service = systemctl.service_of(pid)
    if service is not None and service in UNITS.values():
        return (
            f"{again} `systemctl reload {service}`, for which systemd makes the folder again; "
            f"`systemctl restart {service}` keeps the sessions, too"
        )
    return f"{again} end it with `kill {pid}`, and start it"


def _is_holder(pid: int) -> bool:
    try:
        return (PROC / str(pid) / "comm").read_text() == f"{HOLDER_NAME}\n"
    except OSError:
        return False


def _found_in_proc(takeover_socket: Path, udp_port: int) -> Iterator[tuple[int, list[str]]]:
    lock = str(PathLock(takeover_socket).path)
    locks = {lock, f"{lock} (deleted)"}
    sockets = {f"socket:[{inode}]" for inode in _udp_inodes(udp_port)}
    for process in _processes():
        pid = int(process.name)
        if pid in {INIT, os.getpid()}:
            continue
        why = []
        for number, target in _open_files(process):
            if target in locks and _is_locked(process, number):
                why.append(f"{_HAS_LOCK} {lock}")
            elif target in sockets:
                why.append(f"has UDP port {udp_port}")
        if why:
            yield pid, list(dict.fromkeys(why))


def _processes() -> list[Path]:
    return sorted(PROC.glob("[0-9]*"), key=lambda path: int(path.name))


def _is_here(process: Path) -> bool:
    """Return whether a process has the root directory of this one, and not that of a container; True if unknown."""
    try:
        return (process / "root").samefile("/")
    except PermissionError:
        return True


def _open_files(process: Path) -> Iterator[tuple[str, str]]:
    """Yield number and target of each open file of a process; none of one that ended, or that may not be looked at."""
    try:
        links = list((process / "fd").iterdir())
    except OSError:
        return
    for link in links:
        with contextlib.suppress(OSError):  # closed meanwhile
            yield link.name, str(link.readlink())


def _is_locked(process: Path, number: str) -> bool:
    try:
        return "FLOCK" in (process / "fdinfo" / number).read_text()
    except OSError:
        return False


def _udp_inodes(port: int) -> Iterator[str]:
    """Yield the inode of each UDP socket that is bound to a port in this network namespace."""
    for name in ("udp", "udp6"):
        try:
            rows = (PROC / "net" / name).read_text().splitlines()[1:]
        except OSError:
            continue
        for row in rows:
            fields = row.split()
            if port and int(fields[1].rpartition(":")[2], 16) == port:
                yield fields[9]
