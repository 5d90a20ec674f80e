"""A wg-quick file given as a configuration is named as one, by every command that reads a configuration."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from oxidize.cli.commands import main
from oxidize.config import load_client, load_server
from tests.support.config_files import CLIENT, PRIVATE, SERVER, peer, secret

WG_QUICK = f"# mine\n[Interface]\nPrivateKey = {PRIVATE}\nAddress = 10.8.0.1/24\n"

COMMANDS = [
    "check",
    "server",
    "client",
    "status",
    "status --client",
    "reload",
    "stop",
    "peer add x",
    "peer remove x",
    "peer list",
    "watch",
]


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_every_command_names_the_one_that_converts_it(tmp_path: Path, command: str, encoding: str) -> None:
    path = tmp_path / "wg0.conf"
    path.write_text(WG_QUICK, encoding)
    result = CliRunner().invoke(main, [*command.split(), "-c", str(path)])
    assert result.exit_code == 2, result.output
    assert result.stderr == (
        f"oxidize: {path}: this is a wg-quick file: expected a configuration; `oxidize import {path}` converts it, "
        f"with --client for a client's\n"
    )


def test_a_byte_order_mark_is_left_out(tmp_path: Path) -> None:
    secret(tmp_path / "server.key", PRIVATE)
    path = tmp_path / "server.toml"
    path.write_text(SERVER + peer(), "utf-8-sig")
    assert [each.name for each in load_server(path).peers] == ["alice"]
    result = CliRunner().invoke(main, ["peer", "remove", "alice", "--no-reload", "-c", str(path)])
    assert result.exit_code == 0, result.stderr
    assert load_server(path).peers == ()
    assert path.read_bytes().startswith(b"\xef\xbb\xbf[server]")
    path.write_text(CLIENT + 'allowed_ips = ["10.0.0.0/24"]\n', "utf-8-sig")
    assert load_client(path).server == "vpn.example.org:51820"
