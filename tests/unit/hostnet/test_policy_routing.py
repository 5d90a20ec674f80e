"""Policy routing against a double of the kernel, where another client may start at any moment."""

import errno
from collections.abc import Callable
from typing import Any

import pytest
from pyroute2.netlink.exceptions import NetlinkError

from oxidize.errors import OxidizeError
from oxidize.hostnet import netlink
from oxidize.hostnet.policy_routing import Policy, apply_policy, check_policy, remove_policy, rules_wanted

EVERYTHING = Policy(1000, frozenset({4, 6}))
PORT = 4242
Row = dict[str, Any]


class Message(dict[str, Any]):
    """A netlink message: fields as items, attributes by `get_attr`."""

    def __init__(self, fields: Row, prefix: str) -> None:
        super().__init__(fields)
        self._prefix = prefix

    def get_attr(self, name: str) -> Any:
        return self.get(name.removeprefix(self._prefix).lower())


class Kernel:
    """Rules and routes, as far as policy routing reads them. before: what runs before the n-th change."""

    def __init__(self) -> None:
        self.links = {"ox0": 5, "ox1": 6}
        self.rules: list[Row] = []
        self.routes: list[Row] = []
        self.requests = 0
        self.before: dict[int, Callable[[], object]] = {}

    def __enter__(self) -> "Kernel":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def link_lookup(self, ifname: str) -> list[int]:
        return [self.links[ifname]] if ifname in self.links else []

    def get_rules(self, family: int) -> list[Message]:
        return [Message(rule, "FRA_") for rule in self.rules if rule["family"] == family]

    def get_routes(self, family: int) -> list[Message]:
        return [Message(route, "RTA_") for route in self.routes if route["family"] == family]

    def _turn(self) -> None:
        self.requests += 1
        self.before.pop(self.requests, lambda: None)()

    def rule(self, command: str, family: int, action: str = "to_tbl", **options: Any) -> None:
        self._turn()
        row = {"family": family, "table": 0, "flags": 0, "action": 3 if action == "nop" else 1, **options}
        if (row in self.rules) is (command == "add"):
            raise NetlinkError(errno.EEXIST if command == "add" else errno.ENOENT)
        if command == "add":
            self.rules.append(row)
        else:
            self.rules.remove(row)

    def route(self, command: str, family: int, dst: str, oif: int, table: int, proto: int) -> None:
        self._turn()
        row = {"family": family, "dst_len": int(dst.partition("/")[2]), "oif": oif, "table": table, "proto": proto}
        if command == "replace":
            same = ("family", "dst_len", "table")
            self.routes = [route for route in self.routes if any(route[key] != row[key] for key in same)]
            self.routes.append(row)
        elif row in self.routes:
            self.routes.remove(row)
        else:
            raise NetlinkError(errno.ESRCH)

    def lose(self, name: str) -> None:
        """Remove an interface, as at the end of the process that held it."""
        index = self.links.pop(name)
        self.routes = [route for route in self.routes if route["oif"] != index]

    def state(self) -> list[Row]:
        return sorted([*self.rules, *self.routes], key=str)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    made = Kernel()
    monkeypatch.setattr(netlink, "connect", lambda: made)
    return made


def full_state(index: int = 5, port: int = PORT) -> list[Row]:
    """Return the kernel's state once EVERYTHING leads into the interface `index`."""
    other = Kernel()
    other.links = {"it": index}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(netlink, "connect", lambda: other)
        apply_policy(EVERYTHING, "it", port)
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
    assert len(apply_policy(EVERYTHING, "ox0", PORT)) == kernel.requests == 9
    state = kernel.state()
    assert apply_policy(EVERYTHING, "ox0", PORT) == []
    check_policy(EVERYTHING, ["ox0"])
    assert (kernel.requests, kernel.state()) == (9, state)


@pytest.mark.parametrize(
    "policy", [Policy(1000, frozenset({4})), Policy(2000, frozenset({4, 6})), Policy(1000, frozenset())], ids=str
)
def test_rules_follow_the_policy_and_back(kernel: Kernel, policy: Policy) -> None:
    apply_policy(EVERYTHING, "ox0", PORT)
    state = kernel.state()
    assert apply_policy(policy, "ox0", PORT)
    assert {row["family"] for row in kernel.state()} == {{4: 2, 6: 10}[version] for version in policy.versions}
    apply_policy(EVERYTHING, "ox0", PORT)
    assert kernel.state() == state
    assert remove_policy(["ox0"])
    assert kernel.state() == []
    assert remove_policy(["ox0"]) == []


def test_a_new_port_changes_only_its_rule(kernel: Kernel) -> None:
    apply_policy(EVERYTHING, "ox0", 1)
    changes = apply_policy(EVERYTHING, "ox0", PORT)
    assert [change.split(":")[0] for change in changes[:2]] == ["IPv4 rule +30001", "IPv4 rule -30001"]
    assert len(changes) == 4
    assert kernel.state() == full_state()


def test_the_rule_into_the_tunnel_never_stands_without_its_exemptions(kernel: Kernel) -> None:
    def sane() -> None:
        for family in (2, 10):
            rules = [rule for rule in kernel.rules if rule["family"] == family]
            if any(rule.get("fwmark") for rule in rules):
                assert any("suppress_prefixlen" in rule for rule in rules)
                assert any("sport_range" in rule for rule in rules)

    kernel.before = dict.fromkeys(range(1, 50), sane)
    apply_policy(EVERYTHING, "ox0", PORT)
    apply_policy(Policy(2000, frozenset({6})), "ox0", PORT)
    remove_policy(["ox0"])
    sane()
    assert kernel.state() == []


def test_the_interface_of_a_predecessor_is_replaced(kernel: Kernel) -> None:
    apply_policy(EVERYTHING, "ox0", PORT)
    with pytest.raises(OxidizeError, match=r"has a route in table 1000, by another client.*end that client"):
        check_policy(EVERYTHING, ["ox1"])
    check_policy(EVERYTHING, ["ox1", "ox0"])
    apply_policy(EVERYTHING, "ox1", PORT, ["ox0"])
    assert kernel.state() == full_state(6)


@pytest.mark.parametrize("wanted", [Policy(1000, frozenset()), EVERYTHING, Policy(2000, frozenset({4}))], ids=str)
def test_another_clients_rules_are_left_alone(kernel: Kernel, wanted: Policy) -> None:
    apply_policy(EVERYTHING, "ox0", PORT)
    state = kernel.state()
    if wanted.versions:
        with pytest.raises(OxidizeError, match="by another client"):
            apply_policy(wanted, "ox1", 7)
    else:
        assert apply_policy(wanted, "ox1", 7) == []
    assert remove_policy(["ox1"]) == []
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
    kernel.rules = [{"family": 10, "action": 1, **rule}]
    state = kernel.state()
    for attempt in (lambda: check_policy(EVERYTHING, ["ox0"]), lambda: apply_policy(EVERYTHING, "ox0", PORT)):
        with pytest.raises(OxidizeError, match=r"policy routing for IPv6: .*expected only this client's; "):
            attempt()
    assert [row for row in kernel.state() if row["family"] == 10] == state
    check_policy(Policy(1000, frozenset({4})), ["ox0"])
    remove_policy(["ox0"])
    assert kernel.state() == state


def test_the_rules_of_a_dead_client_are_removed(kernel: Kernel) -> None:
    apply_policy(EVERYTHING, "ox0", PORT)
    kernel.lose("ox0")
    assert len(kernel.state()) == 7
    remove_policy(indexes=[5])
    assert kernel.state() == []


def test_the_rules_of_a_dead_client_are_adopted(kernel: Kernel) -> None:
    apply_policy(EVERYTHING, "ox0", PORT)
    kernel.lose("ox0")
    apply_policy(EVERYTHING, "ox1", 7)
    assert kernel.state() == full_state(6, 7)
    assert remove_policy(indexes=[5]) == []
    assert kernel.state() == full_state(6, 7)


@pytest.mark.parametrize("fwmark", [1000, 2000])
@pytest.mark.parametrize("request_number", range(1, 9))
def test_a_client_that_starts_while_a_dead_clients_rules_are_removed_has_all_its_rules(
    kernel: Kernel, request_number: int, fwmark: int
) -> None:
    policy = Policy(fwmark, frozenset({4, 6}))
    apply_policy(EVERYTHING, "ox0", PORT)
    kernel.lose("ox0")
    kernel.requests, kernel.before = 0, {request_number: lambda: apply_policy(policy, "ox1", 7)}
    remove_policy(indexes=[5])
    kernel.before.get(request_number, lambda: None)()  # if that request was not made
    present = {(row["family"], row["priority"]) for row in kernel.rules if row.get("fwmark", fwmark) == fwmark}
    assert present >= {(2, 30000), (2, 30001), (2, 30002), (2, 30003), (10, 30001), (10, 30002), (10, 30003)}
    assert {(row["oif"], row["table"]) for row in kernel.routes} == {(6, fwmark)}


@pytest.mark.parametrize("request_number", range(1, 10))
def test_a_client_that_sets_rules_while_a_dead_clients_are_removed_has_all_its_rules(
    kernel: Kernel, request_number: int
) -> None:
    apply_policy(EVERYTHING, "ox0", PORT)
    kernel.lose("ox0")
    kernel.requests, kernel.before = 0, {request_number: lambda: remove_policy(indexes=[5])}
    apply_policy(EVERYTHING, "ox1", 7)
    assert kernel.state() == full_state(6, 7)


def test_a_kernel_without_ipv6_is_accepted_if_ipv6_is_not_wanted(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = kernel.get_rules

    def get_rules(family: int) -> list[Message]:
        if family == 10:
            raise NetlinkError(errno.EAFNOSUPPORT)
        return real(family)

    monkeypatch.setattr(kernel, "get_rules", get_rules)
    assert len(apply_policy(Policy(1000, frozenset({4})), "ox0", PORT)) == 5


def test_a_refusal_by_the_kernel_is_named_with_its_remedy(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise NetlinkError(errno.EPERM)

    monkeypatch.setattr(kernel, "rule", refuse)
    with pytest.raises(OxidizeError, match=r"policy routing, IPv4 rule \+30000: udp nop: this needs CAP_NET_ADMIN"):
        apply_policy(EVERYTHING, "ox0", PORT)
    with pytest.raises(OxidizeError, match="interface gone0: the interface is not there"):
        apply_policy(EVERYTHING, "gone0", PORT)
