"""The first configuration of a server: a network for its tunnel that nothing else uses, and the text of the file.

The rule: a guess collides with nothing that this machine knows of - an address, a route in any table - nor with what
homes, hotels and other tools have, for a client's own network comes first there, and it could not reach the server.
Sources: RFC 1918 and RFC 4193 for private networks; RFC 6598 for those of providers; the defaults of Docker, Podman,
libvirt, OpenVPN, PiVPN, wg-easy, k3s and Kubernetes.
"""

from collections.abc import Callable, Collection, Iterable
from ipaddress import IPv4Network, IPv6Network, ip_interface, ip_network
from itertools import chain

from oxidize.config import InterfaceAddress, Network
from oxidize.provision.peer_tables import table_lines

USUAL = tuple(
    ip_network(network)
    for network in (
        *("192.168.0.0/16", "172.16.0.0/12", "100.64.0.0/10"),
        *("10.0.0.0/15", "10.2.0.0/16", "10.5.0.0/16", "10.6.0.0/16", "10.7.0.0/16", "10.8.0.0/16", "10.10.0.0/16"),
        *("10.13.0.0/16", "10.20.0.0/16", "10.42.0.0/15", "10.66.0.0/16", "10.88.0.0/15", "10.96.0.0/12"),
        *("10.128.0.0/16", "10.152.0.0/16", "10.200.0.0/16", "10.244.0.0/16", "10.255.0.0/16"),
    )
)
_FIRST = 9  # 10.9.0.0/24, as in the documents
_HEADING = "# The configuration of `oxidize server`, made by `oxidize init`; docs/configuration.md has all keys.\n\n"


def guess_networks(used: Collection[Network], random_bytes: Callable[[int], bytes] | None) -> list[Network]:
    """Return a free IPv4 network, and an IPv6 one of a random prefix; each only where one is found.

    used: those of the machine's addresses and routes. random_bytes: count -> bytes; None where there is no IPv6.
    """
    found: list[Network] = []
    candidates = (IPv4Network(f"10.{number}.0.0/24") for number in chain([_FIRST], range(256)))
    ipv4 = [network for network in used if isinstance(network, IPv4Network) and network.prefixlen > 0]
    found += _first_free(candidates, [*ipv4, *USUAL])
    if random_bytes is not None:
        prefix = b"\xfd" + random_bytes(5)
        ipv6 = [network for network in used if isinstance(network, IPv6Network) and network.prefixlen > 0]
        found += _first_free([IPv6Network((prefix + bytes(10), 64))], ipv6)
    return found


def _first_free(candidates: Iterable[Network], used: Collection[Network]) -> list[Network]:
    free = (network for network in candidates if not any(network.overlaps(other) for other in used))
    return [*next(((network,) for network in free), ())]


def first_addresses(networks: Iterable[Network]) -> list[InterfaceAddress]:
    """Return the server's address in each of its networks: the first one."""
    return [ip_interface(f"{network.network_address + 1}/{network.prefixlen}") for network in networks]


def server_toml(
    addresses: Iterable[InterfaceAddress],
    key_file: str,
    public_endpoint: str,
    interface: str | None,
    mtu: int | None = None,
) -> str:
    """Return the text of the configuration; interface, mtu: None for the default."""
    values: dict[str, object] = {
        "address": [str(address) for address in addresses],
        "private_key_file": key_file,
        "public_endpoint": public_endpoint,
        "interface": interface,
        "mtu": mtu,
    }
    return _HEADING + "\n".join([*table_lines("[server]", values), ""])
