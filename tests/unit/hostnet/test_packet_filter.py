"""A client's packet filter: which rules are wanted, in which order, and what is read back from the kernel."""

import errno
from collections.abc import Callable, Iterator, Sequence
from ipaddress import ip_interface, ip_network

import pytest

from oxidize.errors import OxidizeError
from oxidize.hostnet import packet_filter as module
from oxidize.hostnet.local_networks import LocalNetwork, _is_local, read_local_networks
from oxidize.hostnet.nftables import Message, NftError, NftSocket, Rule, Table, delete_table
from oxidize.hostnet.packet_filter import (
    ARRIVING,
    LEAVING,
    RULES_OF_SLICE,
    Filter,
    FilterPart,
    apply_filter,
    check_filter,
    prove_filter,
    remove_filter,
    rules_wanted,
    table_name,
)
from oxidize.hostnet.part import Steps, run
from tests.support.open_fds import no_leaked_fds

ADDRESSES = (ip_interface("10.9.0.2/24"), ip_interface("fd09::2/64"))
GUARDED = Filter("ox0", ADDRESSES, (), 0x6F78, kill_switch=False)
KILLING = GUARDED._replace(kill_switch=True)
HOME = LocalNetwork(ip_network("192.168.7.0/24"), "lan0")
NAME = table_name("ox0")


class FakeKernel:
    """The tables and rules of a kernel, with the netlink socket that reads and changes them."""

    def __init__(self) -> None:
        self.tables_there: list[Table] = []
        self.rules_there: dict[str, list[tuple[str, bytes]]] = {}
        self.committed: list[Sequence[Message]] = []
        self.checked: list[Sequence[Message]] = []
        self.refusal: NftError | None = None
        self.opened = self.closed = 0

    def tables(self) -> list[Table]:
        return self.tables_there

    def rules(self, table: str) -> Steps[list[tuple[str, bytes]]]:
        yield 0.0
        return self.rules_there.get(table, [])

    def check(self, messages: Sequence[Message]) -> None:
        self.checked.append(messages)
        if self.refusal is not None:
            raise self.refusal

    def commit(self, messages: Sequence[Message]) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.committed.append(messages)

    def close(self) -> None:
        self.closed += 1

    def has(self, wanted: Filter, local: Sequence[LocalNetwork] = ()) -> None:
        """Put a table in place as `apply_filter` makes it."""
        name = table_name(wanted.interface)
        self.tables_there = [Table(name, 0)]
        self.rules_there[name] = [rule.identity for rule in rules_wanted(wanted, local)]


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeKernel]:
    fake = FakeKernel()

    def create() -> FakeKernel:
        fake.opened += 1
        return fake

    monkeypatch.setattr(NftSocket, "create", create)
    monkeypatch.setattr(module, "read_local_networks", lambda: [HOME])
    yield fake
    assert fake.closed == fake.opened


def comments(wanted: Filter, *local: LocalNetwork, chain: str = LEAVING) -> list[str]:
    return [rule.comment for rule in rules_wanted(wanted, local) if rule.chain == chain]


# --- The rules ---


def test_each_address_of_the_tunnel_is_guarded_with_and_without_a_kill_switch() -> None:
    expected = ["10.9.0.2 is reached by ox0 alone", "fd09::2 is reached by ox0 alone"]
    assert comments(GUARDED, chain=ARRIVING) == comments(KILLING, chain=ARRIVING) == expected
    assert comments(GUARDED) == []


def test_a_kill_switch_ends_with_a_rule_that_drops_everything_else() -> None:
    assert comments(KILLING, HOME)[-1] == "kill_switch: everything else"


def test_of_local_and_tunnelled_networks_the_longer_prefix_decides_as_in_a_routing_table() -> None:
    wanted = KILLING._replace(addresses=ADDRESSES[:1], networks=(ip_network("10.0.0.0/9"), ip_network("10.64.3.0/30")))
    local = [LocalNetwork(ip_network(text), "lan0") for text in ("10.0.0.0/8", "10.64.3.0/24", "10.9.0.0/24")]
    assert comments(wanted, *local)[-7:-1] == [
        "10.64.3.0/30 is in the tunnel",
        "10.9.0.0/24 is in the tunnel",
        "local network 10.64.3.0/24 by lan0",
        "local network 10.9.0.0/24 by lan0",
        "10.0.0.0/9 is in the tunnel",
        "local network 10.0.0.0/8 by lan0",
    ]


def test_the_tunnels_own_interface_is_no_local_network() -> None:
    assert comments(KILLING, LocalNetwork(ip_network("10.9.0.0/24"), "ox0")) == comments(KILLING)


def test_two_rules_of_one_comment_differ_by_their_expressions() -> None:
    assert Rule(LEAVING, "a", b"1").identity != Rule(LEAVING, "a", b"2").identity
    assert Rule(LEAVING, "a", b"1").identity == Rule(LEAVING, "a", b"1").identity


# --- What is there ---


def test_nothing_is_changed_where_the_kernel_has_all_of_it(kernel: FakeKernel) -> None:
    kernel.has(KILLING, [HOME])
    assert check_filter(KILLING) == apply_filter(KILLING) == []
    assert kernel.committed == []


def _without_table(kernel: FakeKernel) -> None:
    kernel.tables_there = []


def _without_first_rule(kernel: FakeKernel) -> None:
    kernel.rules_there[NAME].pop(0)


def _with_another_rule(kernel: FakeKernel) -> None:
    kernel.rules_there[NAME].insert(0, (LEAVING, b""))


def _in_another_order(kernel: FakeKernel) -> None:
    kernel.rules_there[NAME].reverse()


def _asleep(kernel: FakeKernel) -> None:
    kernel.tables_there = [Table(NAME, 0, is_dormant=True)]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_without_table, "+table inet oxidize-ox0 with the kill switch"),
        (_without_first_rule, "+arriving: 10.9.0.2 is reached by ox0 alone"),
        (_with_another_rule, "-1 rules"),
        (_in_another_order, "+rules in order"),
        (_asleep, "+table in force, which was dormant"),
    ],
    ids=["table", "rule", "another rule", "order", "dormant"],
)
def test_what_is_missing_is_said_and_put_back_in_one_batch(
    kernel: FakeKernel, change: Callable[[FakeKernel], None], said: str
) -> None:
    kernel.has(KILLING, [HOME])
    change(kernel)
    assert check_filter(KILLING) == [said]
    assert kernel.committed == []
    assert apply_filter(KILLING) == [said]
    assert len(kernel.committed) == 1


def test_another_local_network_is_a_difference(kernel: FakeKernel) -> None:
    kernel.has(KILLING, [LocalNetwork(ip_network("192.168.1.0/24"), "wlan0")])
    assert check_filter(KILLING) == ["+leaving: local network 192.168.7.0/24 by lan0", "-1 rules"]


def test_a_part_builds_its_rules_for_other_local_networks_alone(
    kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[Sequence[LocalNetwork]] = []

    def build(wanted: Filter, local: Sequence[LocalNetwork]) -> Iterator[Rule]:
        built.append(local)
        return rules_wanted(wanted, local)

    monkeypatch.setattr(module, "rules_wanted", build)
    part = FilterPart(KILLING)
    kernel.has(KILLING, [HOME])
    for _ in range(3):
        assert run(part.compare(repair=True)) == []
    assert built == [[HOME]]
    other = LocalNetwork(ip_network("192.168.1.0/24"), "wlan0")
    monkeypatch.setattr(module, "read_local_networks", lambda: [other])
    assert run(part.compare(repair=False)) == ["+leaving: local network 192.168.1.0/24 by wlan0", "-1 rules"]
    assert kernel.committed == []
    assert len(run(part.compare(repair=True))) == 2
    assert len(kernel.committed) == 1
    assert built == [[HOME], [other]]


def test_a_part_builds_the_rules_of_many_networks_between_packets(kernel: FakeKernel) -> None:
    many = KILLING._replace(networks=tuple(ip_network((0x0A00_0000 + number * 256, 24)) for number in range(500)))
    kernel.has(many, [HOME])
    part = FilterPart(many)
    assert len(list(part.compare(repair=True))) >= 500 // RULES_OF_SLICE
    assert kernel.committed == []
    kernel.has(GUARDED)
    assert len(list(part.compare(repair=True))) >= 500 // RULES_OF_SLICE  # of the batch alone: the rules are built
    assert len(kernel.committed) == 1


def test_a_proof_changes_nothing_and_names_table_and_remedy(kernel: FakeKernel) -> None:
    prove_filter(KILLING)
    assert (len(kernel.checked), kernel.committed) == (1, [])
    kernel.refusal = NftError(errno.EPERM, 0)
    with pytest.raises(OxidizeError, match=r"nftables table inet oxidize-ox0: .*: this needs CAP_NET_ADMIN"):
        prove_filter(KILLING)


# --- The end ---


def test_an_end_removes_the_tables_of_the_client_alone(kernel: FakeKernel) -> None:
    kernel.tables_there = [Table(table_name(name), 0) for name in ("ox0", "other")] + [Table(table_name("nat"), 7)]
    assert remove_filter(["ox0", "nat", "absent"]) == ["-table inet oxidize-ox0"]
    assert kernel.committed == [[delete_table(NAME)]]


@pytest.mark.parametrize(("wanted", "removed"), [(KILLING, []), (GUARDED, ["-table inet oxidize-ox0"])])
def test_only_a_kill_switch_stays_where_no_end_was_planned(
    kernel: FakeKernel, wanted: Filter, removed: list[str]
) -> None:
    kernel.has(wanted)
    assert remove_filter(["ox0"], spare_kill_switch=True) == removed


# --- Local networks ---


def test_networks_of_this_machine_are_read_without_the_loopback() -> None:
    found = read_local_networks()
    assert all(each.interface != "lo" and not each.network.is_loopback for each in found)
    assert len(found) == len(set(found))


def test_reading_local_networks_keeps_no_descriptor() -> None:
    with no_leaked_fds():
        read_local_networks()


@pytest.mark.parametrize(
    ("text", "is_local"),
    [
        ("192.168.7.0/24", True),
        ("10.0.0.0/8", True),
        ("fd07::/64", True),
        ("10.0.0.0/7", False),
        ("0.0.0.0/0", False),
        ("1.1.1.0/24", False),
        ("2600::/64", False),
        ("::/0", False),
    ],
)
def test_a_network_whose_addresses_are_on_the_internet_is_not_local(text: str, is_local: bool) -> None:
    assert _is_local(ip_network(text)) is is_local
