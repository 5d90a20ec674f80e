"""What a successor does once before it reads its first packet: all that a packet needs, between two data paths.

The rule: code that runs for the first time takes two to three times as long as later, and the packets that have waited
for a hand-off wait for that, too. So every step that they may need is done right before READY, while the predecessor
serves: a handshake, data in both directions, from a socket to a tunnel and back, and a journal that changes its writer.
The devices, sockets and files exist for this alone: keys and counters are their own, and nothing that they make leaves
this function. A kernel that
has no room for them, or no loopback interface, leaves the first packets slower, and no more.
"""

import os
import socket
import time
from contextlib import ExitStack, suppress
from ipaddress import ip_network

from oxidize.errors import OxidizeError
from oxidize.net.data_path import DataPath
from oxidize.net.event_loop import READABLE, Loop
from oxidize.net.tun import TunDevice
from oxidize.net.udp import UdpSocket
from oxidize.net.udp_cmsg import UDP_GRO
from oxidize.protocol.changes import Change
from oxidize.protocol.counters import SLOT_WORDS, TOTALS_SLOTS, TOTALS_WORDS, Counters, Slots, Total
from oxidize.protocol.crypto import generate_private_key, public_key
from oxidize.protocol.device import Device
from oxidize.protocol.endpoint import Endpoint
from oxidize.protocol.peer_settings import PeerSettings
from oxidize.protocol.super_packets import VNET_HEADER_SIZE
from oxidize.state.journal import Journal
from oxidize.state.records import FORMAT

# How many packets each batch has: some alone, as most are; and CPython specialises code when it has run eight times.
BATCHES = (1, 20, 1, 1, 1, 1, 1, 1, 3, 20)
TURNS = 5  # of the loop, for one batch: one for each socket and tunnel on its way, and one more ...
TURN_SECS = 0.01  # ... each of which waits so long at most
_LOOPBACK = bytes([127, 0, 0, 1])
_ADDRESSES = (bytes([10, 0, 0, 1]), bytes([10, 0, 0, 2]))
_SIZE = 96  # of a packet, bytes
_BUFFER_BYTES = 1 << 16  # more than a batch
SLOTS = 16  # two peers with a few keypairs each


def warm_up(now: float) -> Counters:
    """Let two data paths make a session and carry packets; return their counters. now: the loop's time."""
    slots = _Slots()
    with ExitStack() as stack, suppress(OSError, OxidizeError):
        _Pair(stack, slots, now).run()
        _change_writer()
    return slots.counters


def _change_writer() -> None:
    """Write a journal, as the owner of a generation does that begins."""
    envelope = {"format": FORMAT, "min_reader": FORMAT}
    journal = Journal.create(envelope, reader=FORMAT, region_bytes=_BUFFER_BYTES)
    journal.stop_writing()
    journal.sync()
    journal.become_writer()
    journal.append_envelope(envelope)
    journal.close()


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
    """Two devices that are each other's only peer, in one loop."""

    def __init__(self, stack: ExitStack, slots: Slots, now: float) -> None:
        self._counters = slots.counters
        self._loop = Loop()
        stack.callback(self._loop.close)
        self._hosts: list[socket.socket] = []  # behind each tunnel
        sockets = [stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) for _ in _ADDRESSES]
        for bound in sockets:
            bound.bind(("127.0.0.1", 0))
        endpoints = [Endpoint(_LOOPBACK, bound.getsockname()[1]) for bound in sockets]
        keys = [generate_private_key(os.urandom) for _ in _ADDRESSES]
        for own, other in ((0, 1), (1, 0)):
            address = ip_network(_ADDRESSES[other])
            peer = PeerSettings(public_key(keys[other]), allowed_ips=(address,), endpoint=endpoints[other])
            device = Device(keys[own], [peer], slots, os.urandom, time.time, _forget)
            host, inside = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
            self._hosts.append(stack.enter_context(host))
            tunnel = TunDevice(inside.detach(), "", VNET_HEADER_SIZE)  # which reads and writes packet by packet, too
            stack.callback(tunnel.close)
            udp = UdpSocket(sockets[own])
            udp.take_ownership(_BUFFER_BYTES, _BUFFER_BYTES)
            path = DataPath(device, udp, tunnel, slots.counters, lambda: now)
            self._loop.register(udp.fileno(), READABLE, path.from_udp)
            self._loop.register(tunnel.fileno(), READABLE, path.from_tunnel)
        sockets[1].setsockopt(socket.IPPROTO_UDP, UDP_GRO, 0)  # this one gets single datagrams, the other joined ones

    def run(self) -> None:
        """Make a session, and carry batches in both directions."""
        if self._carry(0, 1):
            for count in BATCHES:
                for own in (0, 1):
                    self._carry(own, count)

    def _carry(self, own: int, count: int) -> bool:
        """Carry packets from one host to the other; return whether all have come there."""
        expected = self._counters[Total.RECEIVED_PACKETS] + count
        for _ in range(count):
            self._hosts[own].send(bytes(VNET_HEADER_SIZE) + _packet(own))
        for _ in range(TURNS):
            if self._counters[Total.RECEIVED_PACKETS] >= expected:
                break
            self._loop.run_once(TURN_SECS)
        with suppress(BlockingIOError):
            while self._hosts[1 - own].recv(_BUFFER_BYTES):
                pass
        return self._counters[Total.RECEIVED_PACKETS] >= expected


def _packet(own: int) -> bytes:
    """Return an IPv4 packet of protocol 253 from one device to the other (RFC 791, RFC 3692)."""
    addresses = _ADDRESSES[own] + _ADDRESSES[1 - own]
    return b"\x45\x00" + _SIZE.to_bytes(2, "big") + bytes(4) + b"\x40\xfd\x00\x00" + addresses + bytes(_SIZE - 20)


def _forget(_: Change) -> None:
    """Record nothing: no other process continues these sessions."""
