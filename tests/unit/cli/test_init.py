"""`oxidize init`: what it guesses, that it asks, and that it overwrites nothing."""

import os
import pty
import subprocess
import sys
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from oxidize import config
from oxidize.cli import init as init_module
from oxidize.cli import mtu_check
from oxidize.cli.commands import main
from oxidize.cli.common import SERVER_CONFIG
from oxidize.config import Network
from oxidize.hostnet.uplink import Uplink
from oxidize.provision import server_endpoint
from oxidize.provision.first_configuration import USUAL, guess_networks
from tests.support.config_files import PRIVATE, secret

USED_NETWORKS = init_module.used_networks


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> set[Network]:
    """A machine with a public address, IPv6, and these networks."""
    used: set[Network] = {ip_network("0.0.0.0/0"), ip_network("::/0"), ip_network("192.0.2.0/24")}
    monkeypatch.setattr(init_module, "used_networks", lambda: used)
    monkeypatch.setattr(init_module, "_has_ipv6", lambda: True)
    monkeypatch.setattr(server_endpoint, "guess", lambda: ip_address("9.9.9.9"))
    return used


def run(*arguments: object, answer: str | None = None) -> Result:
    return CliRunner().invoke(main, ["init", *map(str, arguments)], input=answer)


def test_a_configuration_is_made_that_is_good(tmp_path: Path) -> None:
    path = tmp_path / "server.toml"
    result = run("-o", path, "--yes")
    assert result.exit_code == 0, result.stderr
    loaded = config.load_server(path)
    assert str(loaded.addresses[0]) == "10.9.0.1/24"
    assert loaded.addresses[1].network.subnet_of(ip_network("fd00::/8"))  # type: ignore[arg-type]  # both IPv6
    assert loaded.public_endpoint == ("9.9.9.9", None)
    assert [file.stat().st_mode & 0o777 for file in (path, tmp_path / "server.key")] == [0o600, 0o600]
    assert "guessed: the endpoint 9.9.9.9, this machine's own address (--endpoint)" in result.stdout
    assert f"  oxidize peer add phone -c {path}\n" in result.stdout
    assert (tmp_path / "server.key").read_text().strip() not in result.output
    assert CliRunner().invoke(main, ["peer", "add", "phone", "-c", str(path)]).exit_code == 0


def test_an_mtu_that_the_uplink_takes_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "server.toml"
    monkeypatch.setattr(mtu_check, "find_uplink", lambda *_: Uplink(1460, "ens4"))
    done = run("-o", path, "--endpoint", "vpn.example.org", "--address", "10.9.0.1/24", "--yes")
    assert (done.exit_code, config.load_server(path).mtu) == (0, 1380)
    assert "guessed: mtu 1380, as by wg-quick: ens4 takes packets of 1460 bytes" in done.stdout
    path.unlink()
    monkeypatch.setattr(mtu_check, "find_uplink", lambda *_: Uplink(9000, "ens4"))  # what is behind it may take less
    done = run("-o", path, "--endpoint", "vpn.example.org", "--address", "10.9.0.1/24", "--yes")
    assert done.exit_code == 0
    assert "guessed: mtu" not in done.stdout
    assert "mtu = " not in path.read_text()


def test_what_is_given_is_not_guessed(tmp_path: Path) -> None:
    path = tmp_path / "office.toml"
    result = run("-o", path, "--yes", "--endpoint", "vpn.example.org:4711", "--address", "10.77.0.1/24, fd77::1/64")
    assert result.exit_code == 0, result.stderr
    loaded = config.load_server(path)
    assert list(map(str, loaded.addresses)) == ["10.77.0.1/24", "fd77::1/64"]
    assert (loaded.public_endpoint, loaded.interface) == (("vpn.example.org", 4711), "office")
    assert "guessed" not in result.stdout
    assert (tmp_path / "office.key").exists()


@pytest.mark.parametrize("name", ["server.toml", "link"])
def test_a_file_that_exists_is_not_overwritten(tmp_path: Path, name: str) -> None:
    (tmp_path / "server.toml").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    result = run("-o", tmp_path / name, "--yes")
    assert (result.exit_code, (tmp_path / "server.toml").read_text()) == (2, "mine")
    assert f"{tmp_path / name} exists, and nothing is overwritten: edit it, name another file (-o)" in result.stderr
    assert sorted(file.name for file in tmp_path.iterdir()) == ["link", "server.toml"]


def test_a_key_that_is_there_is_used(tmp_path: Path) -> None:
    secret(tmp_path / "server.key", PRIVATE + "\n")
    result = run("-o", tmp_path / "server.toml", "--yes")
    assert result.exit_code == 0, result.stderr
    assert f"{tmp_path / 'server.key'}: the private key that is there" in result.stdout
    assert (tmp_path / "server.key").read_text() == PRIVATE + "\n"


def test_a_key_file_without_a_key_is_an_error(tmp_path: Path) -> None:
    secret(tmp_path / "server.key", "no key")
    result = run("-o", tmp_path / "server.toml", "--yes")
    assert result.exit_code == 2
    assert "server.private_key_file" in result.stderr
    assert not (tmp_path / "server.toml").exists()


def test_without_a_terminal_nothing_is_written(tmp_path: Path) -> None:
    result = run("-o", tmp_path / "server.toml")
    assert (result.exit_code, list(tmp_path.iterdir())) == (2, [])
    assert "nothing is written: standard input is not a terminal, so no one can be asked; use --yes" in result.stderr
    assert "10.9.0.1/24" in result.stdout


@pytest.mark.parametrize(("answer", "status", "is_written"), [(b"\n", 0, True), (b"y\n", 0, True), (b"n\n", 1, False)])
def test_a_terminal_is_asked(tmp_path: Path, answer: bytes, status: int, is_written: bool) -> None:
    leader, follower = pty.openpty()
    os.write(leader, answer)
    arguments = ["init", "-o", str(tmp_path / "server.toml"), "--endpoint", "vpn.example.org"]
    command = [sys.executable, "-P", "-m", "oxidize", *arguments]
    done = subprocess.run(command, stdin=follower, capture_output=True, check=False, timeout=60)
    os.close(leader)
    os.close(follower)
    assert (done.returncode, (tmp_path / "server.toml").exists()) == (status, is_written), done
    assert b"Write these files? [Y/n]" in done.stderr
    assert (b"nothing is written" in done.stderr) != is_written


@pytest.mark.parametrize(
    ("arguments", "problems"),
    [
        (
            ("--address", "10.0.0.1"),
            ["--address 10.0.0.1: expected an address with the length of its network's prefix"],
        ),
        (("--endpoint", "a:b:c"), ['--endpoint a:b:c: expected "host" or "host:port"']),
        (("--endpoint", ":1", "--address", "x, y"), ["--address x: ", "--address y: ", "--endpoint :1: "]),
        (("--address", "10.0.0.1/24,10.0.0.1/24"), ["server.address"]),
    ],
)
def test_a_mistake_is_a_line_and_nothing_is_written(
    tmp_path: Path, arguments: tuple[str, ...], problems: list[str]
) -> None:
    result = run("-o", tmp_path / "server.toml", "--yes", *arguments)
    assert (result.exit_code, list(tmp_path.iterdir())) == (2, [])
    lines = result.stderr.splitlines()
    assert [any(problem in line for line in lines) for problem in problems] == [True] * len(problems)


def test_what_cannot_be_guessed_must_be_given(
    tmp_path: Path, machine: set[Network], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.add(ip_network("10.0.0.0/8"))
    monkeypatch.setattr(init_module, "_has_ipv6", lambda: False)
    monkeypatch.setattr(server_endpoint, "guess", lambda: None)
    result = run("-o", tmp_path / "server.toml", "--yes")
    assert result.exit_code == 2
    assert "--endpoint is missing: expected HOST or HOST:PORT: no address of this machine is found" in result.stderr
    assert "--address is missing: expected one, such as 10.9.0.1/24: no free network is found" in result.stderr


def test_a_folder_that_is_missing_is_named(tmp_path: Path) -> None:
    result = run("-o", tmp_path / "none/at/all/server.toml", "--yes")
    assert result.exit_code == 2
    assert f"make {tmp_path / 'none/at'} first" in result.stderr


@pytest.mark.parametrize(
    ("used", "expected"),
    [
        (["0.0.0.0/0"], "10.9.0.0/24"),
        (["10.9.0.0/16"], "10.3.0.0/24"),
        (["10.9.0.77/32", "10.3.0.0/24", "10.4.0.0/24"], "10.11.0.0/24"),
        (["10.0.0.0/9"], "10.129.0.0/24"),
        (["10.0.0.0/8"], None),
    ],
)
def test_a_guessed_network_is_free_and_unusual(used: list[str], expected: str | None) -> None:
    found = guess_networks([*map(ip_network, used)], None)
    assert list(map(str, found)) == ([expected] if expected else [])
    assert not any(network.overlaps(usual) for network in found for usual in USUAL)


def test_a_guessed_ipv6_network_is_a_random_local_one() -> None:
    found = guess_networks([], lambda count: bytes(range(1, count + 1)))
    assert str(found[1]) == "fd01:203:405::/64"
    assert len(guess_networks([ip_network("fd00::/8")], bytes)) == 1


def test_the_networks_of_this_machine_are_read() -> None:
    assert any(network.version == 4 and network.is_loopback for network in USED_NETWORKS())


def test_the_next_commands_are_those_of_the_service_or_of_the_file() -> None:
    assert list(init_module._next_steps(SERVER_CONFIG)) == [
        "Next:",
        "  systemctl enable --now oxidize.socket oxidize-http.socket oxidize-daemon",
        "  oxidize peer add phone",
    ]
    _, start, add = init_module._next_steps(Path("x/server.toml"))
    assert (start.endswith("oxidize server -c x/server.toml"), add) == (
        True,
        "  oxidize peer add phone -c x/server.toml",
    )
