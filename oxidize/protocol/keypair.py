"""Transport keypairs: sealing and opening data messages (paper, sections 5.4.5 and 5.4.6).

The rule: no counter is ever sealed twice and no counter is ever accepted twice, whichever process holds the keypair and
wherever it was killed. Both counters are in memory that outlives the process (`protocol.counters`), and change before
the act that they guard: the send counter is advanced before sealing, the replay window is marked before delivery.
"""

from collections.abc import Iterable, Sequence
from typing import Generic, TypeVar

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from oxidize.protocol.changes import KeypairState
from oxidize.protocol.constants import (
    DATA_HEADER_SIZE,
    KEEPALIVE_TIMEOUT,
    PADDING_MULTIPLE,
    REJECT_AFTER_MESSAGES,
    REJECT_AFTER_TIME,
    REKEY_AFTER_MESSAGES,
    REKEY_AFTER_TIME,
    REKEY_TIMEOUT,
    TYPE_DATA,
)
from oxidize.protocol.counters import RECEIVE_NEXT, SEND_COUNTER, Counters, DropReason
from oxidize.protocol.messages import DATA_HEADER
from oxidize.protocol.replay import is_fresh, mark, mark_run

_NONCE_PREFIX = bytes(4)
_ZEROS = bytes(PADDING_MULTIPLE)
_Owner = TypeVar("_Owner")  # the peer that a keypair belongs to; this module need not know its type


def padding(size: int, mtu: int) -> bytes:
    """Return the zeros that pad a packet of `size` bytes to a multiple of 16, but not beyond `mtu` (section 5.4.6)."""
    return _ZEROS[: min(-size % PADDING_MULTIPLE, mtu - size)] if size < mtu else b""


class Keypair(Generic[_Owner]):
    """The send and receive key of one session; `words` holds its counters and its replay window, in its slot.

    sealer, opener: the ciphers of the two keys. expires_at: when it expires by its age, seconds. quiet_until,
    seals_until: when a message that is received, or sent, begins to ask for a new keypair (section 6.2), or cannot be
    opened, or sealed.
    """

    sealer: ChaCha20Poly1305
    opener: ChaCha20Poly1305

    __slots__ = ("_words", "expires_at", "opener", "peer", "quiet_until", "sealer", "seals_until", "slot", "state")

    def __init__(self, state: KeypairState, peer: _Owner, words: Counters) -> None:
        self.state = state
        self.peer = peer
        self._words = words
        self.slot = state.slot
        self.expires_at = state.created_at + REJECT_AFTER_TIME
        self.quiet_until = self.seals_until = self.expires_at
        if state.is_initiator:  # only who asked for a session replaces it in time
            self.quiet_until -= KEEPALIVE_TIMEOUT + REKEY_TIMEOUT
            self.seals_until = state.created_at + REKEY_AFTER_TIME

    def __getattr__(self, name: str) -> ChaCha20Poly1305:
        """Make a cipher at its first use; each takes a kilobyte, and most sessions of a large server are idle."""
        if name == "sealer":
            self.sealer = cipher = ChaCha20Poly1305(self.state.send_key)
        elif name == "opener":
            self.opener = cipher = ChaCha20Poly1305(self.state.receive_key)
        else:
            raise AttributeError(f"a keypair has no {name}")
        return cipher

    def age(self, now: float) -> float:
        """Return the seconds since the handshake that made this keypair."""
        return now - self.state.created_at

    @property
    def was_heard(self) -> bool:
        """Whether a message of the peer was opened with this keypair."""
        return self._words[self.state.slot + RECEIVE_NEXT] > 0

    def is_expired(self, now: float) -> bool:
        """Return whether the keypair may no longer seal or open messages (paper, section 6.2)."""
        return now >= self.expires_at or self._words[self.slot + SEND_COUNTER] >= REJECT_AFTER_MESSAGES

    def wants_rekey(self) -> bool:
        """Return whether REKEY_AFTER_MESSAGES were sealed (paper, section 6.2)."""
        return self._words[self.slot + SEND_COUNTER] >= REKEY_AFTER_MESSAGES

    def seal(self, packets: Sequence[bytes | memoryview], mtu: int) -> list[bytes]:
        """Return one data message for each packet, in order; an empty packet makes a keepalive.

        Packets get the `padding` for `mtu`. The caller has checked `is_expired`, and passes at most BATCH_PACKETS_MAX
        packets, which REJECT_AFTER_MESSAGES leaves room for.
        """
        word = self.slot + SEND_COUNTER
        first = self._words[word]
        self._words[word] = first + len(packets)
        encrypt, index, pack = self.sealer.encrypt, self.state.remote_index, DATA_HEADER.pack
        messages = []
        for counter, packet in enumerate(packets, first):
            header = pack(TYPE_DATA, index, counter)
            zeros = padding(len(packet), mtu)
            padded = b"".join((packet, zeros)) if zeros else packet
            messages.append(header + encrypt(_NONCE_PREFIX + header[8:], padded, None))
        return messages

    def open(self, messages: Iterable[bytes | memoryview]) -> tuple[list[bytes], list[DropReason]]:
        """Return the plaintexts of data messages to this keypair, in order and with padding, and the drop reasons.

        messages: of at least DATA_OVERHEAD bytes (`messages.data_receiver`). The counters of the returned messages are
        marked as seen; nothing else changes.
        """
        words, slot, decrypt = self._words, self.slot, self.opener.decrypt
        receive_next = words[slot + RECEIVE_NEXT]
        plaintexts: list[bytes] = []
        counters: list[int] = []
        drops: list[DropReason] = []
        for message in messages:
            _, _, counter = DATA_HEADER.unpack_from(message)
            if counter >= REJECT_AFTER_MESSAGES:
                drops.append(DropReason.KEYPAIR_EXPIRED)
            elif counter < receive_next and not is_fresh(words, slot, counter):
                drops.append(DropReason.REPLAYED_COUNTER)
            else:
                try:
                    plaintexts.append(decrypt(_NONCE_PREFIX + message[8:16], message[DATA_HEADER_SIZE:], None))
                    counters.append(counter)
                except InvalidTag:
                    drops.append(DropReason.AUTHENTICATION_FAILED)
        return self._mark(counters, plaintexts, drops), drops

    def _mark(self, counters: list[int], plaintexts: list[bytes], drops: list[DropReason]) -> list[bytes]:
        """Mark the counters of authentic messages; return the plaintexts of those not marked before."""
        words, slot = self._words, self.slot
        if not counters:
            return plaintexts
        first = counters[0]
        if first >= words[slot + RECEIVE_NEXT] and counters == list(range(first, first + len(counters))):
            mark_run(words, slot, first, len(counters))
            return plaintexts
        marked = []
        for counter, plaintext in zip(counters, plaintexts, strict=True):
            if mark(words, slot, counter):
                marked.append(plaintext)
            else:  # the batch holds it twice
                drops.append(DropReason.REPLAYED_COUNTER)
        return marked
