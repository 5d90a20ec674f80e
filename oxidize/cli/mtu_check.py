"""Whether the tunnel's packets fit into the way that they take out of this machine.

The rule: `mtu` is what is written, or 1420, and never computed while a process starts (docs/adr/0023). So what
wg-quick(8) would compute is told.
"""

from collections.abc import Iterable

from oxidize.config import ClientConfig, InterfaceAddress, ServerConfig
from oxidize.config.schema import MTU_DEFAULT, MTU_IPV6_MIN, MTU_MIN
from oxidize.config.values import FWMARK_DEFAULT, host_address
from oxidize.hostnet.uplink import OVERHEAD, OVERHEAD_IPV4, Uplink, find_uplink


def mtu_lack(loaded: ServerConfig | ClientConfig) -> str | None:
    """Return why packets of the tunnel would leave in fragments, and what to do; None where they fit."""
    if loaded.network == "userspace":
        return None
    peers = [peer.endpoint for peer in loaded.peers] if isinstance(loaded, ServerConfig) else [loaded.server]
    hosts = (host for endpoint in peers if endpoint and (host := host_address(endpoint)) is not None)
    # Without a rule for it the mark changes nothing.
    uplink = find_uplink(hosts, but=loaded.interface, mark=loaded.fwmark or FWMARK_DEFAULT)
    # Who writes another MTU knows by which version of IP the tunnel's packets leave.
    overhead = OVERHEAD if loaded.mtu == MTU_DEFAULT else OVERHEAD_IPV4
    if uplink is None or loaded.mtu + overhead <= uplink.mtu:
        return None
    return (
        f"packets of {loaded.mtu} bytes need {overhead} more outside of the tunnel, and {uplink.interface} takes "
        f"{uplink.mtu}: they leave in fragments; write mtu = {fitting_mtu(uplink, loaded.addresses)}, on both sides"
    )


def narrow_uplink() -> Uplink | None:
    """Return this machine's way to the Internet if packets of the default MTU leave by it in fragments."""
    uplink = find_uplink(())
    return uplink if uplink is not None and uplink.mtu < MTU_DEFAULT + OVERHEAD else None


def fitting_mtu(uplink: Uplink, addresses: Iterable[InterfaceAddress]) -> int:
    """Return the MTU that wg-quick would compute for a way, at least what the addresses of the tunnel need."""
    least = MTU_IPV6_MIN if any(address.version == 6 for address in addresses) else MTU_MIN
    return max(least, uplink.mtu - OVERHEAD)
