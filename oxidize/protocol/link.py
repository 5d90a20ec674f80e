"""A link: a peer that we want a session with at all times, as a client wants one with its server.

The rule: the paper's timers are made for peers that may be away; they notice a dead session after 15 seconds and give
up after 90. On a link silence is met by a handshake, the probe that every WireGuard server answers, after a time that
follows from the round trip, and it is never given up unless the operator says so. What is constant about it stands
here; `link_keeper` acts on it.
"""

from collections import deque
from dataclasses import dataclass
from math import inf

# --- Noticing ---
PROBE_SECS_MIN = 0.2  # of silence after sending: more than most hosts take for a delayed acknowledgement (RFC 1122)
PROBE_ROUND_TRIPS = 4
# Errors of the network that end a link that is up: one in so many seconds, and so many seconds' worth of them at once.
# Whoever forges more gets no more. A real one comes again, and silence tells as well.
ERROR_INTERVAL_SECS = 1.0
ERROR_BURST_SECS = 2.0
PROBES_ANSWERED_MAX = 8  # doublings; KEEPALIVE_TIMEOUT + REKEY_TIMEOUT, as in the paper, ends them anyway
# Between two steps back towards the shortest time. Where answers now and then take longer than that, as to slow
# requests, this is how often a handshake and packets sent again are for nothing; and a server has thousands of clients.
EASE_SECS = 60.0
PROBE_RETRY_FACTOR = 2  # of the first delay between two probes, before the link is down
SILENT_INITIATIONS_MAX = 3  # unanswered, with nothing else heard meanwhile: then the link is down
# --- Retrying ---
# The least between two initiations: responders ignore those within 20 ms, and timestamps have a grain of 17 ms.
INITIATION_SPACING_SECS = 0.025
SUPERSEDED_MAX = 32  # initiations whose responses are welcome although there is a later one ...
# ... for so long. The session counts from the response, which may be held back: the peer's must not end much sooner.
SUPERSEDED_SECS_MAX = 90.0
RETRY_JITTER = 0.25  # of a delay, taken off at random, so that the clients of one server do not come all at once
# --- While the link is down ---
# A knock is a small message between two retries, so that a server which is back is found sooner than by a retry that
# has backed off. It is a keepalive in the old session, which a server that lost it may answer with a handshake, and
# costs one that does not next to nothing. Only while its host says that the port is closed it is an initiation: there
# is nobody whom that could burden.
# For an outage of up to so many seconds: seconds between two. What nobody refuses may be waiting in the queue of a
# socket that a restarting server is about to read, with that of all its other clients.
KNOCK_PACES = ((10.0, 0.5), (inf, 1.0))
REFUSED_KNOCK_PACES = ((10.0, 0.05), (120.0, 0.1), (inf, 1.0))
# Linux says once a second to each host that a port is closed (icmp(7), icmp_ratelimit). That it says so no longer means
# that the port may be open.
REFUSAL_GAP_SECS = 1.2
# --- Coming back ---
RESEND_AGE_SECS_MAX = 1.0  # of a packet that is sent again
ON_ITS_WAY_ROUND_TRIPS = 2  # how long a packet may have been on its way when one before it was answered
# Silence speaks of a dead session only where it was not silent for longer than this before: else perhaps nobody ever
# answers.
LIVELY_SECS = 5.0
# What waited for a session leaves in such bursts: the kernel's default receive buffer holds 92 full packets.
REPLAY_BURST_PACKETS = 64
REPLAY_PAUSE_SECS = 0.005


@dataclass(frozen=True, slots=True)
class LinkPolicy:
    """What the operator says of a link.

    retry_secs: before the first retry; doubled with each, up to retry_secs_max. retries_max: how many may go unanswered
    before the link has failed, 0 for any number. buffer_packets: how many are kept while there is no session. resend:
    whether packets that were sent into a session that turns out to be dead are sent again.
    """

    retry_secs: float = 0.05
    retry_secs_max: float = 5.0
    retries_max: int = 0
    buffer_packets: int = 1000
    resend: bool = True


class Link:
    """What is remembered of a link besides the counters of its peer; a successor does without it."""

    __slots__ = (
        "began_at",
        "eased_at",
        "errors_free_at",
        "first_sent",
        "knock_at",
        "last_error",
        "policy",
        "presumes_loss",
        "refusals_end_at",
        "replay_at",
        "replay_left",
        "retries_before",
        "silent_initiations",
        "unanswered",
    )

    def __init__(self, policy: LinkPolicy) -> None:
        self.policy = policy
        # When each packet was sent that no authenticated message of the peer has followed in time, and what it was;
        # oldest first.
        self.unanswered: deque[tuple[float, bytes]] = deque(maxlen=policy.buffer_packets)
        # Of packets that are to be sent again: when they were first, so that what is too old then is let go.
        self.first_sent: dict[bytes, float] = {}
        self.silent_initiations = 0  # of ours that nothing was heard after
        self.last_error = ""  # what the network said last, while the link is not up
        self.presumes_loss = False  # of what is unanswered, should the handshake that is in flight succeed
        self.retries_before = 0  # those that the present delay does not follow from
        self.began_at = 0.0  # when this process began to keep it up
        self.knock_at = inf
        self.refusals_end_at = inf
        self.replay_at = inf  # when more of what waited is to leave; until then everything queues up behind it
        self.replay_left = 0
        self.eased_at = -inf
        self.errors_free_at = -inf

    @property
    def is_refused(self) -> bool:
        """Whether the peer's host says that the port is closed."""
        return self.refusals_end_at < inf

    @property
    def deadline(self) -> float:
        """When the next of its own timers ends, or inf."""
        return min(self.knock_at, self.refusals_end_at, self.replay_at)
