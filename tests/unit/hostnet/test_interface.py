"""The comparison of an interface, with a kernel of the test's own: what changes, and how much at a time."""

import errno
import hashlib
from collections.abc import Iterator, Sequence
from ipaddress import ip_interface, ip_network

import pytest

from oxidize.errors import OxidizeError
from oxidize.hostnet import interface as interface_module
from oxidize.hostnet import rtnetlink
from oxidize.hostnet.interface import CHANGES_PER_SLICE, TRANSMIT_QUEUE_PACKETS, InterfacePart, Place
from oxidize.hostnet.netlink import ROUTE_PROTOCOL
from oxidize.hostnet.part import run
from oxidize.hostnet.rtnetlink import Key, Link, Request, Route, RtnetlinkError

ADDRESSES = [ip_interface("10.9.0.1/24"), ip_interface("fd09::1/64")]
DUMPED = 130  # in one datagram


class FakeKernel:
    """The interface 7 with addresses and routes; it understands the requests of `rtnetlink` by their bytes."""

    def __init__(self) -> None:
        self.link_state = Link(7, 1500, 500, 65_535, is_up=False)
        self.address_keys: list[Key] = []
        self.places: dict[Place, int] = {}
        self.requests = 0
        self.most_at_once = 0
        self.interruptions = 0  # of dumps of routes, and of addresses
        self.address_interruptions = 0
        self.refused: dict[int, int] = {}  # kind of message to errno

    def __enter__(self) -> "FakeKernel":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def link(self, name: str) -> Link:
        if name != "ox0":
            raise RtnetlinkError(errno.ENODEV)
        return self.link_state

    def addresses(self, index: int) -> Iterator[list[Key]]:
        assert index == 7
        yield list(self.address_keys)
        if self.address_interruptions:
            self.address_interruptions -= 1
            raise RtnetlinkError(errno.EINTR)

    def routes_of(self, family: int, *, index: int) -> Iterator[list[Route]]:
        assert index == 7
        found = [
            Route(key, table, index, protocol)
            for (table, key), protocol in self.places.items()
            if rtnetlink.family_of(key[1]) == family
        ]
        for start in range(0, len(found), DUMPED):
            if self.interruptions:
                self.interruptions -= 1
                raise RtnetlinkError(errno.EINTR)
            yield found[start : start + DUMPED]

    def change(self, requests: Sequence[Request]) -> list[int]:
        self.requests += len(requests)
        self.most_at_once = max(self.most_at_once, len(requests))
        return [self.refused.get(each.kind) or self._change(each) for each in requests]

    def _change(self, request: Request) -> int:
        state, body = self.link_state, request.body
        if request.kind == rtnetlink._NEW_LINK:
            attributes = rtnetlink._attributes(body, rtnetlink._LINK.size)
            mtu, queue, segments = (
                attributes.get(each)
                for each in (rtnetlink._IFLA_MTU, rtnetlink._IFLA_TXQLEN, rtnetlink._IFLA_GSO_MAX_SEGS)
            )
            self.link_state = Link(
                7,
                rtnetlink._unpacked(mtu) or state.mtu,
                rtnetlink._unpacked(queue) or state.queue,
                rtnetlink._unpacked(segments) or state.segments,
                is_up=state.is_up or bool(rtnetlink._LINK.unpack_from(body)[3] & 1),
            )
        elif request.kind in {rtnetlink._NEW_ADDRESS, rtnetlink._DELETE_ADDRESS}:
            key = (body[1], rtnetlink._attributes(body, rtnetlink._ADDRESS.size)[rtnetlink._IFA_LOCAL])
            if request.kind == rtnetlink._NEW_ADDRESS:
                self.address_keys.append(key)
            else:
                self.address_keys.remove(key)
        else:
            attributes = rtnetlink._attributes(body, rtnetlink._ROUTE.size)
            key = (body[1], attributes[rtnetlink._RTA_DST])
            place = (rtnetlink._unpacked(attributes.get(rtnetlink._RTA_TABLE)) or body[4], key)
            if request.kind == rtnetlink._NEW_ROUTE:
                self.places[place] = body[5]
            else:
                del self.places[place]
        return 0


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> FakeKernel:
    made = FakeKernel()
    monkeypatch.setattr(interface_module, "RtnetlinkSocket", lambda: made)
    return made


def part_with(*routes: str, table: int = 254, policy_table: int = 0) -> InterfacePart:
    wanted = [ip_network(route) for route in routes]
    return InterfacePart("ox0", ADDRESSES, 1420, wanted, 45, table=table, policy_table=policy_table)


EVERYTHING = [
    "mtu 1420",
    f"txqlen {TRANSMIT_QUEUE_PACKETS}",
    "gso_max_segs 45",
    "state up",
    "address +10.9.0.1/24",
    "address +fd09::1/64",
    "route +10.50.0.0/16",
    "route +fd77::/48",
]


def test_everything_is_set_once_and_then_left_alone(kernel: FakeKernel) -> None:
    part = part_with("10.50.0.0/16", "fd77::/48", "10.9.0.0/25")
    assert run(part.compare(repair=True)) == EVERYTHING
    assert kernel.requests == len(EVERYTHING)
    assert run(part.compare(repair=True)) == []
    assert kernel.requests == len(EVERYTHING)


def test_another_table_has_all_routes_and_leaves_none_behind(kernel: FakeKernel) -> None:
    routes = ("10.9.0.0/25", "10.50.0.0/16", "0.0.0.0/0")
    run(part_with(*routes[:2]).compare(repair=True))
    assert run(part_with(*routes, table=1234).compare(repair=True)) == [
        "route -10.50.0.0/16",
        "route +0.0.0.0/0 table 1234",
        "route +10.9.0.0/25 table 1234",
        "route +10.50.0.0/16 table 1234",
    ]
    assert {table for table, _ in kernel.places} == {1234}
    run(part_with(*routes, table=7).compare(repair=True))
    assert {table for table, _ in kernel.places} == {7}
    run(part_with(table=0).compare(repair=True))  # off
    assert not kernel.places


def test_the_default_route_of_the_rules_is_left_alone_in_its_table(kernel: FakeKernel) -> None:
    run(part_with().compare(repair=True))
    kernel.places |= {(99, (0, bytes(4))): ROUTE_PROTOCOL, (98, (0, bytes(4))): ROUTE_PROTOCOL}
    assert run(part_with(policy_table=99).compare(repair=True)) == ["route -0.0.0.0/0 table 98"]
    assert run(part_with().compare(repair=True)) == ["route -0.0.0.0/0 table 99"]


def test_the_digest_tells_tables_apart_and_is_that_of_other_releases_for_the_main_one() -> None:
    parts = [part_with("10.50.0.0/16"), part_with("10.50.0.0/16", table=5), part_with("10.50.0.0/16", table=6)]
    assert len({part.digest for part in parts}) == 3
    lines = [*sorted(map(str, ADDRESSES)), "10.50.0.0/16", "1420", "45"]
    assert parts[0].digest == hashlib.sha256("\n".join(lines).encode()).hexdigest()


def test_a_kernel_that_reports_no_segments_is_asked_for_none(kernel: FakeKernel) -> None:
    kernel.link_state = kernel.link_state._replace(segments=0)
    assert "gso_max_segs 45" not in run(part_with().compare(repair=True))


def test_a_comparison_without_repair_changes_nothing(kernel: FakeKernel) -> None:
    assert run(part_with("10.50.0.0/16", "fd77::/48").compare(repair=False)) == EVERYTHING
    assert kernel.requests == 0


@pytest.mark.parametrize("number", range(len(EVERYTHING)))
def test_whatever_is_taken_away_is_found_and_put_back_alone(kernel: FakeKernel, number: int) -> None:
    part = part_with("10.50.0.0/16", "fd77::/48")
    run(part.compare(repair=True))
    link = kernel.link_state
    if number < 4:
        kernel.link_state = [
            link._replace(mtu=1280),
            link._replace(queue=500),
            link._replace(segments=64),
            link._replace(is_up=False),
        ][number]
    elif number < 6:
        del kernel.address_keys[number - 4]
    else:
        del kernel.places[list(kernel.places)[number - 6]]
    assert run(part.compare(repair=True)) == [EVERYTHING[number]]
    assert run(part.compare(repair=True)) == []


def test_only_routes_of_this_program_are_removed(kernel: FakeKernel) -> None:
    run(part_with("10.50.0.0/16", "10.60.0.0/16").compare(repair=True))
    kernel.places[254, (24, bytes([10, 70, 0, 0]))] = 2  # of the kernel
    assert run(part_with("10.60.0.0/16").compare(repair=True)) == ["route -10.50.0.0/16"]
    assert ROUTE_PROTOCOL in kernel.places.values()


def test_many_routes_go_in_and_out_in_slices_of_few_changes(kernel: FakeKernel) -> None:
    routes = [str(network) for network in ip_network("10.64.0.0/12").subnets(new_prefix=28)][:20_000]
    slices = worst = 0
    for part, number in ((part_with(*routes), 20_000), (part_with(), 0)):
        steps = part.compare(repair=True)
        before = kernel.requests
        while next(steps, None) is not None:
            worst = max(worst, kernel.requests - before)
            before = kernel.requests
            slices += 1
        assert len(kernel.places) == number
    assert worst <= CHANGES_PER_SLICE
    assert slices >= 2 * 20_000 / CHANGES_PER_SLICE


def test_a_dump_that_a_change_interrupts_is_read_again(kernel: FakeKernel) -> None:
    part = part_with("10.50.0.0/16")
    run(part.compare(repair=True))
    kernel.interruptions = kernel.address_interruptions = 2
    assert run(part.compare(repair=True)) == []
    assert kernel.interruptions == kernel.address_interruptions == 0
    kernel.interruptions = 1_000
    with pytest.raises(OxidizeError, match="faster than they can be read"):
        run(part.compare(repair=True))


def test_one_refused_change_does_not_prevent_the_others(kernel: FakeKernel) -> None:
    kernel.refused[rtnetlink._NEW_ADDRESS] = errno.EACCES
    with pytest.raises(OxidizeError, match=r"address \+10.9.0.1/24: IPv6 is switched off .*\(and 1 more\)"):
        run(part_with("10.50.0.0/16").compare(repair=True))
    assert kernel.link_state.is_up
    assert len(kernel.places) == 1


def test_routes_into_an_interface_that_is_gone_are_not_tried_one_by_one(kernel: FakeKernel) -> None:
    kernel.refused[rtnetlink._NEW_ROUTE] = errno.ENODEV
    routes = [str(network) for network in ip_network("10.64.0.0/12").subnets(new_prefix=24)]
    with pytest.raises(OxidizeError, match="the interface is not there"):
        run(part_with(*routes).compare(repair=True))
    assert kernel.requests <= 6 + CHANGES_PER_SLICE


def test_an_interface_that_is_not_there_is_named(kernel: FakeKernel) -> None:
    with pytest.raises(OxidizeError, match="interface ox1: the interface is not there"):
        run(InterfacePart("ox1", ADDRESSES, 1420, [], 45).compare(repair=True))
