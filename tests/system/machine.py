"""A machine in namespaces: systemd as PID 1, with the product installed, ended by the ExitStack that it is given.

Rule: nothing outside is changed except one directory of cgroups, which is removed. Sources: namespaces(7), cgroups(7),
systemd.exec(5), nsenter(1).
"""

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from demo.processes import children, reap
from tests.support.traffic.namespaces import Namespace
from tests.support.traffic.server import WAIT_SECS, Lab, Outcome, kill, wait_for

BOOT = Path(__file__).parent / "stage" / "boot.sh"
NEEDED_PROGRAMS = ("systemctl", "dbus-daemon", "unshare", "nsenter", "setpriv", "wireguard-go", "wg")
DAEMON = "oxidize-daemon.service"
UNITS = (DAEMON, "oxidize.socket", "oxidize-http.socket")
CLIENT = "oxidize-client.service"
KILL_SWITCH = "oxidize-kill-switch.service"
# Nice value of the machine, its client and the traffic: what else runs here must not decide how much they can do.
PRIORITY = -10
_CGROUP_ROOTS = (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified"))  # version 2 alone, or beside version 1
_CGROUP_NAME = "oxidize-test-"


def _cgroup_root() -> Path:
    for root in _CGROUP_ROOTS:
        if (root / "cgroup.controllers").exists():
            return root
    raise AssertionError(f"expected cgroup version 2 at one of {[str(root) for root in _CGROUP_ROOTS]}")


def _remove_cgroup(cgroup: Path) -> bool:
    """Remove a subtree of cgroups, the deepest first; return False if a process is left in it."""
    try:
        for folder, _, _ in os.walk(cgroup, topdown=False):
            Path(folder).rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _remove_stale_cgroups(root: Path) -> None:
    """Remove the cgroups of killed test runs, whose machines ended with them."""
    for cgroup in root.glob(f"{_CGROUP_NAME}*"):
        if not Path("/proc", cgroup.name.removeprefix(_CGROUP_NAME).partition("-")[0]).exists():
            _remove_cgroup(cgroup)


def _reap_namespaced() -> bool:
    """Reap the children of this process in nested PID namespaces; return True if none is left.

    A PID 1 ends only after every process of its namespace is reaped, so waiting for it alone would never return.
    """
    namespaced = [pid for pid in children() if len(_pids(pid)) > len(_pids("self"))]
    left = [pid for pid in namespaced if not reap(pid)]  # each is tried: PID 1 may be the first
    return not left


def _pids(pid: int | str) -> list[int]:
    """Return the pids of a process in its namespaces, the outermost first; none if it is gone."""
    with contextlib.suppress(OSError):
        for line in Path("/proc", str(pid), "status").read_text().splitlines():
            if line.startswith("NSpid:"):
                return [int(word) for word in line.split()[1:]]
    return []


class Machine:
    """A booted systemd. namespace: its network. seed: a folder of files that are added to those of the host."""

    def __init__(self, lab: Lab, namespace: Namespace, seed: Path) -> None:
        self.lab = lab
        self.namespace = namespace
        root = _cgroup_root()
        _remove_stale_cgroups(root)
        self.cgroup = root / f"{_CGROUP_NAME}{os.getpid()}-{time.monotonic_ns()}"
        self.cgroup.mkdir()
        self._unshare_pid = 0
        lab.stack.callback(self._end)
        with namespace.entered():
            stage = lab.folder / "stage"
            stage.mkdir()
            command = (str(BOOT), str(self.cgroup), str(seed), str(stage))
            environment = os.environ | {"PRIORITY": str(PRIORITY)}
            self._unshare_pid = lab.spawn(command, "machine", environment)
        self.pid = wait_for("systemd to be executed", self._find_init)
        wait_for("systemd to have booted", lambda: self.try_run("systemctl", "is-active", "stage.target").status == 0)

    def _find_init(self) -> int | None:
        if ended := reap(self._unshare_pid):
            self._unshare_pid = 0
            raise AssertionError(f"the machine did not boot: {ended}\n{(self.lab.folder / 'machine.log').read_text()}")
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    stat = (entry / "stat").read_text("utf-8", "replace")
                    name, rest = stat.partition("(")[2].rpartition(")")[::2]
                    if name == "systemd" and int(rest.split()[1]) == self._unshare_pid:
                        return int(entry.name)
        return None

    def _end(self) -> None:
        if self._unshare_pid:
            kill(self._unshare_pid)  # its child, the machine's PID 1, dies with it, and with that all of the machine
            wait_for("the processes of the machine to end", _reap_namespaced)
            self.lab.wait_ended(self._unshare_pid)
        wait_for("the cgroups of the machine to be empty", lambda: _remove_cgroup(self.cgroup))

    # --- Inside ---

    @property
    def root(self) -> Path:
        """The machine's root directory as seen from the host; do not follow its absolute links."""
        return Path(f"/proc/{self.pid}/root")

    def command(self, *command: str) -> tuple[str, ...]:
        """Return a command that runs the given one inside."""
        enter = ("nsenter", f"--target={self.pid}", "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--")
        return (*enter, *command)

    def try_run(self, *command: str, seconds: float = 60.0) -> Outcome:
        """Run a command inside and return its outcome."""
        environment = {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", "SYSTEMD_PAGER": ""}
        done = subprocess.run(
            self.command(*command),
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            text=True,
            timeout=seconds,
        )
        return Outcome(done.returncode, done.stdout, done.stderr)

    def run(self, *command: str, seconds: float = 60.0) -> str:
        """Run a command inside that must succeed; return its output."""
        outcome = self.try_run(*command, seconds=seconds)
        assert outcome.status == 0, f"{' '.join(command)}: {outcome}\n{self.journal()}{self.journal(unit=CLIENT)}"
        return outcome.output

    def systemctl(self, *arguments: str) -> str:
        return self.run("systemctl", *arguments)

    def start(self, *command: str) -> "subprocess.Popen[str]":
        """Start a command inside; the caller waits for its end, or the end of the machine kills it."""
        return subprocess.Popen(
            self.command(*command), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    # --- Looking ---

    def journal(self, *arguments: str, unit: str = DAEMON) -> str:
        """Return the log of a service."""
        return self.try_run("journalctl", "--no-pager", "-o", "short-monotonic", "-u", unit, *arguments).output

    def show(self, name: str, unit: str = DAEMON) -> str:
        """Return a property of a unit."""
        return self.systemctl("show", "-p", name, "--value", unit).strip()

    def main_pid(self, unit: str = DAEMON) -> int:
        """Return the main PID of a service, as seen inside the machine; 0 for none."""
        return int(self.show("MainPID", unit))

    def processes(self, unit: str = DAEMON) -> set[int]:
        """Return the pids in a service's cgroup, as seen inside the machine."""
        found = set()
        for folder, _, _ in os.walk(self.cgroup / "system.slice" / unit):
            for pid in (Path(folder) / "cgroup.procs").read_text().split():
                found.update(_pids(pid)[-1:])
        return found

    def kill(self, pid: int, signal_name: str = "KILL") -> None:
        """Send a signal to a process by its pid inside the machine."""
        self.run("kill", "-s", signal_name, str(pid))

    def wait_for(self, what: str, look: Callable[[], object], seconds: float = WAIT_SECS) -> None:
        """Wait for a condition; a failure shows the log of the service."""
        try:
            wait_for(what, look, seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.journal()}") from None


def prioritize(pid: int) -> None:
    """Give a process and all its threads the machine's scheduling priority."""
    for thread in Path("/proc", str(pid), "task").iterdir():
        os.setpriority(os.PRIO_PROCESS, int(thread.name), PRIORITY)


def install(folder: Path) -> Path:
    """Install the product below a folder, as a packager does with DESTDIR; return the folder."""
    make = shutil.which("make")
    assert make is not None
    done = subprocess.run(
        [make, "install", f"DESTDIR={folder}", "SYSUSERSDIR=/usr/lib/sysusers.d"],
        cwd=Path(__file__).parents[2],
        env={key: value for key, value in os.environ.items() if not key.startswith("MAKE")},
        capture_output=True,
        check=False,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return folder
