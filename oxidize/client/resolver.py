"""Look-ups of the server's name past the tunnel.

The rule: with a default route through the tunnel, this process's queries must not enter the tunnel that they are meant
to bring up: the process sends them itself, with the mark of the tunnel's own packets, to the name servers that the
system had before the tunnel.

Sources: getaddrinfo(3), resolv.conf(5), getent(1), socket(7) SO_MARK; RFC 6724 for the order of addresses.
"""

import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

from oxidize.net.ipv6 import usable
from oxidize.net.resolve import literal, look_up, split
from oxidize.protocol.endpoint import Endpoint

LOOKUP_SECS_MAX = 5.0  # of this process's own queries, all name servers together
HOSTS_SECS_MAX = 2.0
# systemd-resolved's stub would query through the tunnel; the first file has the servers that it queries.
_RESOLV_CONFS = (Path("/run/systemd/resolve/resolv.conf"), Path("/etc/resolv.conf"))


def look_up_past_tunnel(text: str, mark: int, upstream_dns: Sequence[str]) -> list[Endpoint]:
    """Like `look_up`, but query the servers `upstream_dns` with `mark` set; /etc/hosts takes precedence."""
    host, port = split(text)
    addresses = _in_hosts(host) or _query(host, mark, upstream_dns)
    if not addresses:
        return look_up(text)
    return usable([endpoint for address in addresses if (endpoint := literal(f"[{address}]:{port}")) is not None])


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
    import dns.message  # noqa: PLC0415  # only a client with a default route needs it, in an outage
    import dns.query  # noqa: PLC0415  # only a client with a default route needs it, in an outage
    import dns.rdatatype  # noqa: PLC0415  # only a client with a default route needs it, in an outage

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
