"""Conditions between [server.nat] and the rest of a server's configuration, each value being right by itself.

The rule: what the kernel would take and never apply, or what would cut the tunnel off, is a mistake; what translates or
reaches no peer of this file is a warning.
"""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from ipaddress import ip_network

from oxidize.config.checks import contains
from oxidize.config.nat import EVERYTHING, PROTOCOLS, NatSettings, PortForward
from oxidize.config.nat_schema import NatTable
from oxidize.config.report import Report
from oxidize.config.schema import PeerTable, ServerTable
from oxidize.config.validation import Checked
from oxidize.config.values import Network
from oxidize.text import counted

PEERS_SHOWN = 3  # by name, in one warning


def check_nat(server: Checked[ServerTable], peers: Sequence[Checked[PeerTable]], report: Report) -> None:
    """Report mistakes that show only when [server.nat] is compared with other keys, and warn."""
    table: NatTable | None = server.valid.get("nat")
    if table is None:
        return
    if server.valid.get("network") == "userspace":
        expected = 'false, as network = "userspace" hands no packet to the kernel'
        report.wrong("server.nat", server.given["nat"], expected, 'remove it, or set network = "tun"')
    wanted = table.settings(server.valid.get("addresses", ()))
    tunnel = server.valid.get("interface")
    if wanted.interface is not None and wanted.interface == tunnel:
        expected = "another interface than the tunnel's: packets are translated where they leave it for elsewhere"
        remedy = "name the interface that leads there, or remove the line"
        report.wrong("server.nat.interface", wanted.interface, expected, remedy)
    _check_values(wanted, report)
    for number, forward in enumerate(wanted.forwards, start=1):
        _check_forward(f"server.nat.forward[{number}]", forward, server, report)
    _check_order(wanted.forwards, report)
    index = _PeerNetworks(peers)
    if len(index) and "addresses" in server.valid:
        _warn_of_sources(table, wanted, peers, index, report)
        _warn_of_targets(wanted, tunnel, index, report)


def _check_values(wanted: NatSettings, report: Report) -> None:
    """Report what is listed twice, and an address that no packet leaves with."""
    for network in sorted({each for each in wanted.sources if wanted.sources.count(each) > 1}, key=str):
        report.wrong("server.nat.sources", str(network), "every network once", "remove one of them")
    families = [address.version for address in wanted.snat]
    for address in wanted.snat:
        if families.count(address.version) > 1:
            expected = f"one address of IPv{address.version}, as all packets of a family leave with the same"
            report.wrong("server.nat.snat", list(map(str, wanted.snat)), expected, "remove the others")
            break
        if not any(network.version == address.version for network in wanted.sources):
            expected = f"an address of a family that is translated: sources have no network of IPv{address.version}"
            report.wrong("server.nat.snat", str(address), expected, "remove it, or add a network to sources")


def _check_forward(key: str, forward: PortForward, server: Checked[ServerTable], report: Report) -> None:
    ports, target = forward.ports, forward.target
    if target.port is not None and ports.first < ports.last:
        expected = "an address without a port, as a range of ports keeps them"
        report.wrong(f"{key}.to", str(target), expected, f'write "{target.address}"')
    for network in forward.destinations:
        if network.version != target.address.version:
            expected = f"an address of IPv{target.address.version}, as `to` is one"
            report.wrong(f"{key}.address", str(network), expected, "write a table of its own for the other family")
    listen = server.valid.get("listen", ("", 0))[1]
    is_inside = forward.interface is not None and forward.interface == server.valid.get("interface")
    if "udp" in PROTOCOLS[forward.protocol] and ports.first <= listen <= ports.last and not is_inside:
        expected = f"no UDP port {listen}, which is the tunnel's own (listen)"
        report.wrong(f"{key}.port", ports.given, expected, "forward another port, or only TCP")


def _check_order(forwards: Sequence[PortForward], report: Report) -> None:
    """Report a forward of which at least a part never applies, as an earlier one has the same packets."""
    for number, later in enumerate(forwards):
        for before, first in enumerate(forwards[:number], start=1):
            if _takes_from(first, later):
                key = f"server.nat.forward[{number + 1}].port"
                expected = f"ports that server.nat.forward[{before}], which comes first, does not forward already"
                report.wrong(key, later.ports.given, expected, "remove one of them")
                break


def _takes_from(first: PortForward, later: PortForward) -> bool:
    """Return whether two forwards are for the same packets, the first one not being an exception to the later one."""
    if first.target.address.version != later.target.address.version:
        return False
    if not set(PROTOCOLS[first.protocol]) & set(PROTOCOLS[later.protocol]):
        return False
    if first.ports.last < later.ports.first or later.ports.last < first.ports.first:
        return False
    if later.ports != first.ports and later.ports.first <= first.ports.first and first.ports.last <= later.ports.last:
        return False
    if first.interface not in {None, later.interface}:
        return False
    everything = EVERYTHING[first.target.address.version]
    if not later.destinations:  # the addresses of this machine
        return not first.destinations or everything in first.destinations
    return all(any(contains(outer, each) for outer in first.destinations) for each in later.destinations)


class _PeerNetworks:
    """The networks of all peers, in which one is found without a look at each."""

    def __init__(self, peers: Iterable[Checked[PeerTable]]) -> None:
        self._all: set[Network] = {each for peer in peers for each in peer.valid.get("allowed_ips", ())}
        self._starts = sorted((each.version, int(each.network_address)) for each in self._all)

    def __len__(self) -> int:
        return len(self._starts)

    def touches(self, network: Network) -> bool:
        """Return whether a peer's network lies in this one, or this one in a peer's."""
        place = bisect_left(self._starts, (network.version, int(network.network_address)))
        last = (network.version, int(network.broadcast_address))
        if place < len(self._starts) and self._starts[place] <= last:
            return True
        return any(network.supernet(new_prefix=length) in self._all for length in range(network.prefixlen))


def _warn_of_sources(
    table: NatTable,
    wanted: NatSettings,
    peers: Sequence[Checked[PeerTable]],
    index: _PeerNetworks,
    report: Report,
) -> None:
    """Warn of sources that no peer has, and where none are named of peers that are not translated."""
    if table.sources is not None:
        for network in wanted.sources:
            if not index.touches(network):
                report.warn("server.nat.sources", f"{network}: no peer's allowed_ips lie in it")
        return
    left_out = [
        peer for peer in peers if (own := peer.valid.get("allowed_ips")) and not _any_within(own, wanted.sources)
    ]
    hosts = [
        peer for peer in left_out if any(each.prefixlen == each.max_prefixlen for each in peer.valid["allowed_ips"])
    ]
    # A network alone is a site, which is routed with its own addresses; a peer with an address is a host.
    told = hosts or (left_out if not any(map(index.touches, wanted.sources)) else [])
    if told:
        names = ", ".join(peer.prefix for peer in told[:PEERS_SHOWN])
        more = f" and {counted(len(told) - PEERS_SHOWN, 'more peer')}" if len(told) > PEERS_SHOWN else ""
        report.warn(
            "server.nat",
            f"translates only packets from the networks of address ({', '.join(map(str, wanted.sources))}), and "
            f"allowed_ips of {names}{more} are not in them: list what is to be translated in sources of [server.nat]",
        )


def _warn_of_targets(wanted: NatSettings, tunnel: str | None, index: _PeerNetworks, report: Report) -> None:
    for number, forward in enumerate(wanted.forwards, start=1):
        address = forward.target.address
        if forward.interface != tunnel and not index.touches(ip_network(address)):
            report.warn(f"server.nat.forward[{number}].to", f"no peer's allowed_ips have {address}")


def _any_within(inner: Iterable[Network], outer: Sequence[Network]) -> bool:
    return any(contains(one, other) or contains(other, one) for one in inner for other in outer)
