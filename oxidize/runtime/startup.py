"""The ways in which a generation begins: by takeover, from the service manager's store, or afresh.

The rule: a takeover wins where somebody listens at the takeover socket, then stored state, then nothing.
"""

import os

import oxidize
from oxidize.runtime import systemd
from oxidize.runtime.cold_start import start_alone
from oxidize.runtime.control import Control
from oxidize.runtime.loop import Loop, boot_time
from oxidize.runtime.node import Node
from oxidize.runtime.parts import make_folder
from oxidize.runtime.settings import NodeSettings
from oxidize.runtime.succession import Succession
from oxidize.state.records import FORMAT
from oxidize.takeover.successor import Successor


def start(settings: NodeSettings, loop: Loop, control: Control) -> Node:
    """Begin a generation that serves when this returns.

    Raises ConfigError for sockets that cannot be had, TakeoverError when a predecessor serves on instead.
    """
    make_folder(settings.takeover_socket)
    successor = Successor(
        settings.takeover_socket, release=oxidize.__version__, snapshot_versions=[FORMAT], clock=boot_time
    )
    offer = successor.connect()
    passed = systemd.listen_fds()
    if offer is None:
        successor.close()
        return start_alone(settings, loop, control, passed)
    for fds in passed.values():
        for fd in fds:  # the predecessor's own are the ones in use
            os.close(fd)
    return Succession(settings, loop, control, successor, offer).run()
