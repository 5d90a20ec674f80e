"""A predecessor that serves again puts back what its dead successor did to the interface, on the real kernel."""

import tempfile
from contextlib import ExitStack
from ipaddress import ip_interface, ip_network
from pathlib import Path

from pyroute2 import IPRoute

from oxidize.hostnet.interface import configure_interface
from oxidize.net.tun import TunDevice
from oxidize.runtime.parts import configure
from tests.interop.test_tun import in_own_namespace
from tests.support.node_stand import Stand


def kernel_state(name: str) -> tuple[int, list[str], set[str]]:
    """Return MTU, addresses and routes of an interface."""
    with IPRoute() as connected:
        (index,) = connected.link_lookup(ifname=name)
        (link,) = connected.get_links(index)
        addresses = sorted(
            f"{each.get('local')}/{each['prefixlen']}" for each in connected.get_addr(index=index, family=2)
        )
        routes = {
            f"{each.get('dst')}/{each['dst_len']}" for each in connected.get_routes(oif=index, family=2, table=254)
        }
        return link.get("mtu"), addresses, routes


@in_own_namespace
def test_a_thawed_server_has_its_addresses_its_routes_and_its_mtu_again() -> None:
    with tempfile.TemporaryDirectory() as folder, ExitStack() as undo:
        stand = Stand(Path(folder), undo, "tun")
        tunnel = stand.node.tunnel
        assert isinstance(tunnel, TunDevice)
        configure(stand.node.interface)
        before = kernel_state(tunnel.name)
        stand.node.serve()
        handover = stand.handover()
        handover.freeze({})
        # The first acts of a successor with other settings, which then dies:
        configure_interface(tunnel.name, [ip_interface("10.77.0.1/24")], 1300, [ip_network("10.88.0.0/16")])
        assert kernel_state(tunnel.name) != before
        handover.thaw("a test")
        stand.loop.run_once(0)
        assert kernel_state(tunnel.name) == before
