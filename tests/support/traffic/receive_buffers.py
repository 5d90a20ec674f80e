"""Enlarge the receive buffers of other processes.

Rule: after a pause the backlog arrives at once. A default buffer of 212,992 bytes (ping: 131,072) may be too small for
it, and then the measuring process loses packets that the server delivered. Source: pidfd_getfd(2).
"""

import contextlib
import ctypes
import os
import socket
from pathlib import Path

from oxidize.net.udp_cmsg import SO_RCVBUFFORCE

_PIDFD_GETFD = 438  # asm-generic/unistd.h
_BUFFER_BYTES = 32 << 20
_libc = ctypes.CDLL(None, use_errno=True)


def enlarge_buffers(pid: int) -> None:
    """Enlarge the buffers of a process's datagram sockets."""
    pidfd = os.pidfd_open(pid)
    try:
        for entry in Path("/proc", str(pid), "fd").iterdir():
            target = ""
            with contextlib.suppress(FileNotFoundError):  # the process has closed it
                target = str(entry.readlink())
            if target.startswith("socket:"):
                fd = _libc.syscall(_PIDFD_GETFD, pidfd, int(entry.name), 0)
                if fd < 0:
                    continue
                with socket.socket(fileno=fd) as theirs:
                    if theirs.type in (socket.SOCK_DGRAM, socket.SOCK_RAW) and theirs.family != socket.AF_NETLINK:
                        theirs.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, _BUFFER_BYTES)
    finally:
        os.close(pidfd)
