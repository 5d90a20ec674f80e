"""The timers of section 6 of the paper, as functions of timestamps.

A hook is called for each event and only notes when it happened; `deadline` derives from these notes when the peer must
be looked at next. So a successor's timers are right as soon as it has the notes, which stand in the peer's words.
"""

from math import inf

from oxidize.protocol.constants import (
    KEEPALIVE_TIMEOUT,
    REJECT_AFTER_TIME,
    REKEY_AFTER_TIME,
    REKEY_TIMEOUT,
    ZERO_KEYS_AFTER_TIME,
)
from oxidize.protocol.peer import Peer, PeerKeypair
from oxidize.protocol.words import (
    FIRST_UNANSWERED_NS,
    KEEPALIVE_OWED_NS,
    LAST_RECEIVED_NS,
    LAST_SENT_NS,
    Words,
)

NANOSECOND = 1e-9


def any_authenticated_sent(peer: Peer, words: Words, now: float) -> None:
    """Note that a message left that the peer can authenticate: a keepalive is no longer owed."""
    words[peer.slot + LAST_SENT_NS] = int(now * 1e9)
    words[peer.slot + KEEPALIVE_OWED_NS] = 0


def any_authenticated_received(peer: Peer, words: Words, now: float) -> None:
    """Note that the peer is there: nothing that we sent is unanswered."""
    words[peer.slot + LAST_RECEIVED_NS] = int(now * 1e9)
    words[peer.slot + FIRST_UNANSWERED_NS] = 0


def data_sent(peer: Peer, words: Words, now: float) -> None:
    """Note that a packet, not a mere keepalive, was sent and waits for a sign of life."""
    if not words[peer.slot + FIRST_UNANSWERED_NS]:
        words[peer.slot + FIRST_UNANSWERED_NS] = int(now * 1e9)


def data_received(peer: Peer, words: Words, now: float) -> None:
    """Note that a packet came, which we must answer with something within KEEPALIVE_TIMEOUT."""
    if not words[peer.slot + KEEPALIVE_OWED_NS]:
        words[peer.slot + KEEPALIVE_OWED_NS] = int(now * 1e9)


def sending_wants_rekey(keypair: PeerKeypair, now: float) -> bool:
    """Tell whether a message sent with this keypair calls for a new one (section 6.2)."""
    return (keypair.state.is_initiator and keypair.age(now) >= REKEY_AFTER_TIME) or keypair.wants_rekey()


def receiving_wants_rekey(keypair: PeerKeypair, now: float) -> bool:
    """Tell whether a message received with this keypair calls for a new one (section 6.2).

    Only the initiator, and only when the keypair would die before a keepalive and a retry could save it.
    """
    return keypair.state.is_initiator and keypair.age(now) >= REJECT_AFTER_TIME - KEEPALIVE_TIMEOUT - REKEY_TIMEOUT


def keepalive_at(peer: Peer, words: Words) -> float:
    """When a passive keepalive is due (section 6.5), or inf."""
    owed = words[peer.slot + KEEPALIVE_OWED_NS] if peer.slot else 0
    return owed * NANOSECOND + KEEPALIVE_TIMEOUT if owed and peer.current is not None else inf


def unanswered_at(peer: Peer, words: Words) -> float:
    """When silence after sending calls for a handshake (section 6.5), or inf."""
    first = words[peer.slot + FIRST_UNANSWERED_NS] if peer.slot else 0
    if not first or peer.handshake is not None:
        return inf
    return first * NANOSECOND + KEEPALIVE_TIMEOUT + REKEY_TIMEOUT + peer.jitter


def persistent_keepalive_at(peer: Peer, words: Words) -> float:
    """When the operator's keepalive is due, or inf; at once where nothing was ever exchanged."""
    interval = peer.settings.persistent_keepalive
    if not interval or peer.endpoint is None or peer.handshake is not None or peer.handshake_wanted_at < inf:
        return inf
    if not peer.slot:
        return 0.0
    last = max(words[peer.slot + LAST_RECEIVED_NS], words[peer.slot + LAST_SENT_NS])
    return last * NANOSECOND + interval


def zero_keys_at(peer: Peer) -> float:
    """When all keys of a peer are forgotten (section 6.3), or inf."""
    newest = max((keypair.state.created_at for keypair in peer.keypairs), default=inf)
    return newest + ZERO_KEYS_AFTER_TIME


def deadline(peer: Peer, words: Words) -> float:
    """When the next of a peer's timers ends, or inf."""
    return min(
        peer.handshake.retry_at if peer.handshake is not None else peer.handshake_wanted_at,
        keepalive_at(peer, words),
        unanswered_at(peer, words),
        persistent_keepalive_at(peer, words),
        zero_keys_at(peer),
        peer.endpoint_record_at,
    )
