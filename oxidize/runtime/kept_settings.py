"""The memory file with what was validated, and its place in the service manager's fd store.

The rule: the store has what the process that serves has validated or used, so it is written by the owner alone, after
its first packet; a successor that fails leaves its predecessor's. Nothing here prevents a start: without the file the
next start validates the configuration. Releases before 0.2.0 close the descriptor unread, with a warning.
"""

import os
from collections.abc import Iterable

from oxidize import logs
from oxidize.errors import OxidizeError, reason_of
from oxidize.runtime import validated
from oxidize.service_manager import notify

STORED_NAME = "settings"  # in the store

log = logs.get(__name__)


class KeptSettings:
    """The file of this process. fd: None where there is no room for one. is_stored: whether the store has it alone."""

    def __init__(self, fd: int | None = None, *, is_stored: bool = False) -> None:
        self.fd = fd
        self.is_stored = is_stored

    def store(self) -> None:
        """Have the manager's store keep this file and no other one of its kind."""
        if self.is_stored or not notify.is_managed():
            return
        try:
            notify.forget_fds(STORED_NAME)
            if self.fd is not None:
                notify.store_fd(STORED_NAME, self.fd)
            self.is_stored = True
        except OxidizeError as error:
            log.warning("the next start validates the configuration again", reason=reason_of(error))


def kept_of(
    loaded: validated.Loaded, stored: Iterable[int], contents: dict[int, bytes], given: Iterable[int] = ()
) -> KeptSettings:
    """Return the file with what this process uses: one of `contents` or a new one; all others are closed.

    stored: the descriptors that come from the store. given: those that come from elsewhere.
    """
    used = next((fd for fd, content in contents.items() if content is loaded.kept), None)
    is_stored = used is not None and list(stored) == [used]
    for fd in {*stored, *given} - {used}:
        os.close(fd)
    if used is None:
        try:
            used = validated.keep(loaded.kept)
        except OSError as error:  # no room: for a descriptor, or in memory
            log.warning("the next start validates the configuration again", reason=str(error))
    return KeptSettings(used, is_stored=is_stored)
