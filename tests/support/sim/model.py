"""The model of a world: what may happen, whatever the processes do.

The rules that it checks, at each effect:
- One owner. A process that reads, sends, seals or records after another process that lives has done so is a second one,
  unless it begins for the first time. After COMMIT a process has no effect while the successor lives.
- A successor whose offer was withdrawn never owns, whether it could be told or not.
- A server that drains answers no handshake, in whatever generation.
- A predecessor that has killed its successor after COMMIT serves again.
- No key seals under the same counter twice.
- No packet is delivered twice, to the inside or to a client, and each arrives unchanged. Whose sender is told that it
  cannot be delivered does not arrive. What leaves at once arrives in this order, where the link keeps it.
- An owner ends only when it is killed, told to, has handed over, or was refused something before it has served.
- A takeover in which nothing happened otherwise has a bounded blackout.
At the end of a world in which the link loses nothing: each packet has arrived that no dying process held in its hand.
"""

from collections.abc import Callable
from typing import Any

import msgpack

from oxidize.errors import OxidizeError
from oxidize.protocol.constants import REJECT_AFTER_TIME, TYPE_RESPONSE
from tests.support.sim.files import BATCH_MAX
from tests.support.sim.kernel import NEVER, Kernel, Process

BLACKOUT_MS_MAX = 3.0  # of virtual time, in a takeover without a fault
MARGIN_SECS = 0.001
LATE_SECS = 3.0  # between sealing and opening: later, a packet may be lost
OLD_KEY_SECS = REJECT_AFTER_TIME - 30.0  # a packet under an older key may come too late
PACKET_ID = slice(20, 28)
ICMP_QUOTE_AT = 28  # of an ICMP error over IPv4: the packet that it is about
KEEPALIVE_BYTES_MAX = 28


class Model:
    """Watches the processes of a world. excused: packets that a process held in its hand when it died."""

    def __init__(self, world: Kernel) -> None:
        self._kernel = world
        self.owner: Process | None = None
        self.successors: dict[Process, list[Process]] = {}  # those that had an effect after each process
        self.committed: dict[Process, Process] = {}
        self.frozen_at = 0.0  # the last time that one committed
        self.taken: set[Process] = set()  # those that said so
        self.gave_up: set[Process] = set()  # those that said FAILED after COMMIT, while their predecessor lived
        self.served: set[Process] = set()  # those that have read or sent something
        self.sealed: set[tuple[bytes, bytes]] = set()
        self.made_at: dict[bytes, float] = {}  # of a key
        self.by_tag: dict[bytes, tuple[bytes, float]] = {}  # of a sealed message: the packet's number, and when
        self.offered: dict[Process, Process] = {}  # to each successor: by which process
        self.untold: set[Process] = set()  # successors that could not be told that their offer is void
        self.withdrawn: set[Process] = set()  # successors whose offer is void
        self.is_draining = False  # an operator has asked for that, and no process has died since
        self.on_own: Callable[[Process, Process | None], None] = lambda _owner, _before: None
        self.on_step: Callable[[str, Process], None] = lambda _step, _successor: None  # called during a takeover
        self.sent: dict[bytes, bytes] = {}
        self.delivered: dict[str, set[bytes]] = {}
        self.arrived: set[bytes] = set()
        self.unreachable: set[bytes] = set()  # packets whose senders know by ICMP that they are lost
        self.in_hand: set[bytes] = set()  # of these, what was dropped stays until the process ends
        self._opened: set[bytes] = set()  # of those from the UDP socket, what is to be delivered
        self.keeps_order = True  # the link, since the world's beginning
        self._in_run: dict[bytes, tuple[bytes, int]] = {}  # of a segment: the first of its run, and its place in it
        self._reached: dict[tuple[str, bytes], int] = {}  # of a run, at a place: which segment came last
        self.excused: set[bytes] = set()
        self.blackouts: list[float] = []
        self.blackout_ms_max = BLACKOUT_MS_MAX
        self.owner_ends: list[object] = []
        self.disturbed_at = -1.0  # when something last happened that a blackout may show

    # --- One owner ---

    def on_act(self, process: Process, what: str) -> None:
        owner = self.owner
        if what not in {"sets an option of the socket", "writes the journal"}:
            self.served.add(process)
        if process is owner:
            if process in self.committed and not self.committed[process].is_gone():
                self._kernel.fail(f"{process.name} {what} after COMMIT, and {self.committed[process].name} lives")
            return
        if process in self.withdrawn and process.kill_at == NEVER:
            self._kernel.fail(f"{process.name} {what}, and its offer was withdrawn")
        later = self.successors.get(process, ())
        living = [each for each in later if not each.is_gone() and each not in self.committed]
        if living:
            self._kernel.fail(f"two owners: {process.name} {what}, and {living[-1].name} has since owned and lives")
        if process in self.committed and not self.committed[process].is_gone():
            self._kernel.fail(f"{process.name} {what} after COMMIT, and {self.committed[process].name} lives")
        self.committed.pop(process, None)
        for former in self.successors:
            if former is not process and process not in self.successors[former]:
                self.successors[former].append(process)
        self.successors[process] = []
        self.owner = process
        if owner is not None:
            self._kernel.count("changes of ownership")
        self._kernel.note(f"owns: it {what}")
        self.on_own(process, owner)

    def on_message(self, sender: Process, receiver: Process, data: bytes, *, is_sent: bool) -> None:
        """Look at a message of the takeover protocol, or at one that could not be sent."""
        self._kernel.count("messages")
        if len(data) > 60_000 or not data:
            return
        try:
            message = msgpack.unpackb(data)
        except ValueError:
            return
        if type(message) is not dict:
            return
        if self._kernel.verbose:
            self._kernel.note(f"says to {receiver.name}: {str(message)[:140]}")
        match message.get("type"):
            case "offer" if is_sent:
                for former, successor in self.committed.items():
                    if successor is sender and not former.is_gone():
                        self._kernel.fail(f"three generations: {former.name}, {sender.name}, {receiver.name}")
                self.offered[receiver] = sender
                self.withdrawn.discard(receiver)
                self.on_step("offer", receiver)
            case "withdrawn" if self.offered.get(receiver) is sender:
                self.withdrawn.add(receiver)
                if not is_sent:
                    self.untold.add(receiver)
            case "ready" if is_sent:
                self.on_step("ready", sender)
            case "commit" if sender is self.owner and is_sent:
                self.committed[sender] = receiver
                self.frozen_at = min(self._kernel.now, message["frozen_at"])
                self._kernel.count("commits")
                self.on_step("commit", receiver)
            case "failed" if self.committed.get(receiver) is sender and receiver.alive and is_sent:
                self.gave_up.add(sender)
            case "taken" if sender is self.owner and is_sent:
                self.taken.add(sender)
                self._kernel.count("takeovers")
                self._note_blackout(message.get("info", {}))

    def _note_blackout(self, info: dict[str, Any]) -> None:
        blackout_ms = info.get("blackout_ms") or 0.0
        self.blackouts.append(blackout_ms)
        is_calm = self.disturbed_at < self.frozen_at - MARGIN_SECS  # TAKEN may come long after the blackout has ended
        if is_calm and blackout_ms > self.blackout_ms_max:
            self._kernel.fail(f"a blackout of {blackout_ms:.3f} ms; expected at most {self.blackout_ms_max} ms")

    def disturb(self, secs: float = 0.0) -> None:
        self.disturbed_at = max(self.disturbed_at, self._kernel.now + secs)

    # --- The end of processes ---

    def on_end(self, process: Process) -> None:
        self.disturb()
        if isinstance(process.status, Exception) and not isinstance(process.status, OxidizeError | OSError):
            self._kernel.fail(f"{process.name} ended because of a bug: {process.status!r:.300}")
        if process.status in ("killed", "crashed") or process.was_told_to_end:
            self.is_draining = False
        if process.status in ("killed", "crashed"):  # perhaps before it could kill one that could not be told
            self.withdrawn -= {each for each in self.untold if self.offered[each] is process}
        victim = self.committed.get(process)
        has_killed = victim is not None and victim.killed_by is process and victim.status != 0
        if process.status == 0 and has_killed and not process.was_told_to_end:
            self._kernel.fail(f"{process.name} has killed its successor, and ends")
        if process is not self.owner:
            return
        self.excused |= self.in_hand
        self.in_hand.clear()
        self._opened.clear()
        handed_over = process in self.committed
        # A predecessor that lived when its successor gave up may die before that has ended: two faults at once, after
        # which the service manager starts the server again with its sessions.
        may_fail = process not in self.taken and (
            process in self.gave_up
            or any(successor is process and former.alive for former, successor in self.committed.items())
        )
        # No room in its epoll, no descriptor to listen with. The service manager starts such a process again, and what
        # arrives meanwhile waits.
        cannot_start = process.was_refused and process.status != 0 and process not in self.served
        if process.status in {"killed", "crashed"}:
            self._kernel.count("owners that died")
        elif not (handed_over or may_fail or cannot_start or process.was_told_to_end):
            self._kernel.fail(f"the owner, {process.name}, ended by itself: {process.status!r:.300}")

    # --- Packets ---

    def on_key(self, key: bytes) -> None:
        """Note when a key was made."""
        self.made_at.setdefault(key, self._kernel.now)

    def on_seal(self, key: bytes, nonce: bytes, plaintext: bytes, sealed: bytes) -> None:
        self._kernel.act("seals")
        if (key, nonce) in self.sealed:
            self._kernel.fail(f"a key seals twice under the counter {int.from_bytes(nonce[4:], 'little')}")
        self.sealed.add((key, nonce))
        if len(plaintext) >= KEEPALIVE_BYTES_MAX:
            self.by_tag[sealed[-16:]] = plaintext[PACKET_ID], self._kernel.now
            if self._kernel.now - self.made_at[key] > OLD_KEY_SECS:
                self.excused.add(plaintext[PACKET_ID])

    def on_datagrams(self, process: Process, datagrams: list[bytes]) -> None:
        """Note what a process takes from the UDP socket."""
        for datagram in datagrams:
            number, sealed_at = self.by_tag.get(datagram[-16:], (None, 0.0))
            if number is not None and number not in self.arrived:
                self.in_hand.add(number)
                if sealed_at < self._kernel.now - LATE_SECS:
                    self.excused.add(number)  # its session may have ended meanwhile

    def on_opened(self, sealed: bytes) -> None:
        """Note a message that was opened: its packet is authentic, and in hand until it is delivered."""
        number, _ = self.by_tag.get(sealed[-16:], (None, 0.0))
        if number is not None and number in self.in_hand:
            self._opened.add(number)
            if len(self._opened) > BATCH_MAX:
                self._kernel.fail("more than one batch of packets is in hand")

    def on_packet_read(self, packet: bytes) -> None:
        """Note what a process takes from the TUN device."""
        self.in_hand.add(packet[PACKET_ID])

    def on_datagram_sent(self, datagram: bytes) -> None:
        if self.is_draining and datagram[0] == TYPE_RESPONSE:
            self._kernel.fail("a handshake is answered although the server drains")
        number, _ = self.by_tag.get(datagram[-16:], (None, 0.0))
        if number is not None:
            self.in_hand.discard(number)

    def on_run(self, packets: list[bytes]) -> None:
        """Note packets that leave at once."""
        first = packets[0][PACKET_ID]
        self._in_run.update({packet[PACKET_ID]: (first, position) for position, packet in enumerate(packets)})

    def on_delivered(self, place: str, packet: bytes, *, is_last: bool) -> None:
        """Note a packet that reached the inside or a client; is_last: its destination."""
        number = packet[PACKET_ID]
        if self.sent.get(number) != packet:
            self._kernel.fail(f"a packet arrived at {place} that was not sent so")
        seen = self.delivered.setdefault(place, set())
        if number in seen:
            self._kernel.fail(f"packet {int.from_bytes(number, 'big')} was delivered twice at {place}")
        seen.add(number)
        self.in_hand.discard(number)
        self._opened.discard(number)
        first, position = self._in_run.get(number, (number, 0))
        if self.keeps_order and position < self._reached.get((place, first), 0):
            self._kernel.fail(f"segment {position} of a run arrives at {place} behind a later one")
        self._reached[place, first] = position
        if is_last:
            self.arrived.add(number)
            if number in self.unreachable:
                self._kernel.fail(
                    f"packet {int.from_bytes(number, 'big')} arrives after its sender was told that it cannot"
                )

    def on_unreachable(self, quoted: bytes) -> None:
        """Note that the sender of a packet is told that it is lost; quoted: its begin."""
        number = quoted[PACKET_ID]
        self._kernel.count("packets without a peer")
        if not self.sent.get(number, b"").startswith(quoted):
            self._kernel.fail("an ICMP error quotes a packet that was not sent so")
        if number in self.arrived or number in self.unreachable:
            self._kernel.fail(f"packet {int.from_bytes(number, 'big')} has arrived or is answered, and is answered now")
        self.unreachable.add(number)
        self.in_hand.discard(number)

    def excuse(self, number: bytes) -> None:
        """Do not require a packet if it has not arrived by now."""
        if number not in self.arrived:
            self.excused.add(number)

    def excuse_all(self) -> None:
        """Require no packet that has not arrived by now."""
        self.excused.update(each for each in self.sent if each not in self.arrived)

    def missing(self) -> list[int]:
        """Return the numbers of the packets that should have arrived and have not."""
        return sorted(int.from_bytes(each, "big") for each in self.sent if each not in self.arrived | self.excused)
