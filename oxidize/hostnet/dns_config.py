"""DNS settings while a client's tunnel is up, set through resolvectl or resolvconf, and compared with what is asked.

The rule: this process writes no file. Where systemd-resolved runs, it is given the name servers of the tunnel's link;
elsewhere `resolvconf` keeps a record of them beside those of other programs. Removing them restores the earlier
settings in both. Until then all queries go to the configured servers, as with wg-quick's `DNS =`; whether they do is
read from resolv.conf, or that of systemd-resolved. Setting them needs root.

Sources: resolvectl(1), resolvconf(8) of openresolv and of Debian, resolv.conf(5), systemd-resolved.service(8),
wg-quick(8).
"""

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path
from typing import BinaryIO, Literal

from oxidize.config import NameServers
from oxidize.config.values import HostAddress
from oxidize.errors import OxidizeError
from oxidize.hostnet.part import Steps

RESOLVED = Path("/run/systemd/resolve/io.systemd.Resolve")  # a socket that exists while systemd-resolved runs
RESOLV_CONF = Path("/etc/resolv.conf")
RESOLVEDS_RESOLV_CONF = Path("/run/systemd/resolve/resolv.conf")  # the servers that systemd-resolved asks
NAME_FILES = (RESOLV_CONF, RESOLVEDS_RESOLV_CONF)
STUBS = frozenset(map(ip_address, ("127.0.0.53", "127.0.0.54")))  # systemd-resolved itself
READ_SERVERS_MAX = 3  # of resolv.conf, MAXNS of the C library
RESOLV_CONF_BYTES_MAX = 65_536
TIMEOUT_SECS = 20.0  # more than resolvconf waits for its own lock
POLL_SECS = 0.01  # between two checks whether a program has ended
ERROR_BYTES_MAX = 4_096  # of the error output of a program that failed

Program = Literal["resolvectl", "resolvconf"]


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


def apply_dns(wanted: NameServers, record: str) -> Steps[None]:
    """Send all DNS queries of this system to these servers; raises OxidizeError with the program's last error line.

    record: the name of the record in `resolvconf`.
    """
    link = wanted.interface
    servers = [str(server) for server in wanted.servers]
    if find_program() == "resolvectl":
        # "~." sends every query to this link, unless another link claims a longer domain.
        yield from _run(["resolvectl", "domain", link, "~.", *wanted.domains])
        yield from _run(["resolvectl", "default-route", link, "true"])
        yield from _run(["resolvectl", "dns", link, *servers])
        return
    lines = [f"nameserver {server}\n" for server in servers]
    if wanted.domains:
        lines.append(f"search {' '.join(wanted.domains)}\n")
    yield from _run(["resolvconf", "-a", record, "-m", "0", "-x"], "".join(lines))
    if missing_servers(wanted):  # a record that is the same as before makes it write nothing
        yield from _run(["resolvconf", "-u"])


def revert_dns(interface: str | None, record: str) -> Steps[None]:
    """Remove the settings of `apply_dns`, if any; raises OxidizeError with the program's last error line.

    interface: None if it is gone, and with it what systemd-resolved knew of it.
    """
    try:
        program = find_program()
    except OxidizeError:
        return
    if program == "resolvconf":
        yield from _run(["resolvconf", "-d", record, "-f"])
    elif interface is not None and Path("/sys/class/net", interface).exists():
        yield from _run(["resolvectl", "revert", interface])


def missing_servers(wanted: NameServers) -> list[str]:
    """Return in what the name servers of this system differ from the wanted ones, a line each.

    Empty where that cannot be read: where resolv.conf names a resolver of this machine. Raises OxidizeError for a file
    that cannot be read.
    """
    asked = _servers_in(RESOLV_CONF)
    if RESOLVED.exists() and (set(asked) <= STUBS or RESOLV_CONF.resolve().parent == RESOLVEDS_RESOLV_CONF.parent):
        asked = _servers_in(RESOLVEDS_RESOLV_CONF)
        return [
            f"systemd-resolved asks no name server {server}, expected for {wanted.interface}"
            for server in wanted.servers
            if server not in asked
        ]
    expected = list(wanted.servers[:READ_SERVERS_MAX])
    if asked[: len(expected)] == expected or (asked and all(server.is_loopback for server in asked)):
        return []
    found = ", ".join(map(str, asked)) or "no name server"
    return [f"{RESOLV_CONF} has {found}, expected {', '.join(map(str, expected))}"]


def _servers_in(path: Path) -> list[HostAddress]:
    try:
        with path.open("rb") as file:
            text = file.read(RESOLV_CONF_BYTES_MAX).decode(errors="replace")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise OxidizeError(f"{path}: cannot be read ({error.strerror}): expected a file for every user") from error
    servers = []
    for line in text.splitlines():
        words = line.split()
        if len(words) > 1 and words[0] == "nameserver":
            with contextlib.suppress(ValueError):
                servers.append(ip_address(words[1]))
    return servers


class NameServersPart:
    """A client's name servers, compared with those that this system asks (`hostnet.part.Part`).

    record: returns the name of the record in `resolvconf`; None where a hook of the unit sets the servers, as root.
    begins_at: the time of `clock`, in seconds, before which that hook may be at work, and nothing is compared.
    """

    name = "name servers"

    def __init__(
        self, wanted: NameServers, record: Callable[[], str] | None, clock: Callable[[], float], begins_at: float
    ) -> None:
        self._wanted = wanted
        self._record = record
        self._clock = clock
        self._begins_at = begins_at

    def compare(self, *, repair: bool) -> Steps[list[str]]:
        """Read what this system asks; see `Part`."""
        yield 0.0
        missing = missing_servers(self._wanted) if self._clock() >= self._begins_at else []
        if not missing or not repair:
            return missing
        if self._record is None:
            raise OxidizeError(f"name servers: {missing[0]}: this needs root: a reload of the unit sets them again")
        yield from apply_dns(self._wanted, self._record())
        if still := missing_servers(self._wanted):
            raise OxidizeError(
                f"name servers: {still[0]}: another program sets them: make it leave them, see client.dns"
            )
        return missing


def record_name(owner: str, index: int | None = None) -> str:
    """Return the name of a client's record in `resolvconf`.

    It begins with "tun.", which Debian's resolvconf places high in its order. owner: the unit, whose interface may get
    another name between two reloads, or else the interface. index: that of the interface, where the record of a dead
    client must not be mistaken for that of the next one.
    """
    return f"tun.{owner}" if index is None else f"tun.{owner}.{index}"


def _run(command: list[str], given: str = "") -> Steps[None]:
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
                yield POLL_SECS
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
