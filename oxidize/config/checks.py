"""Conditions between the values and between the tables of a configuration, each value being right by itself.

The rule: every public key and every name belongs to one peer only, and none of the keys to the server. Networks of
peers may nest, for the longest prefix decides; of two peers with the same network the last has it, as with wg(8).
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from oxidize.config.keys import public_key
from oxidize.config.report import Report
from oxidize.config.schema import MTU_IPV6_MIN, ClientTable, PeerTable, ServerTable
from oxidize.config.source_file import SourceFile
from oxidize.config.validation import Checked, TableT, check_table
from oxidize.config.values import KERNELS_TABLES, MAIN_TABLE, Network, host_address, is_peer_name, parse_key
from oxidize.protocol.constants import PEERS_MAX


def check_server(server: Checked[ServerTable], peers: Sequence[Checked[PeerTable]], report: Report) -> None:
    """Report the mistakes that show only when the keys and tables of a server are compared, and warn."""
    _check_interface(server, report)
    enabled = [peer for peer in peers if peer.valid.get("enabled")]
    _check_routing(server, [network for peer in enabled for network in peer.valid.get("allowed_ips", ())], report)
    _check_unique(peers, "name", report)
    _check_unique(peers, "public_key", report)
    _check_foreign(server, peers, "public_key", report)
    _check_repeats(peers, report)
    _warn_of_peers(server, peers, report)
    # A disabled peer's addresses may be another's meanwhile; `oxidize peer enable` finds that.
    _warn_of_shared_networks(enabled, report)
    _warn_of_server_routes(server, enabled, report)


def check_client(client: Checked[ClientTable], report: Report) -> None:
    """Report the mistakes that show only when the keys of a client are compared, and warn."""
    _check_interface(client, report)
    _check_delays(client, report)
    _check_foreign(client, [client], "server_public_key", report)
    _check_repeats([client], report)
    check_client_network(client, report)
    _check_kill_switch(client, report)
    _warn_of_client_routes(client, report)


def check_peers(given: object, source: SourceFile) -> list[Checked[PeerTable]]:
    """Validate all tables [[peer]]; reports name a peer by its name, or by its number, counted from 1."""
    report = source.report
    if not isinstance(given, list) or not all(isinstance(peer, dict) for peer in given):
        report.wrong("peer", given, "tables [[peer]], one for each peer", "write [[peer]] with two brackets")
        return []
    if len(given) > PEERS_MAX:
        excess = f"{len(given)} tables: expected at most {PEERS_MAX}; give the rest to a second server"
        report.add(f"peer: {excess}")
        given = given[:PEERS_MAX]
    peers = []
    names: set[str] = set()
    for number, table in enumerate(given, start=1):
        name = table.get("name")
        is_clear = is_peer_name(name) and name not in names
        peers.append(check_table(PeerTable, table, f"peer.{name}" if is_clear else f"peer[{number}]", source))
        names.add(str(name))
    return peers


def _check_interface(table: Checked[TableT], report: Report) -> None:
    """Report an address that is listed twice, and an MTU that is too small for an IPv6 address."""
    addresses = table.valid.get("addresses", ())
    seen = set()
    for address in addresses:
        if address.ip in seen:
            report.wrong(f"{table.prefix}.address", str(address), "every address once", "remove one of them")
        seen.add(address.ip)
    mtu = table.valid.get("mtu", MTU_IPV6_MIN)
    ipv6 = [str(address) for address in addresses if address.version == 6]
    if ipv6 and mtu < MTU_IPV6_MIN:
        expected = f"at least {MTU_IPV6_MIN}, which IPv6 needs ({table.prefix}.address has {ipv6[0]})"
        report.wrong(f"{table.prefix}.mtu", mtu, expected, "remove the line, or the IPv6 address")


def _check_delays(client: Checked[ClientTable], report: Report) -> None:
    """Report a longest delay between two attempts that is shorter than the first one."""
    first = client.valid.get("reconnect_delay_ms", 0)
    longest = client.valid.get("max_reconnect_delay_ms", first)
    if longest < first:
        expected = f"at least reconnect_delay_ms, which is {first}"
        report.wrong(f"{client.prefix}.max_reconnect_delay_ms", longest, expected, "raise it, or lower the other one")


def _check_routing(
    node: Checked[ClientTable] | Checked[ServerTable], networks: Iterable[Network], report: Report
) -> None:
    """Report a table that cannot have the routes to `networks`, and a mark that cannot be a table's number."""
    table, fwmark = node.valid.get("table"), node.valid.get("fwmark", 0)
    has_default = any(network.prefixlen == 0 for network in networks)
    if has_default and table == MAIN_TABLE:
        expected = "another table for the default route in allowed_ips, which would take that of this machine here"
        report.wrong(f"{node.prefix}.table", table, expected, 'write "auto" for rules and a table of its own')
    if has_default and table == "auto" and fwmark in KERNELS_TABLES:
        expected = "the number of a table for the default route in allowed_ips, and this is one of the kernel's"
        report.wrong(f"{node.prefix}.fwmark", fwmark, expected, "choose another one")
    if node.valid.get("network") == "userspace":
        expected = 'none with network = "userspace", which routes nothing of this machine'
        for key in ("table", "fwmark"):
            if isinstance(node.given.get(key), int) and node.given[key]:
                report.wrong(f"{node.prefix}.{key}", node.given[key], expected, 'remove it, or set network = "tun"')
    if node.valid.get("kill_switch") and table != "auto" and not fwmark:
        expected = "a mark, by which kill_switch knows the tunnel's own packets"
        report.wrong(f"{node.prefix}.fwmark", node.given.get("fwmark"), expected, "remove the line for the default")


def _check_unique(peers: Sequence[Checked[PeerTable]], name: str, report: Report) -> None:
    """Report every peer whose field `name` is the same as an earlier peer's."""
    first: dict[Any, str] = {}
    for peer in peers:
        if name not in peer.valid:
            continue
        owner = first.setdefault(peer.valid[name], peer.prefix)
        if owner != peer.prefix:
            field = name.replace("_", " ")
            remedy = f"remove one of the two, or give it its own {field}"
            report.wrong(f"{peer.prefix}.{name}", peer.given[name], f"a {field} of its own, but {owner} has it", remedy)


def _check_foreign(
    own: Checked[ClientTable] | Checked[ServerTable], tables: Sequence[Checked[TableT]], name: str, report: Report
) -> None:
    """Report every table whose public key is that of the file's own private key, or a secret key of the file."""
    private_key = own.valid.get("private_key")
    own_public_key = public_key(private_key) if private_key else None
    secrets = set(map(parse_key, report.secrets))
    for table in tables:
        theirs = table.valid.get(name)
        if theirs is None:
            continue
        if theirs in secrets:
            expected = "a public key, but this is the key in one of this file's key files, which is secret"
            remedy = "run `oxidize pubkey` with the other side's private key, and no longer use this key"
            report.wrong(f"{table.prefix}.{name}", table.given[name], expected, remedy)
        elif theirs == own_public_key:
            expected = "the other side's public key, but it belongs to private_key_file of this file"
            remedy = "run `oxidize pubkey` with the other side's private key"
            report.wrong(f"{table.prefix}.{name}", table.given[name], expected, remedy)


def _check_repeats(tables: Sequence[Checked[TableT]], report: Report) -> None:
    """Report every network that `allowed_ips` of one table lists twice."""
    for table in tables:
        for network, times in Counter(table.valid.get("allowed_ips", ())).items():
            if times > 1:
                report.wrong(f"{table.prefix}.allowed_ips", str(network), "every network once", "remove one of them")


def _warn_of_shared_networks(peers: Sequence[Checked[PeerTable]], report: Report) -> None:
    """Warn of a network that two peers have: the last of them has it."""
    owners = {network: peer.prefix for peer in peers for network in peer.valid.get("allowed_ips", ())}
    for peer in peers:
        networks = peer.valid.get("allowed_ips", ())
        lost = [network for network in networks if owners[network] != peer.prefix]
        for network in lost:
            text = f"{network} goes to {owners[network]}, the last peer that lists it, as with wg"
            report.warn(f"{peer.prefix}.allowed_ips", text)
        if lost and len(lost) == len(networks):
            report.warn(f"{peer.prefix}.allowed_ips", "no network is left, so every packet of this peer is dropped")


def _warn_of_peers(server: Checked[ServerTable], peers: Sequence[Checked[PeerTable]], report: Report) -> None:
    """Warn of legal settings that leave a peer, or all clients, without service."""
    if not peers:
        report.warn("peer", "there is no table [[peer]], so no client can connect")
    elif not any(peer.valid.get("enabled", True) for peer in peers):
        report.warn("peer", "every peer has enabled = false, so no client can connect")
    own: Mapping[Any, str] = {address.ip: str(address) for address in server.valid.get("addresses", ())}
    for peer in peers:
        networks = peer.valid.get("allowed_ips", (None,))
        if not networks:
            report.warn(f"{peer.prefix}.allowed_ips", "the list is empty, so every packet of this peer is dropped")
        for network in networks:
            if network is not None and network.prefixlen == network.max_prefixlen and network.network_address in own:
                address = own[network.network_address]
                report.warn(f"{peer.prefix}.allowed_ips", f"{network} is the server's own address {address}")


def _warn_of_server_routes(server: Checked[ServerTable], peers: Sequence[Checked[PeerTable]], report: Report) -> None:
    """Warn of a default route, which the server's own traffic takes, and of a route that leads a tunnel into itself."""
    if server.valid.get("network") == "userspace" or server.valid.get("table", "off") != "auto":
        return
    for peer in peers:
        key, endpoint = f"{peer.prefix}.allowed_ips", peer.valid.get("endpoint")
        host = host_address(endpoint) if endpoint else None
        for network in peer.valid.get("allowed_ips", ()):
            if network.prefixlen == 0:
                report.warn(
                    key,
                    f"{network} sends all traffic of this machine through this peer, answers of its other services "
                    f'included; write table = "off" or a number under [server] to route by rules of your own',
                )
                if endpoint and host is None:
                    report.warn(
                        f"{peer.prefix}.endpoint",
                        f"the look-up of {endpoint} may need the route that leads to it; an address needs none",
                    )
            elif host is not None and host in network:
                report.warn(
                    key,
                    f"{network} contains the peer's own address, so the tunnel's packets to it would go into the "
                    f"tunnel unless a longer route leads to {host}",
                )


def check_client_network(client: Checked[ClientTable], report: Report) -> None:
    """Report what cannot be set in the host's network: routes, a table, a mark, name servers; for the hooks, too."""
    _check_routing(client, client.valid.get("allowed_ips", ()), report)
    valid = client.valid
    servers = [entry for entry in valid.get("dns", ()) if not isinstance(entry, str)]
    if valid.get("dns") and not servers:
        expected = "the address of at least one name server, not only domains"
        report.wrong("client.dns", client.given["dns"], expected, "add one, or remove the line")
    if valid.get("network") != "userspace":
        return
    remedy = 'remove it, or set network = "tun"'
    for network in valid.get("allowed_ips", ()):
        if network.prefixlen == 0:
            expected = 'no default route with network = "userspace", which routes nothing of this machine'
            report.wrong("client.allowed_ips", str(network), expected, remedy)
    if servers:
        expected = 'no name servers with network = "userspace", which routes nothing of this machine'
        report.wrong("client.dns", client.given["dns"], expected, remedy)


def _check_kill_switch(client: Checked[ClientTable], report: Report) -> None:
    networks = client.valid.get("allowed_ips")
    if not client.valid.get("kill_switch") or networks is None:
        return
    if not any(network.prefixlen == 0 for network in networks):
        expected = "a default route, 0.0.0.0/0 or ::/0, in allowed_ips: without one nothing would reach the Internet"
        report.wrong("client.kill_switch", True, expected, "add it, or remove kill_switch")


def _warn_of_client_routes(client: Checked[ClientTable], report: Report) -> None:
    """Warn of routes that send the tunnel's own packets into it, or queries to name servers outside of it."""
    networks = client.valid.get("allowed_ips", ())
    server = host_address(client.valid.get("server", ""))
    for network in networks:
        if server is not None and network.prefixlen > 0 and server in network:
            report.warn(
                "client.allowed_ips",
                f"{network} contains the server's own address, so the tunnel's packets would go into the tunnel "
                f"unless a longer route leads to {server}; 0.0.0.0/0 and ::/0 need none",
            )
    reached = [*networks, *(address.network for address in client.valid.get("addresses", ()))]
    for entry in client.valid.get("dns", ()):
        if not isinstance(entry, str) and not any(entry in network for network in reached):
            report.warn(
                "client.dns", f"{entry} is in none of allowed_ips, so queries to it do not go through the tunnel"
            )


def contains(outer: Network, inner: Network) -> bool:
    """Return whether a network lies within another or equals it; False for different address families."""
    shift = outer.max_prefixlen - outer.prefixlen
    return (
        outer.version == inner.version
        and outer.prefixlen <= inner.prefixlen
        and int(outer.network_address) >> shift == int(inner.network_address) >> shift
    )
