"""The ways to start a generation: by takeover, from the state in the service manager's fd store, or without state.

The rule: a process that listens at the takeover socket is taken over, then stored state is used, then none. A process
that was started to replace another one replaces it or ends: a start is left to the service manager or the operator, for
`oxidize reload` may run as another user than a server should.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from oxidize.control.reload_channel import Control
from oxidize.errors import OxidizeError
from oxidize.net.event_loop import Loop
from oxidize.runtime.cold_start import start_alone
from oxidize.runtime.kept_settings import KeptSettings
from oxidize.runtime.offer import READS_TUN_FLAGS, TAKES_UAPI
from oxidize.runtime.parts import make_folder
from oxidize.settings import NodeSettings
from oxidize.state import memory_file
from oxidize.state.records import FORMAT
from oxidize.takeover.connection import who_listens
from oxidize.takeover.path_lock import PathLock
from oxidize.text import own_release

if TYPE_CHECKING:
    from oxidize.runtime.handover import Handover


def start(
    settings: NodeSettings, kept: KeptSettings, loop: Loop, control: Control, passed: dict[str, list[int]]
) -> "Handover":
    """Start a generation, which serves when this returns.

    kept: the file with the settings. passed: the descriptors that the service manager passed. Raises ConfigError if a
    socket cannot be opened, TakeoverError if a predecessor still serves instead, and OxidizeError if a coordinator
    waits for a takeover and the predecessor has ended, or on a 32-bit machine.
    """
    memory_file.check_machine()
    make_folder(settings.takeover_socket)
    lock = PathLock(settings.takeover_socket)
    if not control.is_coordinated and _is_alone(settings.takeover_socket, lock):
        return start_alone(settings, kept, loop, control, passed, lock)
    from oxidize.takeover.successor import Successor  # noqa: PLC0415  # not for a start after a crash

    successor = Successor(
        settings.takeover_socket,
        release=own_release(),
        snapshot_versions=[FORMAT],
        abilities=[READS_TUN_FLAGS, TAKES_UAPI],
        lock=lock,
    )
    offer = successor.connect()
    if offer is None and control.is_coordinated:
        successor.close()
        raise OxidizeError(
            f"the server to be replaced has ended: no process listens at {settings.takeover_socket}; this process does "
            "not start in its place: start it, or check whether its service manager has done so"
        )
    if offer is None:
        successor.close()
        return start_alone(settings, kept, loop, control, passed, lock)
    for fds in passed.values():
        for fd in fds:  # the predecessor's are the ones in use
            os.close(fd)
    from oxidize.runtime.succession import Succession  # noqa: PLC0415  # not for a start after a crash

    return Succession(settings, kept, loop, control, successor, offer).run()


def _is_alone(takeover_socket: Path, lock: PathLock) -> bool:
    """Return whether this process holds the lock and no other one listens: what `Successor.connect` would find.

    The lock comes first, for a process that has served since a look before it listens, and may hold none.
    """
    if not lock.take_if_possible():
        return False
    if who_listens(takeover_socket) is None:
        return True
    lock.release()
    return False
