"""Look-ups of the server's name, without blocking the loop.

The rule: the loop never waits for a resolver. A literal address needs none; a name is looked up in a separate thread,
which reports the outcome to the loop through a pipe. With a default route through the tunnel, this process's queries
must not enter the tunnel that they are meant to bring up: the process sends them itself, with the mark of the tunnel's
own packets, to the name servers that the system had before the tunnel.

Sources: getaddrinfo(3), resolv.conf(5), getent(1), socket(7) SO_MARK; RFC 6724 for the order of addresses.
"""

import os
import socket
import subprocess
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from oxidize.net.event_loop import READABLE, Loop
from oxidize.net.resolve import literal, look_up, split
from oxidize.protocol.endpoint import Endpoint

LOOKUP_SECS_MAX = 5.0  # of this process's own queries, all name servers together
HOSTS_SECS_MAX = 2.0
# systemd-resolved's stub would query through the tunnel; the first file has the servers that it queries.
_RESOLV_CONFS = (Path("/run/systemd/resolve/resolv.conf"), Path("/etc/resolv.conf"))

Lookup = Callable[[str], list[Endpoint]]


def look_up_past_tunnel(text: str, mark: int, upstream_dns: Sequence[str]) -> list[Endpoint]:
    """Like `look_up`, but query the servers `upstream_dns` with `mark` set; /etc/hosts takes precedence."""
    host, port = split(text)
    addresses = _in_hosts(host) or _query(host, mark, upstream_dns)
    if not addresses:
        return look_up(text)
    return [endpoint for address in addresses if (endpoint := literal(f"[{address}]:{port}")) is not None]


def read_upstream_dns() -> list[str]:
    """Return the addresses of this machine's name servers; to be called before the tunnel changes them."""
    for path in _RESOLV_CONFS:
        try:
            lines = path.read_text(errors="replace").splitlines()
        except OSError:
            continue
        found = [words[1] for line in lines if len(words := line.split()) > 1 and words[0] == "nameserver"]
        if found:
            return found
    return []


def _in_hosts(host: str) -> list[str]:
    command = ["getent", "-s", "files", "ahosts", host]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=HOSTS_SECS_MAX
        )
    except (OSError, subprocess.SubprocessError):
        return []
    return list(dict.fromkeys(line.split()[0] for line in done.stdout.splitlines() if line.split()))


def _query(host: str, mark: int, upstream_dns: Sequence[str]) -> list[str]:
    """Return the addresses that DNS has for a name; empty if no server answers with one."""
    import dns.exception  # noqa: PLC0415  # only a client with a default route needs it, in an outage
    import dns.message  # noqa: PLC0415  # as above
    import dns.query  # noqa: PLC0415  # as above
    import dns.rdatatype  # noqa: PLC0415  # as above

    addresses: list[str] = []
    for server in upstream_dns:
        family = socket.AF_INET6 if ":" in server else socket.AF_INET
        for kind in (dns.rdatatype.AAAA, dns.rdatatype.A):
            try:
                query = dns.message.make_query(host, kind)
                with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as marked:
                    marked.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
                    timeout = LOOKUP_SECS_MAX / 2 / len(upstream_dns)
                    answer = dns.query.udp(query, server, timeout=timeout, sock=marked)
            except (OSError, ValueError, dns.exception.DNSException):  # ValueError: the server's address is malformed
                continue
            addresses += [item.address for section in answer.answer for item in section if section.rdtype == kind]
        if addresses:
            break
    return addresses


class Resolver:
    """Looks up one name on demand, one lookup at a time.

    lookup: runs in the thread. done: called from the loop with the endpoints, or with the error.
    """

    def __init__(self, text: str, lookup: Lookup, loop: Loop, done: Callable[[list[Endpoint] | OSError], None]) -> None:
        self._text = text
        self._lookup = lookup
        self._loop = loop
        self._done = done
        self._pipe_end: int | None = None

    def ask(self) -> None:
        """Begin a lookup; a no-op while one is under way."""
        if self._pipe_end is not None:
            return
        outcome: list[list[Endpoint] | OSError] = []
        try:
            read_end, write_end = os.pipe2(os.O_CLOEXEC)
            try:
                self._loop.register(read_end, READABLE, lambda: self._finish(outcome))
            except OSError:
                os.close(read_end)
                os.close(write_end)
                raise
        except OSError as error:  # out of descriptors or room: the outage may last longer, but the client must not end
            self._done(error)
            return
        self._pipe_end = read_end
        try:
            threading.Thread(target=self._run, args=(write_end, outcome), name="resolver", daemon=True).start()
        except RuntimeError:  # out of threads: the closed pipe reports a lookup without an answer
            os.close(write_end)

    def stop(self) -> None:
        """Abandon a lookup that is under way: its outcome is not reported."""
        if self._pipe_end is not None:
            self._loop.unregister(self._pipe_end)
            os.close(self._pipe_end)
            self._pipe_end = None

    def _run(self, write_end: int, outcome: list[list[Endpoint] | OSError]) -> None:
        try:
            outcome.append(self._lookup(self._text))
        except OSError as error:
            outcome.append(error)
        except ValueError as error:  # a name that cannot be encoded, an answer that cannot be read
            outcome.append(OSError(str(error)))
        finally:
            os.close(write_end)  # the reader sees end of file

    def _finish(self, outcome: list[list[Endpoint] | OSError]) -> None:
        self.stop()
        self._done(outcome[0] if outcome else OSError("the lookup ended without an answer"))
