"""The routing table against a linear search."""

from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oxidize.protocol import allowed_ips
from oxidize.protocol.allowed_ips import AllowedIPs, Network, inner_length

# Few bits differ, so that networks overlap and addresses hit them.
ipv4_numbers = st.builds(lambda high, low: high << 24 | low, st.integers(9, 11), st.integers(0, 15))
ipv6_numbers = st.builds(lambda high, low: high << 120 | low, st.integers(0xFC, 0xFE), st.integers(0, 15))
ipv4_networks = st.builds(lambda n, length: ip_network((n, length), strict=False), ipv4_numbers, st.integers(0, 32))
ipv6_networks = st.builds(
    lambda n, length: ip_network((n.to_bytes(16, "big"), length), strict=False), ipv6_numbers, st.integers(0, 128)
)
networks = st.one_of(ipv4_networks, ipv6_networks)
addresses = st.one_of(
    ipv4_numbers.map(lambda n: n.to_bytes(4, "big")), ipv6_numbers.map(lambda n: n.to_bytes(16, "big"))
)
values = st.integers(0, 4)

operations = st.one_of(
    st.tuples(st.just("insert"), networks, values),
    st.tuples(st.just("remove"), networks, values),
    st.tuples(st.just("lookup"), addresses, st.none()),
)


class NaiveAllowedIPs:
    """The same lookup by a linear search with the ipaddress module."""

    def __init__(self) -> None:
        self.values: dict[Network, int] = {}

    def lookup(self, address: bytes) -> int | None:
        host = ip_address(address)
        holding = [network for network in self.values if network.version == host.version and host in network]
        return self.values[max(holding, key=lambda network: network.prefixlen)] if holding else None


@pytest.fixture(scope="module", autouse=True)
def _small_cache() -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(allowed_ips, "CACHED_ADDRESSES_MAX", 5)
        yield


@settings(max_examples=300)
@given(st.lists(operations, max_size=40), st.lists(addresses, max_size=10))
def test_the_routing_table_agrees_with_a_linear_search(
    steps: list[tuple[str, object, int | None]], asked: list[bytes]
) -> None:
    table: AllowedIPs[int] = AllowedIPs()
    naive = NaiveAllowedIPs()
    for action, what, value in steps:
        if action == "insert":
            assert isinstance(what, IPv4Network | IPv6Network)
            assert value is not None
            table.insert(what, value)
            naive.values[what] = value
        elif action == "remove":
            assert isinstance(what, IPv4Network | IPv6Network)
            assert value is not None
            table.remove(what, value)
            if naive.values.get(what) == value:
                del naive.values[what]
        else:
            assert isinstance(what, bytes)
            assert table.lookup(what) == naive.lookup(what)
    for address in asked * 2:  # the second time from the cache
        assert table.lookup(address) == naive.lookup(address)
    assert dict(table.items()) == naive.values


@settings(max_examples=300)
@given(st.binary(max_size=120), st.sampled_from([b"", b"\x45", b"\x4f", b"\x60"]))
def test_a_lookup_never_raises_and_no_inner_length_exceeds_the_bytes(junk: bytes, start: bytes) -> None:
    packet = start + junk
    table: AllowedIPs[int] = AllowedIPs()
    table.insert(IPv4Network("0.0.0.0/0"), 4)
    table.insert(IPv6Network("::/0"), 6)
    length = inner_length(packet)
    assert 0 <= length <= len(packet)
    for found in (table.lookup_packet_source(packet), table.lookup_packet_destination(packet)):
        assert found in (None, 4, 6)
        if length:
            assert found == packet[0] >> 4
