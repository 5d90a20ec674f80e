"""The ways in which a generation begins: by takeover, from the service manager's store, or afresh.

The rule: a takeover wins where somebody listens at the takeover socket, then stored state, then nothing. Whoever was
started to replace a process replaces it or ends: a start is the service manager's business, or the operator's, and
`oxidize reload` may run as another user than a server should.
"""

import os

import oxidize
from oxidize.control.reload_channel import Control
from oxidize.errors import Phase, TakeoverError
from oxidize.net.event_loop import Loop, boot_time
from oxidize.runtime.cold_start import start_alone
from oxidize.runtime.handover import Handover
from oxidize.runtime.parts import make_folder
from oxidize.runtime.succession import Succession
from oxidize.service_manager import notify
from oxidize.settings import NodeSettings
from oxidize.state.records import FORMAT
from oxidize.takeover.successor import Successor


def start(settings: NodeSettings, loop: Loop, control: Control) -> Handover:
    """Begin a generation that serves when this returns.

    Raises ConfigError for sockets that cannot be had, TakeoverError when a predecessor serves on instead, or when there
    is none any more to take over from and a coordinator waits for that.
    """
    make_folder(settings.takeover_socket)
    successor = Successor(
        settings.takeover_socket, release=oxidize.__version__, snapshot_versions=[FORMAT], clock=boot_time
    )
    offer = successor.connect()
    if offer is None and control.is_coordinated:
        successor.close()
        raise TakeoverError(
            Phase.CONNECTING,
            f"the server that was to be replaced has ended: nobody listens at {settings.takeover_socket} any more; "
            "nothing was started in its place: start it, or see whether its service manager has done so",
        )
    passed = notify.listen_fds()
    if offer is None:
        successor.close()
        return start_alone(settings, loop, control, passed)
    for fds in passed.values():
        for fd in fds:  # the predecessor's own are the ones in use
            os.close(fd)
    return Succession(settings, loop, control, successor, offer).run()
