"""Networks that are claimed twice.

The rule: every address leads to at most one peer. Two networks either nest or are disjoint (RFC 4632 section 3.1), so
after sorting, one pass with a stack of the networks that enclose the present one finds every conflict.
"""

from collections.abc import Iterable
from typing import NamedTuple

from oxidize.config.model import Network


class Claim(NamedTuple):
    """A network, and the number of the peer to whose allowed IPs it belongs."""

    network: Network
    owner: int


def find_overlaps(claims: Iterable[Claim]) -> list[tuple[Claim, Claim]]:
    """Return every claim that conflicts, each with the closest one that it lies within or equals.

    A conflict is a network within another owner's, or one that the same owner claims twice. Takes O(n log n) steps.
    """
    conflicts = []
    enclosing: list[Claim] = []
    for claim in sorted(claims, key=_order):
        while enclosing and not _contains(enclosing[-1].network, claim.network):
            enclosing.pop()
        for outer in reversed(enclosing):
            if outer.owner != claim.owner or outer.network == claim.network:
                conflicts.append((claim, outer))
                break
        enclosing.append(claim)
    return conflicts


def _order(claim: Claim) -> tuple[int, int, int, int]:
    network = claim.network
    return network.version, int(network.network_address), network.prefixlen, claim.owner


def _contains(outer: Network, inner: Network) -> bool:
    shift = outer.max_prefixlen - outer.prefixlen
    return (
        outer.version == inner.version
        and outer.prefixlen <= inner.prefixlen
        and int(outer.network_address) >> shift == int(inner.network_address) >> shift
    )
