"""Looks at a socket's filter, without a belief about who attached it."""

import errno
import socket

_SO_GET_FILTER = 26  # asm-generic/socket.h


def is_filtered(bound: socket.socket) -> bool:
    """Return whether a socket has a filter: the kernel refuses to put one into the space of four instructions."""
    try:
        return bound.getsockopt(socket.SOL_SOCKET, _SO_GET_FILTER) != 0
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return True
