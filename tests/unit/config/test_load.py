"""Every mistake in a configuration gives one line with file, key, value, what was expected, and the remedy."""

import base64
import os
from ipaddress import ip_interface, ip_network
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from oxidize.config import checks, default_takeover_socket, load_client, load_server, validation
from oxidize.config.report import HIDDEN, show
from oxidize.config.values import _SMALL_ORDER
from oxidize.errors import ConfigError
from oxidize.protocol.constants import PEERS_MAX
from tests.support.config_files import (
    ALICE,
    BOB,
    CLIENT,
    OWN_PUBLIC,
    PRESHARED,
    PRIVATE,
    SERVER,
    b64,
    load,
    peer,
    problem,
    problems,
    secret,
)

# --- What loads ---


def test_the_smallest_server_gets_every_default(folder: Path) -> None:
    config = load(folder, SERVER + peer())
    assert config.listen == ("::", 51820)
    assert config.interface == "oxidize0"
    assert config.addresses == (ip_interface("10.0.0.1/24"),)
    assert config.mtu == 1420
    assert config.metrics_listen == ("127.0.0.1", 9090)
    assert config.drain_timeout_secs == 30
    assert config.takeover_socket == Path("/run/oxidize/takeover.sock")
    assert config.network == "tun"
    assert config.private_key == base64.b64decode(PRIVATE)
    assert config.public_key == base64.b64decode(OWN_PUBLIC)
    assert config.source == folder / "oxidize.toml"
    assert config.warnings == ()
    (alice,) = config.peers
    assert (alice.name, alice.public_key) == ("alice", base64.b64decode(ALICE))
    assert alice.allowed_ips == (ip_network("10.0.0.2/32"),)
    assert (alice.preshared_key, alice.endpoint, alice.persistent_keepalive) == (bytes(32), None, 0)


def test_every_key_of_a_server_is_taken(folder: Path) -> None:
    config = load(
        folder,
        f"""
        [server]
        listen = "127.0.0.1:0"
        interface = "wg-test.1"
        address = ["10.0.0.1/24", "fd00::1/64"]
        mtu = 1280
        private_key_file = "{folder}/server.key"
        metrics_listen = "[::1]:9100"
        drain_timeout_secs = 0.5
        takeover_socket = "run/takeover.sock"
        network = "userspace"
        """
        + peer(
            ips='"10.0.0.2/32", "fd00::2", "192.168.0.0/16"',
            more='preshared_key_file = "alice.psk"\nendpoint = "[2001:db8::1]:51820"\npersistent_keepalive = 25',
        ),
    )
    assert config.listen == ("127.0.0.1", 0)
    assert config.interface == "wg-test.1"
    assert config.addresses == (ip_interface("10.0.0.1/24"), ip_interface("fd00::1/64"))
    assert config.mtu == 1280
    assert config.metrics_listen == ("::1", 9100)
    assert config.drain_timeout_secs == 0.5
    assert config.takeover_socket == folder / "run/takeover.sock"
    assert config.network == "userspace"
    (alice,) = config.peers
    assert alice.preshared_key == base64.b64decode(PRESHARED)
    assert alice.allowed_ips == tuple(map(ip_network, ("10.0.0.2/32", "fd00::2/128", "192.168.0.0/16")))
    assert (alice.endpoint, alice.persistent_keepalive) == ("[2001:db8::1]:51820", 25)


def test_a_client_gets_its_defaults(folder: Path) -> None:
    config = load(folder, CLIENT + 'allowed_ips = ["10.0.0.0/24"]\npreshared_key_file = "alice.psk"', load_client)
    assert config.interface == "oxidize1"
    assert config.metrics_listen is None
    assert config.takeover_socket == Path("/run/oxidize-client/takeover.sock")
    assert config.server_public_key == base64.b64decode(ALICE)
    assert config.preshared_key == base64.b64decode(PRESHARED)
    assert (config.server, config.persistent_keepalive) == ("vpn.example.org:51820", 25)
    assert config.allowed_ips == (ip_network("10.0.0.0/24"),)


@pytest.mark.parametrize("off", ['""', "false"])
def test_metrics_can_be_turned_off(folder: Path, off: str) -> None:
    assert load(folder, f"{SERVER}metrics_listen = {off}\n{peer()}").metrics_listen is None


# --- Where things are ---


def test_the_takeover_socket_of_an_ordinary_user_is_in_their_runtime_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    environ = {"XDG_RUNTIME_DIR": "/run/user/1000"}
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert default_takeover_socket(environ=environ) == Path("/run/user/1000/oxidize/takeover.sock")
    assert default_takeover_socket("client", environ) == Path("/run/user/1000/oxidize/client-takeover.sock")
    assert default_takeover_socket(environ={}) == Path("/run/oxidize/takeover.sock")  # User= in a unit
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert default_takeover_socket(environ=environ) == Path("/run/oxidize/takeover.sock")


def test_the_private_key_can_be_a_systemd_credential_which_the_group_may_read(folder: Path) -> None:
    credentials = folder / "credentials"
    credentials.mkdir()
    secret(credentials / "private_key", PRIVATE, 0o440)
    path = folder / "oxidize.toml"
    path.write_text('[server]\naddress = "10.0.0.1/24"\n' + peer())
    config = load_server(path, {"CREDENTIALS_DIRECTORY": str(credentials)})
    assert config.private_key == base64.b64decode(PRIVATE)
    (credentials / "private_key").chmod(0o444)
    with pytest.raises(ConfigError, match="mode is 0444"):
        load_server(path, {"CREDENTIALS_DIRECTORY": str(credentials)})


# --- The lines ---


def test_an_error_has_file_key_value_expectation_and_remedy(folder: Path) -> None:
    assert problem(folder, SERVER + "mtu = 99999\n" + peer()) == (
        "oxidize.toml: server.mtu = 99999: expected a whole number from 576 to 65455; "
        "remove the line for the default 1420"
    )


BAD_SERVER_VALUES = [
    ("mtu = true", "server.mtu = true: expected a whole number"),
    ("mtu = 1420.0", "server.mtu = 1420.0: expected a whole number"),
    ('mtu = "1420"', 'server.mtu = "1420": expected a whole number'),
    (f"mtu = 0x{'f' * 5000}", "server.mtu = (a number of 20000 bits): expected"),
    ('public_endpoint = "a b"', 'public_endpoint = "a b": expected "host" or "host:port"'),
    ('public_endpoint = "a:0"', "expected"),
    ('public_endpoint = "2001:db8::1:"', "expected"),
    ('public_endpoint = "[10.0.0.1]"', "expected"),
    ('public_endpoint = "0.0.0.0"', "expected"),
    ('listen = "localhost:51820"', 'server.listen = "localhost:51820": expected "address:port"'),
    ('listen = "::1:51820"', 'write "[::1]:51820"'),
    ('listen = "0.0.0.0:65536"', "a port from 0 to 65535; remove the line for the default"),
    ('listen = "[10.0.0.1]:1"', "expected"),
    ("listen = 51820", "server.listen = 51820: expected"),
    ('interface = "a-name-of-16-chr"', "expected 1 to 15 of letters"),
    ('interface = "a/b"', "expected 1 to 15 of letters"),
    ('interface = ".."', "expected 1 to 15 of letters"),
    ('interface = "wg%d"', "expected 1 to 15 of letters"),
    ("metrics_listen = true", 'metrics_listen = true: expected "address:port"'),
    ("drain_timeout_secs = -1", "expected a number of seconds from 0 to 3600"),
    ("drain_timeout_secs = nan", "server.drain_timeout_secs = nan: expected a number"),
    ("drain_timeout_secs = true", "server.drain_timeout_secs = true: expected a number"),
    ('takeover_socket = ""', 'server.takeover_socket = "": expected the path'),
    (f'takeover_socket = "/{"x" * 107}"', "expected a path of at most 107 bytes"),
    ('takeover_socket = "/run/\\u0000"', 'server.takeover_socket = "/run/\\u0000": expected the path'),
    ('network = "tap"', 'server.network = "tap": expected "tun" or "userspace"; remove the line for the default "tun"'),
    ("network = [[1, [2]], {a = 1}]", "server.network = [[…], {…}]: expected"),
    ("mtuu = 1420", "server.mtuu = 1420: expected a key of server"),
    ("mtuu = 1420", "did you mean mtu?"),
    ("ListenPort = 1", "did you mean listen?"),
    ("PrivateKeyFile = 1", "did you mean private_key_file?"),
    ("zzzzzz = 1", "; remove it"),
    ('"a.b" = 1', "server.a.b = 1: expected a key of server ("),
    ('"my.secret" = "x"', f"server.my.secret = {HIDDEN}: expected a key of server ("),
    ('"secret.mine" = "x"', f"server.secret.mine = {HIDDEN}: expected a key of server ("),
    ('"new\\nline" = "a\\nb"', '"server.new\\nline" = "a\\nb": expected a key of server'),
]


@pytest.mark.parametrize(("line", "expected"), BAD_SERVER_VALUES)
def test_a_bad_value_in_the_server_table_is_reported(folder: Path, line: str, expected: str) -> None:
    assert expected in problem(folder, f"{SERVER}{line}\n{peer()}")


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ('"10.0.0.1"', 'server.address = "10.0.0.1": expected an address with the length'),
        ('"10.0.0.1"', 'write "10.0.0.1/32" if it has no network'),
        ('"10.0.0.1/33"', "expected an address with the length"),
        ('"10.0.0.1/255.255.255.0"', "expected an address with the length"),
        ('"0.0.0.0/0"', "expected an address that one machine can have"),
        ('"ff02::1/64"', "expected an address that one machine can have"),
        ('"fe80::1%eth0/64"', "expected an address"),
        ("[]", "server.address = []: expected one or more addresses"),
        ("7", "server.address = 7: expected an address"),
        ('["10.0.0.1/24", "x/24"]', 'server.address = "x/24": expected'),
        ('["10.0.0.1/24", "10.0.0.1/32"]', "expected every address once"),
    ],
)
def test_a_bad_address_is_reported(folder: Path, address: str, expected: str) -> None:
    text = f'[server]\nprivate_key_file = "server.key"\naddress = {address}\n{peer()}'
    assert expected in problem(folder, text)


def test_an_mtu_that_is_too_small_for_ipv6_is_reported(folder: Path) -> None:
    text = '[server]\nprivate_key_file = "server.key"\naddress = ["10.0.0.1/24", "fd00::1/64"]\nmtu = 1279\n' + peer()
    assert "server.mtu = 1279: expected at least 1280, which IPv6 needs (server.address has fd00::1/64)" in problem(
        folder, text
    )


BAD_PEER_VALUES = [
    ({"name": ""}, 'peer[1].name = "": expected 1 to 64'),
    ({"name": "a b"}, 'peer[1].name = "a b": expected 1 to 64'),
    ({"key": "x"}, 'peer.alice.public_key = "x": expected a public key: 44 characters of base64'),
    ({"key": ALICE[:-1]}, f'peer.alice.public_key = "{ALICE[:-1]}": expected'),
    ({"key": b64(1)[:-2] + "F="}, "expected a public key: 44 characters"),  # bits that base64 would drop
    ({"key": b64(0)}, "expected a public key that some private key has"),
    ({"ips": '"10.0.0.5/24"'}, "expected a network without host bits after its prefix of 24"),
    ({"ips": '"10.0.0.5/24"'}, 'write "10.0.0.0/24" for the network, or "10.0.0.5/32" for the one address'),
    ({"ips": '"fd00::1/64"'}, 'write "fd00::/64" for the network, or "fd00::1/128"'),
    ({"ips": '"10.0.0.0/0.0.0.255"'}, "expected a network in CIDR notation"),
    ({"ips": "7"}, "peer.alice.allowed_ips = 7: expected a network in CIDR notation"),
    ({"ips": '"10.1.0.0/16", "10.1.0.0/16"'}, 'allowed_ips = "10.1.0.0/16": expected every network once'),
    ({"more": 'endpoint = "10.0.0.256:1"'}, 'endpoint = "10.0.0.256:1": expected "host:port"'),
    ({"more": 'endpoint = "2001:db8::1:51820"'}, 'write "[2001:db8::1]:51820"'),
    ({"more": 'endpoint = "-x.example:1"'}, 'expected "host:port"'),
    ({"more": 'endpoint = "example.org"'}, 'expected "host:port"'),
    ({"more": 'endpoint = "example.org:0"'}, "with a port from 1 to 65535; correct it, or remove the line"),
    ({"more": 'endpoint = "0.0.0.0:1"'}, "expected the address of one machine"),
    ({"more": "persistent_keepalive = 65536"}, "a whole number of seconds from 0 (off) to 65535"),
    ({"more": 'allowed_ip = ["10.0.0.0/8"]'}, "did you mean allowed_ips?"),
]


@pytest.mark.parametrize(("change", "expected"), BAD_PEER_VALUES)
def test_a_bad_value_in_a_peer_is_reported(folder: Path, change: dict[str, str], expected: str) -> None:
    assert expected in problem(folder, SERVER + peer(**change))


def test_allowed_ips_that_are_not_a_list_are_reported(folder: Path) -> None:
    text = SERVER + f'[[peer]]\nname = "alice"\npublic_key = "{ALICE}"\nallowed_ips = "10.0.0.2/32"\n'
    assert 'allowed_ips = "10.0.0.2/32": expected a list of networks in CIDR notation; write it as' in problem(
        folder, text
    )


def test_missing_keys_are_reported_with_an_example(folder: Path) -> None:
    lines = problems(folder, "[server]\n[[peer]]\n")
    assert (
        "oxidize.toml: server.address is missing: expected one or more addresses in CIDR notation; "
        'add address = "10.0.0.1/24"'
    ) in lines
    assert any(line.startswith("oxidize.toml: server.private_key_file is missing: expected a file") for line in lines)
    assert {line.split()[1] for line in lines} >= {"peer[1].name", "peer[1].public_key", "peer[1].allowed_ips"}


def test_all_mistakes_are_reported_at_once(folder: Path) -> None:
    text = (
        '[server]\naddress = "10.0.0.1"\nprivate_key_file = "missing.key"\nmtu = 1\ncolour = "red"\n'
        + peer(more='endpoint = "nowhere"')
        + peer(key=ALICE, ips='"10.0.0.3/32", "10.0.0.3/32"', more='preshared_key_file = "gone.psk"')
        + "[extra]\n"
    )
    keys = [line.split()[1] for line in problems(folder, text)]
    assert sorted(keys) == sorted(
        [
            "extra",
            "server.address",
            "server.mtu",
            "server.colour",
            "server.private_key_file",
            "peer.alice.endpoint",
            "peer[2].name",
            "peer[2].public_key",
            "peer[2].allowed_ips",
            "peer[2].preshared_key_file",
        ]
    )


# --- Tables and syntax ---


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"[server\n", "line 1"),
        (b"[server]\nmtu = = 3\n", "line 2, column 7"),
        (b"[server]\nmtu = 1\nmtu = 2\n", "(at line 3, column 8): expected every key and table once"),
        (b"[server]\n# \xff\n", "line 2 is not UTF-8: expected TOML"),
        (b"a = " + b"[" * 10_000, "expected TOML as in examples/"),
        (b"a = " + b"1" * 10_000, "expected TOML as in examples/"),
    ],
)
def test_a_file_that_is_not_toml_is_refused(folder: Path, text: bytes, expected: str) -> None:
    path = folder / "oxidize.toml"
    path.write_bytes(text)
    with pytest.raises(ConfigError) as caught:
        load_server(path)
    (line,) = caught.value.problems
    assert line.startswith(f"{path}: ")
    assert expected in line


def test_a_missing_file_is_refused(folder: Path) -> None:
    for path in (folder / "none.toml", folder, "nul\0"):
        with pytest.raises(ConfigError, match=r"expected a (readable )?configuration file"):
            load_server(path)


def test_tables_of_the_wrong_kind_are_reported(folder: Path) -> None:
    assert "peer = {…}: expected tables [[peer]]" in problem(folder, SERVER + "[peer]\nname = 'x'\n")
    assert "peer = [1]: expected tables [[peer]]" in problem(folder, "peer = [1]\n" + SERVER)
    assert "server = [[…]]: expected one table [server]" in problems(folder, "server = [[1]]\n")[0]
    assert "peers = [{…}]: expected a table of this file (peer, server); did you mean peer?" in problem(
        folder, SERVER + "[[peers]]\n"
    )
    (line,) = problems(folder, SERVER, load_client)
    assert line.endswith("it has a table [server]: expected the configuration of a client; leave --client out")
    (line,) = problems(folder, CLIENT, load_server)
    assert line.endswith(
        "it has a table [client]: expected the configuration of a server; use --client, or `oxidize client`"
    )


def test_too_many_peers_are_reported(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert vars(checks)["PEERS_MAX"] == PEERS_MAX
    monkeypatch.setattr(checks, "PEERS_MAX", 3)  # that many tables of a real file take four seconds
    assert problems(folder, SERVER + "[[peer]]\n" * 4)[0] == (
        "oxidize.toml: peer: 4 tables: expected at most 3; give the rest to a second server"
    )
    assert not any("tables" in line for line in problems(folder, SERVER + "[[peer]]\n" * 3))


def test_a_table_without_mistakes_is_validated_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    again: list[object] = []
    real = validation._report_mistakes

    def report_mistakes(model: Any, checked: Any) -> None:
        again.append(checked.prefix)
        real(model, checked)

    monkeypatch.setattr(validation, "_report_mistakes", report_mistakes)
    assert len(load(folder, SERVER + peer()).peers) == 1
    assert again == []
    assert problems(folder, SERVER + peer() + "persistent_keepalive = -1\n")
    assert len(again) == 1, "and one with a mistake once more, alone"


# --- Peers against one another ---


def test_two_peers_cannot_share_name_or_key(folder: Path) -> None:
    lines = problems(
        folder, SERVER + peer() + peer("alice", BOB, '"10.0.0.3/32"') + peer("bob", ALICE, '"10.0.0.4/32"')
    )
    name, key = lines
    assert name == (
        'oxidize.toml: peer[2].name = "alice": expected a name of its own, but peer.alice has it; '
        "remove one of the two, or give it its own name"
    )
    assert key == (
        f'oxidize.toml: peer.bob.public_key = "{ALICE}": expected a public key of its own, but peer.alice has it; '
        "remove one of the two, or give it its own public key"
    )


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ('"10.0.0.0/8"', '"10.1.0.0/16"'),
        ('"10.1.0.0/16"', '"0.0.0.0/1"'),
        ('"fd00::/64"', '"fd00::7"'),
    ],
)
def test_networks_of_two_peers_may_nest(folder: Path, first: str, second: str) -> None:
    config = load(folder, SERVER + peer(ips=first) + peer("bob", BOB, second))
    assert config.warnings == ()
    assert [len(one.allowed_ips) for one in config.peers] == [1, 1]


def test_a_network_of_two_peers_is_the_last_ones_and_a_warning(folder: Path) -> None:
    both = peer(ips='"10.0.0.2/32", "10.0.0.3/32"') + peer("bob", BOB, '"10.0.0.2/32"')
    key = f"{folder / 'oxidize.toml'}: peer.alice.allowed_ips"
    to_bob = f"{key}: 10.0.0.2/32 goes to peer.bob, the last peer that lists it, as with wg"
    assert load(folder, SERVER + both).warnings == (to_bob,)
    config = load(folder, SERVER + peer(ips='"10.0.0.2/32"') + peer("bob", BOB, '"10.0.0.2/32"'))
    assert config.warnings == (to_bob, f"{key}: no network is left, so every packet of this peer is dropped")


def test_a_disabled_peer_shares_addresses_but_no_key(folder: Path) -> None:
    text = SERVER + peer() + peer("bob", BOB, more="enabled = false")
    assert [one.enabled for one in load(folder, text).peers] == [True, False]
    assert "peer.bob.public_key" in problem(folder, text.replace(BOB, ALICE))
    assert 'peer.bob.enabled = "no": expected true or false' in problem(folder, text.replace("false", '"no"'))


def test_a_server_whose_peers_are_all_disabled_is_a_warning(folder: Path) -> None:
    (warning,) = load(folder, SERVER + peer(more="enabled = false")).warnings
    assert "every peer has enabled = false, so no client can connect" in warning


def test_one_peer_may_have_a_network_and_a_part_of_it(folder: Path) -> None:
    config = load(folder, SERVER + peer(ips='"10.0.0.0/8", "10.1.0.0/16", "::/0"'))
    assert len(config.peers[0].allowed_ips) == 3


def test_a_peer_with_the_public_key_of_this_side_is_refused(folder: Path) -> None:
    line = problem(folder, SERVER + peer(key=OWN_PUBLIC))
    assert "expected the other side's public key, but it belongs to private_key_file of this file" in line
    text = CLIENT.replace(ALICE, OWN_PUBLIC) + 'allowed_ips = ["10.0.0.0/24"]'
    assert "client.server_public_key" in problem(folder, text, load_client)


def test_a_configuration_that_is_legal_but_hardly_meant_is_a_warning(folder: Path) -> None:
    assert "no client can connect" in load(folder, SERVER).warnings[0]
    config = load(folder, SERVER + peer(ips="") + peer("bob", BOB, '"10.0.0.1/32"'))
    empty, own = config.warnings
    assert "peer.alice.allowed_ips: the list is empty" in empty
    assert "peer.bob.allowed_ips: 10.0.0.1/32 is the server's own address 10.0.0.1/24" in own


def test_a_point_of_small_order_gives_no_shared_secret() -> None:
    private = X25519PrivateKey.from_private_bytes(base64.b64decode(PRIVATE))
    for point in _SMALL_ORDER:
        with pytest.raises(ValueError, match="computing shared key"):
            private.exchange(X25519PublicKey.from_public_bytes(point))


def test_long_values_are_shortened_in_errors() -> None:
    assert show("interface", "x y " * 100) == '"' + ("x y " * 100)[:58] + "…"
    assert show("interface", "\u202eevil") == '"\\u202eevil"'


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("vpn.example.org", ("vpn.example.org", None)),
        ("vpn.example.org:7", ("vpn.example.org", 7)),
        ("192.0.2.1", ("192.0.2.1", None)),
        ("192.0.2.1:7", ("192.0.2.1", 7)),
        ("2001:db8::1", ("2001:db8::1", None)),
        ("[2001:db8::1]", ("2001:db8::1", None)),
        ("[2001:db8::1]:7", ("2001:db8::1", 7)),
        ("fe80::1%eth0", ("fe80::1%eth0", None)),
        ("[fe80::1%eth0]", ("fe80::1%eth0", None)),
        ("[fe80::1%eth0]:51820", ("fe80::1%eth0", 51820)),
        ("[fe80::1%br-0_a.b]:7", ("fe80::1%br-0_a.b", 7)),
    ],
)
def test_a_public_endpoint_may_have_a_port(folder: Path, given: str, expected: tuple[str, int | None]) -> None:
    assert load(folder, f'{SERVER}public_endpoint = "{given}"\n{peer()}').public_endpoint == expected


def test_given_content_is_used_instead_of_the_file(folder: Path) -> None:
    path = folder / "oxidize.toml"
    assert load_server(path, content=(SERVER + peer()).encode()).peers[0].name == "alice"
    assert not path.exists()
    with pytest.raises(ConfigError, match="nonsense"):
        load_server(path, content=b"nonsense = 1")
