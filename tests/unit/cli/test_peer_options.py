"""Options of `oxidize peer add` for machines and for chosen addresses, and `oxidize peer renew`."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from oxidize import config
from oxidize.config.values import format_key, parse_key
from oxidize.errors import Phase, TakeoverError
from oxidize.protocol.crypto import public_key
from oxidize.provision.wg_quick import parse
from tests.support.config_files import ALICE, BOB, OWN_PUBLIC, PRESHARED, peer, secret
from tests.support.peer_commands import Running, run


def added(path: Path, name: str) -> Any:
    return next(one for one in config.load_server(path).peers if one.name == name)


def setting(result: Result, name: str) -> str:
    document = parse(result.stdout, "stdout")
    (section,) = document.peers
    found = document.interface.last(name) or section.last(name)
    assert found is not None
    return found.value


# --- --address ---


@pytest.mark.parametrize(
    ("own", "given", "expected"),
    [
        ('"10.0.0.1/24"', "10.0.0.77", ["10.0.0.77/24"]),
        ('"10.0.0.1/24"', "10.0.0.77, 10.0.0.9", ["10.0.0.77/24", "10.0.0.9/24"]),
        ('["10.0.0.1/24", "fd00::1/64"]', "10.0.0.77", ["10.0.0.77/24", "fd00::2/64"]),
        ('["10.0.0.1/24", "fd00::1/64"]', "fd00::1:0,10.0.0.3", ["fd00::1:0/64", "10.0.0.3/24"]),
        ('"10.0.0.1/32"', "10.7.7.7", ["10.7.7.7/32"]),
        ('["10.0.0.1/32", "fd00::1/64"]', "10.7.7.7,fd00::2", ["10.7.7.7/32", "fd00::2/64"]),
        ('"10.0.0.0/31"', "10.0.0.1", ["10.0.0.1/31"]),
    ],
)
def test_chosen_addresses_are_given(path: Path, own: str, given: str, expected: list[str]) -> None:
    path.write_text(path.read_text().replace('"10.0.0.1/24"', own))
    result = run(path, "add", "laptop", "--address", given)
    assert result.exit_code == 0, result.stderr
    assert setting(result, "Address").split(", ") == expected
    hosts = [f"{each.partition('/')[0]}/{128 if ':' in each else 32}" for each in expected]
    assert [str(network) for network in added(path, "laptop").allowed_ips] == hosts


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ("10.0.0.1", "10.0.0.1: expected an address that is not the server's own; choose another one"),
        ("10.0.0.2", "10.0.0.2: expected an address that no peer has, but alice has it"),
        ("10.0.0.3", "10.0.0.3: expected an address that no peer has, but bob has it"),
        ("10.0.1.2", "10.0.1.2: expected an address in 10.0.0.0/24, or give [server] address another network"),
        ("fd00::2", "fd00::2: expected an address in 10.0.0.0/24, or give [server] address another network"),
        ("10.0.0.0", "10.0.0.0: expected an address that a host can have in 10.0.0.0/24; choose another one"),
        ("10.0.0.255", "10.0.0.255: expected an address that a host can have in 10.0.0.0/24; choose another one"),
        ("10.0.0.9/24", "10.0.0.9/24: expected one or more addresses without a prefix, separated by commas, such as"),
        ("10.0.0.9,", "10.0.0.9,: expected one or more addresses without a prefix, separated by commas, such as"),
        ("10.0.0.9,10.0.0.9", "each once, and without a zone"),
        ("laptop", "laptop: expected one or more addresses without a prefix, separated by commas, such as"),
    ],
)
def test_an_address_that_cannot_be_had_changes_nothing(path: Path, given: str, problem: str) -> None:
    path.write_text(path.read_text() + peer("bob", BOB, '"10.0.0.3/32"', "enabled = false"))
    before = path.read_text()
    result = run(path, "add", "laptop", "--address", given)
    assert (result.exit_code, result.stdout, path.read_text()) == (2, "", before)
    (line,) = result.stderr.splitlines()
    assert f"--address {problem}" in line or problem in line


def test_an_address_within_the_network_of_another_peer_is_a_warning(path: Path) -> None:
    path.write_text(path.read_text() + peer("site", BOB, '"10.0.0.128/25"'))
    result = run(path, "add", "laptop", "--address", "10.0.0.200")
    assert result.exit_code == 0
    assert "warning: 10.0.0.200 lies within 10.0.0.128/25 of site: packets to it go to laptop" in result.stderr


# --- --expires ---


def test_a_client_gets_an_end_of_its_access(path: Path) -> None:
    for name, given, written in (
        ("day", "2090-12-31", "2090-12-31"),
        ("moment", "2090-12-31 18:00Z", "2090-12-31T18:00:00+00:00"),
        ("local", "2090-12-31T18:00", "2090-12-31T18:00:00"),
    ):
        assert run(path, "add", name, "--expires", given).exit_code == 0
        assert f"\nexpires = {written}\n" in path.read_text()
        assert added(path, name).expires > time.time()


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ("2001-01-01", "--expires 2001-01-01: expected a date or a moment to come"),
        ("tomorrow", "--expires tomorrow: expected a date, or a date with a time, such as 2030-12-31 or"),
        ("2090-02-30", "--expires 2090-02-30: expected a date, or a date with a time"),
    ],
)
def test_an_end_that_is_none_is_refused(path: Path, given: str, problem: str) -> None:
    result = run(path, "add", "laptop", "--expires", given)
    assert (result.exit_code, problem in result.stderr) == (2, True)


# --- --if-absent and --json ---

OPTIONS = ("--address", "10.0.0.9", "--expires", "2090-12-31", "--preshared-key", "--public-key", BOB)


def test_a_client_that_is_there_is_left_alone(path: Path, running: Running) -> None:
    first = run(path, "add", "laptop", *OPTIONS, "--if-absent")
    assert (first.exit_code, running.reloads) == (0, 1)
    before = path.read_text()
    again = run(path, "add", "laptop", *OPTIONS, "--if-absent")
    assert (again.exit_code, again.stdout, again.stderr) == (0, "", "laptop is there already: nothing is changed\n")
    assert (path.read_text(), running.reloads) == (before, 1)
    assert run(path, "add", "laptop", *OPTIONS).exit_code == 2, "without the option it is an error"


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ((), "it has a pre-shared key; its access has another end (expires)"),
        (("--preshared-key", "--expires", "2090-12-30"), "but its access has another end (expires)"),
        ((*OPTIONS[2:], "--address", "10.0.0.10"), "but it has not the address 10.0.0.10"),
        ((*OPTIONS[:-1], ALICE), "but it has another public key"),
        ((*OPTIONS[:4], "--public-key", BOB), "but it has a pre-shared key"),
    ],
)
def test_a_client_that_is_there_with_other_options_is_an_error(
    path: Path, options: tuple[str, ...], problem: str
) -> None:
    assert run(path, "add", "laptop", *OPTIONS).exit_code == 0
    before = path.read_text()
    result = run(path, "add", "laptop", "--if-absent", *options)
    assert (result.exit_code, path.read_text()) == (2, before)
    assert problem in result.stderr


def test_the_result_for_machines_has_the_configuration(path: Path) -> None:
    result = run(path, "add", "laptop", "--json", "--dns", "10.0.0.1", "--if-absent")
    found = json.loads(result.stdout)
    private = parse(found.pop("configuration"), "conf").interface.last("PrivateKey")
    assert private is not None
    key = parse_key(private.value)
    assert key is not None
    assert found == {
        "changed": True,
        "name": "laptop",
        "public_key": format_key(public_key(key)),
        "addresses": ["10.0.0.3/24"],
        "server_public_key": OWN_PUBLIC,
        "endpoint": "vpn.example.org:51820",
        "allowed_ips": ["10.0.0.0/24"],
        "dns": ["10.0.0.1"],
        "persistent_keepalive": 25,
        "mtu": 1420,
        "warnings": [],
    }
    again = json.loads(run(path, "add", "laptop", "--json", "--if-absent").stdout)
    assert (again["changed"], again["public_key"], again["addresses"]) == (False, found["public_key"], ["10.0.0.3"])
    assert "configuration" not in again
    refused = run(path, "add", "x", "--json", "--format", "conf")
    assert (refused.exit_code, "--json and --format conf: expected one of them" in refused.stderr) == (2, True)


def test_the_result_for_machines_goes_to_a_file_for_its_owner(path: Path, tmp_path: Path) -> None:
    file = tmp_path / "laptop.json"
    assert run(path, "add", "laptop", "--json", "-o", file).stdout == ""
    assert json.loads(file.read_text())["name"] == "laptop"
    assert file.stat().st_mode & 0o777 == 0o600


# --- renew ---


def test_a_lost_configuration_is_renewed(path: Path, running: Running) -> None:
    path.write_text(path.read_text() + "persistent_keepalive = 7\nexpires = 2090-12-31\n")
    before = path.read_text()
    result = run(path, "renew", "alice", "--full")
    assert result.exit_code == 0, result.stderr
    assert result.stderr.splitlines()[:2] == ["renewed the key of alice", "reloaded: made up"]
    private = parse_key(setting(result, "PrivateKey"))
    assert private is not None
    key = format_key(public_key(private))
    assert setting(result, "Address") == "10.0.0.2/24"
    assert setting(result, "AllowedIPs") == "0.0.0.0/0, ::/0"
    assert path.read_text() == before.replace(ALICE, key)
    assert [format_key(each) for each in running.peers] == [key]
    assert setting(result, "PrivateKey") not in path.read_text()


def test_a_renewed_preshared_key_replaces_the_old_one(path: Path) -> None:
    run(path, "add", "laptop", "--preshared-key")
    old = (path.parent / "laptop.psk").read_text()
    result = run(path, "renew", "laptop")
    assert setting(result, "PresharedKey") == (path.parent / "laptop.renewed.psk").read_text().strip() != old.strip()
    assert not (path.parent / "laptop.psk").exists()
    result = run(path, "renew", "laptop")
    assert setting(result, "PresharedKey") == (path.parent / "laptop.psk").read_text().strip()
    assert not (path.parent / "laptop.renewed.psk").exists()
    run(path, "renew", "laptop")
    assert run(path, "remove", "laptop").exit_code == 0
    assert list(path.parent.glob("*.psk")) == []


def test_a_preshared_key_file_of_the_operator_stays(path: Path) -> None:
    secret(path.parent / "own.psk", PRESHARED)
    path.write_text(path.read_text() + 'preshared_key_file = "own.psk"\n')
    assert run(path, "renew", "alice").exit_code == 0
    assert (path.parent / "own.psk").read_text() == PRESHARED
    assert format_key(added(path, "alice").preshared_key) == (path.parent / "alice.psk").read_text().strip()


def test_a_failed_renewal_restores_everything(path: Path, running: Running) -> None:
    run(path, "add", "laptop", "--preshared-key")
    before = {file.name: file.read_text() for file in path.parent.iterdir()}
    running.failure = TakeoverError(Phase.PREPARING, "no such release")
    result = run(path, "renew", "laptop", "-o", path.parent / "laptop.conf")
    assert (result.exit_code, result.stdout) == (1, "")
    assert {file.name: file.read_text() for file in path.parent.iterdir()} == before


def test_a_disabled_client_is_renewed_and_stays_disabled(path: Path, running: Running) -> None:
    path.write_text(path.read_text() + "enabled = false\n")
    running.load()
    assert run(path, "renew", "alice").exit_code == 0
    assert not added(path, "alice").enabled
    assert running.peers == []


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("alcie", "alcie: expected the name of a peer; did you mean alice?"),
        ("site", "site: expected an address of its own in allowed_ips, such as 10.9.0.7/32; add one"),
    ],
)
def test_a_client_that_cannot_be_renewed_is_an_error(path: Path, name: str, problem: str) -> None:
    path.write_text(path.read_text() + peer("site", BOB, '"192.0.2.0/24"'))
    before = path.read_text()
    result = run(path, "renew", name)
    assert (result.exit_code, path.read_text()) == (2, before)
    assert problem in result.stderr
