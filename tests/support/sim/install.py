"""Put the simulated system calls in place of the real ones, in the modules of the product that make any.

The rule: whole modules are exchanged (`os`, `socket`, `select`, ...), never functions of the product, apart from the
edges that lead to programs outside: systemctl, netlink, fork and exec.
"""

import contextlib
import importlib
import logging
import subprocess
import sys
from collections.abc import Iterator
from functools import lru_cache
from types import ModuleType, SimpleNamespace
from typing import Any, cast

from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

import oxidize
from oxidize import logs
from oxidize.control import reload
from oxidize.hostnet.interface import InterfacePart
from oxidize.hostnet.part import Steps
from oxidize.net.network_watch import NetworkWatch
from oxidize.protocol import crypto, keypair, noise
from oxidize.protocol.counters import TOTALS_WORDS, Counters
from oxidize.runtime import cold_start, daemon, parts, startup, succession
from oxidize.runtime.kept_settings import KeptSettings
from oxidize.runtime.late_imports import FOR_A_SUCCESSOR
from oxidize.runtime.uapi_socket import UapiSocket
from oxidize.service_manager import notify, systemctl
from oxidize.settings import NodeSettings
from oxidize.state import arena, journal, memory_file, session_state
from oxidize.takeover import path_lock, successor
from oxidize.takeover.connection import PeerProcess
from tests.support.sim import sockets, syscalls
from tests.support.sim.files import Connection, PidFd
from tests.support.sim.kernel import BASE_RELEASE, Process, kernel
from tests.support.sim.manager import UNIT

COMPACT_BYTES_MIN = 4 << 10  # so that journals of few peers are compacted, too
LONG_LIVED_KEYS = 64
COMPACT_KEYS = 2  # copied in one step
LOOKS_AWAKE = 3  # of a successor: more of them would show no more
PACKAGES = (
    "takeover",
    "state",
    "net",
    "runtime",
    "service_manager",
    "control",
    "clock",
    "oom_score",
    "settings",
    "log_output",
)
MODULES = {
    "os": syscalls.Os(),
    "fcntl": syscalls.Fcntl(),
    "mmap": syscalls.Mmap(),
    "signal": syscalls.Signal(),
    "time": syscalls.Time(),
    "gc": syscalls.Gc(),
    "socket": sockets.SocketModule(),
    "select": sockets.SelectModule(),
}
REAL = {name: sys.modules[name] for name in MODULES}
# What a process imports while it serves must be there before the modules are exchanged.
LATE = (*FOR_A_SUCCESSOR, "oxidize.runtime.succession", "oxidize.client.connection", "oxidize.client.host_setup")


class CheckedAead:
    """The cipher of a keypair, which shows each message to the model."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        watcher = kernel().watcher
        if watcher is not None:
            watcher.on_key(key)
        self._cipher = ChaCha20Poly1305(key)

    def encrypt(self, nonce: bytes, data: bytes, associated: bytes | None) -> bytes:
        sealed = self._cipher.encrypt(nonce, data, associated)
        watcher = kernel().watcher
        if watcher is not None:
            watcher.on_seal(self._key, nonce, bytes(data), sealed)
        return sealed

    def encrypt_into(self, nonce: bytes, data: memoryview, associated: bytes | None, buffer: memoryview) -> int:
        buffer[:] = self.encrypt(bytes(nonce), bytes(data), associated)
        return len(buffer)

    def decrypt(self, nonce: bytes, data: bytes, associated: bytes | None) -> bytes:
        opened = self._cipher.decrypt(nonce, data, associated)
        self._note_opened(data)
        return opened

    def decrypt_into(self, nonce: bytes, data: bytes, associated: bytes | None, buffer: memoryview) -> int:
        size = self._cipher.decrypt_into(nonce, data, associated, buffer)
        self._note_opened(data)
        return size

    def _note_opened(self, sealed: bytes) -> None:
        watcher = kernel().watcher
        if watcher is not None:
            watcher.on_opened(bytes(sealed[-16:]))


class Notifier:
    """The class `sdnotify.SystemdNotifier`."""

    socket = SimpleNamespace(settimeout=lambda _secs: None, close=lambda: None)

    def notify(self, text: str) -> None:
        world = kernel()
        world.manager.on_notify(world.enter("notify"), text, [])


class Daemon:
    """The module `systemd.daemon`."""

    def listen_fds_with_names(self, unset_environment: bool) -> dict[int, str]:
        process = kernel().current
        assert process is not None
        names = process.environ.pop("LISTEN_FDNAMES", "")
        process.environ.pop("LISTEN_PID", None)
        return dict(enumerate(names.split(":") if names else (), 3))


def settings_of_current(role: str, path: object, *_: object) -> tuple[NodeSettings, KeptSettings]:
    process = kernel().current
    assert process is not None
    settings: NodeSettings = process.context
    return settings, KeptSettings()


def run_systemctl(*arguments: str, **_: object) -> "subprocess.CompletedProcess[str]":
    world = kernel()
    world.enter("systemctl")
    return subprocess.CompletedProcess(arguments, 0, world.manager.systemctl(arguments), "")


def start_detached(command: list[str], inherited_fd: int) -> PeerProcess:
    """Start a successor as `control.reload` does by fork and exec, with one inherited descriptor."""
    world = kernel()
    coordinator = world.enter("fork")
    connection = coordinator.fds[inherited_fd]
    assert isinstance(connection, Connection)
    successor: Process = world.manager.spawn_successor(connection)
    assert connection.other is not None
    connection.other.process = successor
    successor.alarm_at = world.now + reload.LIFE_WITHOUT_OWNERSHIP_SECS
    return PeerProcess(successor.pid, successor.uid, world.open_fd(coordinator, PidFd(successor)))


def is_complete(_: InterfacePart, *, repair: bool) -> Steps[list[str]]:
    """Compare an interface of which nobody takes anything away."""
    yield 0.0
    return []


def stored(real: Any) -> Any:
    """Return `Journal._store` with a point at which the process may die."""

    def store(self: journal.Journal, word: int, value: int) -> None:
        kernel().before_store()
        real(self, word, value)

    return store


class SharedWords:
    """Counters in shared memory, between whose stores the process may die; totals are left out, for speed."""

    def __init__(self, words: Counters) -> None:
        self._words = words

    def __len__(self) -> int:
        return len(self._words)

    def __getitem__(self, index: int) -> int:
        return self._words[index]

    def __setitem__(self, index: Any, value: Any) -> None:
        if isinstance(index, slice) or index >= TOTALS_WORDS:
            kernel().before_store()
        self._words[index] = value

    def release(self) -> None:
        self._words.release()


def made(real: Any) -> Any:
    """Return `Arena.__init__` with counters at whose stores the process may die, where it is to."""

    def make(self: arena.Arena, fd: int, slot_count: int) -> None:
        real(self, fd, slot_count)
        process = kernel().current
        if process is not None and process.dies_at_stores:
            self.counters = cast("Counters", SharedWords(self.counters))

    return make


def use_regions_of(region_bytes: int) -> None:
    """Let the journals that are made from now on have smaller regions than real ones."""
    defaults_of_create()["region_bytes"] = region_bytes


def defaults_of_create() -> dict[str, Any]:
    defaults = journal.Journal.create.__kwdefaults__
    assert defaults is not None
    return defaults


def product_modules() -> Iterator[ModuleType]:
    for name, module in list(sys.modules.items()):
        parts_of_name = name.split(".")
        if parts_of_name[0] == "oxidize" and len(parts_of_name) > 1 and parts_of_name[1] in PACKAGES:
            yield module


@contextlib.contextmanager
def installed(*, verbose: bool = False) -> Iterator[None]:
    """Exchange the modules for the time of the context."""
    changed: list[tuple[Any, str, object]] = []

    def put(module: Any, name: str, value: object) -> None:
        changed.append((module, name, getattr(module, name)))
        setattr(module, name, value)

    for late in LATE:
        importlib.import_module(late)
    for module in product_modules():
        for name, simulated in MODULES.items():
            if vars(module).get(name) is REAL[name]:
                put(module, name, simulated)
    put(keypair, "ChaCha20Poly1305", CheckedAead)
    # The same keys meet in every process: each result is computed once.
    put(noise, "load_private_key", lru_cache(LONG_LIVED_KEYS)(crypto.load_private_key))
    put(noise, "shared_secret", lru_cache(LONG_LIVED_KEYS)(crypto.shared_secret))
    put(memory_file, "_fallocate", syscalls.fallocate)
    put(journal.Journal, "_store", stored(journal.Journal._store))
    put(journal, "COMPACT_BYTES_MIN", COMPACT_BYTES_MIN)
    put(session_state.SessionState.maintain, "__defaults__", (COMPACT_KEYS,))
    put(arena.Arena, "__init__", made(arena.Arena.__init__))
    put(notify, "sdnotify", SimpleNamespace(SystemdNotifier=Notifier))
    put(notify, "_daemon", Daemon)
    put(systemctl, "_run", run_systemctl)
    put(systemctl, "CGROUP", SimpleNamespace(read_text=lambda: f"0::/system.slice/{UNIT}"))
    put(parts, "BOOT_ID", SimpleNamespace(read_text=lambda: "one boot"))
    put(InterfacePart, "compare", is_complete)
    put(NetworkWatch, "start", lambda _: None)
    put(UapiSocket, "next_deadline", lambda _: None)  # the folder of wg is the host's
    put(cold_start, "not_forwarded", lambda *_: [])
    put(successor, "LOOKS_AWAKE", LOOKS_AWAKE)
    put(path_lock.PathLock, "holder", lambda _: "another process")  # it is looked for in /proc
    put(daemon, "_load", settings_of_current)
    put(daemon, "keep_only", lambda _rights: None)  # the rights are those of the process that runs all worlds
    put(daemon, "forbid_core_dumps", lambda: None)
    put(logs, "configure", lambda *_: None)
    put(reload, "_start_detached", start_detached)
    put(succession, "warm_up", lambda _now: None)  # what it seals is of no session
    for place, name in (
        (oxidize, "__version__"),
        (session_state, "MIN_READER"),
        (session_state, "FORMAT"),
        (startup, "FORMAT"),
    ):
        BASE_RELEASE[place, name] = getattr(place, name)
    region_bytes = defaults_of_create()["region_bytes"]
    handlers = logging.getLogger().handlers[:]
    if not verbose:
        logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        use_regions_of(region_bytes)
        logging.disable(logging.NOTSET)
        logging.getLogger().handlers[:] = handlers
        for module, name, value in reversed(changed):
            setattr(module, name, value)
