"""The state of a link as a transition table, pure, and what this process remembers of a link.

The rule: only an authentic message of the peer brings a link up. Silence and errors that the network reports are not
authentic: they make this side ask, and a link that is up goes down only when it is not answered: UNANSWERED_PROBES_MAX
times in a row, or once after an error. What this machine knows by itself, that it has no route, takes a link down.

Theory. A link is CONNECTING until its first session. From then on it is CONNECTED, or RECONNECTING during an outage. It
is FAILED when the operator's number of retries is used up; only a new owner or an authentic message of the peer brings
it back from there. `link` decides which event has happened (the guards are there), passes it through `advance`, and
carries out the actions in order or returns them to the device. Every event has a place in every state.

Two counters of the peer hold the state, so that a successor continues in the middle of an outage: LINK_STATE, and
OUTAGE_SINCE_NS, set in RECONNECTING, 0 in CONNECTING and CONNECTED, either in FAILED. OUTAGE_SINCE_NS is written first.
A process that is killed between the two leaves CONNECTED with an outage (it was going down) or RECONNECTING without one
(it was coming back). The next owner's BEGIN keeps that state and makes the outage agree with it.
"""

from collections import deque
from collections.abc import Mapping
from enum import Enum, auto, unique

from oxidize.protocol.constants import NEVER
from oxidize.protocol.counters import LINK_STATE, OUTAGE_SINCE_NS, Counters, LinkState
from oxidize.protocol.link_policy import LinkPolicy


@unique
class LinkEvent(Enum):
    """What can happen to a link."""

    BEGIN = auto()  # this process becomes the owner; no outage is open
    BEGIN_IN_OUTAGE = auto()  # the same, and OUTAGE_SINCE_NS is set
    BEGIN_NEW = auto()  # the same, and this device, with the private key that it has, never had a session
    RECEIVED = auto()  # an authentic message in a session
    SESSION = auto()  # a handshake made a session
    SESSION_REPLACED = auto()  # the same, and the peer had lost the session before
    UNANSWERED = auto()  # an initiation was not answered in time
    SILENT = auto()  # the same, as often as it takes to be sure; UNANSWERED or EXHAUSTED follows
    EXHAUSTED = auto()  # UNANSWERED, and the operator's number of retries is used up
    UNREACHABLE = auto()  # the network reports an error, below the limit for errors
    REFUSED = auto()  # the same, and the peer's host says that the port is closed
    DOUBTED = auto()  # nothing authentic has come since such an error
    ROUTE_LOST = auto()  # this machine has no route to the peer
    REFUSALS_ENDED = auto()  # the peer's host no longer says so
    ROUTE_CHANGED = auto()  # this machine may have another way to the peer


@unique
class LinkDo(Enum):
    """What is done on an event, in the order of the table."""

    # By `link`
    START_OUTAGE = auto()  # reset and count the retries of an outage, stage what is unanswered, begin outage probes
    END_OUTAGE = auto()  # count the outage, if there was one, and end all outage probes
    REPORT = auto()  # notify the owner of the device of the state and its reason
    STAGE_UNANSWERED = auto()  # put what was sent and not answered before the staged packets
    ASSUME_LOST = auto()  # of the unanswered packets, should the next handshake succeed
    CLEAR_RETRIES = auto()
    RETRY_SOON = auto()  # after the first delay, unless a handshake is in flight
    DOUBT = auto()  # ask after the first delay, unless something authentic comes before
    PROBE_NOW = auto()
    PROBE_REFUSED = auto()  # outage probes at the pace for a closed port
    GIVE_UP = auto()  # end the handshake, drop the staged packets
    # By the device
    INITIATE = auto()  # begin a handshake unless one is in flight
    INITIATE_BETWEEN = auto()  # the same between two retries, not counted as one
    RETRY = auto()  # send the initiation again, or the first
    RESET_BACKOFF = auto()  # retry as soon as the spacing allows, with the delays of a new outage
    SEND_KEEPALIVE = auto()
    SEND_STAGED = auto()


DEVICE_DOES = frozenset(
    {LinkDo.INITIATE, LinkDo.INITIATE_BETWEEN, LinkDo.RETRY, LinkDo.RESET_BACKOFF}
    | {LinkDo.SEND_KEEPALIVE, LinkDo.SEND_STAGED}
)

_S, _E, _D = LinkState, LinkEvent, LinkDo
_NOT_UP = (_S.CONNECTING, _S.RECONNECTING, _S.FAILED)

LINK_TABLE: Mapping[tuple[LinkState, LinkEvent], tuple[LinkState, tuple[LinkDo, ...]]] = {
    (_S.CONNECTING, _E.BEGIN): (_S.CONNECTING, (_D.INITIATE,)),
    (_S.CONNECTING, _E.BEGIN_IN_OUTAGE): (_S.CONNECTING, (_D.INITIATE,)),
    (_S.CONNECTING, _E.UNANSWERED): (_S.CONNECTING, (_D.RETRY,)),
    (_S.CONNECTING, _E.SILENT): (_S.CONNECTING, (_D.REPORT,)),
    (_S.CONNECTING, _E.EXHAUSTED): (_S.FAILED, (_D.REPORT, _D.GIVE_UP)),
    (_S.CONNECTING, _E.UNREACHABLE): (_S.CONNECTING, ()),
    (_S.CONNECTING, _E.REFUSED): (_S.CONNECTING, (_D.PROBE_REFUSED,)),
    (_S.CONNECTED, _E.BEGIN): (_S.CONNECTED, ()),
    (_S.CONNECTED, _E.BEGIN_IN_OUTAGE): (_S.CONNECTED, ()),  # a predecessor was killed going down: the outage is void
    (_S.CONNECTED, _E.RECEIVED): (_S.CONNECTED, ()),
    (_S.CONNECTED, _E.SESSION): (_S.CONNECTED, ()),
    (_S.CONNECTED, _E.SESSION_REPLACED): (_S.CONNECTED, (_D.STAGE_UNANSWERED,)),
    (_S.CONNECTED, _E.UNANSWERED): (_S.CONNECTED, (_D.RETRY,)),
    (_S.CONNECTED, _E.SILENT): (_S.RECONNECTING, (_D.START_OUTAGE, _D.REPORT)),
    (_S.CONNECTED, _E.EXHAUSTED): (_S.CONNECTED, (_D.RETRY,)),  # the operator's number counts from the outage
    (_S.CONNECTED, _E.UNREACHABLE): (_S.CONNECTED, (_D.DOUBT,)),
    (_S.CONNECTED, _E.REFUSED): (_S.CONNECTED, (_D.DOUBT,)),
    (_S.CONNECTED, _E.DOUBTED): (_S.CONNECTED, (_D.INITIATE,)),
    (_S.CONNECTED, _E.ROUTE_LOST): (_S.RECONNECTING, (_D.START_OUTAGE, _D.REPORT, _D.RETRY_SOON)),
    (_S.CONNECTED, _E.REFUSALS_ENDED): (_S.CONNECTED, ()),
    (_S.CONNECTED, _E.ROUTE_CHANGED): (_S.CONNECTED, (_D.ASSUME_LOST, _D.INITIATE)),  # answers may have gone astray
    (_S.RECONNECTING, _E.BEGIN): (_S.RECONNECTING, (_D.PROBE_NOW, _D.INITIATE)),  # a predecessor was killed coming back
    (_S.RECONNECTING, _E.BEGIN_IN_OUTAGE): (_S.RECONNECTING, (_D.PROBE_NOW, _D.INITIATE)),
    (_S.RECONNECTING, _E.UNANSWERED): (_S.RECONNECTING, (_D.RETRY,)),
    (_S.RECONNECTING, _E.SILENT): (_S.RECONNECTING, ()),
    (_S.RECONNECTING, _E.EXHAUSTED): (_S.FAILED, (_D.REPORT, _D.GIVE_UP)),
    (_S.RECONNECTING, _E.UNREACHABLE): (_S.RECONNECTING, ()),
    (_S.RECONNECTING, _E.REFUSED): (_S.RECONNECTING, (_D.PROBE_REFUSED,)),
    (_S.FAILED, _E.BEGIN): (_S.CONNECTING, (_D.CLEAR_RETRIES, _D.INITIATE)),  # the operator started it again
    (_S.FAILED, _E.BEGIN_IN_OUTAGE): (_S.RECONNECTING, (_D.CLEAR_RETRIES, _D.PROBE_NOW, _D.INITIATE)),
    (_S.FAILED, _E.UNANSWERED): (_S.FAILED, (_D.GIVE_UP,)),
    (_S.FAILED, _E.SILENT): (_S.FAILED, ()),
    (_S.FAILED, _E.EXHAUSTED): (_S.FAILED, (_D.GIVE_UP,)),
    (_S.FAILED, _E.UNREACHABLE): (_S.FAILED, ()),
    (_S.FAILED, _E.REFUSED): (_S.FAILED, ()),
    **{(state, _E.BEGIN_NEW): (_S.CONNECTING, (_D.CLEAR_RETRIES, _D.INITIATE)) for state in LinkState},
    (_S.CONNECTING, _E.BEGIN_NEW): (_S.CONNECTING, (_D.INITIATE,)),
    **{(state, _E.RECEIVED): (_S.CONNECTED, (_D.END_OUTAGE, _D.REPORT, _D.SEND_STAGED)) for state in _NOT_UP},
    # The device sends the staged packets of any new session. Those that went unanswered were staged going down.
    **{(state, _E.SESSION): (_S.CONNECTED, (_D.END_OUTAGE, _D.REPORT)) for state in _NOT_UP},
    **{(state, _E.SESSION_REPLACED): (_S.CONNECTED, (_D.END_OUTAGE, _D.REPORT)) for state in _NOT_UP},
    **{(state, event): (state, ()) for state in _NOT_UP for event in (_E.DOUBTED, _E.ROUTE_LOST)},
    **{(state, _E.REFUSALS_ENDED): (state, (_D.RESET_BACKOFF,)) for state in _NOT_UP},
    **{(state, _E.ROUTE_CHANGED): (state, (_D.RESET_BACKOFF,)) for state in _NOT_UP},
}


def advance(counters: Counters, slot: int, event: LinkEvent, now: float) -> tuple[LinkDo, ...]:
    """Pass one event through the table for the peer of a slot: the only place where LINK_STATE is written.

    Returns the actions, in order.
    """
    before, since = LinkState(counters[slot + LINK_STATE]), counters[slot + OUTAGE_SINCE_NS]
    after, to_do = LINK_TABLE[before, event]
    began = since
    if after in {_S.CONNECTING, _S.CONNECTED}:
        began = 0
    elif after is _S.RECONNECTING and (before is _S.CONNECTED or not since):
        began = int(now * 1e9)
    if began != since:
        counters[slot + OUTAGE_SINCE_NS] = began
    if after is not before:
        counters[slot + LINK_STATE] = after
    return to_do


class Link:
    """What this process remembers of a link in addition to the counters of its peer; a successor does without it.

    Its timers, as all of a peer, hold when they end, or NEVER while they are off.
    """

    def __init__(self, policy: LinkPolicy) -> None:
        self.policy = policy
        self.began_at = 0.0  # when this process became the owner
        # --- While the link is up ---
        # Packets that no authentic message of the peer has followed by IN_FLIGHT_SECS_MIN, and when each was sent.
        self.unanswered: deque[tuple[float, bytes]] = deque(maxlen=policy.buffer_packets)
        # Packets that are sent again, and when they were sent first: that age decides whether they are too old.
        self.first_sent: dict[bytes, float] = {}
        self.unanswered_probes = 0  # initiations in a row with nothing received after them
        self.assume_lost = False  # of what is unanswered, should the handshake that is in flight succeed
        self.has_new_route = False  # since the last session: the peer may have answered to where this side was before
        self.asked_at = NEVER  # since when this side has asked whether its packets arrive
        self.decayed_at = -NEVER
        self.errors_free_at = -NEVER
        self.doubt_at = NEVER  # when this side asks because of an error
        self.is_doubted = False  # by an error, with nothing authentic received since
        self.refused_at = -NEVER  # when the peer's host last said that the port is closed
        # --- While it is down ---
        self.last_error = ""  # what the network said last
        self.retries_before = 0  # retries that the present delay does not follow from
        self.probe_at = NEVER
        self.refusals_end_at = NEVER
        # --- When it is up again ---
        self.replay_at = NEVER  # when more staged packets leave; until then new ones are staged behind them
        self.replay_left = 0

    @property
    def is_refused(self) -> bool:
        """Whether the peer's host says that the port is closed."""
        return self.refusals_end_at < NEVER

    @property
    def deadline(self) -> float:
        """When the next of its own timers ends, or NEVER."""
        return min(self.probe_at, self.refusals_end_at, self.replay_at, self.doubt_at)
