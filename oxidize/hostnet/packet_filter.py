"""A client's nftables table: what a tunnel's address accepts, and with `kill_switch = true` what leaves this machine.

The rule: no packet for an address of the tunnel comes in by another interface; otherwise a neighbour could find the
address and send into the tunnel's flows (CVE-2019-14899). With the kill switch no packet leaves but into the tunnel,
as one of the tunnel's own (the mark, which only CAP_NET_ADMIN can set), into a local network, or as what a link needs:
DHCP and IPv6's neighbour discovery. Where a tunnel's network lies in a local one, or the reverse, the longer prefix
decides, as in a routing table.

The table has no owner, so it stays when a process is killed: until the next start, which replaces all rules in one
batch, or until a planned end. Source: docs/adr/0016; nft(8); wg-quick(8) for the first chain.
"""

import errno
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import partial
from ipaddress import ip_network
from typing import NamedTuple

from oxidize.config.values import InterfaceAddress, Network
from oxidize.errors import OxidizeError
from oxidize.hostnet import nft_expressions as expr
from oxidize.hostnet import nftables as nft
from oxidize.hostnet.local_networks import LocalNetwork, read_local_networks
from oxidize.hostnet.nft_expressions import NF_ACCEPT, NF_DROP, decide
from oxidize.hostnet.nftables import Message, NftError, NftSocket, Rule
from oxidize.hostnet.part import Steps, run

ARRIVING, LEAVING = "arriving", "leaving"  # the chains
_PRIORITY_RAW, _PRIORITY_FILTER = -300, 0  # linux/netfilter_ipv4.h

_UDP, _ICMPV6 = 17, 58
_DHCP_PORTS = {4: (68, 67), 6: (546, 547)}  # RFC 2131, RFC 8415: of the client and of the server
_NEIGHBOUR_DISCOVERY = {"solicitation": 135, "advertisement": 136}  # RFC 4861; the rest of it stays in the next ones
# What no router forwards: link-local addresses and groups, with router solicitations, MLD, IGMP and mDNS.
_LINK: tuple[Network, ...] = tuple(map(ip_network, ("224.0.0.0/24", "fe80::/10", "ff02::/16")))

RULES_OF_SLICE = 32  # built between two looks at the data path

Identity = tuple[str, bytes]
Rules = Mapping[Identity, Rule]  # by `Rule.identity`, in order

_REMEDIES = {
    errno.EPERM: "this needs CAP_NET_ADMIN, and a table that belongs to no other process",
    errno.EOPNOTSUPP: "expected a kernel with nf_tables for the family inet: install its modules",
    errno.ENOENT: "expected a kernel with nf_tables for the family inet: install its modules",
    errno.EPROTONOSUPPORT: "expected a kernel with netfilter: install its modules",
}


class Filter(NamedTuple):
    """The wanted table.

    addresses: the tunnel's, on `interface`. networks: those behind the tunnel apart from default routes. mark: of the
    tunnel's own packets. kill_switch: whether nothing else leaves.
    """

    interface: str
    addresses: tuple[InterfaceAddress, ...]
    networks: tuple[Network, ...]
    mark: int
    kill_switch: bool


def table_name(interface: str) -> str:
    """Return the name of the table of a client's interface."""
    return f"oxidize-{interface}"


def rules_wanted(wanted: Filter, local: Sequence[LocalNetwork]) -> Iterator[Rule]:
    """Build all rules, in order. local: the networks that a kill switch leaves open."""
    yield from _arriving(wanted)
    if wanted.kill_switch:
        yield from _leaving(wanted, local)


def check_filter(wanted: Filter) -> list[str]:
    """Return a line for each rule that the kernel lacks or has in addition, empty if all is right.

    Raises OxidizeError where the kernel cannot be asked.
    """
    return run(_compare(wanted, _rules(wanted), repair=False))


def prove_filter(wanted: Filter) -> None:
    """Raise OxidizeError if `apply_filter` would fail; change nothing."""
    with _connected(wanted.interface) as connected:
        connected.check(run(_batch(wanted, _rules(wanted))))


def apply_filter(wanted: Filter) -> list[str]:
    """Bring the table to what is wanted, all rules at once; return the lines of `check_filter` before that.

    Raises OxidizeError, and then nothing has changed.
    """
    return run(_compare(wanted, _rules(wanted), repair=True))


def _compare(wanted: Filter, rules: Rules, *, repair: bool) -> Steps[list[str]]:
    with _connected(wanted.interface) as connected:
        differences = yield from _differences(connected, wanted, rules)
        if differences and repair:
            connected.commit((yield from _batch(wanted, rules)))
        return differences


class FilterPart:
    """A client's packet filter, compared with the kernel's (`hostnet.part.Part`).

    Without a kill switch a kernel that has no nf_tables lacks nothing: the client has warned of that.
    """

    name = "packet filter"

    def __init__(self, wanted: Filter) -> None:
        self._wanted = wanted
        self._local: Sequence[LocalNetwork] | None = None  # those of the rules below
        self._rules: Rules = {}

    def compare(self, *, repair: bool) -> Steps[list[str]]:
        """Compare the rules, and this machine's networks; see `Part`."""
        yield 0.0
        try:
            local = read_local_networks() if self._wanted.kill_switch else ()
            if local != self._local:
                rules: dict[Identity, Rule] = {}
                for rule in rules_wanted(self._wanted, local):
                    rules[rule.identity] = rule
                    if len(rules) % RULES_OF_SLICE == 0:
                        yield 0.0
                self._rules, self._local = rules, local
                yield 0.0
            return (yield from _compare(self._wanted, self._rules, repair=repair))
        except OxidizeError:
            if self._wanted.kill_switch:
                raise
            return []


def remove_filter(interfaces: Collection[str], *, spare_kill_switch: bool = False) -> list[str]:
    """Remove the tables of a client's interfaces, which need not exist; return the changes made, a line each.

    spare_kill_switch: leave a table that has one, for a client that has not ended as planned. Raises OxidizeError.
    """
    changes = []
    for interface in sorted(interfaces):
        name = table_name(interface)
        with _connected(interface) as connected:
            if not any(table.name == name and table.owner == 0 for table in connected.tables()):
                continue
            if spare_kill_switch and any(chain == LEAVING for chain, _ in run(connected.rules(name))):
                continue
            connected.commit([nft.delete_table(name)])
            changes.append(f"-table inet {name}")
    return changes


def _rules(wanted: Filter) -> Rules:
    local = read_local_networks() if wanted.kill_switch else ()
    return {rule.identity: rule for rule in rules_wanted(wanted, local)}


def _arriving(wanted: Filter) -> Iterator[Rule]:
    # This machine reaches its own addresses by lo; wg-quick asks for the type of the source instead.
    elsewhere = b"".join(
        expr.interface_is(expr.NFT_META_IIFNAME, name, negate=True) for name in (wanted.interface, "lo")
    )
    for address in wanted.addresses:
        comment = f"{address.ip} is reached by {wanted.interface} alone"
        yield Rule(ARRIVING, comment, elsewhere + expr.goes_to_host(address.ip) + decide(NF_DROP))


def _leaving(wanted: Filter, local: Sequence[LocalNetwork]) -> Iterator[Rule]:
    accept = partial(_rule, NF_ACCEPT)
    for name in (wanted.interface, "lo"):
        yield accept(f"by {name}", _leaves_by(name))
    is_udp = expr.meta_is(expr.NFT_META_L4PROTO, _UDP)
    yield accept(f"the tunnel's own, with mark {wanted.mark:#x}", is_udp, expr.mark_is(wanted.mark))
    for version, ports in _DHCP_PORTS.items():
        both = b"".join(port.to_bytes(2, "big") for port in ports)
        yield accept(f"DHCP of IPv{version}", expr.family_is(version), is_udp, _transport_is(both))
    for name, kind in _NEIGHBOUR_DISCOVERY.items():
        is_icmp = expr.family_is(6) + expr.meta_is(expr.NFT_META_L4PROTO, _ICMPV6)
        yield accept(f"neighbour {name}", is_icmp, _transport_is(bytes([kind])))
    for network in _LINK:
        yield accept(f"{network} stays on its link", expr.goes_to(network))
    # Of two equal networks the tunnel's comes first.
    inside = dict.fromkeys([*(address.network for address in wanted.addresses), *wanted.networks])
    ordered = [(-network.prefixlen, f"{network} is in the tunnel", network, "") for network in inside]
    for each in local:
        if each.interface != wanted.interface:
            comment = f"local network {each.network} by {each.interface}"
            ordered.append((-each.network.prefixlen, comment, each.network, each.interface))
    for _, comment, network, interface in sorted(ordered, key=lambda item: (item[0], bool(item[3]), item[1])):
        if interface:
            yield accept(comment, _leaves_by(interface), expr.goes_to(network))
        else:
            yield _rule(NF_DROP, comment, expr.goes_to(network))
    yield _rule(NF_DROP, "kill_switch: everything else")


def _rule(verdict: int, comment: str, *expressions: bytes) -> Rule:
    return Rule(LEAVING, comment, b"".join(expressions) + decide(verdict))


def _leaves_by(interface: str) -> bytes:
    return expr.interface_is(expr.NFT_META_OIFNAME, interface)


def _transport_is(value: bytes) -> bytes:
    """Match packets by the first bytes of the header after IP's."""
    return expr.payload_is(expr.NFT_PAYLOAD_TRANSPORT_HEADER, 0, value, b"\xff" * len(value))


def _batch(wanted: Filter, rules: Rules) -> Steps[list[Message]]:
    """Return the batch that makes the table, or replaces the rules of the existing one."""
    name = table_name(wanted.interface)
    messages = [
        nft.new_table_without_owner(name),
        nft.new_chain(name, ARRIVING, "filter", nft.NF_INET_PRE_ROUTING, _PRIORITY_RAW),
    ]
    if wanted.kill_switch:
        messages.append(nft.new_chain(name, LEAVING, "filter", nft.NF_INET_POST_ROUTING, _PRIORITY_FILTER))
    messages.append(nft.delete_rules(name))
    for rule in rules.values():
        messages.append(nft.new_marked_rule(name, rule))
        if len(messages) % RULES_OF_SLICE == 0:
            yield 0.0
    return messages


def _differences(connected: NftSocket, wanted: Filter, rules: Rules) -> Steps[list[str]]:
    name = table_name(wanted.interface)
    table = next((each for each in connected.tables() if each.name == name), None)
    if table is None:
        return [f"+table inet {name}" + (" with the kill switch" if wanted.kill_switch else "")]
    found = yield from connected.rules(name)
    there = set(found)
    missing = [f"+{rule.chain}: {rule.comment}" for identity, rule in rules.items() if identity not in there]
    surplus = len([each for each in found if each not in rules])
    lines = [*missing, *([f"-{surplus} rules"] if surplus else [])]
    if table.is_dormant:
        lines.append("+table in force, which was dormant")
    # Which of two rules comes first matters.
    return lines or ([] if found == list(rules) else ["+rules in order"])


@contextmanager
def _connected(interface: str) -> Iterator[NftSocket]:
    """Open a socket for the table of an interface; an error of the kernel names the table and the remedy."""
    with closing(NftSocket.create()) as connected:
        try:
            yield connected
        except NftError as error:
            remedy = _REMEDIES.get(error.code, "the kernel refuses the table")
            raise OxidizeError(f"nftables table inet {table_name(interface)}: {error}: {remedy}") from error
