"""The service manager of a world: it keeps sockets and state, starts the server again, and knows its main process.

Kinds: "systemd" ends what is left of a unit before it starts it again; "holder" ends nothing, so that a new process may
meet an old one; "none" keeps nothing: a process that starts alone binds for itself and has no state.

Sources: systemd.service(5), sd_notify(3), sd_listen_fds(3).
"""

import errno
import pathlib
import signal
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, cast

from oxidize.control import reload
from oxidize.control.reload_channel import Control
from oxidize.errors import OxidizeError
from oxidize.oom_score import OomScore
from oxidize.runtime import daemon
from tests.support.sim.files import Connection, File, Log, Tun, Udp
from tests.support.sim.kernel import Process
from tests.support.sim.syscalls import Path, environ_of_manager

if TYPE_CHECKING:
    from tests.support.sim.world import World

CONFIG = pathlib.Path("server.toml")
SOCKET = Path("/run/oxidize/takeover.sock")
LOCK = Path(f"{SOCKET}.lock")
UNIT = "oxidize-daemon.service"
NOTIFY = "/run/systemd/notify"
RESTART_SECS = 0.1
MESSAGE_SECS = 0.0005  # until the manager has read a message


class Manager:
    """Holds the sockets and the store of one unit. main: its main process."""

    def __init__(self, world: "World", kind: str) -> None:
        self._world = world
        self._kernel = world.kernel
        self.kind = kind
        self.main: Process | None = None
        self.store: dict[str, list[File]] = {}
        self.udp: Udp | None = None
        self.servers: list[Process] = []
        self._is_starting = False
        self.is_stopped = False  # by an operator
        self.restarts = 0
        if self.is_managing:
            self.udp = self._made_udp(Udp(world.PORT))
            self.udp.refs += 1

    @property
    def is_managing(self) -> bool:
        return self.kind != "none"

    def _made_udp(self, udp: Udp) -> Udp:
        self._world.udp = udp
        udp.send = self._world.on_sent
        return udp

    def bind_udp(self, udp: Udp, port: int) -> None:
        if port == 0:  # a trial socket
            return
        bound = self._world.udp
        if bound is not None and bound.refs > 0:
            raise OSError(errno.EADDRINUSE, "Address already in use")
        udp.port = port
        self._made_udp(udp)

    def attach(self, tun: Tun, name: str) -> None:
        """Attach a TUN device to an interface, which one open file may hold."""
        held = self._world.tun
        if held is not None and held.name == name and not held.is_closed:
            raise OSError(errno.EBUSY, "Device or resource busy")
        tun.name = name
        tun.inside = self._world.on_delivered
        tun.on_read = self._world.on_packet_read
        tun.on_removed = self._world.on_tun_removed
        self._world.tun = tun

    # --- Processes ---

    def start(self) -> Process:
        """Start the server, with what is kept for it."""
        world = self._world
        process = self._spawn(None)
        if self.is_managing:
            self.main = process
            assert self.udp is not None
            kept: list[tuple[str, File]] = [("udp", self.udp)]
            kept += [(name, file) for name, files in self.store.items() for file in files]
            for _, file in kept:
                world.kernel.open_fd(process, file)
            process.environ |= environ_of_manager(process, [name for name, _ in kept])
        return process

    def start_beside(self) -> Process:
        """Start a second server by hand, as an operator or a second manager does."""
        return self._spawn(None, is_managed=False)

    def start_twice(self) -> Process:
        """Start the server again although it runs, as a holder that lost count does."""
        if self.kind != "holder":
            return self.start_beside()
        main = self.main
        process = self.start()
        self.main = main or process
        return process

    def spawn_successor(self, control: Connection) -> Process:
        process = self._spawn(3)
        assert self._kernel.open_fd(process, control) == 3
        return process

    def _spawn(self, control_fd: int | None, *, is_managed: bool = True) -> Process:
        environ = self._environ() if is_managed else {}
        process = self._kernel.spawn(
            "server", lambda: daemon.run("server", CONFIG, "info", Control(control_fd), OomScore()), environ
        )
        self._world.prepare(process)
        self.servers.append(process)
        self._kernel.count("processes")
        return process

    def reload(self) -> Process:
        """Start a coordinator, as `systemctl reload` does."""
        found = self._kernel.paths.get(str(SOCKET))
        pid: int = found.listener.process.pid if found is not None else 1

        def coordinate() -> object:
            try:
                return reload.reload("server", CONFIG, "info", cast("pathlib.Path", SOCKET), pid)
            except OxidizeError as error:
                return error

        self._kernel.count("coordinators")
        return self._kernel.spawn("reload", coordinate, self._environ())

    def _environ(self) -> dict[str, str]:
        """Return what the manager of a unit tells its processes, whose log it connects to the journal."""
        return {"JOURNAL_STREAM": f"{Log.NUMBER}:{Log.NUMBER}", "NOTIFY_SOCKET": NOTIFY} if self.is_managing else {}

    def stop(self) -> None:
        """Stop the unit, as `systemctl stop` does: its main process is told to end, and is not started again."""
        self.is_stopped = True
        if self.main is not None:
            self._kernel.signal(self.main, signal.SIGTERM)

    def start_again(self) -> None:
        """Start a unit that was stopped, as `systemctl start` does once the stop has ended."""
        self.is_stopped = False
        self._check()

    def on_gone(self, process: Process) -> None:
        """Start the server again once its main process is gone; without a manager once no process is left."""
        if process is self.main:
            self.main = None
        self._check()

    def _check(self) -> None:
        if self.is_stopped:
            return
        is_missing = self.main is None if self.is_managing else not any(each.alive for each in self.servers)
        if is_missing and not self._is_starting and self.servers:
            self._is_starting = True
            self.restarts += 1
            self._kernel.at(RESTART_SECS, self._restart)

    def _restart(self) -> None:
        if self.main is not None:
            self._is_starting = False
            return
        left = [each for each in self.servers if not each.is_gone()]
        in_unit = [each for each in left if "NOTIFY_SOCKET" in each.environ]
        if self.kind == "systemd" and in_unit:
            for process in in_unit:
                process.kill_at = min(process.kill_at, self._kernel.now)
            self._kernel.at(0.01, self._restart)
            return
        if self.kind == "none" and left:
            self._is_starting = False
            return
        self._is_starting = False
        self.start()

    # --- Messages ---

    def on_notify(self, process: Process, text: str, files: list[File]) -> None:
        for file in files:
            file.refs += 1
        self._kernel.at(MESSAGE_SECS, lambda: self._read(text, files))

    def _read(self, text: str, files: list[File]) -> None:
        """Act on a message; what a process sent before its death counts, too."""
        fields = dict(line.partition("=")[::2] for line in text.split("\n"))
        name = fields.get("FDNAME", "")
        if "FDSTORE" in fields:
            self.store.setdefault(name, []).append(files[0])
            return
        for file in files:
            file.refs -= 1
            file.forget(self._kernel)
        if "FDSTOREREMOVE" in fields:
            for file in self.store.pop(name, []):
                file.refs -= 1
                file.forget(self._kernel)
        if "MAINPID" in fields:
            named = [each for each in self.servers if str(each.pid) == fields["MAINPID"] and each.alive]
            self.main = named[0] if named else self.main

    def systemctl(self, arguments: Sequence[str]) -> str:
        if arguments[0] == "show":
            return str(self.main.pid if self.main is not None else 0)
        return f"1 {UNIT} stop running" if self.is_stopped else ""


Spawn = Callable[[], Process]
