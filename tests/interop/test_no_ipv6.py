"""Server and client with TUN devices on a kernel without IPv6: the defaults serve IPv4, a full tunnel included."""

import secrets
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from oxidize.control.query import fetch
from tests.support.traffic.namespaces import Namespace, join, set_addresses
from tests.support.traffic.oxidize_client import OxidizeClient
from tests.support.traffic.ping import Ping
from tests.support.traffic.server import OXIDIZE, Identity, Lab, PeerTable, Server, wait_for
from tests.support.traffic.without_ipv6 import WITHOUT_IPV6, switch_ipv6_off

pytestmark = [pytest.mark.root, pytest.mark.needs("ping")]

PORT = 51_820
INNER, FAR = "10.9.0.1", "198.51.100.9"  # the server's address in the tunnel, and one that only the tunnel leads to


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    with Lab(tmp_path) as lab:
        yield lab


def start(lab: Lab, program: Sequence[str], side: Server | OxidizeClient, role: str, inside: Namespace) -> None:
    """Start a server or a client as one of this program."""
    with inside.entered():
        lab.spawn((*program, role, "--no-holder", "-c", str(side.config_path)), role)
    wait_for(role, lambda: side.log_path.exists() and " serving " in side.log_path.read_text())


def reload(program: Sequence[str], side: Server | OxidizeClient, options: Sequence[str], inside: Namespace) -> None:
    with inside.entered():
        command = (*program, "reload", *options, "-c", str(side.config_path))
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done
    assert fetch(side.takeover_socket)["generation"] == 2


@pytest.mark.parametrize(
    ("program", "prepare", "reason"),
    [
        (WITHOUT_IPV6, lambda _: None, "this kernel has no IPv6"),
        (OXIDIZE, switch_ipv6_off, "IPv6 is switched off (net.ipv6.conf.*.disable_ipv6 = 1)"),
    ],
    ids=("not built in", "switched off"),
)
def test_the_defaults_serve_ipv4_and_full_tunnels_without_ipv6(
    lab: Lab, program: Sequence[str], prepare: Callable[[Namespace], None], reason: str
) -> None:
    there, here = Namespace(lab.stack), Namespace(lab.stack)
    for namespace in (there, here):
        prepare(namespace)
    join(there, "down0", here, "up0")
    set_addresses(there, "down0", ["192.0.2.1/24"])
    set_addresses(here, "up0", ["192.0.2.2/24"])
    set_addresses(there, "lo", ["127.0.0.1/8", f"{FAR}/32"], 65_536)
    identity = Identity.make()
    peer = PeerTable("client", identity.public, ("10.9.0.2/32",))
    names = [f"ox{secrets.token_hex(5)}" for _ in range(2)]
    server = Server(lab, [peer], listen=f"[::]:{PORT}", network="tun", address=(f"{INNER}/24",), interface=names[0])
    client = OxidizeClient(
        lab,
        f"192.0.2.1:{PORT}",
        server.identity.public,
        address=("10.9.0.2/24",),
        allowed_ips=("0.0.0.0/0",),
        interface=names[1],
        identity=identity,
    )
    start(lab, program, server, "server", there)
    start(lab, program, client, "client", here)
    pings = [Ping(lab, here, target, f"ping-{target}") for target in (INNER, FAR)]
    for each in pings:
        each.wait_until(3)
    reload(program, server, (), there)
    reload(program, client, ("--client",), here)
    for each in pings:
        each.wait_for_replies(3)
        assert each.stop().lost == ()
    for side in (server, client):
        (told,) = [line for line in side.log_path.read_text().splitlines() if "only IPv4 is served" in line]
        assert f"{reason}: only IPv4 is served" in told
        assert fetch(side.takeover_socket)["state"] in {"healthy", "connected"}
