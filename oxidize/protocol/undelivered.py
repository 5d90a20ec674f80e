"""The packets from the tunnel that no peer gets: counted, and answered by ICMP.

The rule: a sender learns that a packet cannot be delivered where that is certain: no peer has the address, or the peer
cannot be found (no endpoint, or no session until the handshake was given up). A packet that was dropped because too
many wait is not answered, since its peer may be there in a moment (RFC 4443, section 3.1: none for congestion). All
answers together have a budget, so that a scan of an empty network costs little.

Multicast and broadcast are counted apart, and not as drops: the kernel sends router solicitations and reports of
listeners on every interface, and a tunnel has no link on which they could be heard.

Source: drivers/net/wireguard/device.c, wg_xmit; RFC 1122, section 3.2.2; RFC 1812, section 4.3.2.8.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Interface, IPv6Interface

from oxidize.protocol.allowed_ips import Buffer, packet_destination, packet_source
from oxidize.protocol.counters import DropReason, Total
from oxidize.protocol.icmp import unreachable
from oxidize.protocol.rate_limiter import Budget
from oxidize.protocol.session_table import SessionTable

# Answers to all senders together, 10 us each: half a percent of a core.
UNREACHABLES_PER_SECOND = 500
UNREACHABLES_BURST = 100


class Undelivered:
    """The dropped packets of a device. answers: ICMP errors for the tunnel, which the data path takes."""

    def __init__(self, table: SessionTable) -> None:
        self.answers: deque[bytes] = deque(maxlen=UNREACHABLES_BURST)
        self._table = table
        self._budget = Budget(UNREACHABLES_PER_SECOND, UNREACHABLES_BURST)
        self._broadcasts: frozenset[bytes] = frozenset()

    def know_networks(self, addresses: Iterable[IPv4Interface | IPv6Interface]) -> None:
        """Take the broadcast addresses of the tunnel's own networks for what they are."""
        networks = [address.network for address in addresses]
        # A network of two addresses has none (RFC 3021).
        self._broadcasts = frozenset(
            network.broadcast_address.packed for network in networks if network.version == 4 and network.prefixlen < 31
        )

    def drop_unrouted(self, packets: Sequence[Buffer], now: float) -> None:
        """Drop packets whose destination no peer has."""
        for_hosts = [packet for packet in packets if not self._is_for_many(packet)]
        self._table.count(Total.MULTICAST_PACKETS, len(packets) - len(for_hosts))
        self.drop(DropReason.NO_ROUTE, for_hosts, now)

    def drop(self, reason: DropReason, packets: Sequence[Buffer], now: float) -> None:
        """Drop packets that cannot be delivered, and answer those that the budget is left for."""
        self._table.drop(reason, len(packets))
        for packet in packets:
            if not self._budget.has(now):
                return
            answer = unreachable(packet) if not self._is_for_many(packet) else None
            if answer is not None and packet_source(packet) not in self._broadcasts:
                self._budget.take(now)
                self.answers.append(answer)

    def take_answers(self) -> list[bytes]:
        """Return the answers, and forget them."""
        answers = list(self.answers)
        self.answers.clear()
        return answers

    def _is_for_many(self, packet: Buffer) -> bool:
        destination = packet_destination(packet)
        if len(destination) == 4:
            return destination[0] >= 224 or destination in self._broadcasts
        return destination[:1] == b"\xff"
