"""The routes and name servers in the configuration of a client."""

from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from oxidize.config import NameServers, client_interface_of, load_client, load_client_table
from oxidize.config.values import FWMARK_DEFAULT
from oxidize.errors import ConfigError
from tests.support.config_files import CLIENT, PRIVATE, load, problem, secret

SOME = 'allowed_ips = ["10.0.0.0/24"]\n'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    secret(tmp_path / "server.key", PRIVATE)
    return tmp_path


def test_a_client_without_dns_keeps_the_systems_name_servers(folder: Path) -> None:
    config = load(folder, CLIENT + SOME, load_client)
    assert config.name_servers == NameServers("oxidize1", (), ())
    assert config.fwmark == FWMARK_DEFAULT
    assert config.warnings == ()


def test_a_client_may_have_default_routes_and_networks_in_them(folder: Path) -> None:
    config = load(folder, CLIENT + 'allowed_ips = ["0.0.0.0/0", "::/0", "10.0.0.0/24"]\nfwmark = 256', load_client)
    assert config.allowed_ips == tuple(map(ip_network, ("0.0.0.0/0", "::/0", "10.0.0.0/24")))
    assert config.fwmark == 256
    assert config.warnings == ()


@pytest.mark.parametrize(
    ("given", "servers", "domains"),
    [
        ('"10.0.0.1"', ["10.0.0.1"], []),
        ("[]", [], []),
        (
            '["corp.example", "10.0.0.1", "fd00::1", "example.org."]',
            ["10.0.0.1", "fd00::1"],
            ["corp.example", "example.org"],
        ),
    ],
)
def test_name_servers_are_addresses_and_domains(
    folder: Path, given: str, servers: list[str], domains: list[str]
) -> None:
    text = CLIENT + f'allowed_ips = ["0.0.0.0/0", "::/0"]\ninterface = "tun7"\ndns = {given}'
    config = load(folder, text, load_client)
    assert config.name_servers == NameServers("tun7", tuple(map(ip_address, servers)), tuple(domains))
    assert config.warnings == ()


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ('dns = ["10.0.0"]', "expected the address of a name server, such as"),
        ('dns = ["a b"]', "expected the address of a name server, such as"),
        ("dns = 53", "expected the address of a name server, such as"),
        ('dns = ["0.0.0.0"]', "expected an address that one machine can have"),
        ('dns = ["fe80::1%eth0"]', "expected an address that one machine can have, without a zone"),
        ('dns = ["corp.example"]', "expected the address of at least one name server, not only domains"),
        ('network = "userspace"\ndns = ["10.0.0.1"]', 'expected no name servers with network = "userspace"'),
    ],
)
def test_a_mistake_in_dns_or_fwmark_is_reported(folder: Path, more: str, expected: str) -> None:
    assert expected in problem(folder, CLIENT + SOME + more, load_client)


@pytest.mark.parametrize("route", ["0.0.0.0/0", "::/0"])
def test_a_default_route_needs_an_interface(folder: Path, route: str) -> None:
    text = CLIENT + f'allowed_ips = ["{route}"]\nnetwork = "userspace"'
    line = problem(folder, text, load_client)
    assert f'client.allowed_ips = "{route}": expected no default route with network = "userspace"' in line
    assert 'set network = "tun"' in line


@pytest.mark.parametrize(("server", "allowed"), [("10.1.2.3:51820", "10.0.0.0/8"), ("[2001:db8::1]:51820", "2000::/3")])
def test_an_allowed_network_that_contains_the_server_is_a_warning(folder: Path, server: str, allowed: str) -> None:
    text = CLIENT.replace("vpn.example.org:51820", server)
    (warning,) = load(folder, text + f'allowed_ips = ["{allowed}"]', load_client).warnings
    assert f"client.allowed_ips: {allowed} contains the server's own address" in warning
    assert load(folder, text + 'allowed_ips = ["0.0.0.0/0", "::/0"]', load_client).warnings == ()


def test_a_name_server_outside_of_the_tunnel_is_a_warning(folder: Path) -> None:
    (warning,) = load(folder, CLIENT + SOME + 'dns = ["10.0.0.1", "9.9.9.9", "a.example"]', load_client).warnings
    assert "client.dns: 9.9.9.9 is in none of allowed_ips" in warning


def test_name_servers_are_read_without_the_keys(folder: Path) -> None:
    text = CLIENT.replace("server.key", "nowhere.key") + SOME
    (folder / "client.toml").write_text(text + 'dns = ["10.0.0.1"]')
    assert load_client_table(folder / "client.toml").name_servers == NameServers(
        "oxidize1", (ip_address("10.0.0.1"),), ()
    )
    (folder / "client.toml").write_text(text + 'dns = ["10.0.0"]')
    with pytest.raises(ConfigError, match=r"client\.dns"):
        load_client_table(folder / "client.toml")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('[client]\ninterface = "tun7"\nnonsense = 1', "tun7"),
        ("[client]", "oxidize1"),
        ("[client]\ninterface = 7", "oxidize1"),
        ("client = 7", "oxidize1"),
        ("no TOML", "oxidize1"),
    ],
)
def test_the_interface_of_a_broken_configuration_is_read(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "client.toml"
    path.write_text(text)
    assert client_interface_of(path) == expected


def test_a_configuration_that_is_not_there_has_no_interface(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected a configuration file; name another one with -c FILE"):
        client_interface_of(tmp_path / "client.toml")
