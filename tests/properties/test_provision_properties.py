"""Any wg-quick file is imported or refused, an added peer can be removed, and no address is given twice."""

import base64
import tomllib
from ipaddress import ip_interface, ip_network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oxidize.config import HostAddress, Network, load_server
from oxidize.config.checks import contains
from oxidize.errors import ConfigError
from oxidize.provision import conversion, wg_quick
from oxidize.provision.addresses import free_addresses
from oxidize.provision.peer_tables import add_peer, remove_peer

PRIVATE = base64.b64encode(bytes(range(32))).decode()
PUBLIC = [base64.b64encode(bytes([9, number]) * 16).decode() for number in range(4)]

# --- Import ---

characters = st.characters(codec="utf-8")
values = st.one_of(
    st.sampled_from(
        [
            PRIVATE,
            *PUBLIC,
            "10.8.0.1/24",
            "fd42::1/64",
            "10.8.0.2/32",
            "0.0.0.0/0",
            "::/0",
            "51820",
            "off",
            "a.example:1",
        ]
    ),
    st.lists(st.sampled_from(["10.8.0.2", "10.8.0.0/24", "fd42::/64", "x", ""]), max_size=3).map(", ".join),
    st.text(characters, max_size=20),
    st.integers(-(2**70), 2**70).map(str),
)
NAMES = [*wg_quick.INTERFACE_NAMES, *wg_quick.PEER_NAMES, "privatekey", "Nonsense"]
lines = st.one_of(
    st.sampled_from(["[Interface]", "[Peer]", "[peer]", "", "# laptop", f"# {PRIVATE}", "[", "= 3"]),
    st.builds(lambda name, value: f"{name} = {value}", st.sampled_from(NAMES), values),
    st.text(characters, max_size=20),
)


def convert(text: str, folder: Path) -> None:
    """Import a file and check the form of the error if there is one, or else that the result loads or is refused."""
    for turn in (conversion.to_server, conversion.to_client):
        try:
            found = turn(wg_quick.parse(text, "wg0.conf"), "wg0.conf")
        except ConfigError as error:
            problems, refusal = error.problems, str(error)
        else:
            check_converted(found, folder, is_server=turn is conversion.to_server)
            continue
        assert problems
        assert refusal.splitlines() == list(problems)
        for problem in problems:
            assert problem.startswith("wg0.conf: ")
            assert PRIVATE not in problem or "PublicKey = " in problem  # who could tell


def check_converted(found: conversion.Converted, folder: Path, *, is_server: bool) -> None:
    """Check that a converted file shows no key, and that it loads or is refused with reasons."""
    assert all(PRIVATE not in note and len(note.splitlines()) == 1 for note in found.notes)
    if not is_server:
        return
    for name, key in found.keys.items():
        path = folder / name
        path.touch(0o600)
        path.write_text(key)
    problems: tuple[str, ...] = ()
    try:
        server = load_server(folder / "server.toml", {}, content=found.toml.encode())
    except ConfigError as error:
        problems = error.problems
    else:
        assert len(server.peers) == found.toml.count("[[peer]]")
    assert all("expected" in problem for problem in problems)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("import")


@given(text=st.text(characters, max_size=200))
def test_any_text_is_imported_or_refused(folder: Path, text: str) -> None:
    convert(text, folder)


@given(given_lines=st.lists(lines, max_size=12), newline=st.sampled_from(["\n", "\r\n"]))
def test_lines_of_every_kind_are_imported_or_refused(folder: Path, given_lines: list[str], newline: str) -> None:
    convert(newline.join(given_lines), folder)


@given(interface=st.lists(lines, max_size=4), peers=st.lists(st.lists(lines, max_size=4), max_size=3))
def test_files_that_are_nearly_right_are_imported_or_refused(
    folder: Path, interface: list[str], peers: list[list[str]]
) -> None:
    head = ["[Interface]", f"PrivateKey = {PRIVATE}", "Address = 10.8.0.1/24", *interface]
    for number, peer in enumerate(peers):
        head += [f"# peer {number}", "[Peer]", f"PublicKey = {PUBLIC[number]}", *peer]
    convert("\n".join(head), folder)


# --- Editing ---

comments = st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), max_size=20).map(lambda text: f"# {text}")
blanks = st.lists(st.sampled_from(["", "  ", "\t"]), max_size=2)
notes = st.sampled_from(["", 'note = """\n[[peer]]\nname = "p1"\n"""', "more = [\n  [1],\n  # [[peer]]\n  [2]]"])


@st.composite
def documents(draw: st.DrawFn) -> str:
    """Draw a configuration with comments, blank lines and values of several lines in every place."""
    text = [*draw(st.lists(comments, max_size=2)), "[server]", 'address = "10.9.0.1/24"  # [x]', *draw(blanks)]
    for number in range(draw(st.integers(0, 4))):
        header = draw(st.sampled_from(["[[peer]]", ' [["peer"]] # x', "[[ peer ]]"]))
        text += [*draw(st.lists(comments, max_size=2)), *draw(blanks), *draw(st.lists(comments, max_size=2)), header]
        text += [*draw(st.lists(comments, max_size=1)), f'name = "p{number}" # {number}', draw(notes), *draw(blanks)]
    text += draw(st.lists(comments, max_size=2))
    return draw(st.sampled_from(["\n", "\r\n"])).join(text) + draw(st.sampled_from(["", "\n"]))


NEW = {"name": "new", "public_key": "K", "allowed_ips": ["10.9.0.2/32"]}


@given(documents())
def test_an_added_peer_can_be_removed_without_a_trace(text: str) -> None:
    added = add_peer(text, NEW)
    assert added.startswith(text)
    assert tomllib.loads(added)["peer"][-1]["name"] == "new"
    assert remove_peer(added, "new").text.rstrip() == text.rstrip()


@given(documents(), st.data())
def test_removing_a_peer_keeps_every_other_line(text: str, data: st.DataObject) -> None:
    peers = tomllib.loads(text).get("peer", [])
    if not peers:
        return
    name = data.draw(st.sampled_from([peer["name"] for peer in peers]))
    removed = remove_peer(text, name)
    after = tomllib.loads(removed.text)
    assert after.get("peer", []) == [peer for peer in peers if peer["name"] != name]
    assert after["server"] == tomllib.loads(text)["server"]
    old, new = text.split("\n"), iter(removed.text.split("\n"))
    kept = [line.strip() for line in new if line.strip()]
    given_lines = iter([line.strip() for line in old if line.strip()])
    assert all(line in given_lines for line in kept), "a line is new, or out of order"


# --- Addresses ---

networks4 = st.builds(
    lambda bits, length: (
        ip_network((10 << 24 | bits << (32 - length), length), strict=True) if length > 8 else ip_network("10.0.0.0/8")
    ),
    st.integers(0, 15),
    st.integers(26, 32),
)


@given(
    length4=st.integers(24, 32),
    length6=st.integers(120, 128),
    host=st.integers(0, 15),
    taken=st.lists(
        st.one_of(networks4, networks4.map(lambda net: ip_network((0xFD << 120 | int(net[0]) & 0xFF, 128)))),
        max_size=12,
    ),
)
def test_a_free_address_is_the_lowest_that_is_not_in_use(
    length4: int, length6: int, host: int, taken: list[Network]
) -> None:
    own = [ip_interface((10 << 24 | host, length4)), ip_interface((0xFD << 120 | host, length6))]
    try:
        found = free_addresses(own, taken)
    except ConfigError as error:
        full = [ip_network(problem.partition(": no")[0]) for problem in error.problems]
    else:
        full = []
        assert [address.network for address in found] == [address.network for address in own]

    def is_free(address: HostAddress, network: Network) -> bool:
        special = {network.network_address} | ({network.broadcast_address} if network.version == 4 else set())
        usable = network.max_prefixlen - network.prefixlen <= 1 or address not in special
        smaller = [
            other for other in taken if not contains(other, network)
        ]  # a peer with the whole network takes no address
        return usable and address not in {one.ip for one in own} and not any(address in net for net in smaller)

    free = {one.network: [address for address in one.network if is_free(address, one.network)] for one in own}
    assert full == [network for network, hosts in free.items() if not hosts]
    if not full:
        assert all(address.ip in free[address.network] for address in found)
        numbers = [{int(host) - int(network[0]) for host in hosts} for network, hosts in free.items()]
        common = set.intersection(*numbers)
        expected = [min(common)] * 2 if common else [min(hosts) for hosts in numbers]
        assert [int(one.ip) - int(one.network[0]) for one in found] == expected
