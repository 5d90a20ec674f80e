"""What the product's modules find in place of `os`, `fcntl`, `mmap`, `signal` and `time`: system calls of the world.

The rule: a name that is not simulated does not exist here. So a product that begins to use another system call fails in
every world, and does not leave the simulation unnoticed.
"""

import errno
import fcntl as real_fcntl
import mmap as real_mmap
import os as real_os
import signal as real_signal
import stat
import struct
import termios
import time as real_time
from array import array
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from types import SimpleNamespace
from typing import Any

from oxidize.state import memory_file
from tests.support.segments import VNET_HEADER
from tests.support.sim.files import IFF_VNET_HDR, File, LockFile, Log, MemoryFile, PidFd, Pipe, Tun, Udp
from tests.support.sim.kernel import Process, kernel

Buffer = bytes | bytearray | memoryview

OOM_SCORE = "/proc/self/oom_score_adj"  # no world runs out of memory for processes
RESTORE_SECS = (0.0, 0.001, 0.03)

_IFREQ = struct.Struct("=16sH22x")
_TUN_FEATURES = 0x0001 | 0x1000 | IFF_VNET_HDR
_TUNSETIFF = 0x4004_54CA
_TUNGETIFF = 0x8004_54D2
_TUNGETFEATURES = 0x8004_54CF
_TUNGETVNETHDRSZ = 0x8004_54D7


_real_fallocate = memory_file._fallocate
_UNLOCKED = struct.pack("@h", real_fcntl.F_UNLCK)


def not_simulated(name: str) -> Any:
    """End the world: the product makes a system call that is not simulated."""
    if not name.endswith("__"):
        kernel().fail(f"{name} is not simulated")
    raise AttributeError(name)


class Path(PurePosixPath):
    """A path of the world: of the takeover socket, its lock and its folder."""

    def stat(self, *, follow_symlinks: bool = True) -> SimpleNamespace:
        kernel().enter("stat")
        found = kernel().paths.get(str(self))
        if found is None:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory")
        return SimpleNamespace(st_dev=1, st_ino=found.number)

    def unlink(self, missing_ok: bool = False) -> None:
        kernel().enter("unlink")
        if kernel().paths.pop(str(self), None) is None and not missing_ok:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory")

    def rename(self, target: PurePosixPath) -> None:
        kernel().enter("rename")
        kernel().paths[str(target)] = kernel().paths.pop(str(self))

    def mkdir(self, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        kernel().enter("mkdir")


class Os:
    """The module `os`."""

    devnull = real_os.devnull
    fspath = staticmethod(real_os.fspath)
    fsencode = staticmethod(real_os.fsencode)
    fsdecode = staticmethod(real_os.fsdecode)
    strerror = staticmethod(real_os.strerror)

    def __getattr__(self, name: str) -> Any:
        if name.startswith(("O_", "SEEK_", "MFD_")):
            return getattr(real_os, name)
        return not_simulated(f"os.{name}")

    @property
    def environ(self) -> dict[str, str]:
        process = kernel().current
        return process.environ if process is not None else {}

    def getpid(self) -> int:
        process = kernel().current
        return process.pid if process is not None else 1

    def geteuid(self) -> int:
        process = kernel().current
        return process.uid if process is not None else 0

    def urandom(self, size: int) -> bytes:
        return kernel().random.randbytes(size)

    def close(self, fd: int) -> None:
        world = kernel()
        world.close_fd(world.enter("close"), fd)

    def set_inheritable(self, fd: int, inheritable: bool) -> None:
        kernel().file(fd)

    def read(self, fd: int, size: int) -> bytes:
        kernel().enter("read")
        return kernel().file(fd).read(size)

    def readv(self, fd: int, rooms: Sequence[memoryview]) -> int:
        kernel().enter("readv")
        packet = kernel().file(fd).read(sum(map(len, rooms)))
        kernel().act("reads a packet")
        start = 0
        for room in rooms:
            part = packet[start : start + len(room)]
            room[: len(part)] = part
            start += len(part)
        return start

    def write(self, fd: int, data: Buffer) -> int:
        kernel().enter("write")
        file = kernel().file(fd)
        if isinstance(file, Tun):
            kernel().act("delivers a packet")
            if file.flags & IFF_VNET_HDR and VNET_HEADER.unpack_from(data)[1]:
                kernel().count("super-packets")
        return file.write(bytes(data))

    def writev(self, fd: int, parts: Sequence[Buffer]) -> int:
        return self.write(fd, b"".join(bytes(part) for part in parts))

    def pread(self, fd: int, size: int, offset: int) -> bytes:
        kernel().enter("pread")
        return real_os.pread(_memory(fd).real, size, offset)

    def pwrite(self, fd: int, data: Buffer, offset: int) -> int:
        world = kernel()
        file = _memory(fd)
        process = world.current
        # A writer may die in the middle: it has then written nothing, a part, or all.
        if process is not None and process.is_about_to_crash() and (part := world.random.randrange(3)):
            real_os.pwrite(file.real, bytes(data)[: len(data) // (3 - part)], offset)
        world.enter("pwrite")
        if offset + len(data) > file.limit:
            raise OSError(errno.ENOMEM, "Cannot allocate memory")
        if file.is_journal and file.maker is not process:
            world.act("writes the journal")
        return real_os.pwrite(file.real, data, offset)

    def fstat(self, fd: int) -> SimpleNamespace:
        kernel().enter("fstat")
        file = kernel().file(fd)
        if isinstance(file, MemoryFile):
            return SimpleNamespace(st_size=real_os.fstat(file.real).st_size, st_mode=stat.S_IFREG)
        if isinstance(file, LockFile):
            return SimpleNamespace(st_dev=1, st_ino=file.number)
        if isinstance(file, Log):
            return SimpleNamespace(st_dev=Log.NUMBER, st_ino=Log.NUMBER)
        return SimpleNamespace(st_size=0, st_mode=stat.S_IFSOCK)

    def fchmod(self, fd: int, mode: int) -> None:
        kernel().enter("fchmod")

    def fchown(self, fd: int, uid: int, gid: int) -> None:
        kernel().enter("fchown")

    def ftruncate(self, fd: int, size: int) -> None:
        kernel().enter("ftruncate")
        real_os.ftruncate(_memory(fd).real, size)

    def memfd_create(self, name: str, flags: int = 0) -> int:
        world = kernel()
        process = world.enter("memfd_create")
        file = MemoryFile(name, process)
        world.memory_files.append(file)
        return world.open_fd(process, file)

    def pipe2(self, flags: int) -> tuple[int, int]:
        world = kernel()
        process = world.enter("pipe2")
        reading, writing = Pipe.pair()
        return world.open_fd(process, reading), world.open_fd(process, writing)

    def open(self, path: Any, flags: int, mode: int = 0o777) -> int:
        world = kernel()
        process = world.enter("open")
        if str(path) == "/dev/net/tun":
            return world.open_fd(process, Tun())
        if str(path) == OOM_SCORE:
            raise PermissionError(errno.EACCES, f"Permission denied: {path}")
        if flags & real_os.O_CREAT:
            if str(path) in world.paths:
                raise FileExistsError(errno.EEXIST, "File exists")
            if world.is_folder_full:
                raise OSError(errno.ENOSPC, "No space left on device")
            holders: list[LockFile] = []
            world.paths[str(path)] = SimpleNamespace(number=id(holders), holders=holders)
        if str(path) in world.paths:
            found = world.paths[str(path)]
            return world.open_fd(process, LockFile(found.number, found.holders))
        raise FileNotFoundError(errno.ENOENT, f"No such file or directory: {path}")

    def pidfd_open(self, pid: int) -> int:
        world = kernel()
        process = world.enter("pidfd_open")
        for each in world.processes:
            if each.pid == pid and not each.is_gone():
                return world.open_fd(process, PidFd(each))
        raise ProcessLookupError(errno.ESRCH, "No such process")

    def dup(self, fd: int) -> int:
        world = kernel()
        return world.open_fd(world.enter("dup"), world.file(fd))

    def dup2(self, fd: int, fd2: int) -> int:
        world = kernel()
        process = world.enter("dup2")
        file = world.file(fd)
        file.refs += 1
        if fd2 in process.fds:
            world.close_fd(process, fd2)
        process.fds[fd2] = file
        return fd2

    def link(self, source: Path, target: Path) -> None:
        kernel().enter("link")
        paths = kernel().paths
        if str(target) in paths:
            raise FileExistsError(errno.EEXIST, "File exists")
        paths[str(target)] = paths[str(source)]


def _memory(fd: int) -> MemoryFile:
    file = kernel().file(fd)
    if not isinstance(file, MemoryFile):
        raise OSError(errno.ESPIPE, "Illegal seek")
    return file


def fallocate(fd: int, mode: int, offset: int, length: int) -> int:
    """Stand in for the C function of that name, as `state.memory_file` calls it."""
    kernel().enter("fallocate")
    return int(_real_fallocate(_memory(fd).real, mode, offset, length))


class Fcntl:
    """The module `fcntl`."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith(("F_", "LOCK_")):
            return getattr(real_fcntl, name)
        return not_simulated(f"fcntl.{name}")

    def lockf(self, fd: int, command: int) -> None:
        process = kernel().enter("lockf")
        file = _memory(fd)
        if command & real_fcntl.LOCK_UN:
            file.writer = None if file.writer is process else file.writer
            return
        if file.writer not in {None, process}:
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        file.writer = process

    def flock(self, fd: int, command: int) -> None:
        kernel().enter("flock")
        file = kernel().file(fd)
        assert isinstance(file, LockFile)
        if command & real_fcntl.LOCK_UN:
            file.unlock()
        else:
            file.lock()

    def fcntl(self, fd: int, command: int, argument: Any = 0) -> Any:
        process = kernel().enter("fcntl")
        if command == real_fcntl.F_GETLK:
            holder = _memory(fd).writer
            return argument if holder not in {None, process} else _UNLOCKED + argument[2:]
        return real_fcntl.fcntl(_memory(fd).real, command, argument)

    def ioctl(self, fd: int, request: int, argument: "bytes | array[int]") -> bytes:
        kernel().enter("ioctl")
        file = kernel().file(fd)
        if isinstance(file, Udp) and request == termios.FIONREAD and isinstance(argument, array):
            argument[0] = sum(map(len, file.next_batch()))
            return b""
        if not isinstance(file, Tun):
            raise OSError(errno.ENOTTY, "Inappropriate ioctl for device")
        if request == _TUNGETFEATURES:
            return struct.pack("=I", _TUN_FEATURES)
        if request == _TUNGETVNETHDRSZ:
            return struct.pack("=i", VNET_HEADER.size)
        if request == _TUNSETIFF:
            wanted, flags = _IFREQ.unpack(argument)
            kernel().manager.attach(file, wanted.rstrip(b"\0").decode())
            file.flags = flags
        return _IFREQ.pack(file.name.encode(), file.flags)


class Mmap:
    """The module `mmap`."""

    ALLOCATIONGRANULARITY = real_mmap.ALLOCATIONGRANULARITY

    def mmap(self, fd: int, length: int) -> real_mmap.mmap:
        kernel().enter("mmap")
        return real_mmap.mmap(_memory(fd).real, length)


class Signal:
    """The module `signal`."""

    SIGTERM, SIGINT, SIGQUIT, SIGHUP, SIGKILL, SIGTTOU = (
        real_signal.SIGTERM,
        real_signal.SIGINT,
        real_signal.SIGQUIT,
        real_signal.SIGHUP,
        real_signal.SIGKILL,
        real_signal.SIGTTOU,
    )
    SIG_IGN = real_signal.SIG_IGN

    def set_wakeup_fd(self, fd: int, *, warn_on_full_buffer: bool = True) -> int:
        process = kernel().current
        if process is not None:
            process.wakeup_fd = fd
        return -1

    def signal(self, number: int, handler: object) -> None:
        process = kernel().current
        if process is not None:
            process.handlers[number] = handler

    def alarm(self, secs: int) -> int:
        process = kernel().enter("alarm")
        process.alarm_at = kernel().now + secs if secs else float("inf")
        return 0

    def pidfd_send_signal(self, fd: int, number: int) -> None:
        world = kernel()
        caller = world.enter("pidfd_send_signal")
        file: File = world.file(fd)
        assert isinstance(file, PidFd)
        if not file.process.alive:
            raise ProcessLookupError(errno.ESRCH, "No such process")
        if caller.uid not in {0, file.process.uid}:
            raise PermissionError(errno.EPERM, "Operation not permitted")
        if number == real_signal.SIGKILL:
            world.count("processes killed by the other side")
            file.process.killed_by = caller
            world.kill(file.process)


class Time:
    """The module `time`."""

    CLOCK_BOOTTIME = real_time.CLOCK_BOOTTIME

    def clock_gettime(self, clock: int) -> float:
        return kernel().now

    def time(self) -> float:
        return kernel().now + kernel().unix_offset

    def monotonic(self) -> float:
        return kernel().now

    def sleep(self, secs: float) -> None:
        kernel().enter("sleep")
        kernel().wait(lambda: False, secs)


class Gc:
    """The module `gc`."""

    def collect(self) -> None:
        """Take the time of a restore: this is called at its end, and once."""
        kernel().enter("collect")
        kernel().wait(lambda: False, kernel().random.choice(RESTORE_SECS))

    def freeze(self) -> None:
        return

    def enable(self) -> None:
        return


def environ_of_manager(process: Process, names: Sequence[str]) -> Mapping[str, str]:
    """Return what a service manager puts into the environment of a process that it passes descriptors to."""
    return {"LISTEN_PID": str(process.pid), "LISTEN_FDS": str(len(names)), "LISTEN_FDNAMES": ":".join(names)}
