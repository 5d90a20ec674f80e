"""The source address of answers follows the route to a peer, over a routing table of the test's own."""

import pytest

from oxidize.protocol.endpoint import Endpoint
from oxidize.runtime import source_follower
from oxidize.runtime.source_follower import LOOKUPS_PER_SLICE, REST_SECS_MIN, SourceFollower

LOCAL = bytes([192, 0, 2, 1])


def peer(number: int, interface: int = 2) -> Endpoint:
    return Endpoint(bytes([198, 51, 100, number]), 51820, local_address=LOCAL, local_interface=interface)


class FakeKernel:
    """Routes by the peer's address; the interface is 2 unless it is said otherwise."""

    def __init__(self) -> None:
        self.routes: dict[bytes, int | None] = {}
        self.lookups = 0

    def __enter__(self) -> "FakeKernel":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def interface_towards(self, address: bytes, source: bytes, mark: int) -> int | None:
        assert (source, mark) == (LOCAL, 7)
        self.lookups += 1
        return self.routes.get(address, 2)


class FakeUdp:
    def __init__(self) -> None:
        self.mark = 7
        self.moved: list[tuple[Endpoint, bool]] = []

    def follow_route(self, endpoint: Endpoint, *, is_moved: bool) -> None:
        self.moved.append((endpoint, is_moved))


class Scene:
    def __init__(self, kernel: FakeKernel, *endpoints: Endpoint | None) -> None:
        self.kernel = kernel
        self.udp = FakeUdp()
        self.endpoints = list(endpoints)
        self.owns = True
        self.now = 100.0
        self.follower = SourceFollower(
            self.udp,  # type: ignore[arg-type]  # the two members that are used
            lambda: self.endpoints,
            lambda: self.owns,
        )

    def run(self, secs: float = 1.0) -> int:
        """Let the loop run; return the most look-ups in one of its calls."""
        end, most = self.now + secs, 0
        while (due := self.follower.next_deadline()) is not None and due <= end:
            self.now = max(self.now, due)
            before = self.kernel.lookups
            self.follower.handle_timeout(self.now)
            most = max(most, self.kernel.lookups - before)
        self.now = end
        return most

    def change_network(self) -> None:
        self.follower.note_change(self.now)
        self.run()


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> FakeKernel:
    made = FakeKernel()
    monkeypatch.setattr(source_follower, "RtnetlinkSocket", lambda: made)
    return made


def test_a_route_that_moves_to_another_interface_is_followed_once_and_back(kernel: FakeKernel) -> None:
    one, other = peer(1), peer(2)
    scene = Scene(kernel, one, other, None)
    scene.follower.begin()
    scene.run()
    kernel.routes[one.address] = 3
    scene.change_network()
    assert scene.udp.moved == [(one, True)]
    scene.change_network()
    assert scene.udp.moved == [(one, True)]
    del kernel.routes[one.address]
    scene.change_network()
    assert scene.udp.moved == [(one, True), (one, False)]


def test_a_peer_that_has_connected_since_the_last_look_is_followed_too(kernel: FakeKernel) -> None:
    scene = Scene(kernel)
    scene.follower.begin()
    scene.run()
    scene.endpoints.append(peer(1))
    kernel.routes[peer(1).address] = 3
    scene.change_network()
    assert scene.udp.moved == [(peer(1), True)]


def test_a_peer_that_is_answered_by_another_uplink_all_along_keeps_its_address(kernel: FakeKernel) -> None:
    scene = Scene(kernel, peer(1))
    kernel.routes[peer(1).address] = 3
    scene.follower.begin()
    scene.run()
    for _ in range(3):
        scene.change_network()
    assert scene.udp.moved == []


@pytest.mark.parametrize(
    "endpoint",
    [
        Endpoint(bytes([198, 51, 100, 1]), 51820),  # no address of this host is known
        Endpoint(bytes(16), 51820, 3, bytes(16), 3),  # link-local: its interface is part of the address
    ],
)
def test_an_endpoint_without_a_choice_is_not_looked_up(kernel: FakeKernel, endpoint: Endpoint) -> None:
    scene = Scene(kernel, endpoint)
    scene.change_network()
    assert kernel.lookups == 0


def test_a_route_that_is_lost_changes_no_address(kernel: FakeKernel) -> None:
    scene = Scene(kernel, peer(1))
    kernel.routes[peer(1).address] = None
    scene.change_network()
    assert scene.udp.moved == []


def test_ten_thousand_peers_are_looked_up_in_slices(kernel: FakeKernel) -> None:
    scene = Scene(kernel, *(peer(number % 256) for number in range(10_000)))
    scene.follower.note_change(scene.now)
    assert scene.run() <= LOOKUPS_PER_SLICE
    assert kernel.lookups == 10_000


def test_a_storm_of_changes_leads_to_one_look_in_each_interval(kernel: FakeKernel) -> None:
    scene = Scene(kernel, peer(1))
    for _ in range(100):
        scene.follower.note_change(scene.now)
        scene.run(REST_SECS_MIN / 10)
    assert 9 <= kernel.lookups <= 12


def test_a_process_that_does_not_own_looks_nothing_up(kernel: FakeKernel) -> None:
    scene = Scene(kernel, peer(1))
    scene.owns = False
    scene.change_network()
    assert kernel.lookups == 0


def test_without_a_netlink_socket_the_answers_keep_their_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused() -> None:
        raise OSError("Too many open files")

    monkeypatch.setattr(source_follower, "RtnetlinkSocket", refused)
    scene = Scene(FakeKernel(), peer(1))
    scene.change_network()
    assert scene.udp.moved == []
