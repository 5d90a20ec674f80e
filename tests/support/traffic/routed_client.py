"""A client behind a router, with a neighbour on a second link, and a server with a host behind it.

The router is the server's namespace. The server's outer addresses are not on the client's link, so the tunnel's own
packets need the default route of the main table.
"""

import secrets
import subprocess
from collections.abc import Sequence
from pathlib import Path

from oxidize.config.values import FWMARK_DEFAULT
from oxidize.hostnet.netlink import ROUTE_PROTOCOL
from tests.support.traffic.namespaces import Namespace, join, set_addresses
from tests.support.traffic.oxidize_client import OxidizeClient
from tests.support.traffic.server import Lab, wait_for
from tests.support.traffic.wireguard_go import WireguardGo

SERVER4, SERVER6 = "198.51.100.1", "2001:db8:5::1"  # outer, off the client's link
FAR4, FAR6 = "203.0.113.9", "2001:db8:99::9"  # behind the tunnel
NEAR4, NEAR6 = "192.168.7.1", "fd07::1"  # on the client's other link
PORT = 51_820
EVERYTHING = ("0.0.0.0/0", "::/0")


class Place:
    """The namespaces, the wireguard-go server and the client."""

    def __init__(
        self, lab: Lab, *, ipv6: bool = False, allowed_ips: Sequence[str] = EVERYTHING, dns: Sequence[str] | None = None
    ) -> None:
        self.lab = lab
        self.router, self.here, self.near = (Namespace(lab.stack) for _ in range(3))
        join(self.router, "down0", self.here, "up0")
        join(self.near, "near0", self.here, "lan0")
        set_addresses(self.router, "down0", ["192.0.2.1/30", "2001:db8:1::1/64"])
        set_addresses(self.router, "lo", [f"{SERVER4}/32", f"{SERVER6}/128", "127.0.0.1/8", "::1/128"], 65_536)
        set_addresses(self.here, "up0", ["192.0.2.2/30", "2001:db8:1::2/64"])
        set_addresses(self.near, "near0", [f"{NEAR4}/24", f"{NEAR6}/64"])
        set_addresses(self.here, "lan0", ["192.168.7.2/24", "fd07::2/64"])
        self.ip("route", "add", "default", "via", "192.0.2.1")
        self.ip("-6", "route", "add", "default", "via", "2001:db8:1::1")
        self.server = WireguardGo(lab, self.router, [f"{FAR4}/32", f"{FAR6}/128", "10.9.0.1/24", "fd09::1/64"])
        self.server.wg("set", self.server.name, "listen-port", str(PORT))
        self.interface = f"ox{secrets.token_hex(5)}"
        self.client = OxidizeClient(
            lab,
            f"[{SERVER6}]:{PORT}" if ipv6 else f"{SERVER4}:{PORT}",
            self.server.identity.public,
            address=["10.9.0.2/24", "fd09::2/64"],
            inside=self.here.entered,
            allowed_ips=allowed_ips,
            interface=self.interface,
            dns=dns,
        )
        self.server.set_peer(self.client.identity.public, "10.9.0.2/32,fd09::2/128")

    def ip(self, *arguments: str) -> str:
        """Run ip(8) in the client's namespace and return its output."""
        with self.here.entered():
            done = subprocess.run(["ip", *arguments], capture_output=True, check=True, text=True)
        return done.stdout

    def rules(self, version: int = 4) -> list[str]:
        """Return the routing rules without the kernel's own."""
        lines = [line.split(":", 1)[1].strip() for line in self.ip(f"-{version}", "rule").splitlines()]
        kernels = ("from all lookup local", "from all lookup main", "from all lookup default")
        return [line for line in lines if line not in kernels]

    def our_rules(self, version: int = 4) -> list[str]:
        """Return the expected routing rules of a full tunnel."""
        return [
            *([f"from all ipproto udp nop proto {ROUTE_PROTOCOL}"] if version == 4 else []),
            f"from all iif lo ipproto udp sport {self.client.port} lookup main proto {ROUTE_PROTOCOL}",
            f"from all lookup main suppress_prefixlength 0 proto {ROUTE_PROTOCOL}",
            f"not from all fwmark {FWMARK_DEFAULT:#x} lookup {FWMARK_DEFAULT} proto {ROUTE_PROTOCOL}",
        ]

    def assert_full(self) -> None:
        assert (self.rules(4), self.rules(6)) == (self.our_rules(4), self.our_rules(6))

    def wait_bare(self) -> None:
        """Wait until no rule is left, and check that no route is left."""
        wait_for("the rules to be gone", lambda: self.rules(4) == self.rules(6) == [])
        for version in (4, 6):
            assert self.ip(f"-{version}", "route", "show", "table", "all", "proto", str(ROUTE_PROTOCOL)) == ""

    def guards(self) -> set[int]:
        """Return the pids of the cleanup guards in the client's namespace."""
        with self.here.entered():
            ours = Path("/proc/thread-self/ns/net").readlink()
        found = set()
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and b"oxidize.hostnet.cleanup_guard" in (entry / "cmdline").read_bytes():
                    found |= {int(entry.name)} if (entry / "ns/net").readlink() == ours else set()
            except OSError:
                continue
        return found

    def sysctl(self, name: str, value: int) -> None:
        with self.here.entered():
            Path("/proc/sys/net", name).write_text(str(value))
