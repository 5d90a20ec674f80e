"""The timers of section 6 of the paper, as functions of timestamps.

A hook is called for each event and only notes when it happened; `deadline` derives from these notes when the peer must
be looked at next. So a successor's timers are right as soon as it has the notes, which stand in the peer's counters.
"""

from math import inf

from oxidize.protocol.constants import (
    KEEPALIVE_TIMEOUT,
    REJECT_AFTER_TIME,
    REKEY_AFTER_TIME,
    REKEY_TIMEOUT,
    REKEY_TIMEOUT_JITTER_MAX,
    ZERO_KEYS_AFTER_TIME,
)
from oxidize.protocol.counters import (
    FIRST_UNANSWERED_NS,
    KEEPALIVE_OWED_NS,
    LAST_RECEIVED_NS,
    LAST_SENT_NS,
    LINK_STATE,
    PROBES_ANSWERED,
    RETRIES,
    ROUND_TRIP_NS,
    Counters,
    LinkState,
)
from oxidize.protocol.link import (
    INITIATION_SPACING_SECS,
    PROBE_RETRY_FACTOR,
    PROBE_ROUND_TRIPS,
    PROBE_SECS_MIN,
    PROBES_ANSWERED_MAX,
    RETRY_JITTER,
)
from oxidize.protocol.peer import Peer, PeerKeypair

SILENCE_SECS = KEEPALIVE_TIMEOUT + REKEY_TIMEOUT  # after which section 6.5 calls for a handshake
DOUBLINGS_MAX = 30  # of a retry's delay: beyond any limit that can be set

NANOSECOND = 1e-9


def any_authenticated_sent(peer: Peer, counters: Counters, now: float) -> None:
    """Note that a message left that the peer can authenticate: a keepalive is no longer owed."""
    counters[peer.slot + LAST_SENT_NS] = int(now * 1e9)
    counters[peer.slot + KEEPALIVE_OWED_NS] = 0


def any_authenticated_received(peer: Peer, counters: Counters, now: float) -> None:
    """Note that the peer is there: nothing that we sent is unanswered."""
    counters[peer.slot + LAST_RECEIVED_NS] = int(now * 1e9)
    counters[peer.slot + FIRST_UNANSWERED_NS] = 0


def data_sent(peer: Peer, counters: Counters, now: float) -> None:
    """Note that a packet, not a mere keepalive, was sent and waits for a sign of life."""
    if not counters[peer.slot + FIRST_UNANSWERED_NS]:
        counters[peer.slot + FIRST_UNANSWERED_NS] = int(now * 1e9)


def data_received(peer: Peer, counters: Counters, now: float) -> None:
    """Note that a packet came, which we must answer with something within KEEPALIVE_TIMEOUT."""
    if not counters[peer.slot + KEEPALIVE_OWED_NS]:
        counters[peer.slot + KEEPALIVE_OWED_NS] = int(now * 1e9)


def sending_wants_rekey(keypair: PeerKeypair, now: float) -> bool:
    """Tell whether a message sent with this keypair calls for a new one (section 6.2)."""
    return (keypair.state.is_initiator and keypair.age(now) >= REKEY_AFTER_TIME) or keypair.wants_rekey()


def receiving_wants_rekey(keypair: PeerKeypair, now: float) -> bool:
    """Tell whether a message received with this keypair calls for a new one (section 6.2).

    Only the initiator, and only when the keypair would die before a keepalive and a retry could save it.
    """
    return keypair.state.is_initiator and keypair.age(now) >= REJECT_AFTER_TIME - KEEPALIVE_TIMEOUT - REKEY_TIMEOUT


def keepalive_at(peer: Peer, counters: Counters) -> float:
    """When a passive keepalive is due (section 6.5), or inf."""
    owed = counters[peer.slot + KEEPALIVE_OWED_NS] if peer.slot else 0
    return owed * NANOSECOND + KEEPALIVE_TIMEOUT if owed and peer.current is not None else inf


def unanswered_at(peer: Peer, counters: Counters) -> float:
    """When silence after sending calls for a handshake (section 6.5), or inf."""
    first = counters[peer.slot + FIRST_UNANSWERED_NS] if peer.slot else 0
    if not first or peer.handshake is not None:
        return inf
    if peer.link is None:
        return first * NANOSECOND + SILENCE_SECS + peer.jitter
    # Up to a third later: the clients of one server fall silent all at once.
    return first * NANOSECOND + probe_secs(peer, counters) * (1.0 + peer.jitter)


def prompt_secs(peer: Peer, counters: Counters) -> float:
    """How long the peer of a link may take to answer, seconds: some round trips."""
    return max(PROBE_SECS_MIN, PROBE_ROUND_TRIPS * counters[peer.slot + ROUND_TRIP_NS] * NANOSECOND)


def probe_secs(peer: Peer, counters: Counters) -> float:
    """How long a link may be silent before a probe, seconds: longer for a peer that answers nothing but probes."""
    doublings = min(counters[peer.slot + PROBES_ANSWERED], PROBES_ANSWERED_MAX)
    return min(prompt_secs(peer, counters) * 2.0**doublings, SILENCE_SECS)


def retry_secs(peer: Peer, counters: Counters, draw: float) -> float:
    """How long an answer to an initiation is waited for, seconds; `draw` is random, from 0 to 1."""
    if peer.link is None:
        return REKEY_TIMEOUT + draw * REKEY_TIMEOUT_JITTER_MAX
    policy = peer.link.policy
    doublings = min(max(0, counters[peer.slot + RETRIES] - peer.link.retries_before), DOUBLINGS_MAX)
    first = policy.retry_secs
    if counters[peer.slot + LINK_STATE] == LinkState.CONNECTED:
        first *= PROBE_RETRY_FACTOR
    delay = min(first * 2.0**doublings, policy.retry_secs_max) * (1.0 - draw * RETRY_JITTER)
    return max(delay, shortest_retry_secs(peer, counters))


def shortest_retry_secs(peer: Peer, counters: Counters) -> float:
    """How long the peer of a link must be given to answer an initiation, seconds."""
    return max(2.0 * counters[peer.slot + ROUND_TRIP_NS] * NANOSECOND, INITIATION_SPACING_SECS)


def initiation_spacing_secs(peer: Peer) -> float:
    """How long after an initiation a new handshake must wait at the least, seconds."""
    return REKEY_TIMEOUT if peer.link is None else INITIATION_SPACING_SECS


def persistent_keepalive_at(peer: Peer, counters: Counters) -> float:
    """When the operator's keepalive is due, or inf; at once where nothing was ever exchanged."""
    interval = peer.settings.persistent_keepalive
    if not interval or peer.endpoint is None or peer.handshake is not None or peer.handshake_wanted_at < inf:
        return inf
    if not peer.slot:
        return 0.0
    last = max(counters[peer.slot + LAST_RECEIVED_NS], counters[peer.slot + LAST_SENT_NS])
    return last * NANOSECOND + interval


def zero_keys_at(peer: Peer) -> float:
    """When all keys of a peer are forgotten (section 6.3), or inf."""
    newest = max((keypair.state.created_at for keypair in peer.keypairs), default=inf)
    return newest + ZERO_KEYS_AFTER_TIME


def deadline(peer: Peer, counters: Counters) -> float:
    """When the next of a peer's timers ends, or inf."""
    return min(
        peer.handshake.retry_at if peer.handshake is not None else peer.handshake_wanted_at,
        keepalive_at(peer, counters),
        unanswered_at(peer, counters),
        persistent_keepalive_at(peer, counters),
        zero_keys_at(peer),
        peer.endpoint_record_at,
        peer.link.deadline if peer.link is not None else inf,
    )
