"""What a successor does once before it reads its first packet: each step of the protocol, between two devices.

The rule: code that runs for the first time takes two to three times as long as later, and the packets that have waited
for a hand-off wait for that, too. So every step that they may need is done before READY, while the predecessor serves:
a handshake, and data in both directions. The devices exist for this alone: they have keys and counters of their own,
and nothing that they make leaves this function.
"""

import os
import time
from ipaddress import ip_network

from oxidize.protocol.allowed_ips import Buffer
from oxidize.protocol.changes import Change
from oxidize.protocol.counters import SLOT_WORDS, TOTALS_SLOTS, TOTALS_WORDS, Counters, Slots
from oxidize.protocol.crypto import generate_private_key, public_key
from oxidize.protocol.device import Device
from oxidize.protocol.endpoint import Endpoint
from oxidize.protocol.peer_settings import PeerSettings
from oxidize.protocol.rows import ReceivedRows

# How many packets each batch has: some alone, as most are; and CPython specialises code when it has run eight times.
BATCHES = (1, 20, 1, 1, 1, 1, 1, 1, 3, 20)
_ENDPOINTS = (Endpoint(bytes([192, 0, 2, 1]), 1), Endpoint(bytes([192, 0, 2, 2]), 1))  # RFC 5737
_ADDRESSES = (bytes([10, 0, 0, 1]), bytes([10, 0, 0, 2]))
_SIZE = 96  # of a packet, bytes
SLOTS = 16  # two peers with a few keypairs each


def warm_up(now: float) -> Counters:
    """Let two devices make a session and carry packets; return their counters. now: the loop's time."""
    slots = _Slots()
    _Pair(slots, now).run()
    return slots.counters


class _Slots:
    """Slots in the memory of this process (`protocol.counters.Slots`); none is used twice."""

    def __init__(self) -> None:
        self.counters: Counters = memoryview(bytearray(8 * SLOT_WORDS * (TOTALS_SLOTS + SLOTS))).cast("Q")
        self._next = TOTALS_WORDS

    def allocate(self) -> int:
        self._next += SLOT_WORDS
        return self._next - SLOT_WORDS

    def claim(self, slot: int) -> None:
        """Do nothing: no slot is restored."""

    def release(self, slot: int) -> None:
        """Do nothing: there are enough."""


class _Pair:
    """Two devices that are each other's only peer."""

    def __init__(self, slots: Slots, now: float) -> None:
        self._now = now
        self._rows = ReceivedRows()
        keys = [generate_private_key(os.urandom) for _ in _ENDPOINTS]
        self._devices = []
        for own in (0, 1):
            other = 1 - own
            settings = PeerSettings(
                public_key(keys[other]),
                allowed_ips=(ip_network(_ADDRESSES[other]),),
                endpoint=_ENDPOINTS[other],
            )
            self._devices.append(Device(keys[own], [settings], slots, os.urandom, time.time, _forget))

    def run(self) -> None:
        """Make a session, and carry batches in both directions."""
        self._devices[0].send_packets([_packet(0)], self._now)
        for own in (0, 1, 0, 1):  # initiation, response, the first packet, which confirms the session
            self._carry(own, [])
        for count in BATCHES:
            for own in (0, 1):
                batches = self._devices[own].send_rows([_packet(own)] * count, self._now)
                self._carry(own, [datagram for batch in batches for datagram in batch.datagrams])

    def _carry(self, own: int, datagrams: list[Buffer]) -> None:
        """Let the other device receive these datagrams, and those that one has queued."""
        rows = self._rows
        rows.clear()
        queued = [datagram for transmit in self._devices[own].take_transmits() for datagram in transmit.datagrams]
        for number, datagram in enumerate([*datagrams, *queued]):
            rows.room[number][0][: len(datagram)] = datagram
            rows.sizes.append(len(datagram))
            rows.endpoints.append(_ENDPOINTS[own])
        if rows.sizes:
            self._devices[1 - own].receive_rows(rows, self._now)


def _packet(own: int) -> bytes:
    """Return an IPv4 packet of protocol 253 from one device to the other (RFC 791, RFC 3692)."""
    addresses = _ADDRESSES[own] + _ADDRESSES[1 - own]
    return b"\x45\x00" + _SIZE.to_bytes(2, "big") + bytes(4) + b"\x40\xfd\x00\x00" + addresses + bytes(_SIZE - 20)


def _forget(_: Change) -> None:
    """Record nothing: no other process continues these sessions."""
