"""What the operator says of a link, and the figures that are the same for every link.

The rule: the paper's timers are for peers that may be away: a dead session is noticed after 15 seconds of silence, and
the handshake is given up after 90. A link is a peer with which a session is kept up at all times, as a client does with
its server. Its silence is answered with a probe: a handshake, which every WireGuard server answers. The probe is sent
after a time that follows from the round trip, and is never given up unless the operator says so.
"""

from math import inf
from typing import NamedTuple

# --- Noticing ---
PROBE_SECS_MIN = 0.2  # of silence after sending: more than most hosts take for a delayed acknowledgement (RFC 1122)
PROBE_ROUND_TRIPS = 4
# Errors of the network that have this side ask on a link that is up: one in ERROR_INTERVAL_SECS, and at once one more
# than fit into ERROR_BURST_SECS. Forged errors beyond that have no effect. A real error comes again, and silence is
# noticed as well.
ERROR_INTERVAL_SECS = 1.0
ERROR_BURST_SECS = 2.0
PROBES_ANSWERED_MAX = 8  # doublings; KEEPALIVE_TIMEOUT + REKEY_TIMEOUT, as in the paper, is the limit anyway
# Between two steps back to the shortest silence. Where answers now and then take longer than that, as to slow requests,
# this is how often a handshake and the packets sent again are in vain; and a server has thousands of clients.
DECAY_SECS = 60.0
PROBE_RETRY_FACTOR = 2  # of the first delay between two probes, before the link is down
UNANSWERED_PROBES_MAX = 3  # in a row, and nothing else received: then the link is down
# --- Retrying ---
# The minimum between two initiations: responders ignore those within 20 ms, and timestamps have a grain of 17 ms.
INITIATION_SPACING_SECS = 0.025
SUPERSEDED_MAX = 32  # initiations whose responses are accepted although there is a later one ...
# ... for this long. The session's age counts from the response, which may be held back: the peer's session must not end
# much sooner.
SUPERSEDED_SECS_MAX = 90.0
RETRY_JITTER = 0.25  # of a delay, taken off at random, so that the clients of one server do not come all at once
# --- While the link is down ---
# An outage probe is a small message between two retries, so that a server which is back is found sooner than by a retry
# that has backed off. It is a keepalive in the old session: a server that lost the session may answer it with a
# handshake, and one that has it spends next to nothing. Only while the server's host says that the port is closed it is
# an initiation, which then costs no server anything.
# Pairs: up to which age of an outage, and the interval between two probes, both seconds. Probes that no host refuses
# may be waiting in the queue of a socket that a restarting server is about to read, with those of all its other
# clients.
OUTAGE_PROBE_INTERVALS = ((10.0, 0.5), (inf, 1.0))
REFUSED_PROBE_INTERVALS = ((10.0, 0.05), (120.0, 0.1), (inf, 1.0))
# Linux says once a second to each host that a port is closed (icmp(7), icmp_ratelimit). When it stops saying so, the
# port may be open.
REFUSAL_GAP_SECS = 1.2
# --- Coming back ---
RESEND_AGE_SECS_MAX = 1.0  # of a packet that is sent again, when this side began to ask
# How long before a message of the peer the packets were sent that it may not answer: some round trips, and at least as
# long as a loaded peer leaves them in a queue, or as this side is late to see that its address has changed (0.2 s). So
# much arrives twice after an outage.
IN_FLIGHT_ROUND_TRIPS = 2
IN_FLIGHT_SECS_MIN = 0.3
# Silence means a dead session only where the silence before it was shorter than this: else the peer may never answer.
LIVELY_SECS = 5.0
# Staged packets leave in such bursts: the kernel's default receive buffer holds 92 full packets.
REPLAY_BURST_PACKETS = 64
REPLAY_PAUSE_SECS = 0.005


class LinkPolicy(NamedTuple):
    """How a link is kept up, as configured; the defaults are those of the keys in `config.schema`.

    retry_secs: before the first retry; doubled with each, up to retry_secs_max. retries_max: how many may go unanswered
    before the link has failed, 0 for any number. buffer_packets: how many are kept while there is no session. resend:
    whether packets that were sent into a session that turns out to be dead are sent again.
    """

    retry_secs: float
    retry_secs_max: float
    retries_max: int
    buffer_packets: int
    resend: bool
