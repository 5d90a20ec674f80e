"""A server as an operator runs it, replaced by the commands of an operator.

Rule: every process that a test starts here, and every descendant of it, has ended when `Lab` is left.
"""

import base64
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

from demo.processes import children, end_children, reap, spawn
from oxidize.control import reload as coordinator
from oxidize.control.query import fetch
from oxidize.errors import OxidizeError
from oxidize.holder.processes import Subreaper
from oxidize.protocol.crypto import generate_private_key, public_key

T = TypeVar("T")

WAIT_SECS = 20.0  # long enough for a loaded machine; nothing waits for it to pass
POLL_SECS = 0.01
MEMORY_FILES_GROWTH_KIB = 512  # dead records of a journal that is too small to be compacted (COMPACT_BYTES_MIN)
OXIDIZE = (sys.executable, "-P", "-m", "oxidize")
WITHOUT_HOLDER = ("--no-holder",)
FAULTS = Path(__file__).parent / "faults"


def wait_for(what: str, look: Callable[[], T | None], seconds: float = WAIT_SECS) -> T:
    """Return the first true result of `look`; fail after `seconds` with the name `what`."""
    deadline = time.monotonic() + seconds
    while True:
        found = look()
        if found:
            return found
        assert time.monotonic() < deadline, f"waited {seconds:g} s for {what}"
        time.sleep(POLL_SECS)


def is_gone(pid: int) -> bool:
    """Return whether no such process exists, not even a zombie."""
    return not Path("/proc", str(pid)).exists()


class Lab:
    """While entered, this process adopts all orphans below it; at the end, all children made since then are ended."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.stack = contextlib.ExitStack()
        self._subreaper = Subreaper()

    def __enter__(self) -> Self:
        self._subreaper.enter()
        self.stack.callback(self._subreaper.leave)
        spared = children()
        self.stack.callback(lambda: end_children(spared))
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    def spawn(self, command: Sequence[str], name: str, env: Mapping[str, str] | None = None) -> int:
        """Start a program with its output appended to `folder/name.log`; return its pid."""
        with (self.folder / f"{name}.log").open("ab") as log:
            return spawn(command, os.environ if env is None else env, log.fileno())

    def wait_ended(self, pid: int, seconds: float = WAIT_SECS) -> int | None:
        """Wait for the end of a child and return its exit status, negative for a signal."""
        return wait_for(f"the end of process {pid}", lambda: reap(pid), seconds).status


@dataclass(frozen=True, slots=True)
class Identity:
    """A key pair."""

    private: bytes
    public: bytes

    @classmethod
    def make(cls) -> Self:
        private = generate_private_key(os.urandom)
        return cls(private, public_key(private))


def b64(key: bytes) -> str:
    return base64.b64encode(key).decode()


@dataclass(frozen=True, slots=True)
class PeerTable:
    """One [[peer]] of a server."""

    name: str
    public_key: bytes
    allowed_ips: tuple[str, ...]
    preshared_key: bytes | None = None
    endpoint: str | None = None
    persistent_keepalive: int = 0


@dataclass(frozen=True, slots=True)
class Outcome:
    """The exit status and the output of a command."""

    status: int
    output: str
    errors: str


def _toml(value: object) -> str:
    """Return a value as TOML, a table inline."""
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key} = {_toml(each)}' for key, each in value.items())}}}"
    return f"[{', '.join(map(_toml, value))}]" if isinstance(value, list) else json.dumps(value)


class Server:
    """The configuration of one server, and the generations that serve it.

    inside: a context in which commands run, such as a network namespace.
    """

    def __init__(
        self,
        lab: Lab,
        peers: Sequence[PeerTable],
        *,
        listen: str = "127.0.0.1:0",
        network: str = "userspace",
        address: Sequence[str] = ("10.9.0.1/24", "fd09::1/64"),
        interface: str = "oxidize0",
        metrics_listen: str = "",
        inside: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext,
    ) -> None:
        self.lab = lab
        self.identity = Identity.make()
        self.peers = list(peers)
        self.config_path = lab.folder / "server.toml"
        self.takeover_socket = lab.folder / "takeover.sock"
        self.log_path = lab.folder / "server.log"
        self._inside = inside
        self._options: dict[str, Any] = {
            "listen": listen,
            "network": network,
            "address": list(address),
            "interface": interface,
            "metrics_listen": metrics_listen,
            "private_key_file": "server.key",
            "takeover_socket": str(self.takeover_socket),
        }
        self._secret("server.key", self.identity.private)
        self.write_config()

    def _secret(self, name: str, key: bytes) -> None:
        path = self.lab.folder / name
        path.touch(mode=0o600)
        path.write_text(b64(key) + "\n")

    def change_key(self, identity: Identity) -> None:
        """Replace the private key in its file."""
        self.identity = identity
        self._secret("server.key", identity.private)

    def write_config(self, **options: object) -> None:
        """Write the configuration with these keys of [server] changed."""
        lines = ["[server]"]
        lines += [f"{key} = {_toml(value)}" for key, value in (self._options | options).items()]
        for peer in self.peers:
            lines += ["", "[[peer]]", f'name = "{peer.name}"', f'public_key = "{b64(peer.public_key)}"']
            lines.append(f"allowed_ips = {json.dumps(peer.allowed_ips)}")
            lines.append(f"persistent_keepalive = {peer.persistent_keepalive}")
            if peer.endpoint is not None:
                lines.append(f'endpoint = "{peer.endpoint}"')
            if peer.preshared_key is not None:
                self._secret(f"{peer.name}.psk", peer.preshared_key)
                lines.append(f'preshared_key_file = "{peer.name}.psk"')
        self.config_path.write_text("\n".join(lines) + "\n")

    # --- Processes ---

    def start(
        self,
        env: Mapping[str, str] | None = None,
        program: Sequence[str] = OXIDIZE,
        options: Sequence[str] = WITHOUT_HOLDER,
    ) -> int:
        """Start `oxidize server`; return its pid once it serves. options: of the command, as its release knows them."""
        with self._inside():
            pid = self.lab.spawn((*program, "server", *options, "-c", str(self.config_path)), "server", env)

        def look() -> bool:
            ended = reap(pid)
            assert ended is None, f"the server has ended, {ended}: {self.log_path.read_text()}"
            with contextlib.suppress(OxidizeError):
                return int(self.status()["pid"]) == pid
            return False

        wait_for("the server to serve", look)
        return pid

    def stop(self) -> None:
        """End the serving process without waiting for its drain, by a second SIGTERM."""
        pid = self.status()["pid"]
        kill(pid, signal.SIGTERM)
        wait_for("the server to drain", lambda: is_gone(pid) or self.status()["state"] == "draining")
        kill(pid, signal.SIGTERM)
        assert self.lab.wait_ended(pid) == 0

    def start_reload(self, name: str = "reload", env: Mapping[str, str] | None = None) -> int:
        """Start `oxidize reload` and return its pid for `finish_reload`."""
        output, errors = self.lab.folder / f"{name}.out", self.lab.folder / f"{name}.err"
        with self._inside(), output.open("wb") as out, errors.open("wb") as err:
            # Files, not pipes: a hanging successor holds them open.
            command = [*OXIDIZE, "reload", "-c", str(self.config_path)]
            actions = [(os.POSIX_SPAWN_DUP2, out.fileno(), 1), (os.POSIX_SPAWN_DUP2, err.fileno(), 2)]
            return os.posix_spawn(command[0], command, os.environ if env is None else env, file_actions=actions)

    def finish_reload(self, pid: int, name: str = "reload", seconds: float = WAIT_SECS) -> Outcome:
        """Wait for the end of a reload and return its outcome."""
        status = self.lab.wait_ended(pid, seconds)
        assert status is not None
        folder = self.lab.folder
        return Outcome(status, (folder / f"{name}.out").read_text(), (folder / f"{name}.err").read_text())

    def reload(self, env: Mapping[str, str] | None = None) -> Outcome:
        """Run `oxidize reload` to its end."""
        return self.finish_reload(self.start_reload(env=env))

    def replace(self, *, here: bool = False) -> dict[str, Any]:
        """Run a reload that must succeed and leave one process; return the successor's status.

        here: in this process, which saves the start of another one.
        """
        before = self.status()
        if here:
            coordinator.reload("server", self.config_path, "info", self.takeover_socket, before["pid"])
        else:
            outcome = self.reload()
            assert outcome.status == 0, f"{outcome}\n{self.log_path.read_text()}"
        assert self.lab.wait_ended(before["pid"]) == 0
        after = self.status()
        assert after["generation"] == before["generation"] + 1
        assert self.processes() == {after["pid"]}
        return after

    def processes(self) -> set[int]:
        """Return the pids of all processes that run this configuration, without zombies."""
        found = set()
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    words = (entry / "cmdline").read_bytes().split(b"\0")
                    if str(self.config_path).encode() in words and b"server" in words:
                        found.add(int(entry.name))
        return found

    # --- Queries ---

    def status(self) -> dict[str, Any]:
        """Return the status; raises OxidizeError if no process serves."""
        return fetch(self.takeover_socket)

    @property
    def port(self) -> int:
        """The UDP port of the server."""
        return int(str(self.status()["listen"]).rpartition(":")[2])

    def command(self, *arguments: str) -> Outcome:
        """Run another command of `oxidize` on this configuration."""
        with self._inside():
            done = subprocess.run(
                [*OXIDIZE, *arguments, "-c", str(self.config_path)],
                capture_output=True,
                check=False,
                text=True,
                timeout=WAIT_SECS,
            )
        return Outcome(done.returncode, done.stdout, done.stderr)


@dataclass(frozen=True, slots=True)
class Footprint:
    """What a process uses: its open files by kind, threads, resident memory, and the memory of its memory files."""

    files: tuple[str, ...]
    threads: int
    resident_kib: int
    memory_files_kib: int

    @classmethod
    def of(cls, pid: int) -> Self:
        folder = Path("/proc", str(pid))
        entries = [(str(entry.readlink()), entry) for entry in (folder / "fd").iterdir()]
        kinds = sorted(target.partition(":[")[0] for target, _ in entries)
        lines = (line.split() for line in (folder / "status").read_text().splitlines())
        status = {words[0]: int(words[1]) for words in lines if words[0] in {"VmRSS:", "Threads:"}}
        blocks = sum(entry.stat().st_blocks for target, entry in entries if target.startswith("/memfd:"))
        return cls(tuple(kinds), status["Threads:"], status["VmRSS:"], blocks // 2)  # blocks of 512 bytes, stat(2)

    def assert_no_larger_than(self, earlier: "Footprint") -> None:
        """Fail if files or threads differ from an earlier generation's, or the memory is more than 30% larger."""
        assert self.files == earlier.files
        assert self.threads == earlier.threads
        assert self.resident_kib < 1.3 * earlier.resident_kib, f"{earlier.resident_kib} KiB, then {self.resident_kib}"
        grown = self.memory_files_kib - earlier.memory_files_kib
        assert grown <= MEMORY_FILES_GROWTH_KIB, f"memory files: {earlier}, then {self}"


def fault(where: str, do: str, mark: Path, when: str = "before", command: str = "server") -> dict[str, str]:
    """Return an environment that plants a fault in a process of a subcommand; see `faults/sitecustomize.py`."""
    spec = json.dumps({"where": where, "when": when, "do": do, "mark": str(mark), "command": command})
    return {**os.environ, "PYTHONPATH": str(FAULTS), "TEST_FAULT": spec}


def stalled_pid(mark: Path) -> int:
    """Wait until a process stalls at a fault; return its pid."""
    wait_for(f"a process to stall ({mark.name})", mark.exists)
    return int(mark.read_text())


def go_on(mark: Path) -> None:
    """Let a stalled process continue."""
    mark.with_suffix(".go").touch()


def kill(pid: int, number: signal.Signals = signal.SIGKILL) -> None:
    """Send a signal to a child that was not reaped yet."""
    os.kill(pid, number)
