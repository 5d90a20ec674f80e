"""Which handshakes a device does work for: those of peers that it answers, and those that it begins.

The rule (paper, section 5.3): the work that all sources together cause is bounded in each second, whatever they send,
so that sessions keep their share of the processor. What exceeds a budget is dropped before any hash is computed, where
it has no cookie by its first and last bytes alone; or, where this device begins a handshake, sent later. Each budget
serves first what deserves it more: cookies are for the endpoints of peers first, Diffie-Hellman for these and for
sources that ask seldom, initiations for those who cause few.
"""

from collections.abc import Collection, Sequence
from heapq import nsmallest
from math import inf

from oxidize.protocol.changes import CookieSecret
from oxidize.protocol.constants import MAC_SIZE
from oxidize.protocol.cookie import CookieChecker
from oxidize.protocol.counters import DropReason, Total
from oxidize.protocol.endpoint import Endpoint
from oxidize.protocol.messages import initiation_sender
from oxidize.protocol.peer import Peer
from oxidize.protocol.rate_limiter import FAILED_WEIGHT, Budget, LoadMeter, RateLimiter
from oxidize.protocol.session_table import SessionTable
from oxidize.protocol.shedding import FloodMeter, Sheddable, classify

# Of all sources together. A cookie reply takes 0.04 ms, so all take 8 % of a core.
COOKIE_REPLIES_PER_SECOND = 2000
COOKIE_REPLIES_BURST = 1250
COOKIE_REPLIES_RESERVED = 1000  # of the burst, for the endpoints of peers: the others delay no packet by 20 ms
# Under load, from sources with a cookie; a tenth of a core where all of them fail.
ANSWERED_INITIATIONS_PER_SECOND = 1000
ANSWERED_INITIATIONS_BURST = 200
ANSWERED_INITIATIONS_RESERVED = 50  # of the burst, for the endpoints of peers
ANSWERED_INITIATIONS_RESERVED_NEW = 50  # of the burst, for these and for sources that have not asked for a while
# Without load, 0.3 ms each: those that fail at the begin of a flood delay no packet by 50 ms, then load begins.
FAILED_INITIATIONS_PER_SECOND = 500
FAILED_INITIATIONS_BURST = 100
# Under load, cookies that turn out to be wrong, 0.03 ms each.
FAILED_COOKIES_PER_SECOND = 2000
FAILED_COOKIES_BURST = 500
FAILED_COOKIES_RESERVED = 250  # of the burst, for the endpoints of peers
# Initiations of this device, 0.2 ms each: at most twice this number, a tenth of a core.
OWN_INITIATIONS_PER_SECOND = 250  # at once, as they are caused ...
OWN_INITIATIONS_BURST = 64
OWN_INITIATIONS_RESERVED = 32  # of the burst, for the first few that a source causes
OWN_INITIATIONS_LATE_PER_SECOND = 250  # ... and those that had to wait

_NO_MAC2 = bytes(MAC_SIZE)


class Admission:
    """The budgets of a device.

    limiter: the rates of outer sources under load. cookie_checker: the macs of received messages. load: decides when
    cookies are required. closed_until: when `sift` ceases to drop a class. flood: measures what `sift` is given.
    """

    def __init__(self, table: SessionTable, cookie_checker: CookieChecker, load: LoadMeter) -> None:
        self.limiter = RateLimiter()
        self.closed_until = [0.0] * len(Sheddable)
        self.flood = FloodMeter()
        self._table = table
        self._cookie_checker = cookie_checker
        self._load = load
        self._cookie_replies = Budget(COOKIE_REPLIES_PER_SECOND, COOKIE_REPLIES_BURST)
        self._answers = Budget(ANSWERED_INITIATIONS_PER_SECOND, ANSWERED_INITIATIONS_BURST)
        self._own = Budget(OWN_INITIATIONS_PER_SECOND, OWN_INITIATIONS_BURST)
        self._own_late = Budget(OWN_INITIATIONS_LATE_PER_SECOND, 1)
        self._failures = Budget(FAILED_INITIATIONS_PER_SECOND, FAILED_INITIATIONS_BURST)
        self._failed_cookies = Budget(FAILED_COOKIES_PER_SECOND, FAILED_COOKIES_BURST)
        self._causes = RateLimiter()

    # --- Initiations of peers ---

    def is_loaded(self, now: float) -> bool:
        """Return whether initiations need a cookie, and so most of them little work."""
        return self._load.is_loaded(now)

    def sift(
        self, datagrams: Sequence[bytes | memoryview], endpoint: Endpoint, now: float
    ) -> Sequence[bytes | memoryview]:
        """Drop the initiations of a closed class from an endpoint that is no peer's; return the other datagrams.

        A class is closed while `refuse` would find its budget exhausted, at a higher cost. datagrams: no data messages.
        """
        if endpoint.remote in self._table.by_remote:
            return datagrams
        if len(datagrams) == 1 and (kind := classify(datagrams[0])) is not None:
            self.flood.note(kind, now)
        if now >= max(self.closed_until):
            return datagrams
        closed = self.closed_until
        kept = [each for each in datagrams if (kind := classify(each)) is None or now >= closed[kind]]
        self._table.drop(DropReason.OVER_BUDGET, len(datagrams) - len(kept))
        return kept

    def sources_to_spare(self, limit: int, now: float) -> list[tuple[bytes, int]]:
        """Return addresses and ports of peers, whose initiations are worth receiving: at most `limit`.

        Where there are more, those come first whose sessions are the oldest: they will be renewed next.
        """
        remotes: Collection[tuple[tuple[bytes, int, int], Peer]] = self._table.by_remote.items()
        if len(remotes) > limit:
            remotes = nsmallest(limit, remotes, key=lambda item: item[1].session_ends_at(now) or inf)
        return [(address, port) for (address, port, _), _ in remotes]

    def refuse(self, raw: bytes | memoryview, endpoint: Endpoint, now: float) -> DropReason | None:
        """Check what needs no Diffie-Hellman: mac1, and under load mac2 and the rates of its source and of all.

        raw: 148 bytes. What exceeds a budget is dropped before it is looked into: a flood costs little more than its
        reception.
        """
        load, checker = self._load, self._cookie_checker
        if not load.is_loaded(now):
            if not checker.check_mac1(raw):
                return DropReason.MAC1_INVALID
            load.note(now)
            self._answers.take(now)
            return None
        is_known = endpoint.remote in self._table.by_remote
        if raw[-MAC_SIZE:] != _NO_MAC2:
            reserved = 0 if is_known else FAILED_COOKIES_RESERVED
            if not self._failed_cookies.has(now, reserved):
                self.closed_until[Sheddable.PROVEN] = self._failed_cookies.next_at(FAILED_COOKIES_RESERVED)
                return DropReason.OVER_BUDGET
            if checker.check_mac2(raw, endpoint.identity, now):
                return self._refuse_proven(raw, endpoint, now)
            self._failed_cookies.take(now, reserved)
        load.note(now, FAILED_WEIGHT)
        reserved = 0 if is_known else COOKIE_REPLIES_RESERVED
        if not self._cookie_replies.has(now, reserved):
            self.closed_until[Sheddable.UNPROVEN] = self._cookie_replies.next_at(COOKIE_REPLIES_RESERVED)
            return DropReason.OVER_BUDGET
        if not checker.check_mac1(raw):
            return DropReason.MAC1_INVALID
        self._cookie_replies.take(now, reserved)
        self._send_cookie(raw, endpoint, now)
        return DropReason.COOKIE_REQUIRED

    def _refuse_proven(self, raw: bytes | memoryview, endpoint: Endpoint, now: float) -> DropReason | None:
        """Check an initiation whose source has proved its address, under load."""
        self._load.note(now)
        reserved = 0
        if endpoint.remote not in self._table.by_remote:
            is_new = self.limiter.is_new(endpoint.address)
            reserved = ANSWERED_INITIATIONS_RESERVED + (0 if is_new else ANSWERED_INITIATIONS_RESERVED_NEW)
        if not self.limiter.allow(endpoint.address, now):
            return DropReason.RATE_LIMITED
        if not self._answers.has(now, reserved):
            return DropReason.OVER_BUDGET
        if not self._cookie_checker.check_mac1(raw):
            return DropReason.MAC1_INVALID
        self._answers.take(now, reserved)
        return None

    def note_failed(self, now: float) -> None:
        """Note that an initiation which was not refused has failed."""
        if self._failures.take(now):
            self._load.note(now, FAILED_WEIGHT - 1)
        else:
            self._load.fill(now)

    def _send_cookie(self, raw: bytes | memoryview, endpoint: Endpoint, now: float) -> None:
        checker = self._cookie_checker
        if checker.refresh(now):
            self._table.try_record(CookieSecret(checker.secret, checker.secret_created_at))
        reply = checker.create_reply(raw, initiation_sender(raw), endpoint.identity, now)
        self._table.count(Total.COOKIE_REPLIES_SENT)
        self._table.transmit_unaccounted(endpoint, [reply])

    # --- Initiations of this device ---

    def allows_unasked(self, now: float) -> bool:
        """Return whether an initiation may be sent because of a datagram that is not authenticated."""
        return self._own.take(now, OWN_INITIATIONS_RESERVED)

    def place_initiation(self, cause: bytes, now: float) -> float:
        """Return when an initiation may be sent: now, or when its turn comes among those that wait.

        cause: the peer or the inner source whose packet causes it; empty for a timer. A source that causes many waits
        behind its own, and not before the few of another.
        """
        is_first = cause != b"" and self._causes.allow(cause, now)
        if self._own.take(now, 0 if is_first else OWN_INITIATIONS_RESERVED):
            return now
        return self._own_late.reserve(now)
