"""The next free address is the lowest one in every network, with the same host number in all if that is possible."""

from ipaddress import ip_interface, ip_network

import pytest

from oxidize.errors import ConfigError
from oxidize.provision.addresses import free_addresses, tunnel_networks


def free(own: str, taken: str = "") -> str:
    found = free_addresses(
        [ip_interface(address) for address in own.split()], [ip_network(network) for network in taken.split()]
    )
    return " ".join(map(str, found))


@pytest.mark.parametrize(
    ("own", "taken", "expected"),
    [
        ("10.9.0.1/24", "", "10.9.0.2/24"),
        ("10.9.0.1/24 fd09::1/64", "", "10.9.0.2/24 fd09::2/64"),
        ("10.9.0.1/24", "10.9.0.2/32 10.9.0.3/32 10.9.0.5/32", "10.9.0.4/24"),
        ("10.9.0.9/24", "", "10.9.0.1/24"),  # the network's own address is none
        ("10.9.0.1/24 fd09::1/64", "10.9.0.2/32", "10.9.0.3/24 fd09::3/64"),  # the same number, though ::2 is free
        ("10.9.0.1/24 fd09::1/64", "fd09::2/127", "10.9.0.4/24 fd09::4/64"),
        ("10.9.0.1/24", "10.9.0.0/25", "10.9.0.128/24"),
        ("10.9.0.1/24", "10.8.0.0/16 192.168.0.0/16", "10.9.0.2/24"),
        ("10.9.0.1/29 fd09::1/64", "fd09::2/128 fd09::4/126", "10.9.0.3/29 fd09::3/64"),
        ("10.9.0.1/30 fd09::1/64", "fd09::2/128", "10.9.0.2/30 fd09::3/64"),  # no number is free in both
        ("10.9.0.0/31", "", "10.9.0.1/31"),  # RFC 3021
        ("fd09::/127", "", "fd09::1/127"),
        ("10.9.0.1/24 10.9.0.7/24", "", "10.9.0.2/24"),  # one network, two addresses of the server
        ("10.0.0.1/8 10.9.0.1/24", "", "10.9.0.2/24"),  # one within the other
        ("10.9.0.1/24 10.8.0.1/24", "10.8.0.2/32", "10.9.0.3/24 10.8.0.3/24"),
        ("10.9.0.1/24", "10.9.0.0/24", "10.9.0.2/24"),  # a peer has the rest of the network
        ("10.9.0.1/24 fd09::1/64", "0.0.0.0/0 ::/0 10.9.0.2/32", "10.9.0.3/24 fd09::3/64"),  # another is the way out
    ],
)
def test_the_lowest_free_address_is_found(own: str, taken: str, expected: str) -> None:
    assert free(own, taken) == expected


@pytest.mark.parametrize(
    ("own", "taken", "full"),
    [
        ("10.9.0.1/30", "10.9.0.2/32", ["10.9.0.0/30"]),
        ("10.9.0.1/24", "10.9.0.0/25 10.9.0.128/25", ["10.9.0.0/24"]),
        (
            "10.9.0.1/24 fd09::1/64",
            "10.9.0.0/25 10.9.0.128/25 fd09::/65 fd09::8000:0:0:0/65",
            ["10.9.0.0/24", "fd09::/64"],
        ),
        ("10.9.0.1/32 fd09::1/64", "", ["10.9.0.1/32"]),
    ],
)
def test_a_full_network_is_reported(own: str, taken: str, full: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        free(own, taken)
    assert [problem.partition(": no free address")[0] for problem in caught.value.problems] == full


def test_the_networks_of_the_tunnel_are_the_smallest_of_those_that_overlap() -> None:
    own = [ip_interface(address) for address in ("10.0.0.1/8", "10.9.0.1/24", "10.9.0.2/24", "fd09::1/64")]
    assert tunnel_networks(own) == (ip_network("10.9.0.0/24"), ip_network("fd09::/64"))
