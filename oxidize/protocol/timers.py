"""The timers of a peer, those of section 6 of the paper among them, as functions of timestamps.

A hook is called for each event and only notes when it happened; EXPIRIES derives from these notes when each timer ends.
So a successor's timers are right as soon as it has the notes, which stand in the peer's counters.
"""

from collections.abc import Callable, Mapping
from enum import Enum, auto, unique

from oxidize.protocol.constants import (
    KEEPALIVE_TIMEOUT,
    NEVER,
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
from oxidize.protocol.link_policy import (
    INITIATION_SPACING_SECS,
    PROBE_RETRY_FACTOR,
    PROBE_ROUND_TRIPS,
    PROBE_SECS_MIN,
    PROBES_ANSWERED_MAX,
    RETRY_JITTER,
)
from oxidize.protocol.peer import Peer, PeerKeypair

SILENCE_SECS = KEEPALIVE_TIMEOUT + REKEY_TIMEOUT  # after which section 6.5 requires a handshake
DOUBLINGS_MAX = 30  # of a retry's delay: beyond any limit that can be set

NANOSECOND = 1e-9


def any_authenticated_sent(peer: Peer, counters: Counters, now: float) -> None:
    """Note that a message left that the peer can authenticate: a keepalive is no longer owed."""
    counters[peer.slot + LAST_SENT_NS] = int(now * 1e9)
    counters[peer.slot + KEEPALIVE_OWED_NS] = 0


def any_authenticated_received(peer: Peer, counters: Counters, now: float) -> None:
    """Note a message of the peer: nothing that was sent to it is unanswered."""
    counters[peer.slot + LAST_RECEIVED_NS] = int(now * 1e9)
    counters[peer.slot + FIRST_UNANSWERED_NS] = 0


def data_sent(peer: Peer, counters: Counters, now: float) -> None:
    """Note that a packet, not a mere keepalive, was sent and is unanswered."""
    if not counters[peer.slot + FIRST_UNANSWERED_NS]:
        counters[peer.slot + FIRST_UNANSWERED_NS] = int(now * 1e9)


def data_received(peer: Peer, counters: Counters, now: float) -> None:
    """Note that a packet came: any message must answer it within KEEPALIVE_TIMEOUT."""
    if not counters[peer.slot + KEEPALIVE_OWED_NS]:
        counters[peer.slot + KEEPALIVE_OWED_NS] = int(now * 1e9)


def sending_wants_rekey(keypair: PeerKeypair, now: float) -> bool:
    """Return whether a message sent with this keypair requires a new one (section 6.2)."""
    return now >= keypair.seals_until or keypair.wants_rekey()


def receiving_wants_rekey(keypair: PeerKeypair, now: float) -> bool:
    """Return whether a message received with this keypair requires a new one (section 6.2).

    Only the initiator, and only when the keypair would die before a keepalive and a retry could save it.
    """
    return keypair.state.is_initiator and now >= keypair.quiet_until


def prompt_secs(peer: Peer, counters: Counters) -> float:
    """Return how long the peer of a link may take to answer, seconds: some round trips."""
    return max(PROBE_SECS_MIN, PROBE_ROUND_TRIPS * counters[peer.slot + ROUND_TRIP_NS] * NANOSECOND)


def probe_secs(peer: Peer, counters: Counters) -> float:
    """Return how long a link may be silent before a probe, seconds: longer for a peer that only answers probes."""
    doublings = min(counters[peer.slot + PROBES_ANSWERED], PROBES_ANSWERED_MAX)
    return min(prompt_secs(peer, counters) * 2.0**doublings, SILENCE_SECS)


def silence_secs(peer: Peer, counters: Counters) -> float:
    """Return how long a packet may be unanswered, at least, before a handshake because of that, seconds."""
    return SILENCE_SECS if peer.link is None else probe_secs(peer, counters)


def retry_secs(peer: Peer, counters: Counters, draw: float) -> float:
    """Return how long an initiation may go unanswered before a retry, seconds; `draw` is random, from 0 to 1."""
    if peer.link is None:
        return REKEY_TIMEOUT + draw * REKEY_TIMEOUT_JITTER_MAX
    policy = peer.link.policy
    doublings = min(max(0, counters[peer.slot + RETRIES] - peer.link.retries_before), DOUBLINGS_MAX)
    first = policy.retry_secs
    if counters[peer.slot + LINK_STATE] == LinkState.CONNECTED and not peer.link.is_doubted:
        first *= PROBE_RETRY_FACTOR
    delay = min(first * 2.0**doublings, policy.retry_secs_max) * (1.0 - draw * RETRY_JITTER)
    return max(delay, shortest_retry_secs(peer, counters))


def shortest_retry_secs(peer: Peer, counters: Counters) -> float:
    """Return the minimum time that the peer of a link has to answer an initiation, seconds."""
    return max(2.0 * counters[peer.slot + ROUND_TRIP_NS] * NANOSECOND, INITIATION_SPACING_SECS)


def initiation_spacing_secs(peer: Peer) -> float:
    """Return the minimum time between an initiation and a new handshake, seconds."""
    return REKEY_TIMEOUT if peer.link is None else INITIATION_SPACING_SECS


# --- When each timer ends, or NEVER ---


@unique
class Timer(Enum):
    """What is due when a timer ends."""

    ENDPOINT_RECORD = auto()  # recording a move that was held back
    ZERO_KEYS = auto()  # forgetting all keys (section 6.3)
    HANDSHAKE = auto()  # a retry (section 6.4), or an initiation that was held back
    SILENCE = auto()  # a handshake because of silence after sending (section 6.5)
    KEEPALIVE = auto()  # a passive keepalive (section 6.5)
    PERSISTENT_KEEPALIVE = auto()  # the operator's
    LINK = auto()  # those of `link_machine.Link`


def _zero_keys_at(peer: Peer, _: Counters) -> float:
    newest = -NEVER
    for keypair in (peer.previous, peer.current, peer.next):
        if keypair is not None and keypair.state.created_at > newest:
            newest = keypair.state.created_at
    return newest + ZERO_KEYS_AFTER_TIME if newest > -NEVER else NEVER


def _silence_at(peer: Peer, counters: Counters) -> float:
    first = counters[peer.slot + FIRST_UNANSWERED_NS] if peer.slot else 0
    if not first or peer.handshake is not None:
        return NEVER
    secs = silence_secs(peer, counters)
    # Up to a third later: the clients of one server fall silent all at once.
    return first * NANOSECOND + (secs + peer.jitter if peer.link is None else secs * (1.0 + peer.jitter))


def _keepalive_at(peer: Peer, counters: Counters) -> float:
    owed = counters[peer.slot + KEEPALIVE_OWED_NS] if peer.slot else 0
    return owed * NANOSECOND + KEEPALIVE_TIMEOUT if owed and peer.current is not None else NEVER


def _persistent_keepalive_at(peer: Peer, counters: Counters) -> float:
    interval = peer.settings.persistent_keepalive
    if not interval or peer.endpoint is None or peer.handshake is not None or peer.handshake_wanted_at < NEVER:
        return NEVER
    if not peer.slot:
        return 0.0  # nothing was ever exchanged
    last = max(counters[peer.slot + LAST_RECEIVED_NS], counters[peer.slot + LAST_SENT_NS])
    return last * NANOSECOND + interval


# In the order in which they are handled: an earlier one may move the end of a later one.
EXPIRIES: Mapping[Timer, Callable[[Peer, Counters], float]] = {
    Timer.ENDPOINT_RECORD: lambda peer, _: peer.endpoint_record_at,
    Timer.ZERO_KEYS: _zero_keys_at,
    Timer.HANDSHAKE: lambda peer, _: peer.handshake_wanted_at if peer.handshake is None else peer.handshake.retry_at,
    Timer.SILENCE: _silence_at,
    Timer.KEEPALIVE: _keepalive_at,
    Timer.PERSISTENT_KEEPALIVE: _persistent_keepalive_at,
    Timer.LINK: lambda peer, _: NEVER if peer.link is None else peer.link.deadline,
}
_EXPIRIES = tuple(EXPIRIES.values())


def deadline(peer: Peer, counters: Counters) -> float:
    """Return when the next of a peer's timers ends, or NEVER."""
    return min([ends_at(peer, counters) for ends_at in _EXPIRIES])
