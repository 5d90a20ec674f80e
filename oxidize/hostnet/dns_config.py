"""DNS settings while a client's tunnel is up, set through resolvectl or resolvconf.

The rule: this process writes no file. Where systemd-resolved runs, it is given the name servers of the tunnel's link;
elsewhere `resolvconf` keeps a record of them beside those of other programs. Removing them restores the earlier
settings in both. Until then all queries go to the configured servers, as with wg-quick's `DNS =`. Sources:
resolvectl(1), resolvconf(8) of openresolv and of Debian, wg-quick(8). It needs root.
"""

import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Literal

from oxidize.config import NameServers
from oxidize.errors import OxidizeError

RESOLVED = Path("/run/systemd/resolve/io.systemd.Resolve")  # a socket that exists while systemd-resolved runs
TIMEOUT_SECS = 20.0  # more than resolvconf waits for its own lock
POLL_SECS = 0.01  # between two checks whether a program has ended
ERROR_BYTES_MAX = 4_096  # of the error output of a program that failed

Program = Literal["resolvectl", "resolvconf"]
Pause = Callable[[float], None]  # called with seconds while a program runs; a loop's `run_once` serves


def find_program() -> Program:
    """Return the program that sets name servers; raises OxidizeError with the remedy if this system has none."""
    if RESOLVED.exists() and shutil.which("resolvectl"):
        return "resolvectl"
    if shutil.which("resolvconf"):
        return "resolvconf"
    raise OxidizeError(
        "client.dns is set, but this system has no program for that: expected systemd-resolved to run, or the program "
        "resolvconf; install openresolv or start systemd-resolved, or remove the line and set /etc/resolv.conf by hand"
    )


def check_dns(wanted: NameServers, *, by_this_process: bool) -> None:
    """Raise OxidizeError if these name servers could not be set; change nothing.

    by_this_process: whether this process sets them, and not a hook of its unit that runs as root.
    """
    if not wanted.servers:
        return
    find_program()
    if by_this_process and os.geteuid() != 0:
        raise OxidizeError(
            f"client.dns is set, but user {os.geteuid()} may not change this system's name servers: expected root; run "
            "as root, or by the unit oxidize-client.service, or remove the line"
        )


def apply_dns(wanted: NameServers, record: str, pause: Pause = time.sleep) -> None:
    """Send all DNS queries of this system to these servers; raises OxidizeError with the program's last error line.

    record: the name of the record in `resolvconf`.
    """
    link = wanted.interface
    servers = [str(server) for server in wanted.servers]
    if find_program() == "resolvectl":
        # "~." sends every query to this link, unless another link claims a longer domain.
        _run(["resolvectl", "domain", link, "~.", *wanted.domains], pause)
        _run(["resolvectl", "default-route", link, "true"], pause)
        _run(["resolvectl", "dns", link, *servers], pause)
        return
    lines = [f"nameserver {server}\n" for server in servers]
    if wanted.domains:
        lines.append(f"search {' '.join(wanted.domains)}\n")
    _run(["resolvconf", "-a", record, "-m", "0", "-x"], pause, "".join(lines))


def revert_dns(interface: str | None, record: str, pause: Pause = time.sleep) -> None:
    """Remove the settings of `apply_dns`, if any; raises OxidizeError with the program's last error line.

    interface: None if it is gone, and with it what systemd-resolved knew of it.
    """
    try:
        program = find_program()
    except OxidizeError:
        return
    if program == "resolvconf":
        _run(["resolvconf", "-d", record, "-f"], pause)
    elif interface is not None and Path("/sys/class/net", interface).exists():
        _run(["resolvectl", "revert", interface], pause)


def record_name(owner: str, index: int | None = None) -> str:
    """Return the name of a client's record in `resolvconf`.

    It begins with "tun.", which Debian's resolvconf places high in its order. owner: the unit, whose interface may get
    another name between two reloads, or else the interface. index: that of the interface, where the record of a dead
    client must not be mistaken for that of the next one.
    """
    return f"tun.{owner}" if index is None else f"tun.{owner}.{index}"


def _run(command: list[str], pause: Pause, given: str = "") -> None:
    name = " ".join(command)
    # Files and not pipes: what resolvconf starts in turn may hold them open for long.
    with _memory("stdin") as stdin, _memory("stderr") as stderr:
        stdin.write(given.encode())
        stdin.seek(0)
        try:
            process = subprocess.Popen(command, stdin=stdin, stdout=subprocess.DEVNULL, stderr=stderr)
        except OSError as error:
            raise OxidizeError(f"{name}: cannot be run ({error.strerror}); see client.dns") from error
        deadline = time.monotonic() + TIMEOUT_SECS
        try:
            while process.poll() is None:
                if time.monotonic() >= deadline:
                    raise OxidizeError(f"{name}: did not end within {TIMEOUT_SECS:.0f} s; see client.dns")
                pause(POLL_SECS)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        stderr.seek(0)
        errors = stderr.read(ERROR_BYTES_MAX).decode(errors="replace").strip()
    if process.returncode != 0:
        last = errors.splitlines()[-1] if errors else "no error output"
        raise OxidizeError(f"{name}: exit status {process.returncode}: {last}; see client.dns")


def _memory(name: str) -> BinaryIO:
    return os.fdopen(os.memfd_create(name), "w+b")
