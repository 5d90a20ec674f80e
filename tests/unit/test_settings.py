"""Settings have one form for servers and clients, and no name is looked up when they are made."""

import socket
from ipaddress import ip_network
from pathlib import Path

import pytest

from oxidize.config import load_client, load_server
from oxidize.config.nat import NatSettings
from oxidize.config.schema import ClientTable, NodeTable, ServerTable
from oxidize.config.values import FWMARK_DEFAULT
from oxidize.protocol.endpoint import Endpoint
from oxidize.settings import NodeSettings
from tests.support.config_files import BOB, CLIENT, PRESHARED, PRIVATE, SERVER, load, peer, secret
from tests.support.link_policy import DEFAULT_POLICY

CLIENT_PEER_KEYS = {
    "allowed_ips",
    "max_reconnect_attempts",
    "max_reconnect_delay_ms",
    "persistent_keepalive",
    "preshared_key",
    "reconnect_buffer_size",
    "reconnect_delay_ms",
    "resend_unanswered",
    "server_public_key",
}
V6 = Endpoint(socket.inet_pton(socket.AF_INET6, "2001:db8::1"), 51820)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    secret(tmp_path / "server.key", PRIVATE)
    secret(tmp_path / "psk", PRESHARED)
    return tmp_path


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Return the names that resolve, to be filled; no other name does."""
    known: dict[str, str] = {}
    real = socket.getaddrinfo

    def getaddrinfo(host: str, port: int, *, type: int, flags: int = 0) -> object:  # noqa: A002  # as in the library
        if not flags & socket.AI_NUMERICHOST and host not in known and not any(c in host for c in ":0123456789"):
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return real(known.get(host, host), port, type=type, flags=socket.AI_NUMERICHOST)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return known


def test_the_settings_of_a_server_have_its_peers(folder: Path) -> None:
    more = 'endpoint = "192.0.2.7:7"\npreshared_key_file = "psk"\npersistent_keepalive = 25\n'
    text = SERVER + "nat = true\n" + peer() + peer("bob", BOB, '"10.0.0.3/32", "fd00::3/128"', more)
    settings = NodeSettings.of_server(load(folder, text, load_server))
    assert settings.role == "server"
    assert settings.listen == ("::", 51820)
    assert settings.nat == NatSettings((ip_network("10.0.0.0/24"),), None, (), ())
    assert settings.routes == tuple(map(ip_network, ("10.0.0.2/32", "10.0.0.3/32", "fd00::3/128")))
    alice, bob = settings.peers
    assert (alice.name, alice.endpoint, alice.preshared_key) == ("alice", None, bytes(32))
    assert (bob.name, bob.endpoint) == ("bob", Endpoint(bytes([192, 0, 2, 7]), 7))
    assert bob.persistent_keepalive == 25.0
    assert bob.preshared_key != bytes(32)


def test_a_disabled_peer_is_in_the_settings_without_a_route(folder: Path) -> None:
    text = SERVER + peer(more="enabled = false") + peer("bob", BOB, '"10.0.0.3/32"', "enabled = true")
    settings = NodeSettings.of_server(load(folder, text, load_server))
    assert [(each.name, each.enabled) for each in settings.peers] == [("alice", False), ("bob", True)]
    assert settings.routes == (ip_network("10.0.0.3/32"),)


def test_a_disabled_peer_takes_no_network_away(folder: Path) -> None:
    text = SERVER + peer() + peer("bob", BOB, '"10.0.0.2/32"', "enabled = false")
    settings = NodeSettings.of_server(load(folder, text, load_server))
    assert [each.allowed_ips for each in settings.peers] == [(ip_network("10.0.0.2/32"),)] * 2
    settings = NodeSettings.of_server(load(folder, text.replace("enabled = false", ""), load_server))
    assert [each.allowed_ips for each in settings.peers] == [(), (ip_network("10.0.0.2/32"),)]


def test_the_settings_of_a_client_have_any_port_and_a_link_to_one_peer(folder: Path, resolver: dict[str, str]) -> None:
    settings = NodeSettings.of_client(load(folder, CLIENT + 'allowed_ips = ["10.0.0.0/24"]\n', load_client))
    assert settings.role == "client"
    assert settings.listen == ("::", 0)
    assert settings.nat is None
    assert settings.server == "vpn.example.org:51820"
    (server,) = settings.peers
    assert (server.name, server.endpoint) == ("server", None), "a name is looked up while it runs"
    assert server.link == DEFAULT_POLICY
    assert settings.drain_timeout_secs == 0.0


def test_default_routes_of_a_client_are_not_for_the_main_table(folder: Path, resolver: dict[str, str]) -> None:
    resolver["vpn.example.org"] = "2001:db8::1"
    text = CLIENT + 'allowed_ips = ["10.0.0.0/24", "0.0.0.0/0", "::/0"]\ndns = ["10.0.0.1"]\n'
    settings = NodeSettings.of_client(load(folder, text, load_client))
    assert settings.routes == (ip_network("10.0.0.0/24"),)
    assert settings.default_routes == (ip_network("0.0.0.0/0"), ip_network("::/0"))
    assert settings.peers[0].allowed_ips == (*settings.routes, *settings.default_routes)
    assert settings.fwmark == FWMARK_DEFAULT
    assert settings.name_servers is not None


def test_a_client_without_an_interface_marks_nothing(folder: Path, resolver: dict[str, str]) -> None:
    resolver["vpn.example.org"] = "2001:db8::1"
    text = CLIENT + 'allowed_ips = ["10.0.0.0/24"]\nnetwork = "userspace"\n'
    settings = NodeSettings.of_client(load(folder, text, load_client))
    assert (settings.fwmark, settings.name_servers) == (0, None)


@pytest.mark.parametrize(
    ("table", "own"),
    [
        # What is not there by its own name, because only `oxidize peer add` reads it, or because the peer has it.
        (ServerTable, {"public_endpoint"}),
        (ClientTable, {"dns", *CLIENT_PEER_KEYS}),
    ],
)
def test_settings_have_every_key_of_a_table(table: type[NodeTable], own: set[str]) -> None:
    names = set(NodeSettings._fields)
    assert set(table.model_fields) - names == own
    derived = {"role", "public_key", "peers", "routes", "default_routes", "name_servers"}
    assert names - set(ServerTable.model_fields) - set(ClientTable.model_fields) == derived


def test_settings_show_no_secret(folder: Path, resolver: dict[str, str]) -> None:
    settings = NodeSettings.of_server(load(folder, SERVER + peer(more='preshared_key_file = "psk"\n'), load_server))
    shown = repr(settings)
    assert repr(settings.private_key) not in shown
    assert repr(settings.peers[0].preshared_key) not in shown


def test_no_name_is_looked_up_and_none_that_is_dead_is_a_mistake(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def getaddrinfo(host: str, *_: object, flags: int = 0, **__: object) -> object:
        assert flags & socket.AI_NUMERICHOST, f"{host} is looked up, and a start waits for it"
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    text = SERVER + peer(more='endpoint = "a.example:1"\n') + peer("bob", BOB, '"10.0.0.3/32"', 'endpoint = "b.x:2"\n')
    alice, bob = NodeSettings.of_server(load(folder, text, load_server)).peers
    assert (alice.endpoint, alice.configured_endpoint) == (None, "a.example:1")
    assert (bob.endpoint, bob.configured_endpoint) == (None, "b.x:2")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("192.0.2.1:51820", Endpoint(bytes([192, 0, 2, 1]), 51820)),
        ("[2001:db8::1]:51820", V6),
        ("[::ffff:192.0.2.1]:9", Endpoint(bytes([192, 0, 2, 1]), 9)),
    ],
)
def test_a_literal_endpoint_is_parsed(folder: Path, text: str, expected: Endpoint) -> None:
    (alice,) = NodeSettings.of_server(load(folder, SERVER + peer(more=f'endpoint = "{text}"\n'), load_server)).peers
    assert (alice.endpoint, alice.configured_endpoint) == (expected, text)
