"""Whom this machine asks for names while a client's tunnel is up, through the system's own program for that.

The rule: no file is written by us. Where systemd-resolved runs it is told about the tunnel's link, else `resolvconf`
keeps a record of ours beside those of others; both go back by themselves to what was before when ours is removed. All
questions go to our name servers meanwhile, as with wg-quick's `DNS =`. Sources: resolvectl(1), resolvconf(8) of
openresolv and of Debian, wg-quick(8). It needs root.
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

RESOLVED = Path("/run/systemd/resolve/io.systemd.Resolve")  # its socket, there while it runs
TIMEOUT_SECS = 20.0  # more than resolvconf waits for its own lock
POLL_SECS = 0.01  # between two checks whether a program has ended
SAID_BYTES_MAX = 4_096  # of what a program says when it fails

Program = Literal["resolvectl", "resolvconf"]
Pause = Callable[[float], None]  # called with seconds, again and again while a program runs: a loop's `run_once` serves


def find_program() -> Program:
    """Return the program that is told; raises OxidizeError with the remedy where this system has none."""
    if RESOLVED.exists() and shutil.which("resolvectl"):
        return "resolvectl"
    if shutil.which("resolvconf"):
        return "resolvconf"
    raise OxidizeError(
        "client.dns is set, but this system has nobody to tell: expected systemd-resolved to run, or the program "
        "resolvconf; install openresolv or start systemd-resolved, or remove the line and set /etc/resolv.conf by hand"
    )


def check_dns(wanted: NameServers, *, is_ours_to_set: bool) -> None:
    """Raise OxidizeError where these name servers could not be set; changes nothing.

    is_ours_to_set: by this process, and not by a hook of the service manager that runs as root.
    """
    if not wanted.servers:
        return
    find_program()
    if is_ours_to_set and os.geteuid() != 0:
        raise OxidizeError(
            f"client.dns is set, but user {os.geteuid()} may not change this system's name servers: expected root; run "
            "as root, or by the unit oxidize-client.service, or remove the line"
        )


def apply_dns(wanted: NameServers, record: str, pause: Pause = time.sleep) -> None:
    """Have all names asked for at these servers. record: what `resolvconf` is to call it.

    Raises OxidizeError with what the program said.
    """
    link = wanted.interface
    servers = [str(server) for server in wanted.servers]
    if find_program() == "resolvectl":
        # "~." sends every question to this link, where no other link claims a longer domain.
        _run(["resolvectl", "domain", link, "~.", *wanted.domains], pause)
        _run(["resolvectl", "default-route", link, "true"], pause)
        _run(["resolvectl", "dns", link, *servers], pause)
        return
    lines = [f"nameserver {server}\n" for server in servers]
    if wanted.domains:
        lines.append(f"search {' '.join(wanted.domains)}\n")
    _run(["resolvconf", "-a", record, "-m", "0", "-x"], pause, "".join(lines))


def revert_dns(interface: str | None, record: str, pause: Pause = time.sleep) -> None:
    """Take ours back; a no-op where there are none. Raises OxidizeError with what the program said.

    interface: None where it is gone, and systemd-resolved has forgotten by itself what it was told of it.
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
    """Return what `resolvconf` calls our record.

    It begins with "tun.", for which Debian's resolvconf has a high place in its order. owner: the unit, whose interface
    may get another name between two reloads; where there is none, the interface. index: of the interface, where the
    record of a dead client must not be taken for that of the next one.
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
        said = stderr.read(SAID_BYTES_MAX).decode(errors="replace").strip()
    if process.returncode != 0:
        last = said.splitlines()[-1] if said else "it said nothing"
        raise OxidizeError(f"{name}: exit status {process.returncode}: {last}; see client.dns")


def _memory(name: str) -> BinaryIO:
    return os.fdopen(os.memfd_create(name), "w+b")
