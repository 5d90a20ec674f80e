"""Policy routing against a double of the kernel, where another client may start at any moment."""

import errno
import struct
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import pytest

from oxidize.errors import OxidizeError
from oxidize.hostnet import policy_routing, rtnetlink
from oxidize.hostnet.netlink import ROUTE_PROTOCOL
from oxidize.hostnet.part import run
from oxidize.hostnet.policy_routing import (
    Policy,
    PolicyPart,
    apply_policy,
    check_policy,
    remove_policy,
    rules_wanted,
)
from oxidize.hostnet.rtnetlink import Link, Request, Route, RtnetlinkError

EVERYTHING = Policy(1000, frozenset({4, 6}))
PORT = 4242
Row = dict[str, int | str]
_NUMBERS = {"priority": 6, "fwmark": 10, "suppress_prefixlen": 14, "table": 15}  # FRA_*, linux/fib_rules.h
_IIFNAME, _PROTOCOL, _IP_PROTO, _SPORT_RANGE = 3, 21, 22, 23


class Kernel:
    """Rules and routes; it understands the requests of `rtnetlink` by their bytes.

    before: what runs before the n-th change. interruptions: of dumps to come. most_at_once: changes in one message.
    """

    def __init__(self) -> None:
        self.links = {"ox0": 5, "ox1": 6}
        self.rows: list[Row] = []  # rules
        self.routes: list[Row] = []
        self.requests = 0
        self.most_at_once = 0
        self.interruptions = 0
        self.refusal = 0
        self.before: dict[int, Callable[[], object]] = {}

    def __enter__(self) -> "Kernel":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def link(self, name: str) -> Link:
        if name not in self.links:
            raise RtnetlinkError(errno.ENODEV)
        return Link(self.links[name], 1420, 2000, 45, is_up=True)

    def _interrupt(self) -> None:
        if self.interruptions:
            self.interruptions -= 1
            raise RtnetlinkError(errno.EINTR)

    def rules(self, family: int) -> Iterator[list[tuple[bytes, dict[int, bytes]]]]:
        for row in [row for row in self.rows if row["family"] == family]:
            header = struct.pack("=BBBBBBBBI", family, 0, 0, 0, 0, 0, 0, row["action"], row["flags"])
            attributes = {kind: struct.pack("=I", row[name]) for name, kind in _NUMBERS.items() if name in row}
            attributes[_PROTOCOL] = bytes([int(row["protocol"])])
            if "iifname" in row:
                attributes[_IIFNAME] = str(row["iifname"]).encode() + b"\0"
            if "ip_proto" in row:
                attributes[_IP_PROTO] = bytes([int(row["ip_proto"])])
            if "sport_range" in row:
                attributes[_SPORT_RANGE] = struct.pack("=HH", *map(int, str(row["sport_range"]).split(":")))
            yield [(header, attributes)]
            self._interrupt()

    def routes_of(self, family: int, *, table: int = 0, index: int = 0, protocol: int = 0) -> Iterator[list[Route]]:
        for row in list(self.routes):
            of = int(row["table"]), int(row["oif"]), int(row["proto"])
            if row["family"] == family and all(map(_fits, (table, index, protocol), of)):
                yield [Route((int(row["dst_len"]), bytes(4 if family == 2 else 16)), *of)]
                self._interrupt()

    def change(self, requests: Sequence[Request]) -> list[int]:
        self.most_at_once = max(self.most_at_once, len(requests))
        return [self._change(each) for each in requests]

    def _change(self, request: Request) -> int:
        self.requests += 1
        self.before.pop(self.requests, lambda: None)()
        if self.refusal:
            return self.refusal
        if request.kind in {rtnetlink._NEW_RULE, rtnetlink._DELETE_RULE}:
            return self._rule(request.body, add=request.kind == rtnetlink._NEW_RULE)
        return self._route(request.body, replace=request.kind == rtnetlink._NEW_ROUTE)

    def _rule(self, body: bytes, *, add: bool) -> int:
        attributes = rtnetlink._attributes(body, 12)
        row: Row = {"family": body[0], "action": body[7], "flags": int.from_bytes(body[8:12], "little")}
        row |= {name: struct.unpack("=I", attributes[kind])[0] for name, kind in _NUMBERS.items() if kind in attributes}
        row["protocol"] = attributes[_PROTOCOL][0]
        if _IIFNAME in attributes:
            row["iifname"] = attributes[_IIFNAME].rstrip(b"\0").decode()
        if _IP_PROTO in attributes:
            row["ip_proto"] = attributes[_IP_PROTO][0]
        if _SPORT_RANGE in attributes:
            row["sport_range"] = "{}:{}".format(*struct.unpack("=HH", attributes[_SPORT_RANGE]))
        if (row in self.rows) is add:
            return errno.EEXIST if add else errno.ENOENT
        if add:
            self.rows.append(row)
        else:
            self.rows.remove(row)
        return 0

    def _route(self, body: bytes, *, replace: bool) -> int:
        attributes = rtnetlink._attributes(body, 12)
        oif, table = (struct.unpack("=I", attributes[kind])[0] for kind in (4, 15))
        row: Row = {"family": body[0], "dst_len": body[1], "oif": oif, "table": table, "proto": body[5]}
        if replace:
            same = ("family", "dst_len", "table")
            self.routes = [route for route in self.routes if any(route[key] != row[key] for key in same)]
            self.routes.append(row)
        elif row in self.routes:
            self.routes.remove(row)
        else:
            return errno.ESRCH
        return 0

    def lose(self, name: str) -> None:
        """Remove an interface, as at the end of the process that held it."""
        index = self.links.pop(name)
        self.routes = [route for route in self.routes if route["oif"] != index]

    def state(self) -> list[Row]:
        return sorted([*self.rows, *self.routes], key=str)


def _fits(asked: int, found: int) -> bool:
    return asked in {0, found}


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    made = Kernel()
    monkeypatch.setattr(policy_routing, "RtnetlinkSocket", lambda: made)
    return made


def full_state(index: int = 5, port: int = PORT) -> list[Row]:
    """Return the kernel's state once EVERYTHING leads into the interface `index`."""
    other = Kernel()
    other.links = {"it": index}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(policy_routing, "RtnetlinkSocket", lambda: other)
        run(apply_policy(EVERYTHING, "it", port))
    return other.state()


def test_a_rule_is_written_as_ip_rule_writes_it() -> None:
    assert [str(rule) for rule in rules_wanted(Policy(0x6F78, frozenset({4})), 4, 5000)] == [
        "30000: udp nop",
        "30001: iif lo udp sport 5000 lookup main",
        "30002: lookup main suppress_prefixlength 0",
        "30003: not fwmark 0x6f78 lookup 28536",
    ]
    assert len(rules_wanted(EVERYTHING, 6, 5000)) == 3


def test_a_second_run_touches_nothing(kernel: Kernel) -> None:
    check_policy(EVERYTHING, ["ox0"])
    assert kernel.requests == 0
    assert len(run(apply_policy(EVERYTHING, "ox0", PORT))) == kernel.requests == 9
    state = kernel.state()
    assert run(apply_policy(EVERYTHING, "ox0", PORT)) == []
    check_policy(EVERYTHING, ["ox0"])
    assert (kernel.requests, kernel.state()) == (9, state)


@pytest.mark.parametrize(
    "policy", [Policy(1000, frozenset({4})), Policy(2000, frozenset({4, 6})), Policy(1000, frozenset())], ids=str
)
def test_rules_follow_the_policy_and_back(kernel: Kernel, policy: Policy) -> None:
    run(apply_policy(EVERYTHING, "ox0", PORT))
    state = kernel.state()
    assert run(apply_policy(policy, "ox0", PORT))
    assert {row["family"] for row in kernel.state()} == {{4: 2, 6: 10}[version] for version in policy.versions}
    run(apply_policy(EVERYTHING, "ox0", PORT))
    assert kernel.state() == state
    assert run(remove_policy(["ox0"]))
    assert kernel.state() == []
    assert run(remove_policy(["ox0"])) == []


def test_a_new_port_changes_only_its_rule(kernel: Kernel) -> None:
    run(apply_policy(EVERYTHING, "ox0", 1))
    changes = run(apply_policy(EVERYTHING, "ox0", PORT))
    assert [change.split(":")[0] for change in changes[:2]] == ["IPv4 rule +30001", "IPv4 rule -30001"]
    assert len(changes) == 4
    assert kernel.state() == full_state()


def test_the_rule_into_the_tunnel_never_stands_without_its_exemptions(kernel: Kernel) -> None:
    def sane() -> None:
        for family in (2, 10):
            rules = [rule for rule in kernel.rows if rule["family"] == family]
            if any(rule.get("fwmark") for rule in rules):
                assert any("suppress_prefixlen" in rule for rule in rules)
                assert any("sport_range" in rule for rule in rules)

    kernel.before = dict.fromkeys(range(1, 50), sane)
    run(apply_policy(EVERYTHING, "ox0", PORT))
    apply_policy(Policy(2000, frozenset({6})), "ox0", PORT)
    run(remove_policy(["ox0"]))
    sane()
    assert kernel.state() == []


def test_the_interface_of_a_predecessor_is_replaced(kernel: Kernel) -> None:
    run(apply_policy(EVERYTHING, "ox0", PORT))
    with pytest.raises(OxidizeError, match=r"has a route in table 1000, by another tunnel of Oxidize.*end that one"):
        check_policy(EVERYTHING, ["ox1"])
    check_policy(EVERYTHING, ["ox1", "ox0"])
    run(apply_policy(EVERYTHING, "ox1", PORT, ["ox0"]))
    assert kernel.state() == full_state(6)


@pytest.mark.parametrize("wanted", [Policy(1000, frozenset()), EVERYTHING, Policy(2000, frozenset({4}))], ids=str)
def test_another_clients_rules_are_left_alone(kernel: Kernel, wanted: Policy) -> None:
    run(apply_policy(EVERYTHING, "ox0", PORT))
    state = kernel.state()
    if wanted.versions:
        with pytest.raises(OxidizeError, match="by another tunnel of Oxidize"):
            run(apply_policy(wanted, "ox1", 7))
    else:
        assert run(apply_policy(wanted, "ox1", 7)) == []
    assert run(remove_policy(["ox1"])) == []
    assert kernel.state() == state


@pytest.mark.parametrize(
    "rule",
    [
        {"table": 51820, "fwmark": 51820, "flags": 2, "protocol": 3},
        {"table": 254, "fwmark": 1000, "flags": 0, "protocol": 3},
        {"table": 1000, "flags": 0, "protocol": 4},
    ],
    ids=["a full tunnel", "the same mark", "the same table"],
)
def test_another_programs_rules_are_an_error_and_are_not_changed(kernel: Kernel, rule: Row) -> None:
    kernel.rows = [{"family": 10, "action": 1, "priority": 32_000, **rule}]
    state = kernel.state()
    for attempt in (lambda: check_policy(EVERYTHING, ["ox0"]), lambda: run(apply_policy(EVERYTHING, "ox0", PORT))):
        with pytest.raises(OxidizeError, match=r"policy routing for IPv6: .*expected only this tunnel's; "):
            attempt()
    assert [row for row in kernel.state() if row["family"] == 10] == state
    check_policy(Policy(1000, frozenset({4})), ["ox0"])
    run(remove_policy(["ox0"]))
    assert kernel.state() == state


def test_the_rules_of_a_dead_client_are_removed(kernel: Kernel) -> None:
    run(apply_policy(EVERYTHING, "ox0", PORT))
    kernel.lose("ox0")
    assert len(kernel.state()) == 7
    run(remove_policy(indexes=[5]))
    assert kernel.state() == []


def test_the_rules_of_a_dead_client_are_adopted(kernel: Kernel) -> None:
    run(apply_policy(EVERYTHING, "ox0", PORT))
    kernel.lose("ox0")
    run(apply_policy(EVERYTHING, "ox1", 7))
    assert kernel.state() == full_state(6, 7)
    assert run(remove_policy(indexes=[5])) == []
    assert kernel.state() == full_state(6, 7)


@pytest.mark.parametrize("fwmark", [1000, 2000])
@pytest.mark.parametrize("request_number", range(1, 9))
def test_a_client_that_starts_while_a_dead_clients_rules_are_removed_has_all_its_rules(
    kernel: Kernel, request_number: int, fwmark: int
) -> None:
    policy = Policy(fwmark, frozenset({4, 6}))
    run(apply_policy(EVERYTHING, "ox0", PORT))
    kernel.lose("ox0")
    kernel.requests, kernel.before = 0, {request_number: lambda: run(apply_policy(policy, "ox1", 7))}
    run(remove_policy(indexes=[5]))
    kernel.before.get(request_number, lambda: None)()  # if that request was not made
    present = {(row["family"], row["priority"]) for row in kernel.rows if row.get("fwmark", fwmark) == fwmark}
    assert present >= {(2, 30000), (2, 30001), (2, 30002), (2, 30003), (10, 30001), (10, 30002), (10, 30003)}
    assert {(row["oif"], row["table"]) for row in kernel.routes} == {(6, fwmark)}


@pytest.mark.parametrize("request_number", range(1, 10))
def test_a_client_that_sets_rules_while_a_dead_clients_are_removed_has_all_its_rules(
    kernel: Kernel, request_number: int
) -> None:
    run(apply_policy(EVERYTHING, "ox0", PORT))
    kernel.lose("ox0")
    kernel.requests, kernel.before = 0, {request_number: lambda: run(remove_policy(indexes=[5]))}
    run(apply_policy(EVERYTHING, "ox1", 7))
    assert kernel.state() == full_state(6, 7)


def test_a_refusal_by_the_kernel_is_named_with_its_remedy(kernel: Kernel) -> None:
    kernel.refusal = errno.EPERM
    with pytest.raises(OxidizeError, match=r"policy routing, IPv4 default route \+1000: this needs CAP_NET_ADMIN"):
        run(apply_policy(EVERYTHING, "ox0", PORT))
    with pytest.raises(OxidizeError, match="interface gone0: the interface is not there"):
        run(apply_policy(EVERYTHING, "gone0", PORT))


# --- As a part that is kept ---


def missing(*, repair: bool = True) -> list[str]:
    return run(PolicyPart(EVERYTHING, "ox0", PORT).compare(repair=repair))


def test_a_policy_that_is_complete_is_left_alone(kernel: Kernel) -> None:
    run(apply_policy(EVERYTHING, "ox0", PORT))
    requests = kernel.requests
    assert missing() == []
    assert kernel.requests == requests


@pytest.mark.parametrize("number", range(9))
def test_each_rule_and_route_that_is_taken_away_is_found_and_put_back_alone(kernel: Kernel, number: int) -> None:
    run(apply_policy(EVERYTHING, "ox0", PORT))
    whole = [*kernel.rows, *kernel.routes]
    lost = whole[number]
    (kernel.rows if lost in kernel.rows else kernel.routes).remove(lost)
    version = {2: 4, 10: 6}[int(lost["family"])]
    what = f"rule +{lost['priority']}: " if "priority" in lost else "default route +1000"
    requests, state = kernel.requests, kernel.state()
    (found,) = missing(repair=False)
    assert found.startswith(f"IPv{version} {what.replace('+', '')}")
    assert (kernel.requests, kernel.state()) == (requests, state)
    (put_back,) = missing()
    assert put_back.startswith(f"IPv{version} {what}")
    assert (kernel.requests, kernel.state()) == (requests + 1, full_state())
    assert missing() == []


def test_a_rule_of_another_program_does_not_stand_for_a_missing_one(kernel: Kernel) -> None:
    run(apply_policy(EVERYTHING, "ox0", PORT))
    for row in kernel.rows:
        if row.get("sport_range") and row["family"] == 10:
            row["protocol"] = 3
    assert len(missing(repair=False)) == 1


def test_a_default_route_into_another_interface_does_not_stand_for_a_missing_one(kernel: Kernel) -> None:
    run(apply_policy(EVERYTHING, "ox0", PORT))
    kernel.routes[0]["oif"] = 6
    assert missing(repair=False) == ["IPv4 default route 1000"]


def test_a_repair_makes_one_change_in_each_slice(kernel: Kernel) -> None:
    slices = PolicyPart(EVERYTHING, "ox0", PORT).compare(repair=True)
    counts = [kernel.requests for _ in slices]
    assert counts[-1] == 9
    assert max(after - before for before, after in pairwise(counts)) == 1
    assert kernel.most_at_once == 1


def test_changes_elsewhere_while_the_rules_are_read_delay_a_comparison(kernel: Kernel) -> None:
    run(apply_policy(EVERYTHING, "ox0", PORT))
    kernel.interruptions = 3
    assert missing() == []
    assert kernel.interruptions == 0
    kernel.interruptions = 1_000
    with pytest.raises(OxidizeError, match="policy routing: rules and routes change faster than they can be read"):
        missing()


def test_a_policy_whose_interface_is_gone_is_told(kernel: Kernel) -> None:
    run(apply_policy(EVERYTHING, "ox0", PORT))
    kernel.lose("ox0")
    with pytest.raises(OxidizeError, match="policy routing: the interface is not there"):
        missing()


def test_the_managed_rules_carry_the_number_of_this_program(kernel: Kernel) -> None:
    run(apply_policy(EVERYTHING, "ox0", PORT))
    assert {row["protocol"] for row in kernel.rows} == {row["proto"] for row in kernel.routes} == {ROUTE_PROTOCOL}
