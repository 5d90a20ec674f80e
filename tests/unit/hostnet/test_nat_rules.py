"""The batch of `nat`: its size is bounded by the settings, and what has not changed gives the same bytes."""

from ipaddress import IPv4Address, IPv4Network, ip_address, ip_interface, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oxidize.config.nat import NatSettings, PortForward, Ports, Target, default_sources
from oxidize.config.values import Network
from oxidize.hostnet import nft_expressions as expr
from oxidize.hostnet import nftables as nft
from oxidize.hostnet.nat_rules import table_messages

ADDRESSES = [ip_interface("10.9.0.1/24"), ip_interface("fd09::1/64")]
PLAIN = NatSettings(default_sources(ADDRESSES), None, (), ())
CLAMPS = 2


def kinds(wanted: NatSettings) -> list[int]:
    return [message.kind for message in table_messages("ox0", ADDRESSES, wanted, exclusive=False)]


def test_each_network_of_the_addresses_is_translated_once() -> None:
    addresses = [*ADDRESSES, ip_interface("10.9.0.9/24")]
    assert default_sources(addresses) == PLAIN.sources


def test_no_chain_for_destinations_is_made_without_forwards() -> None:
    assert kinds(PLAIN).count(nft.NFT_MSG_NEWCHAIN) == 2
    forward = PortForward("tcp", Ports(1, 1), Target(ip_address("10.9.0.2"), None), None, (), masquerade=False)
    assert kinds(PLAIN._replace(forwards=(forward,))).count(nft.NFT_MSG_NEWCHAIN) == 3


def test_the_rules_before_are_removed_ahead_of_the_new_ones() -> None:
    found = kinds(PLAIN)
    assert found.index(nft.NFT_MSG_DELRULE) + 1 == found.index(nft.NFT_MSG_NEWRULE)
    assert found.count(nft.NFT_MSG_DELRULE) == 1


def rules(wanted: NatSettings) -> list[bytes]:
    """Return the rules without those of TCP's MSS."""
    found = table_messages("ox0", ADDRESSES, wanted, exclusive=False)
    return [each.attributes for each in found if each.kind == nft.NFT_MSG_NEWRULE][CLAMPS:]


COMES_BY_THE_TUNNEL = expr.interface_is(expr.NFT_META_IIFNAME, "ox0")


@pytest.mark.parametrize(
    ("source", "is_own"),
    [
        ("10.9.0.0/24", True),
        ("10.9.0.128/25", True),
        ("fd09::7/128", True),
        ("10.9.0.0/16", False),
        ("0.0.0.0/0", False),
        ("::/0", False),
        ("192.168.7.0/24", False),
    ],
)
def test_what_others_than_the_tunnels_networks_send_counts_only_if_the_tunnel_brings_it(
    source: str, is_own: bool
) -> None:
    (rule,) = rules(NatSettings((ip_network(source),), None, (), ()))
    assert (COMES_BY_THE_TUNNEL not in rule) == is_own


@pytest.mark.parametrize("destinations", [(), (ip_network("203.0.113.9"),), (ip_network("0.0.0.0/0"),)])
def test_a_forward_without_an_address_is_for_what_is_sent_to_this_machine(destinations: tuple[Network, ...]) -> None:
    target = Target(ip_address("10.9.0.2"), None)
    forward = PortForward("tcp", Ports(443, 443), target, None, destinations, masquerade=False)
    (rule,) = rules(NatSettings((), None, (), (forward,)))
    assert (expr.goes_to_this_machine() in rule) == (not destinations)


def test_snat_is_of_the_family_of_the_source() -> None:
    address = ip_address("2001:db8::9")
    v4, v6 = rules(PLAIN._replace(snat=(address,)))
    assert (expr.masquerade() in v4, expr.translate_source(address) in v4) == (True, False)
    assert (expr.masquerade() in v6, expr.translate_source(address) in v6) == (False, True)


NETWORKS = st.builds(
    lambda number, length: ip_network((number >> (32 - length) << (32 - length), length)),
    st.integers(0, 2**32 - 1),
    st.integers(0, 32),
)
FORWARDS = st.builds(
    PortForward,
    st.sampled_from(["tcp", "udp", "both"]),
    st.tuples(st.integers(1, 65535), st.integers(1, 65535)).map(lambda both: Ports(min(both), max(both))),
    st.builds(Target, st.builds(IPv4Address, st.integers(0, 2**32 - 1)), st.none() | st.integers(1, 65535)),
    st.none() | st.just("eth0"),
    st.lists(st.just(IPv4Network("203.0.113.0/24")), max_size=2).map(tuple),
    st.booleans(),
)


@given(st.lists(NETWORKS, max_size=5).map(tuple), st.lists(FORWARDS, max_size=5).map(tuple))
def test_a_rule_for_each_source_and_for_each_protocol_and_destination_of_a_forward(
    sources: tuple[IPv4Network, ...], forwards: tuple[PortForward, ...]
) -> None:
    expected = CLAMPS + len(sources)
    for each in forwards:
        protocols = 2 if each.protocol == "both" else 1
        expected += protocols * (max(1, len(each.destinations)) + each.masquerade)
    assert kinds(NatSettings(sources, "eth0", (), forwards)).count(nft.NFT_MSG_NEWRULE) == expected
