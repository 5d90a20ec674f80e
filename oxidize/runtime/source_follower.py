"""Lets the source address of answers follow the kernel's route to a peer.

The rule: an answer comes from the address that the peer has called, until the route to the peer moves to another
interface than that by which the call came. From then on the kernel chooses the source address, as it does for its own
WireGuard: the old one may belong to an uplink that is slow, or the new uplink may drop its packets.

Nothing of it is done for a packet. After a change in the network the routes to all peers are looked up, some in each
iteration of the loop. A peer whose route led by another interface already at the look before keeps its address.
"""

from collections.abc import Callable, Iterable, Iterator

from oxidize import logs
from oxidize.hostnet.rtnetlink import RtnetlinkError, RtnetlinkSocket
from oxidize.net.udp import UdpSocket
from oxidize.protocol.endpoint import Endpoint

LOOKUPS_PER_SLICE = 16  # of some 20 microseconds each
REST_SHARE = 9  # times the duration of a look at all peers pass before the next one
REST_SECS_MIN = 0.05  # between two looks

log = logs.get(__name__)


class SourceFollower:
    """Looks up the routes to the peers, as a `Timed` of the loop, while this process owns.

    endpoints: returns those of all peers. is_owner: whether this process owns.
    """

    def __init__(
        self, udp: UdpSocket, endpoints: Callable[[], Iterable[Endpoint | None]], is_owner: Callable[[], bool]
    ) -> None:
        self._udp = udp
        self._endpoints = endpoints
        self._is_owner = is_owner
        self._interfaces: dict[Endpoint, int] = {}  # by which the route to each led at the last look
        self._due_at: float | None = None
        self._slices: Iterator[None] | None = None
        self._is_stale = False  # the kernel told of a change since the last look began
        self._begun_at: float | None = None
        self._rests_until = 0.0

    def begin(self) -> None:
        """Note the routes as they are now, which changes no address."""
        self._slices = self._look_at_all(is_first=True)
        self._due_at = 0.0

    def note_change(self, now: float) -> None:
        """Look at the routes to all peers soon: the kernel tells of a change."""
        self._is_stale = True
        if self._due_at is None:
            self._due_at = max(now, self._rests_until)

    def next_deadline(self) -> float | None:
        """Return when the next slice is due."""
        return self._due_at if self._is_owner() else None

    def handle_timeout(self, now: float) -> None:
        """Do one slice."""
        if self._due_at is None or now < self._due_at or not self._is_owner():
            return
        if self._slices is None:
            self._is_stale = False
            self._slices = self._look_at_all(is_first=False)
        self._begun_at = now if self._begun_at is None else self._begun_at
        if next(self._slices, self) is self:
            self._rests_until = now + max(REST_SECS_MIN, REST_SHARE * (now - self._begun_at))
            self._begun_at = None
            self._slices, self._due_at = None, self._rests_until if self._is_stale else None

    def _look_at_all(self, *, is_first: bool) -> Iterator[None]:
        before, self._interfaces = self._interfaces, {}
        try:
            with RtnetlinkSocket() as kernel:
                mark = self._udp.mark
                for number, endpoint in enumerate(self._endpoints(), start=1):
                    if endpoint is not None and endpoint.local_interface and not endpoint.scope_id:
                        led_by = None if is_first else before.get(endpoint, endpoint.local_interface)
                        self._look_at(kernel, endpoint, led_by, mark)
                    if number % LOOKUPS_PER_SLICE == 0:
                        yield
        except (RtnetlinkError, OSError) as error:  # the answers keep their addresses
            log.debug("routes to peers are not looked up", reason=str(error))

    def _look_at(self, kernel: RtnetlinkSocket, endpoint: Endpoint, before: int | None, mark: int) -> None:
        """Follow the route to one peer. before: where it led at the last look; None to note the route alone."""
        now = kernel.interface_towards(endpoint.address, endpoint.local_address, mark)
        if now is None:
            return
        self._interfaces[endpoint] = now
        if before is not None and now != before:
            self._udp.follow_route(endpoint, is_moved=now != endpoint.local_interface)
