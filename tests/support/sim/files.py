"""The open files of the simulated kernel: sockets, pipes, epolls, pidfds, a TUN device and memory files.

The rule: a file belongs to every descriptor that leads to it, in whatever process, and ends with the last one. Memory
files are real ones, so that the mappings of the product are real; only the lock of their writer is simulated.

Sources: unix(7), pipe(7), epoll(7), fcntl(2), Linux Documentation/networking/tuntap.rst.
"""

import errno
import os
import select
import socket
from collections import deque
from collections.abc import Callable
from itertools import islice
from operator import methodcaller
from typing import TYPE_CHECKING

from tests.support.segments import VNET_HEADER, cut

if TYPE_CHECKING:
    from tests.support.sim.kernel import Kernel, Process

INBOX_MAX = 64  # messages that wait in a connection
BACKLOG_MAX = 16
BATCH_MAX = 64  # datagrams that the kernel joins
JOINED_BYTES_MAX = 65_507  # an IPv4 packet's length has 16 bits
IFF_VNET_HDR = 0x4000
UDP_GRO = 104
QUEUE_MAX = 4_096  # datagrams in the UDP socket, packets in the TUN device


class File:
    """What a descriptor leads to."""

    def __init__(self) -> None:
        self.refs = 0
        self.is_closed = False

    def is_readable(self) -> bool:
        return False

    def is_hung_up(self) -> bool:
        return False

    def read(self, size: int) -> bytes:
        raise OSError(errno.EINVAL, "Invalid argument")

    def write(self, data: bytes) -> int:
        raise OSError(errno.EINVAL, "Invalid argument")

    def forget(self, kernel: "Kernel") -> None:
        """End the file if no descriptor leads to it."""
        if self.refs <= 0 and not self.is_closed:
            self.is_closed = True
            self.on_closed(kernel)

    def on_closed(self, kernel: "Kernel") -> None:
        """Do what the last close does."""


_IS_READABLE = methodcaller("is_readable")


class Pipe(File):
    """One end of a pipe."""

    def __init__(self) -> None:
        super().__init__()
        self.buffer = bytearray()
        self.other: Pipe | None = None

    @classmethod
    def pair(cls) -> "tuple[Pipe, Pipe]":
        reading, writing = cls(), cls()
        reading.other, writing.other = writing, reading
        return reading, writing

    def is_readable(self) -> bool:
        return bool(self.buffer) or self.is_hung_up()

    def is_hung_up(self) -> bool:
        return self.other is None or self.other.is_closed

    def read(self, size: int) -> bytes:
        if not self.buffer and not self.is_hung_up():
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        data = bytes(self.buffer[:size])
        del self.buffer[:size]
        return data

    def write(self, data: bytes) -> int:
        if self.other is None or self.other.is_closed:
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")
        self.other.buffer += data
        return len(data)


class Log(File):
    """Standard error, of a terminal or the journal."""

    NUMBER = 1  # its device and inode

    def write(self, data: bytes) -> int:
        return len(data)


class PidFd(File):
    """A process, readable once it is dead."""

    def __init__(self, process: "Process") -> None:
        super().__init__()
        self.process = process

    def is_readable(self) -> bool:
        return self.process.is_gone()


class Epoll(File):
    """The files that a loop watches, by descriptor. awaited: those with EPOLLIN, of which it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.watched: dict[int, File] = {}
        self.awaited: dict[int, File] = {}

    def set_mask(self, fd: int, mask: int) -> None:
        # One without EPOLLIN is paused (`Loop.pause`): EPOLLONESHOT alone.
        if mask & select.EPOLLIN:
            self.awaited[fd] = self.watched[fd]
        else:
            self.awaited.pop(fd, None)

    def ready(self) -> list[int]:
        return [fd for fd, file in self.awaited.items() if file.is_readable()]

    def is_readable(self) -> bool:
        return any(map(_IS_READABLE, self.awaited.values()))

    def forget_watched(self, fd: int) -> bool:
        self.awaited.pop(fd, None)
        return self.watched.pop(fd, None) is not None

    def forget_closed(self, fd: int, file: File) -> None:
        if self.watched.get(fd) is file and file.refs <= 1:
            self.forget_watched(fd)


class Listener(File):
    """A listening Unix socket. process: the one that listens, as SO_PEERCRED names it."""

    def __init__(self, process: "Process") -> None:
        super().__init__()
        self.process = process
        self.backlog: deque[Connection] = deque()

    def is_readable(self) -> bool:
        return bool(self.backlog)

    def on_closed(self, kernel: "Kernel") -> None:
        for embryo in self.backlog:
            embryo.is_closed = True
            embryo.end(kernel, embryo=True)
        self.backlog.clear()


class Connection(File):
    """One end of a connected Unix socket of type SEQPACKET. process: the one at the other end."""

    def __init__(self, process: "Process") -> None:
        super().__init__()
        self.process = process
        self.inbox: deque[tuple[bytes, list[File]]] = deque()
        self.other: Connection | None = None
        self.is_ended = False
        self.is_shut = False
        self.is_reset = False

    @classmethod
    def pair(cls, mine: "Process", theirs: "Process") -> "tuple[Connection, Connection]":
        near, far = cls(theirs), cls(mine)
        near.other, far.other = far, near
        return near, far

    def is_readable(self) -> bool:
        return bool(self.inbox) or self.is_ended or self.is_reset

    def is_hung_up(self) -> bool:
        return self.is_ended

    def send(self, data: bytes, files: list[File]) -> None:
        if self.is_ended or self.other is None or self.other.is_shut:
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")
        if len(self.other.inbox) >= INBOX_MAX:
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        for file in files:
            file.refs += 1
        self.other.inbox.append((data, files))

    def peek(self) -> tuple[bytes, list[File]]:
        """Return the next message as `receive` does, and leave it here."""
        message = self.receive()
        self.inbox.appendleft(message)
        return message

    def receive(self) -> tuple[bytes, list[File]]:
        """Return the next message, an empty one at the end; raises as recv(2)."""
        if self.is_reset:
            self.is_reset = False
            raise ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")
        if self.inbox:
            return self.inbox.popleft()
        if self.is_ended or self.is_shut:
            return b"", []
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    def on_closed(self, kernel: "Kernel") -> None:
        self.end(kernel, embryo=False)

    def end(self, kernel: "Kernel", *, embryo: bool) -> None:
        if self.other is not None:
            self.other.is_ended = True
            self.other.is_reset = self.other.is_reset or embryo or bool(self.inbox)
        for _, files in self.inbox:
            for file in files:
                file.refs -= 1
                file.forget(kernel)
        self.inbox.clear()


class Udp(File):
    """The server's UDP socket. send: takes the address and the datagrams that leave."""

    def __init__(self, port: int) -> None:
        super().__init__()
        self.port = port
        self.queue: deque[tuple[tuple[str, int], bytes]] = deque()
        self.options: dict[tuple[int, int], int] = {}
        self.send: Callable[[tuple[str, int], list[bytes]], None] = lambda _address, _datagrams: None

    def is_readable(self) -> bool:
        return bool(self.queue)

    def arrive(self, source: tuple[str, int], datagram: bytes) -> bool:
        if self.refs <= 0 or len(self.queue) >= QUEUE_MAX:
            return False
        self.queue.append((source, datagram))
        return True

    def next_batch(self) -> list[bytes]:
        """Return the datagrams that the next receive brings: several of one sender where they are joined (GRO)."""
        if not self.queue:
            return []
        source, first = self.queue[0]
        batch = [first]
        if self.options.get((socket.IPPROTO_UDP, UDP_GRO)):
            most = min(BATCH_MAX, JOINED_BYTES_MAX // (len(first) or 1))
            for following, datagram in islice(self.queue, 1, most):
                if following != source or len(batch[-1]) < len(first) or len(datagram) > len(first):
                    break
                batch.append(datagram)
        return batch


class Tun(File):
    """A TUN device. inside: takes each packet that the process writes, on_removed: those that are lost with it.

    flags: with which it was made; with IFF_VNET_HDR a virtio header precedes each packet, and super-packets are cut.
    """

    def __init__(self, name: str = "") -> None:
        super().__init__()
        self.name = name
        self.flags = 0
        self.queue: deque[bytes] = deque()
        self.inside: Callable[[bytes], None] = lambda _packet: None
        self.on_read: Callable[[bytes], None] = lambda _packet: None
        self.on_removed: Callable[[list[bytes]], None] = lambda _packets: None

    def on_closed(self, kernel: "Kernel") -> None:
        self.on_removed(list(self.queue))

    def is_readable(self) -> bool:
        return bool(self.queue)

    def read(self, size: int) -> bytes:
        if not self.queue:
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        packet = self.queue.popleft()
        self.on_read(packet)
        return bytes(VNET_HEADER.size) + packet if self.flags & IFF_VNET_HDR else packet

    def write(self, data: bytes) -> int:
        for packet in cut(data) if self.flags & IFF_VNET_HDR else [data]:
            self.inside(packet)
        return len(data)


class LockFile(File):
    """One opening of a file that is there to be locked. holders: the opening of that file that has its lock."""

    def __init__(self, number: int, holders: "list[LockFile]") -> None:
        super().__init__()
        self.number = number
        self.holders = holders

    def on_closed(self, kernel: "Kernel") -> None:
        self.unlock()

    def lock(self) -> None:
        if self.holders not in ([], [self]):
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        self.holders[:] = [self]

    def unlock(self) -> None:
        if self in self.holders:
            self.holders.clear()


class MemoryFile(File):
    """A real memory file. maker: the process that made it; writer: the one that has its lock."""

    def __init__(self, name: str, maker: "Process") -> None:
        super().__init__()
        self.name = name
        self.maker = maker
        self.real = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        self.writer: Process | None = None
        self.limit = 1 << 62  # bytes: writing beyond it finds no memory

    def free(self) -> None:
        if self.real >= 0:
            os.close(self.real)
            self.real = -1

    def read(self, size: int) -> bytes:
        return os.read(self.real, size)

    def write(self, data: bytes) -> int:
        return os.write(self.real, data)

    @property
    def is_journal(self) -> bool:
        return self.name == "oxidize-journal"
