"""Messages to the service manager, and the descriptors that it passes and stores.

The rule: any manager will do that speaks systemd's protocol, and none can stop this process: a message waits a moment
for a manager that does not read, and is then given up. Plain messages go through `sdnotify`, LISTEN_FDS with names come
through `systemd` (PyPI: systemd-python). Descriptors are sent here, for that package sends without a limit in time. A
manager without it is an error all the same: the next start could not take what is stored, and would lose the sessions.

Sources: sd_notify(3), sd_listen_fds(3), systemd.service(5) on FileDescriptorStoreMax=.
"""

import os
import select
import socket
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import sdnotify

from oxidize.clock import boot_time
from oxidize.errors import ConfigError, OxidizeError

LISTEN_FDS_START = 3  # sd_listen_fds(3)
BARRIER_TIMEOUT_SECS = 5.0
BARRIER_CHECK_SECS = 0.02  # between two looks of a process that serves meanwhile
HOLDER_VARIABLE = "OXIDIZE_HOLDER"
NOTIFY_TIMEOUT_SECS = 0.2  # for room in the queue of a manager that hangs: the process serves, and must not hang too


class UnreadError(OxidizeError):
    """The service manager does not read the messages of this process."""


def is_managed() -> bool:
    """Return whether a service manager listens to this process."""
    return bool(os.environ.get("NOTIFY_SOCKET"))


def is_held() -> bool:
    """Return whether that manager is a holder (`oxidize.holder`), which has no unit and runs no hooks."""
    return is_managed() and bool(os.environ.get(HOLDER_VARIABLE))


def is_unit() -> bool:
    """Return whether that manager runs this process as a unit, with hooks before and after it."""
    return is_managed() and not is_held()


def notify(*assignments: str) -> None:
    """Send assignments such as `READY=1` to the service manager, if there is one that reads them in time."""
    if is_managed():
        notifier = sdnotify.SystemdNotifier()
        if notifier.socket is None:  # the manager has ended
            return
        notifier.socket.settimeout(NOTIFY_TIMEOUT_SECS)
        notifier.notify("\n".join(assignments))
        notifier.socket.close()


def store_fd(name: str, fd: int, patience_secs: float = NOTIFY_TIMEOUT_SECS) -> None:
    """Put a descriptor into the manager's store, which passes it with LISTEN_FDS after a crash or restart.

    Raises ConfigError where no manager listens, and UnreadError where it has not read for `patience_secs`.
    """
    if is_managed():
        # FDPOLL=0: systemd would otherwise drop it at the first EPOLLHUP or EPOLLERR, which a TUN device may report.
        _send_fd(f"FDSTORE=1\nFDNAME={name}\nFDPOLL=0", fd, patience_secs)


def forget_fds(*names: str) -> None:
    """Remove descriptors from the manager's store, if it reads that in time."""
    for name in names:
        notify("FDSTOREREMOVE=1", f"FDNAME={name}")


def barrier(pause: Callable[[float], object] | None = None) -> bool:
    """Wait until the manager has processed all messages of this process; return whether it did in time.

    pause: called again and again with a number of seconds by a process that serves meanwhile. Raises as `store_fd`.
    """
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    try:
        _send_fd("BARRIER=1", write_end)
    finally:
        os.close(write_end)
    try:
        poller = select.poll()
        poller.register(read_end, 0)  # EPOLLHUP comes when the manager closes its copy
        deadline = boot_time() + BARRIER_TIMEOUT_SECS
        while pause is not None and not poller.poll(0) and boot_time() < deadline:
            pause(BARRIER_CHECK_SECS)
        return bool(poller.poll(max(0.0, deadline - boot_time()) * 1000))
    finally:
        os.close(read_end)


def _send_fd(message: str, fd: int, patience_secs: float = NOTIFY_TIMEOUT_SECS) -> None:
    if not is_held():
        _daemon()
    where = os.environ.get("NOTIFY_SOCKET", "")
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.settimeout(patience_secs)
            sock.connect(f"\0{where[1:]}" if where.startswith("@") else where)
            socket.send_fds(sock, [message.encode()], [fd])
    except TimeoutError as error:
        raise UnreadError(
            f"NOTIFY_SOCKET = {where}: not read for {patience_secs:g} s, so {message.splitlines()[0]} is not sent: "
            "expected a service manager that runs; restart this service when it does"
        ) from error
    except OSError as error:
        raise ConfigError(
            f"NOTIFY_SOCKET = {where}: {error.strerror}: expected a service manager that listens there; "
            f"unset it where there is none"
        ) from error


def listen_fds() -> dict[str, list[int]]:
    """Return the descriptors that the manager passed to this process, by name.

    They are made close-on-exec, and their variables removed from the environment.
    """
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return {}
    passed: dict[str, list[int]] = {}
    for fd, name in _listen_fds_of_holder() if is_held() else _listen_fds_of_systemd():
        os.set_inheritable(fd, False)
        passed.setdefault(name, []).append(fd)
    return passed


def _listen_fds_of_systemd() -> Iterable[tuple[int, str]]:
    found: dict[int, str] = _daemon().listen_fds_with_names(unset_environment=True)
    return found.items()


def _listen_fds_of_holder() -> Iterable[tuple[int, str]]:
    """Return the same without that package, which a machine without systemd has no use for."""
    names = os.environ["LISTEN_FDNAMES"].split(":")
    for part in ("PID", "FDS", "FDNAMES"):
        del os.environ[f"LISTEN_{part}"]
    return enumerate(names, LISTEN_FDS_START)


def single(passed: dict[str, list[int]], names: Sequence[str]) -> dict[str, int]:
    """Return one descriptor for each of `names` that was passed; raises ConfigError where several share a name."""
    several = [name for name in names if len(passed.get(name, [])) > 1]
    if several:
        raise ConfigError(
            *(
                (
                    f"LISTEN_FDS: {len(passed[name])} files are named {name!r}: expected one; "
                    f"give each socket unit its own FileDescriptorName= and one Listen...= line"
                )
                for name in several
            )
        )
    return {name: passed[name][0] for name in names if passed.get(name)}


def _daemon() -> Any:
    try:
        from systemd import daemon  # type: ignore[attr-defined] # noqa: PLC0415  # an extra, not this folder systemd/
    except ImportError as error:
        raise ConfigError(
            "NOTIFY_SOCKET or LISTEN_FDS is set, but the Python package systemd-python is not installed: "
            f"install it with `{sys.executable} -m pip install systemd-python`, or install Oxidize with `make install`"
        ) from error
    return daemon
