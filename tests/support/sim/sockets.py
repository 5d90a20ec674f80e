"""What the product's modules find in place of `socket` and `select`: sockets and waiting in the world.

Sources: unix(7), udp(7) for UDP_SEGMENT and UDP_GRO, socket(7) for SO_PEERCRED, epoll(7), poll(2).
"""

import array
import errno
import select as real_select
import socket as real_socket
import struct
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any, Self

from tests.support.sim.files import BACKLOG_MAX, UDP_GRO, Connection, Epoll, File, Listener, PidFd, Udp
from tests.support.sim.kernel import Process, kernel
from tests.support.sim.syscalls import not_simulated

_CREDENTIALS = struct.Struct("3i")
_GRO_SIZE = struct.Struct("=i")
_SEGMENT_SIZE = struct.Struct("=H")
UDP_SEGMENT = 103
SO_PEERPIDFD = 77
SO_MEMINFO = 55
BUFFER_BYTES = 16 << 20

Ancillary = list[tuple[int, int, bytes]]


class Socket:
    """The class `socket.socket`."""

    def __init__(self, family: int = -1, kind: int = -1, proto: int = 0, fileno: int | None = None) -> None:
        world = kernel()
        self._file: File
        self._deadline: float | None = None
        self._fd = -1
        if fileno is not None:
            self._file = world.file(fileno)
            self._fd = fileno
        else:
            process = world.enter("socket")
            is_inet_datagram = kind & 0xF == real_socket.SOCK_DGRAM and family != real_socket.AF_UNIX
            self._file = Udp(0) if is_inet_datagram else _Unbound(process)
            self._fd = world.open_fd(process, self._file)
        is_udp = isinstance(self._file, Udp)
        self.family = real_socket.AF_INET if is_udp else real_socket.AF_UNIX
        self.type = real_socket.SOCK_DGRAM if is_udp else real_socket.SOCK_SEQPACKET

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def fileno(self) -> int:
        return self._fd

    def detach(self) -> int:
        fd, self._fd = self._fd, -1
        return fd

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            world = kernel()
            world.close_fd(world.enter("close"), fd)

    def setblocking(self, flag: bool) -> None:
        return

    def settimeout(self, secs: float | None) -> None:
        self._deadline = secs

    def _replace(self, file: File) -> None:
        process = kernel().current
        assert process is not None
        self._file.refs -= 1
        file.refs += 1
        self._file = process.fds[self._fd] = file

    # --- Unix sockets ---

    def bind(self, address: Any) -> None:
        world = kernel()
        process = world.enter("bind")
        if isinstance(self._file, Udp):
            world.manager.bind_udp(self._file, address[1])
            return
        if world.is_folder_full:
            raise OSError(errno.ENOSPC, "No space left on device")
        listener = Listener(process)
        self._replace(listener)
        world.paths[str(address)] = SimpleNamespace(listener=listener, number=id(listener))

    def listen(self, backlog: int) -> None:
        kernel().enter("listen")

    def accept(self) -> "tuple[Socket, None]":
        world = kernel()
        process = world.enter("accept")
        assert isinstance(self._file, Listener)
        if not self._file.backlog:
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        if len(process.fds) >= process.fds_max:
            raise OSError(errno.EMFILE, "Too many open files")
        connection = self._file.backlog.popleft()
        return Socket(fileno=world.open_fd(process, connection)), None

    def connect(self, path: str) -> None:
        world = kernel()
        process = world.enter("connect")
        if path == process.environ.get("NOTIFY_SOCKET"):
            return
        found = world.paths.get(path)
        if found is None:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory")
        listener: Listener = found.listener
        if listener.is_closed:
            raise ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")
        if not world.wait(lambda: len(listener.backlog) < BACKLOG_MAX or listener.is_closed, 5.0):
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        if listener.is_closed:
            raise ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")
        near, far = Connection.pair(process, listener.process)
        listener.backlog.append(far)
        self._replace(near)

    def shutdown(self, how: int) -> None:
        kernel().enter("shutdown")
        assert isinstance(self._file, Connection)
        self._file.is_shut = True

    def _connection(self) -> Connection:
        assert isinstance(self._file, Connection)
        return self._file

    def send(self, data: bytes) -> int:
        kernel().enter("send")
        self._connection().send(data, [])
        return len(data)

    def recv(self, size: int) -> bytes:
        world = kernel()
        world.enter("recv")
        if not world.wait(self._connection().is_readable, self._deadline):
            raise TimeoutError("timed out")
        data, _ = self._connection().receive()
        return data[:size]

    def sendmsg(self, parts: Sequence[Any], control: Any = (), flags: int = 0, address: Any = None) -> int:
        world = kernel()
        process = self._enter_sendmsg(parts)
        if isinstance(self._file, Udp):
            world.act("sends a datagram")
            self._file.send(address, _datagrams(b"".join(parts), control))
            return sum(map(len, parts))
        data = b"".join(parts)
        fds = array.array("i")
        for _, _, rights in control:
            fds.extend(rights)
        self._connection().send(data, [world.file(fd) for fd in fds])
        if world.watcher is not None:
            world.watcher.on_message(process, self._connection().process, data, is_sent=True)
        return len(data)

    def _enter_sendmsg(self, parts: Sequence[Any]) -> Process:
        world = kernel()
        try:
            return world.enter("sendmsg")
        except OSError:
            if world.watcher is not None and world.current is not None and isinstance(self._file, Connection):
                world.watcher.on_message(world.current, self._file.process, b"".join(parts), is_sent=False)
            raise

    def recvmsg(self, size: int, space: int = 0, flags: int = 0) -> tuple[bytes, Ancillary, int, None]:
        world = kernel()
        process = world.enter("recvmsg")
        if isinstance(self._file, Udp):  # the error queue
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        is_peek = flags & real_socket.MSG_PEEK
        data, files = self._connection().peek() if is_peek else self._connection().receive()
        flags = 0
        fds = array.array("i")
        for file in files:
            try:
                fds.append(world.open_fd(process, file))
            except OSError:
                flags = real_socket.MSG_CTRUNC
            if not is_peek:
                file.refs -= 1
                file.forget(world)
        if len(data) > size:
            flags |= real_socket.MSG_TRUNC
        rights = [(real_socket.SOL_SOCKET, real_socket.SCM_RIGHTS, fds.tobytes())] if fds else []
        return data[:size], rights, flags, None

    # --- UDP ---

    def recvmsg_into(self, buffers: Sequence[memoryview], space: int, flags: int) -> tuple[int, Ancillary, int, Any]:
        world = kernel()
        world.enter("recvmsg_into")
        udp = self._file
        assert isinstance(udp, Udp)
        if not udp.queue:
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        source, first = udp.queue[0]
        batch = udp.next_batch()
        for _ in batch:
            udp.queue.popleft()
        data = b"".join(batch)
        buffers[0][: len(data)] = data
        if world.watcher is not None and world.current is not None:
            world.watcher.on_datagrams(world.current, batch)
        world.act("reads a datagram")
        control = [(real_socket.IPPROTO_UDP, UDP_GRO, _GRO_SIZE.pack(len(first)))] if len(batch) > 1 else []
        return len(data), control, 0, source

    def getsockname(self) -> tuple[str, int]:
        assert isinstance(self._file, Udp)
        return "0.0.0.0", self._file.port

    # --- Options ---

    def setsockopt(self, level: int, option: int, value: Any) -> None:
        world = kernel()
        world.enter("setsockopt")
        if isinstance(self._file, Udp):
            if self._file.port and option != real_socket.SO_LINGER:  # which means nothing to UDP
                world.act("sets an option of the socket")
            self._file.options[level, option] = value

    def getsockopt(self, level: int, option: int, size: int = 0) -> Any:
        world = kernel()
        process = world.enter("getsockopt")
        if isinstance(self._file, Udp):
            if option == SO_MEMINFO:
                return bytes(36)
            if option in {real_socket.SO_RCVBUF, real_socket.SO_SNDBUF}:
                return BUFFER_BYTES
            return self._file.options.get((level, option), 0)
        peer = self._connection().process
        if option == real_socket.SO_PEERCRED:
            return _CREDENTIALS.pack(peer.pid, peer.uid, peer.uid)
        if option == SO_PEERPIDFD and world.has_peer_pidfd:
            if peer.is_gone():
                raise OSError(errno.EINVAL, "Invalid argument")
            return world.open_fd(process, PidFd(peer))
        raise OSError(errno.ENOPROTOOPT, "Protocol not available")


class _Unbound(File):
    """A Unix socket that is neither bound nor connected."""

    def __init__(self, process: Process) -> None:
        super().__init__()
        self.process = process


class SocketModule:
    """The module `socket`."""

    socket = Socket

    def __getattr__(self, name: str) -> Any:
        if name.startswith(("AF_", "SOCK_", "SOL_", "SO_", "SCM_", "MSG_", "SHUT_", "IPPROTO_", "IPV6_", "AI_")):
            return getattr(real_socket, name)
        if name in {"getaddrinfo", "gaierror", "inet_ntop", "inet_pton", "CMSG_SPACE", "CMSG_LEN"}:
            return getattr(real_socket, name)
        return not_simulated(f"socket.{name}")

    def send_fds(self, sock: Socket, parts: Sequence[bytes], fds: Sequence[int]) -> None:
        world = kernel()
        files = [world.file(fd) for fd in fds]
        if isinstance(sock._file, Connection):
            world.enter("sendmsg")
            sock._file.send(b"".join(parts), files)
        else:  # connected to the service manager
            world.manager.on_notify(world.enter("notify with descriptors"), b"".join(parts).decode(), files)

    def socketpair(self, family: int, kind: int) -> tuple[Socket, Socket]:
        world = kernel()
        process = world.enter("socketpair")
        near, far = Connection.pair(process, process)
        return Socket(fileno=world.open_fd(process, near)), Socket(fileno=world.open_fd(process, far))


class EpollObject:
    """The class `select.epoll`."""

    def __init__(self) -> None:
        world = kernel()
        process = world.enter("epoll_create")
        self._file = Epoll()
        self._fd = world.open_fd(process, self._file)

    def fileno(self) -> int:
        return self._fd

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            kernel().close_fd(kernel().enter("close"), fd)

    def register(self, fd: int, events: int = 0) -> None:
        kernel().enter("epoll_ctl")
        file = kernel().file(fd)
        if self._file.watched.get(fd) is file:
            raise FileExistsError(errno.EEXIST, "File exists")
        self._file.watched[fd] = file
        self._file.set_mask(fd, events)

    def modify(self, fd: int, events: int) -> None:
        kernel().enter("epoll_ctl_mod")
        kernel().file(fd)
        if fd not in self._file.watched:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory")
        self._file.set_mask(fd, events)

    def unregister(self, fd: int) -> None:
        kernel().enter("epoll_ctl_del")
        kernel().file(fd)
        if not self._file.forget_watched(fd):
            raise FileNotFoundError(errno.ENOENT, "No such file or directory")

    def poll(self, timeout: float | None = None, maxevents: int = -1) -> list[tuple[int, int]]:
        world = kernel()
        world.enter("epoll_wait")
        world.wait(self._file.is_readable, _rounded(timeout))
        ready = self._file.ready()
        if len(ready) > 1:
            world.random.shuffle(ready)
        return [(fd, real_select.EPOLLIN) for fd in (ready if maxevents < 0 else ready[:maxevents])]


class Poll:
    """The object that `select.poll` returns."""

    def __init__(self) -> None:
        self._fds: dict[int, int] = {}

    def register(self, fd: Any, events: int = 0) -> None:
        self._fds[fd if isinstance(fd, int) else fd.fileno()] = events

    def poll(self, timeout_ms: float | None = None) -> list[tuple[int, int]]:
        world = kernel()
        process = world.enter("poll")
        files = {fd: process.fds[fd] for fd in self._fds if fd in process.fds}

        def ready() -> Iterator[int]:
            for fd, file in files.items():
                wanted = self._fds[fd]
                if (
                    wanted & real_select.POLLOUT
                    or (wanted & real_select.POLLIN and file.is_readable())
                    or file.is_hung_up()
                ):
                    yield fd

        world.wait(lambda: next(ready(), -1) >= 0, None if timeout_ms is None else timeout_ms / 1000)
        return [(fd, real_select.POLLIN) for fd in ready()]


class SelectModule:
    """The module `select`."""

    epoll: Callable[[], EpollObject] = EpollObject
    poll: Callable[[], Poll] = Poll

    def __getattr__(self, name: str) -> Any:
        if name.startswith(("EPOLL", "POLL")):
            return getattr(real_select, name)
        return not_simulated(f"select.{name}")

    def select(
        self, reading: Sequence[int], _writing: object, _failing: object, timeout: float | None = None
    ) -> tuple[list[int], list[int], list[int]]:
        world = kernel()
        world.enter("select")
        files = {fd: world.file(fd) for fd in reading}
        world.wait(lambda: any(file.is_readable() for file in files.values()), timeout)
        return [fd for fd, file in files.items() if file.is_readable()], [], []


def _rounded(timeout: float | None) -> float | None:
    """Return a timeout as epoll_wait(2) takes it: whole milliseconds, rounded up."""
    if timeout is None or timeout < 0:
        return None
    return -(-timeout * 1000 // 1) / 1000


def _datagrams(data: bytes, control: Any) -> list[bytes]:
    """Return the datagrams into which the kernel cuts a send."""
    sizes = [_SEGMENT_SIZE.unpack(value)[0] for _, kind, value in control if kind == UDP_SEGMENT]
    size = sizes[0] if sizes else len(data)
    return [data[start : start + size] for start in range(0, len(data), size or 1)] or [data]
