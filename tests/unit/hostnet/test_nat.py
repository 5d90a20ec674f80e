"""Address translation: what the machine must provide, and which tables are changed."""

import struct
from ipaddress import ip_address, ip_interface
from pathlib import Path

import pytest

from oxidize.config.nat import NatSettings, PortForward, Ports, Protocol, Target, default_sources
from oxidize.errors import ConfigError
from oxidize.hostnet import nat as nat_module
from oxidize.hostnet.nat import Nat, check_forwarding
from oxidize.hostnet.nat_rules import table_messages
from oxidize.hostnet.nftables import NFT_MSG_NEWRULE, Message, NftError, NftSocket, Table, delete_table
from oxidize.hostnet.part import Steps, run

ADDRESSES = [ip_interface("10.9.0.1/24"), ip_interface("fd09::1/64")]
V4, V6 = "net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"
PORT = 7
UDP_PORT = 51820
PLAIN = NatSettings(default_sources(ADDRESSES), None, (), ())


@pytest.fixture(autouse=True)
def sysctls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    for name in (V4, V6):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("1\n")
    monkeypatch.setattr(nat_module, "SYSCTLS", tmp_path)
    return tmp_path


class FakeSocket:
    """A netlink socket with existing tables that records its batches."""

    port = PORT

    def __init__(self, *found: Table, refusal: NftError | None = None) -> None:
        self.found = list(found)
        self.refusal = refusal
        self.checked: list[list[Message]] = []
        self.committed: list[list[Message]] = []
        self.is_closed = False
        self.marks: list[tuple[str, bytes]] = []

    def tables(self) -> list[Table]:
        return self.found

    def rules(self, table: str, chain: str | None = None) -> Steps[list[tuple[str, bytes]]]:
        yield 0.0
        return self.marks if (table, chain) == ("oxidize-ox0", "forward") else []

    def check(self, messages: list[Message]) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.checked.append(messages)

    def commit(self, messages: list[Message]) -> None:
        self.committed.append(messages)

    def fileno(self) -> int:
        return 3

    def close(self) -> None:
        self.is_closed = True


def made(
    monkeypatch: pytest.MonkeyPatch, held: FakeSocket, wanted: NatSettings | None = PLAIN, *, passed: int | None = 3
) -> Nat:
    monkeypatch.setattr(NftSocket, "adopt", lambda descriptor: held)
    monkeypatch.setattr(NftSocket, "create", lambda: held)
    return Nat("ox0", ADDRESSES, wanted, UDP_PORT, passed=passed)


# --- The sysctls ---


def test_forwarding_is_required_for_the_families_of_the_addresses(sysctls: Path) -> None:
    check_forwarding(ADDRESSES)
    sysctls.joinpath(V6).write_text("0\n")
    check_forwarding(ADDRESSES[:1])
    with pytest.raises(ConfigError) as caught:
        check_forwarding(ADDRESSES)
    (problem,) = caught.value.problems
    assert "the sysctl net.ipv6.conf.all.forwarding is '0': expected 1" in problem
    assert "`sysctl -w net.ipv6.conf.all.forwarding=1`" in problem


def test_every_missing_sysctl_is_named(sysctls: Path) -> None:
    sysctls.joinpath(V4).write_text("0\n")
    sysctls.joinpath(V6).unlink()
    with pytest.raises(ConfigError) as caught:
        check_forwarding(ADDRESSES)
    first, second = caught.value.problems
    assert "net.ipv4.ip_forward is '0'" in first
    assert "net.ipv6.conf.all.forwarding is 'No such file or directory'" in second


# --- Tables ---


def test_a_new_table_is_exclusive_and_an_own_table_is_updated(monkeypatch: pytest.MonkeyPatch) -> None:
    for found, exclusive in ([], True), ([Table("oxidize-ox0", PORT)], False):
        held = FakeSocket(Table("firewall", 0), Table("other", PORT + 1), *found)
        nat = made(monkeypatch, held)
        nat.check()
        assert held.committed == []
        nat.apply()
        assert held.checked == held.committed == [table_messages("ox0", ADDRESSES, PLAIN, exclusive=exclusive)]


def test_other_tables_of_the_socket_are_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    held = FakeSocket(Table("oxidize-before", PORT))
    made(monkeypatch, held).apply()
    assert held.committed == [
        [delete_table("oxidize-before"), *table_messages("ox0", ADDRESSES, PLAIN, exclusive=True)]
    ]


def test_disabled_nat_removes_its_own_tables_and_closes_the_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    held = FakeSocket(Table("firewall", 0), Table("oxidize-ox0", PORT))
    nat = made(monkeypatch, held, None)
    nat.check()
    assert nat.fileno() == 3
    nat.apply()
    nat.apply()
    assert held.committed == [[delete_table("oxidize-ox0")]]
    assert (held.is_closed, nat.fileno()) == (True, None)


def test_nat_that_was_never_enabled_changes_nothing() -> None:
    nat = Nat("ox0", ADDRESSES, None, UDP_PORT, passed=None)
    nat.check()
    nat.apply()
    assert nat.fileno() is None
    nat.close()


@pytest.mark.parametrize(
    ("owner", "remedy"), [(0, "`nft delete table inet oxidize-ox0`"), (99, r"another process \(netlink port 99\)")]
)
def test_a_foreign_table_of_this_name_is_an_error(monkeypatch: pytest.MonkeyPatch, owner: int, remedy: str) -> None:
    held = FakeSocket(Table("oxidize-ox0", owner))
    nat = made(monkeypatch, held, passed=None)
    with pytest.raises(ConfigError, match=remedy):
        nat.check()
    with pytest.raises(ConfigError, match=remedy):
        nat.apply()
    assert held.committed == []


def test_only_a_foreign_table_with_an_owner_may_still_be_freed(monkeypatch: pytest.MonkeyPatch) -> None:
    made(monkeypatch, FakeSocket(Table("oxidize-ox0", 99)), passed=None).check(may_be_freed=True)
    with pytest.raises(ConfigError, match="nft delete table"):
        made(monkeypatch, FakeSocket(Table("oxidize-ox0", 0)), passed=None).check(may_be_freed=True)


@pytest.mark.parametrize(
    ("code", "remedy"), [(1, "CAP_NET_ADMIN"), (22, "Linux 5.12"), (2, "nft_masq"), (95, "nf_tables"), (28, "refuses")]
)
def test_a_refusal_by_the_kernel_comes_with_a_remedy(monkeypatch: pytest.MonkeyPatch, code: int, remedy: str) -> None:
    nat = made(monkeypatch, FakeSocket(refusal=NftError(code, 0)))
    with pytest.raises(ConfigError, match=rf"table inet oxidize-ox0: .*{remedy}"):
        nat.check()


# --- What the table is to do ---


def forwarding(
    protocol: Protocol = "tcp", ports: tuple[int, int] = (443, 443), to: str = "10.9.0.2", interface: str | None = None
) -> NatSettings:
    target = Target(ip_address(to), None)
    return PLAIN._replace(forwards=(PortForward(protocol, Ports(*ports), target, interface, (), masquerade=False),))


def test_forwarding_is_required_for_the_families_of_the_targets(monkeypatch: pytest.MonkeyPatch, sysctls: Path) -> None:
    sysctls.joinpath(V6).write_text("0\n")
    for to, refused in (("10.9.0.2", False), ("fd09::2", True)):
        monkeypatch.setattr(NftSocket, "create", FakeSocket)
        nat = Nat("ox0", ADDRESSES[:1], forwarding(to=to), UDP_PORT, passed=None)
        if refused:
            with pytest.raises(ConfigError, match=r"net\.ipv6\.conf\.all\.forwarding"):
                nat.check()
        else:
            nat.check()


@pytest.mark.parametrize(
    ("wanted", "is_refused"),
    [
        (forwarding("udp", (UDP_PORT, UDP_PORT)), True),
        (forwarding("both", (1, 65535)), True),
        (forwarding("udp", (UDP_PORT + 1, 65535)), False),
        (forwarding("udp", (1, UDP_PORT - 1)), False),
        (forwarding("tcp", (1, 65535)), False),
        (forwarding("udp", (1, 65535), interface="ox0"), False),
        (forwarding("udp", (1, 65535), interface="eth0"), True),
    ],
)
def test_the_tunnels_own_port_is_never_forwarded(
    monkeypatch: pytest.MonkeyPatch, wanted: NatSettings, is_refused: bool
) -> None:
    held = FakeSocket()
    nat = made(monkeypatch, held, wanted)
    for act in (nat.check, nat.apply):
        if is_refused:
            with pytest.raises(ConfigError, match=r"server\.nat\.forward\[1\]\.port = .*: expected no UDP port 51820"):
                act()
        else:
            act()
    assert len(held.committed) == (not is_refused)


def test_the_rules_are_built_once_for_a_check_and_what_follows(monkeypatch: pytest.MonkeyPatch) -> None:
    held = FakeSocket()
    nat = made(monkeypatch, held, forwarding())
    nat.check()
    monkeypatch.setattr(nat_module, "table_messages", None)
    nat.apply()
    assert held.committed == held.checked


def test_a_table_that_has_these_very_rules_is_not_written_again(monkeypatch: pytest.MonkeyPatch) -> None:
    held = FakeSocket(Table("oxidize-ox0", PORT))
    for mark, writes in ((b"", 1), (digest_of(forwarding()), 1), (digest_of(PLAIN), 0)):
        held.marks = [("forward", mark), ("forward", b"")]
        held.committed.clear()
        made(monkeypatch, held).apply()
        assert len(held.committed) == writes


def digest_of(wanted: NatSettings) -> bytes:
    """Return what the kernel keeps with the first rule."""
    messages = table_messages("ox0", ADDRESSES, wanted, exclusive=True)
    first = next(each.attributes for each in messages if each.kind == NFT_MSG_NEWRULE)
    length, kind = struct.unpack_from("=HH", first, place := first.rindex(struct.pack("=HH", 22, 7)))
    assert kind == 7  # NFTA_RULE_USERDATA
    return first[place + 4 : place + length]


# --- As a part that is kept ---


def test_a_table_that_is_there_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    held = FakeSocket(Table("oxidize-ox0", PORT), Table("firewall", 0))
    assert run(made(monkeypatch, held).compare(repair=True)) == []
    assert held.committed == []


def test_a_flushed_table_is_found_and_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    held = FakeSocket(Table("firewall", 0))
    nat = made(monkeypatch, held)
    assert run(nat.compare(repair=False)) == ["nftables table inet oxidize-ox0"]
    assert held.committed == []
    assert run(nat.compare(repair=True)) == ["nftables table inet oxidize-ox0"]
    assert held.committed == [table_messages("ox0", ADDRESSES, PLAIN, exclusive=True)]


def test_a_table_of_the_same_name_is_no_substitute(monkeypatch: pytest.MonkeyPatch) -> None:
    nat = made(monkeypatch, FakeSocket(Table("oxidize-ox0", 0)))
    assert run(nat.compare(repair=False)) == ["nftables table inet oxidize-ox0"]
    with pytest.raises(ConfigError, match="remove it with `nft delete table inet oxidize-ox0`"):
        run(nat.compare(repair=True))


@pytest.mark.parametrize("found", [[], [Table("oxidize-ox0", PORT)]], ids=["flushed", "complete"])
def test_forwarding_that_was_switched_off_is_told(
    monkeypatch: pytest.MonkeyPatch, sysctls: Path, found: list[Table]
) -> None:
    held = FakeSocket(*found)
    sysctls.joinpath(V4).write_text("0\n")
    with pytest.raises(ConfigError, match=r"net\.ipv4\.ip_forward is '0'"):
        run(made(monkeypatch, held).compare(repair=True))
    assert len(held.committed) == (not found)


def test_a_kernel_that_does_not_answer_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    held = FakeSocket()

    def refuse() -> list[Table]:
        raise NftError(1, 0)

    monkeypatch.setattr(held, "tables", refuse)
    with pytest.raises(ConfigError, match="CAP_NET_ADMIN"):
        run(made(monkeypatch, held).compare(repair=False))


def test_nat_that_is_not_wanted_is_not_compared(monkeypatch: pytest.MonkeyPatch, sysctls: Path) -> None:
    sysctls.joinpath(V4).write_text("0\n")
    assert run(made(monkeypatch, FakeSocket(), None).compare(repair=True)) == []
