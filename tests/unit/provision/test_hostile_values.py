"""No value becomes more than a value in a generated file, no secret key is shown, and an import is bounded work."""

import base64
import difflib
import hashlib
from dataclasses import replace
from ipaddress import IPv6Address
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from oxidize.cli import import_wg_quick as command
from oxidize.cli.commands import main
from oxidize.config.report import PROBLEMS_MAX
from oxidize.errors import ConfigError, StateError
from oxidize.provision import peer_names as names_module
from oxidize.provision import wg_quick
from oxidize.provision.client_files import client_toml, script
from oxidize.provision.client_files import wg_quick as write_wg_quick
from oxidize.provision.peer_names import peer_names
from oxidize.provision.peer_tables import add_peer
from tests.support.config_files import ALICE, BOB, PRIVATE, SERVER, peer, secret
from tests.unit.provision.test_client_files import SETUP

HOSTILE = [
    "x\nPostUp = reboot\n",
    "x\r",
    "a#b",
    "$(id)",
    "`id`",
    '"',
    "'",
    "a b",
    "x;y",
    "\\",
    "\x9b31m",
    "\u202e",
    "é",
]
WG_QUICK = f"[Interface]\nPrivateKey = {PRIVATE}\nAddress = 10.8.0.2/24\n[Peer]\nPublicKey = {ALICE}\n"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    secret(tmp_path / "server.key", PRIVATE)
    path = tmp_path / "server.toml"
    path.write_text(SERVER + 'takeover_socket = "t.sock"\npublic_endpoint = "vpn.example.org"\n' + peer())
    return path


@pytest.mark.parametrize("value", HOSTILE)
def test_what_writes_a_file_refuses_what_could_be_more_than_a_value(value: str) -> None:
    """Whatever was checked before: each writer checks again."""
    for setup in (
        replace(SETUP, endpoint=f"[fe80::1%{value}]:51820"),
        replace(SETUP, dns=[value]),
        replace(SETUP, dns=[IPv6Address(f"fe80::1%{value}")]),
    ):
        for write in (write_wg_quick, client_toml, script):
            with pytest.raises(StateError, match="not written to a file"):
                write(setup)
    if not value.isalpha():  # a name has letters of any script
        with pytest.raises(StateError, match="not written to a file"):
            script(replace(SETUP, name=value))
        with pytest.raises(StateError, match="not written to a file"):
            add_peer(SERVER, {"name": value})
    for table in ({"endpoint": value}, {"allowed_ips": ["10.9.0.2/32", value]}):
        with pytest.raises(StateError, match="not written to a file"):
            add_peer(SERVER, table)


@pytest.mark.parametrize("value", HOSTILE)
def test_an_endpoint_on_the_command_line_has_no_line_of_its_own(path: Path, value: str) -> None:
    before = path.read_text()
    for given in (value, f"fe80::1%{value}", f"[fe80::1%{value}]", f"[fe80::1%{value}]:51820", f"vpn{value}:51820"):
        for form in ("conf", "script"):
            result = run("peer", "add", "x", "--endpoint", given, "--format", form, "--no-reload", "-c", path)
            assert (result.exit_code, result.stdout) == (2, "")
            assert len(result.stderr.splitlines()) == 1
            assert path.read_text() == before


def test_an_endpoint_with_a_zone_is_written_as_it_is(path: Path) -> None:
    arguments = ("--endpoint", "[fe80::1%eth0]:51820", "--format", "conf", "--no-reload", "-c", path)
    assert "Endpoint = [fe80::1%eth0]:51820" in run("peer", "add", "x", *arguments).stdout.splitlines()
    toml = path.read_text().replace("vpn.example.org", "[fe80::1%eth0]:7")
    path.write_text(toml)
    result = run("peer", "add", "y", "--format", "script", "--no-reload", "-c", path)
    assert 'server = "[fe80::1%eth0]:7"' in result.stdout.splitlines()


@pytest.mark.parametrize("zone", ["\x9b31mEVIL\u202e", "a/b", "$(id)", "x" * 16])
def test_an_imported_endpoint_has_the_zone_of_an_interface(tmp_path: Path, zone: str) -> None:
    source = tmp_path / "wg0.conf"
    for given, status in ((zone, 2), ("eth0", 0)):
        source.write_text(f"{WG_QUICK}AllowedIPs = 0.0.0.0/0\nEndpoint = [fe80::1%{given}]:51820\n")
        result = run("import", "--client", source, "-o", tmp_path / "client.toml")
        assert result.exit_code == status, result.output
        assert (tmp_path / "client.toml").exists() == (status == 0)


@pytest.mark.parametrize("option", ["--public-key", "--endpoint", "--allowed-ips", "--dns", "NAME"])
def test_a_secret_key_on_the_command_line_is_refused_and_not_shown(path: Path, option: str) -> None:
    key, psk = (base64.b64encode(hashlib.sha256(seed).digest()).decode() for seed in (b"key", b"psk"))
    secret(path.parent / "server.key", key)
    secret(path.parent / "bob.psk", psk)
    path.write_text(path.read_text() + peer("bob", BOB, '"10.0.0.3/32"', 'preshared_key_file = "bob.psk"'))
    for given in (key, psk, key[:-1] + "/", psk[:-3] + "+/"):
        arguments = [given] if option == "NAME" else ["x", option, given]
        result = run("peer", "add", *arguments, "--no-reload", "-c", path)
        assert result.exit_code == 2
        assert given[5:25] not in result.output
    result = run("peer", "remove", key, "--no-reload", "-c", path)
    assert result.exit_code == 2
    assert key[5:25] not in result.output


# --- An import is bounded work ---


def test_mistakes_of_an_import_are_counted_and_not_all_described(monkeypatch: pytest.MonkeyPatch) -> None:
    searched: list[str] = []

    def search(word: str, *_: object) -> list[str]:
        searched.append(word)
        return []

    monkeypatch.setattr(difflib, "get_close_matches", search)
    for text in ("Nonsense = 1\n" * 5_000, "= 1\n" * 5_000, "[Pear]\n" * 5_000):
        with pytest.raises(ConfigError) as caught:
            wg_quick.parse(f"[Interface]\n{text}", "wg0.conf")
        assert len(caught.value.problems) == PROBLEMS_MAX + 1
        assert caught.value.problems[-1].startswith(f"wg0.conf: {5_000 - PROBLEMS_MAX} more mistakes")
    assert len(searched) == PROBLEMS_MAX


def test_mistakes_in_the_values_of_an_import_are_counted(tmp_path: Path) -> None:
    source = tmp_path / "wg0.conf"
    source.write_text("[Interface]\n" + "[Peer]\n" * 1_000)
    result = run("import", source, "-o", tmp_path / "server.toml")
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == PROBLEMS_MAX + 1


def test_notes_of_an_import_are_counted(tmp_path: Path) -> None:
    source = tmp_path / "wg0.conf"
    source.write_text(WG_QUICK.replace("[Peer]", "PreUp = true\n" * 1_000 + "[Peer]") + "AllowedIPs = 10.8.0.3/32\n")
    result = run("import", source, "-o", tmp_path / "server.toml")
    assert result.exit_code == 0, result.output
    assert len(result.stderr.splitlines()) < command.NOTES_MAX + 10
    assert "note: and 901 more of this kind" in result.stderr.splitlines()


def test_more_peers_than_a_server_has_are_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wg_quick, "PEERS_MAX", 3)
    assert len(wg_quick.parse("[Interface]\n" + "[Peer]\n" * 3, "wg0.conf").peers) == 3
    with pytest.raises(ConfigError, match="4 sections"):
        wg_quick.parse("[Interface]\n" + "[Peer]\n" * 4, "wg0.conf")


def test_a_free_name_is_found_by_a_number_of_attempts_that_does_not_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    class Counting(dict[str, int]):
        lookups = 0

        def __contains__(self, name: object) -> bool:
            Counting.lookups += 1
            return super().__contains__(name)

    document = wg_quick.parse("[Interface]\n" + "# laptop\n[Peer]\n" * 1_000, "wg0.conf")
    taken = Counting()
    names = [names_module._free("laptop", taken) for _ in document.peers]
    assert names == peer_names(document.peers)
    assert len(set(names)) == 1_000
    assert names[:3] + names[-1:] == ["laptop", "laptop-2", "laptop-3", "laptop-1000"]
    assert Counting.lookups <= 3 * 1_000
