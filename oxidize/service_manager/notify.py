"""Messages to the service manager, and the descriptors that it passes and stores.

The rule: any manager will do that speaks systemd's protocol. Plain messages go through `sdnotify`; messages that carry
descriptors, and LISTEN_FDS with names, through `systemd` (PyPI: systemd-python). A manager without that package is an
error: a server whose state is not stored would lose its sessions with the first crash.

Sources: sd_notify(3), sd_listen_fds(3), systemd.service(5) on FileDescriptorStoreMax=.
"""

import os
import select
from collections.abc import Sequence
from typing import Any

import sdnotify

from oxidize.errors import ConfigError

BARRIER_TIMEOUT_SECS = 5.0
NOTIFY_TIMEOUT_SECS = 0.2  # for room in the queue of a manager that hangs: the process serves, and must not hang too


def is_managed() -> bool:
    """Return whether a service manager listens to this process."""
    return bool(os.environ.get("NOTIFY_SOCKET"))


def notify(*assignments: str) -> None:
    """Send assignments such as `READY=1` to the service manager, if there is one that reads them in time."""
    if is_managed():
        notifier = sdnotify.SystemdNotifier()
        if notifier.socket is None:  # the manager has ended
            return
        notifier.socket.settimeout(NOTIFY_TIMEOUT_SECS)
        notifier.notify("\n".join(assignments))
        notifier.socket.close()


def store_fd(name: str, fd: int) -> None:
    """Put a descriptor into the manager's store, which passes it with LISTEN_FDS after a crash or restart."""
    if is_managed():
        # FDPOLL=0: systemd would otherwise drop it at the first EPOLLHUP or EPOLLERR, which a TUN device may report.
        _send_fd(f"FDSTORE=1\nFDNAME={name}\nFDPOLL=0", fd)


def forget_fds(*names: str) -> None:
    """Remove descriptors from the manager's store."""
    for name in names:
        notify("FDSTOREREMOVE=1", f"FDNAME={name}")


def barrier() -> bool:
    """Wait until the manager has processed all messages of this process; return whether it did in time."""
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    try:
        _send_fd("BARRIER=1", write_end)
    finally:
        os.close(write_end)
    try:
        poller = select.poll()
        poller.register(read_end, 0)  # EPOLLHUP comes when the manager closes its copy
        return bool(poller.poll(BARRIER_TIMEOUT_SECS * 1000))
    finally:
        os.close(read_end)


def _send_fd(message: str, fd: int) -> None:
    try:
        _daemon().notify(message, fds=[fd])
    except OSError as error:
        where = os.environ.get("NOTIFY_SOCKET")
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
    for fd, name in _daemon().listen_fds_with_names(unset_environment=True).items():
        os.set_inheritable(fd, False)
        passed.setdefault(name, []).append(fd)
    return passed


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
        from systemd import daemon  # type: ignore[attr-defined] # noqa: PLC0415  # an extra: only where a manager is
    except ImportError as error:
        raise ConfigError(
            "NOTIFY_SOCKET or LISTEN_FDS is set, but the Python package systemd-python is not installed: "
            "install it with `pip install 'oxidize[systemd]'`"
        ) from error
    return daemon
