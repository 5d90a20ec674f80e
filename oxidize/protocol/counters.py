"""The layout of the device's counters: 64-bit words in one sequence.

The sequence is the arena, a shared mapping that outlives the process (`state.arena`). The live objects read and write
it in place, so the counters are right at every instant at which the process may die.

The rule: a counter is named by its index, and another release reads it, so indices are only added, never moved or used
again. The first `TOTALS_SLOTS` slots hold the totals; every other slot belongs to one peer or to one keypair.
"""

from enum import IntEnum, unique
from typing import Protocol

Counters = memoryview  # of format "Q"

SLOT_WORDS = 64
TOTALS_SLOTS = 4
TOTALS_WORDS = SLOT_WORDS * TOTALS_SLOTS

# --- A keypair's slot ---
SEND_COUNTER = 0  # the next counter to seal with; bumped before sealing
RECEIVE_NEXT = 1  # one more than the highest counter received; 0 before the first
REPLAY_BITMAP = 2
REPLAY_WORDS = SLOT_WORDS - REPLAY_BITMAP

# --- A peer's slot; times are nanoseconds of the device's monotonic clock, 0 for never ---
RECEIVED_BYTES = 0  # outer bytes of authenticated messages, as `wg show transfer` counts them
SENT_BYTES = 1
RECEIVED_PACKETS = 2  # inner packets
SENT_PACKETS = 3
LAST_RECEIVED_NS = 4  # any authenticated message
KEEPALIVE_OWED_NS = 5  # the first packet received since the last authenticated message was sent; 0: none
LAST_SENT_NS = 6  # any authenticated message
FIRST_UNANSWERED_NS = 7  # the first packet sent since the peer's last authenticated message; 0: none
INITIATION_UNIX_NS = 8  # the timestamp of the newest initiation sent, nanoseconds since the epoch
ROUND_TRIP_NS = 9  # from an initiation sent to its response, smoothed; 0: not known
# Of a link (`protocol.link_machine`):
LINK_STATE = 10  # a LinkState
OUTAGE_SINCE_NS = 11  # when it went down; 0: it is up, or never was
RETRIES = 12  # initiations since a session was made, or since the link went down
SUSPECTED_SINCE_NS = 13  # the probe sent because of silence and not answered yet; 0: none
PROBES_ANSWERED = 14  # doublings of the delay before the next probe, for a peer that answers only probes


@unique
class Total(IntEnum):
    """Totals of the whole device, by their index; they continue across generations."""

    RECEIVED_DATAGRAMS = 0
    RECEIVED_BYTES = 1  # UDP payload
    SENT_DATAGRAMS = 2
    SENT_BYTES = 3
    RECEIVED_PACKETS = 4  # inner packets delivered
    SENT_PACKETS = 5  # inner packets sealed
    RECEIVED_PACKET_BYTES = 6
    SENT_PACKET_BYTES = 7
    RECEIVED_KEEPALIVES = 8
    SENT_KEEPALIVES = 9
    INITIATIONS_SENT = 10
    INITIATIONS_RECEIVED = 11  # authenticated ones
    HANDSHAKES_INITIATOR = 12  # completed, by this device's role
    HANDSHAKES_RESPONDER = 13
    COOKIE_REPLIES_SENT = 14
    COOKIE_REPLIES_RECEIVED = 15
    ENDPOINT_MOVES = 16
    BUFFERED_PACKETS = 17  # kept because there was no session
    REPLAYED_PACKETS = 18  # of the buffered packets, sent later in a new session
    RESENT_PACKETS = 19  # of those, sent before into a session that turned out to be dead
    OUTAGES = 20  # times that a link went down
    RECONNECTS = 21  # times that it came back
    OUTAGE_NS_SUM = 22  # of those that have ended
    UNKNOWN_INDEX_INITIATIONS = 23  # handshakes begun because a peer used a session that this device does not have
    CHANGES_NOT_RECORDED = 24  # that the journal could not take: each costs what it was to change, and no session
    SHED_DATAGRAMS = 25  # of floods, dropped by the kernel at this device's request; about
    MULTICAST_PACKETS = 26  # from the tunnel, multicast and broadcast that no peer has among its allowed IPs
    UNREACHABLES_SENT = 27  # ICMP errors into the tunnel, about packets that no peer gets
    # Of the runtime, kept here because they continue across generations too.
    TAKEOVERS_SUCCEEDED = 32
    TAKEOVERS_FAILED = 33
    RESTORES_AFTER_CRASH = 34
    BLACKOUT_NS_LAST = 35
    BLACKOUT_NS_SUM = 36
    BLACKOUT_NS_MAX = 37
    SESSIONS_RESTORED = 38
    SESSIONS_REFUSED = 39
    STARTS_IN_A_ROW = 40  # starts from stored state, none of which has lasted
    ERRORS_LOGGED = 41  # lines logged as errors by generations that served
    NETWORK_REPAIRS = 42  # times that a part of the host's network was found changed, and put back
    LOG_LINES_LOST = 48  # not logged, because what reads the log did not


# Outages that ended within OUTAGE_BOUNDS_SECS[i] are counted at OUTAGES_START + i, longer ones at the index after
# these.
OUTAGES_START = 96
OUTAGE_BOUNDS_SECS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)

ENDED_ON_PURPOSE = 120  # not a total: 1 if the last generation ended because it was asked to
# A drain, which the next generation continues; also no totals:
DRAIN_ENDS_NS = 121  # when it ends at the latest, or has ended; 0: the server accepts
DRAIN_GENERATION = 122  # the newest generation that knew of it: a release without drains in between has ended it
DROPS_START = 128  # DropReason r is counted at DROPS_START + r


@unique
class DropReason(IntEnum):
    """Why a datagram or a packet was dropped."""

    MALFORMED = 0  # its type or length is not that of any message
    MAC1_INVALID = 1
    COOKIE_REQUIRED = 2  # under load without a valid mac2: a cookie reply was sent instead
    RATE_LIMITED = 3  # under load, and this address sends too many handshakes
    UNKNOWN_INDEX = 4  # neither a session nor a handshake of this device has this index
    AUTHENTICATION_FAILED = 5
    REPLAYED_COUNTER = 6  # seen before, or too old for the window
    REPLAYED_TIMESTAMP = 7  # an initiation not newer than the last one
    INITIATION_FLOOD = 8  # closer to the last one than INITIATION_INTERVAL_MIN
    UNKNOWN_PEER = 9  # a static key that is not configured
    KEYPAIR_EXPIRED = 10  # past REJECT_AFTER_TIME or REJECT_AFTER_MESSAGES
    SOURCE_NOT_ALLOWED = 11  # the inner source is not among the peer's allowed IPs
    INNER_MALFORMED = 12  # the inner packet is not an IP packet
    DRAINING = 13  # no new handshakes while draining
    NO_ROUTE = 14  # outgoing: no peer has this address among its allowed IPs
    NO_ENDPOINT = 15  # outgoing: the peer's endpoint is not known yet
    STAGED_OVERFLOW = 16  # outgoing: more than STAGED_PACKETS_MAX packets were staged
    HANDSHAKE_TIMED_OUT = 17  # outgoing: no session after REKEY_ATTEMPT_TIME
    NOT_RECORDED = 18  # a handshake, or staged packets at a hand-off, that the journal or the arena could not take
    OVER_BUDGET = 19  # under load: all sources together cause more handshakes than are answered
    OVER_FAIR_SHARE = 20  # more arrives than can be processed, and this session sends more than its share
    # Of the runtime.
    SEND_FAILED = 32  # the kernel refused an outer datagram
    NETWORK_WRITE_FAILED = 33  # the kernel refused an inner packet
    ROUTE_UNSUPPORTED = 34  # userspace network: it has no answer to this packet
    TRUNCATED = 35  # a datagram longer than the receive buffer


@unique
class LinkState(IntEnum):
    """The state of the link to a peer; the counter LINK_STATE holds its number."""

    CONNECTING = 0  # there has been no session yet
    CONNECTED = 1  # as far as is known
    RECONNECTING = 2  # it does not answer, or cannot be reached
    FAILED = 3  # as many retries as were allowed went unanswered


class Slots(Protocol):
    """The store of the counters: allocates slots of SLOT_WORDS counters, named by the index of the first."""

    counters: Counters

    def allocate(self) -> int:
        """Return a free slot, zeroed by this call; raises StorageError when none is left."""

    def claim(self, slot: int) -> None:
        """Mark a slot that a predecessor allocated as used, leaving its counters as they are; idempotent."""

    def release(self, slot: int) -> None:
        """Free a slot, leaving its counters as they are; idempotent.

        The record that named it must have been retired before. Releasing does not zero: a thawing predecessor releases
        slots that its successor may have given to another keypair, whose counter must stand.
        """
