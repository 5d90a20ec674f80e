"""A service manager with a store of descriptors, for tests of what is stored there."""

import os
from pathlib import Path

from oxidize.holder.fd_store import FdStore, bind_notify_socket, receive_notification

ALL = 1 << 30  # of the messages


class Manager:
    """A service manager that has processed the first messages of a process that was then killed, or all."""

    def __init__(self, path: Path) -> None:
        self._socket = bind_notify_socket(str(path))
        self.store = FdStore()

    def process(self, messages: int = ALL) -> int:
        """Process at most this many messages and drop all others; return how many came."""
        came = 0
        while (notification := receive_notification(self._socket)) is not None:
            came += 1
            if came <= messages:
                self.store.apply(notification)
            notification.close()
        return came

    def passed(self) -> dict[str, list[int]]:
        """Return what the next process is passed: copies, which the caller closes."""
        passed: dict[str, list[int]] = {}
        for name, fd in self.store.entries:
            passed.setdefault(name, []).append(os.dup(fd))
        return passed

    def close(self) -> None:
        self.store.close()
        self._socket.close()
