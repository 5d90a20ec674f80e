"""The rules of the table of `nat`: what is translated on its way out, what is forwarded in, and TCP's MSS.

The rule: nothing but the tunnel's traffic is translated. What comes from a network of the server's own `address` is the
tunnel's, whichever way it came; from any other network only what comes out of the tunnel is. A flow is translated by
the rules that its first packet found, and keeps that translation until it ends.

The order is that of the configuration: the first port forward that matches applies. Source: nft(8), "NAT statements";
iptables-extensions(8).
"""

from collections.abc import Iterable, Iterator, Sequence

from oxidize.config.nat import PROTOCOLS, NatSettings, PortForward, Ports
from oxidize.config.values import InterfaceAddress, Network
from oxidize.hostnet import nft_expressions as expr
from oxidize.hostnet import nftables as nft
from oxidize.hostnet.nftables import Message, NftSocket
from oxidize.hostnet.part import run

FORWARD, PREROUTING, POSTROUTING = "forward", "prerouting", "postrouting"  # the chains
_PRIORITY_MANGLE, _PRIORITY_DSTNAT, _PRIORITY_SRCNAT = -150, -100, 100  # linux/netfilter_ipv4.h
MODULES = ("nft_chain_nat", "nft_masq", "nft_nat", "nft_rt", "nft_exthdr", "nft_ct", "nft_fib_inet")  # of the kernel

_PROTOCOL_NUMBERS = {"tcp": 6, "udp": 17}
_TCP_FLAGS_OFFSET = 13  # RFC 9293, section 3.1
_SYN, _RST = 0x02, 0x04


def table_name(interface: str) -> str:
    """Return the name of the table, which two servers of one machine do not share."""
    return f"oxidize-{interface}"


def table_messages(
    interface: str, addresses: Iterable[InterfaceAddress], wanted: NatSettings, *, exclusive: bool
) -> list[Message]:
    """Return the batch that makes the table, or that replaces the rules of the existing one."""
    name = table_name(interface)
    chains = [
        nft.new_chain(name, FORWARD, "filter", nft.NF_INET_FORWARD, _PRIORITY_MANGLE),
        nft.new_chain(name, POSTROUTING, "nat", nft.NF_INET_POST_ROUTING, _PRIORITY_SRCNAT),
    ]
    if wanted.forwards:
        chains.append(nft.new_chain(name, PREROUTING, "nat", nft.NF_INET_PRE_ROUTING, _PRIORITY_DSTNAT))
    own = [address.network for address in addresses]
    rules = [*_clamping(interface), *_forwarding(wanted.forwards), *_translating(interface, own, wanted)]
    first, *others = (nft.new_rule(name, chain, expressions) for chain, expressions in rules)
    mark = nft.digest_data(b"".join(chain.encode() + expressions for chain, expressions in rules))
    return [
        nft.new_table(name, exclusive=exclusive),
        *chains,
        nft.delete_rules(name),
        nft.with_data(first, mark),
        *others,
    ]


def is_table_of(connected: NftSocket, name: str, messages: Sequence[Message]) -> bool:
    """Return whether the socket's table of this name has the very rules of a batch; raises as `NftSocket.rules`.

    The first rule is marked with the digest of all. No other socket may change them, and a batch is applied whole.
    """
    marks = [data for _, data in run(connected.rules(name, FORWARD)) if data]
    first = next(each for each in messages if each.kind == nft.NFT_MSG_NEWRULE)
    return bool(marks) and first.attributes.endswith(nft.with_data(Message(0, 0, b""), marks[0]).attributes)


Rule = tuple[str, bytes]  # the chain, and all expressions


def _clamping(interface: str) -> Iterator[Rule]:
    is_tcp = expr.meta_is(expr.NFT_META_L4PROTO, _PROTOCOL_NUMBERS["tcp"])
    is_syn = expr.payload_is(expr.NFT_PAYLOAD_TRANSPORT_HEADER, _TCP_FLAGS_OFFSET, bytes([_SYN]), bytes([_SYN | _RST]))
    for key in (expr.NFT_META_IIFNAME, expr.NFT_META_OIFNAME):
        yield FORWARD, expr.interface_is(key, interface) + is_tcp + is_syn + expr.clamp_mss()


def _forwarding(forwards: Iterable[PortForward]) -> Iterator[Rule]:
    for forward in forwards:
        target, arrival = forward.target, b""
        if forward.interface is not None:
            arrival = expr.interface_is(expr.NFT_META_IIFNAME, forward.interface)
        here = expr.family_is(target.address.version) + expr.goes_to_this_machine()
        destinations = [expr.goes_to(each) for each in forward.destinations] or [here]
        for protocol in PROTOCOLS[forward.protocol]:
            for destination in destinations:
                to = expr.translate_destination(target.address, target.port)
                yield PREROUTING, arrival + destination + _is_for(protocol, forward.ports) + to


def _translating(interface: str, own: Sequence[Network], wanted: NatSettings) -> Iterator[Rule]:
    for forward in wanted.forwards:
        target = forward.target
        ports = forward.ports if target.port is None else Ports(target.port, target.port)
        for protocol in PROTOCOLS[forward.protocol] if forward.masquerade else ():
            where = expr.goes_to_host(target.address) + _is_for(protocol, ports)
            yield POSTROUTING, where + expr.was_forwarded() + expr.masquerade()
    if wanted.interface is not None:
        leaving = expr.interface_is(expr.NFT_META_OIFNAME, wanted.interface)
    else:
        # Packets from this machine to itself pass here too, by lo, and must keep their address.
        names = (interface, "lo")
        leaving = b"".join(expr.interface_is(expr.NFT_META_OIFNAME, each, negate=True) for each in names)
    snat = {address.version: address for address in wanted.snat}
    for network in wanted.sources:
        is_own = any(network.network_address in each and each.prefixlen <= network.prefixlen for each in own)
        coming = b"" if is_own else expr.interface_is(expr.NFT_META_IIFNAME, interface)
        address = snat.get(network.version)
        to = expr.masquerade() if address is None else expr.translate_source(address)
        yield POSTROUTING, leaving + coming + expr.comes_from(network) + to


def _is_for(protocol: str, ports: Ports) -> bytes:
    is_protocol = expr.meta_is(expr.NFT_META_L4PROTO, _PROTOCOL_NUMBERS[protocol])
    return is_protocol + expr.destination_port_in(ports.first, ports.last)
