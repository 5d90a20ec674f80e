"""One peer: its identity, its endpoint, and the keypairs that are shared with it.

The rule of rotation (paper, section 5.4, and the reference implementations): the initiator may use a new keypair at
once, so it becomes current; the responder must not send with it before the initiator has proved that it has the keys,
so it waits as next and becomes current with the first message that it opens.

One keypair more than there stays, as older, for receiving: the newest in which the peer was heard, if two rotations
replaced it before the peer was heard in a newer one. A loaded peer answers two initiations before it sends what it had
sealed, or had yet to seal, with the keypair before them.
"""

from oxidize.protocol.changes import PeerHandshake, PeerKeypairs
from oxidize.protocol.constants import (
    NEVER,
    REJECT_AFTER_TIME,
    REKEY_ATTEMPT_TIME,
    REKEY_TIMEOUT,
    TIMESTAMP_SIZE,
)
from oxidize.protocol.cookie import CookieJar
from oxidize.protocol.keypair import Keypair
from oxidize.protocol.link_machine import Link
from oxidize.protocol.noise import InitiatorState, RemoteIdentity
from oxidize.protocol.peer_settings import PeerSettings

PeerKeypair = Keypair["Peer"]
# The start of a handshake that is not retried: further back than REKEY_ATTEMPT_TIME, on every clock but one that has
# just begun. A release that does not know it retries for at most that time after the boot.
NOT_RETRIED = 0.0


class PendingHandshake:
    """An initiation of this side that is not answered yet; times as in `changes.PeerHandshake`."""

    __slots__ = ("forged", "mac1", "peer", "retry_at", "sent_at", "started_at", "state")

    def __init__(
        self, peer: "Peer", state: InitiatorState, started_at: float, sent_at: float, retry_at: float, mac1: bytes
    ) -> None:
        self.peer = peer
        self.state = state
        self.started_at = started_at
        self.sent_at = sent_at
        self.retry_at = retry_at
        self.mac1 = mac1  # of the initiation, which a cookie reply answers; empty once one has
        self.forged = 0  # responses that were not authentic

    def is_exhausted(self, now: float) -> bool:
        """Return whether no further initiation is sent (section 6.4)."""
        return self.started_at == NOT_RETRIED or now - self.started_at >= REKEY_ATTEMPT_TIME

    def change(self) -> PeerHandshake:
        """Return this handshake as a change for the journal."""
        state = self.state
        return PeerHandshake(
            self.peer.public_key,
            state.local_index,
            state.ephemeral_private,
            state.chaining_key,
            state.hash,
            self.mac1,
            self.started_at,
            self.sent_at,
            self.retry_at,
        )


class Peer:
    """The state that is shared with one peer; `SessionTable` keeps the tables around it consistent."""

    __slots__ = (
        "cookie_jar",
        "counted_until",
        "current",
        "deadlines",
        "endpoint",
        "endpoint_record_at",
        "endpoint_recorded_at",
        "handshake",
        "handshake_wanted_at",
        "initiation_received_at",
        "initiation_sent_at",
        "is_reconfigured",
        "is_removed",
        "jitter",
        "last_handshake_unix",
        "last_timestamp",
        "link",
        "next",
        "older",
        "place_at",
        "previous",
        "public_key",
        "remembered",
        "remote",
        "settings",
        "slot",
        "staged",
        "staged_more",
        "staged_serial",
        "superseded",
    )

    def __init__(self, settings: PeerSettings, remote: RemoteIdentity) -> None:
        self.settings = settings
        self.public_key = settings.public_key
        self.remote = remote
        self.cookie_jar = CookieJar(settings.public_key)
        self.endpoint = settings.endpoint
        # Where the peer is expected, as configured or seen in an earlier run, until a session confirms where it is.
        self.remembered = settings.endpoint.remote if settings.endpoint is not None else None
        self.is_reconfigured = False  # the configured endpoint differs from that of the records, and counts instead
        self.is_removed = False  # from its device, for good: who still holds it leaves it alone
        self.endpoint_recorded_at = -NEVER
        self.endpoint_record_at = NEVER  # when the record of a move that was held back is due
        self.slot = 0  # 0: none yet; slot 0 holds totals
        self.older: PeerKeypair | None = None
        self.previous: PeerKeypair | None = None
        self.current: PeerKeypair | None = None
        self.next: PeerKeypair | None = None
        self.counted_until = 0  # of `session_count`
        self.handshake: PendingHandshake | None = None
        # In no record: an answered one that a crash brought back would make the same keys again, with a send counter
        # of 0. A successor gets the response to its next retry instead; no packet is lost by that.
        self.superseded: tuple[PendingHandshake, ...] = ()  # earlier ones whose responses are accepted, oldest first
        self.handshake_wanted_at = NEVER  # an initiation held back because the last one, or those to others, come first
        self.place_at = NEVER  # when an initiation may be sent that waits for its turn (`admission`)
        self.initiation_sent_at = -NEVER
        self.initiation_received_at = -NEVER
        self.last_timestamp = bytes(TIMESTAMP_SIZE)
        self.last_handshake_unix = 0.0
        self.jitter = 0.0
        self.link = Link(settings.link) if settings.link is not None else None
        self.staged: list[bytes] = []  # at most `PeerSettings.staged_max`, oldest first
        self.staged_serial = 0  # that of the latest PeerStaged
        self.staged_more = 0  # how many of the staged packets, the newest, are in its PeerStagedMore
        self.deadlines: list[float] = []  # when the device looks at this peer's timers, descending: the next is last

    @property
    def keypairs(self) -> tuple[PeerKeypair, ...]:
        """The keypairs that exist, oldest role first."""
        roles = (self.older, self.previous, self.current, self.next)
        return tuple(keypair for keypair in roles if keypair is not None)

    def has_session(self, now: float) -> bool:
        """Return whether the peer can be sent to without a handshake, or has just asked for that.

        An initiation may be a replay to a device that lost its state: unconfirmed, it counts for REKEY_TIMEOUT.
        """
        # Written out: it is called for all peers at once, between two batches of packets.
        current, following = self.current, self.next
        if current is not None and not current.is_expired(now):
            return True
        return following is not None and following.age(now) < REKEY_TIMEOUT

    def session_ends_at(self, now: float) -> float | None:
        """Return when the newest keypair that can be used ends by its age, None where `has_session` says no."""
        current, following = self.current, self.next
        if following is not None and following.age(now) < REKEY_TIMEOUT:  # it is younger
            return following.state.created_at + REJECT_AFTER_TIME
        if current is not None and not current.is_expired(now):
            return current.state.created_at + REJECT_AFTER_TIME
        return None

    def can_send(self, now: float) -> bool:
        """Return whether the peer can be sent to without a handshake."""
        return self.endpoint is not None and self.current is not None and not self.current.is_expired(now)

    def want_session(self, now: float) -> None:
        """Have a handshake begin, or be retried, for the restored packets: no record says that they caused one."""
        if self.handshake is None:
            self.handshake_wanted_at = now
        elif self.handshake.started_at == NOT_RETRIED:  # it began because of an unknown index
            self.handshake.started_at = now

    def rotate_as_initiator(self, keypair: PeerKeypair) -> None:
        """Install a keypair that this side asked for: it may be used at once."""
        heard = self._newest_heard(keypair)
        self.previous = self.next if self.next is not None else self.current
        self.next = None
        self.current = keypair
        self.older = heard if heard is not self.previous else None

    def rotate_as_responder(self, keypair: PeerKeypair) -> None:
        """Install a keypair that the peer asked for: unused until the peer has proved that it has it."""
        heard = self._newest_heard(keypair)
        self.previous = None
        self.next = keypair
        self.older = heard if heard is not self.current else None

    def _newest_heard(self, following: PeerKeypair) -> PeerKeypair | None:
        """Return the newest keypair in which the peer was heard, None if it has expired when `following` is made."""
        for keypair in (self.current, self.previous, self.older):
            if keypair is not None and keypair.was_heard:
                return keypair if keypair.age(following.state.created_at) < REJECT_AFTER_TIME else None
        return None

    def promote_next(self) -> None:
        """Take the next keypair into use: its first message has arrived (key confirmation)."""
        self.previous = self.current
        self.current = self.next
        self.next = self.older = None

    def keypairs_change(self) -> PeerKeypairs:
        """Return the keypairs as a change for the journal."""
        older, previous, current, following = (
            keypair.state if keypair is not None else None
            for keypair in (self.older, self.previous, self.current, self.next)
        )
        return PeerKeypairs(self.public_key, previous, current, following, self.last_handshake_unix, older)
