"""The files for a new client load in its tools, and the QR code is the code of the text."""

import os
import subprocess
from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path

import pytest
import segno

from oxidize.config import load_client
from oxidize.config.values import interface_name
from oxidize.protocol.crypto import public_key
from oxidize.provision.client_files import ClientSetup, client_toml, script, wg_quick, wg_quick_file_name
from oxidize.provision.qr_code import draw
from oxidize.provision.server_endpoint import format_endpoint

PRIVATE, PRESHARED, SERVER = bytes(range(32)), bytes(range(1, 33)), public_key(bytes(range(2, 34)))
DNS = [ip_address("10.9.0.1"), "corp.example.org"]
SETUP = ClientSetup(
    name="laptop",
    addresses=[ip_interface("10.9.0.2/24"), ip_interface("fd09::2/64")],
    private_key=PRIVATE,
    public_key=public_key(PRIVATE),
    preshared_key=None,
    server_public_key=SERVER,
    endpoint="vpn.example.org:51820",
    allowed_ips=[ip_network("10.9.0.0/24"), ip_network("fd09::/64")],
    dns=[],
    persistent_keepalive=25,
    mtu=1420,
)


def run_script(
    setup: ClientSetup, folder: Path, environ: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the client's script, as the one who runs the tests and with `folder` in the place of /etc/oxidize.

    Where a user of the service exists, it is hidden unless `environ` has something to say of it.
    """
    text = script(setup).replace("/etc/oxidize", str(folder))
    if environ is None:
        text = text.replace('id -u "$user"', "false")
    return subprocess.run(["sh"], input=text, text=True, check=False, capture_output=True, env=environ)


def test_a_wg_quick_file_has_the_clients_values() -> None:
    assert wg_quick(SETUP).splitlines() == [
        "[Interface]",
        "PrivateKey = AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=",
        "Address = 10.9.0.2/24, fd09::2/64",
        "",
        "[Peer]",
        "PublicKey = q58mKMMlwUHp+yQw8QaFD2KTC8PwsS3zmpuEpJx8HRI=",
        "Endpoint = vpn.example.org:51820",
        "AllowedIPs = 10.9.0.0/24, fd09::/64",
        "PersistentKeepalive = 25",
    ]
    more = replace(SETUP, preshared_key=PRESHARED, dns=DNS, mtu=1280, persistent_keepalive=0)
    added = set(wg_quick(more).splitlines()) - set(wg_quick(SETUP).splitlines())
    assert added == {
        "DNS = 10.9.0.1, corp.example.org",
        "MTU = 1280",
        "PresharedKey = AQIDBAUGBwgJCgsMDQ4PEBESExQVFhcYGRobHB0eHyA=",
    }
    assert "PersistentKeepalive" not in wg_quick(more)


def test_a_client_that_has_its_own_key_gets_a_file_without_one() -> None:
    own = replace(SETUP, private_key=None)
    assert "\nPrivateKey" not in wg_quick(own)
    assert "client.key <<" not in script(own)
    assert 'private_key_file = "client.key"' in script(own)


@pytest.mark.parametrize("preshared_key", [None, PRESHARED])
def test_the_script_writes_what_the_client_loads(tmp_path: Path, preshared_key: bytes | None) -> None:
    folder = tmp_path / "etc"
    done = run_script(replace(SETUP, preshared_key=preshared_key, dns=DNS), folder)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    client = load_client(folder / "client.toml")
    assert (client.private_key, client.preshared_key) == (PRIVATE, preshared_key or bytes(32))
    assert (client.server, client.server_public_key) == ("vpn.example.org:51820", SERVER)
    assert (client.addresses, client.allowed_ips) == (tuple(SETUP.addresses), tuple(SETUP.allowed_ips))
    assert (client.mtu, client.persistent_keepalive) == (1420, 25)
    assert client.name_servers.servers == (ip_address("10.9.0.1"),)
    assert client.name_servers.domains == ("corp.example.org",)
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}
    assert folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("name", ["client.key", "client.psk", "client.toml"])
@pytest.mark.parametrize("content", ["", "precious"])
def test_the_script_writes_nothing_if_a_file_exists(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    done = run_script(replace(SETUP, preshared_key=PRESHARED), tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"oxidize: {tmp_path}/{name} exists, so nothing is written: move it away, "
        "`oxidize peer remove laptop` on the server, and add it again\n"
    )
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {name: content}


def test_the_script_needs_the_key_of_a_client_that_made_its_own(tmp_path: Path) -> None:
    own = replace(SETUP, private_key=None)
    done = run_script(own, tmp_path)
    assert (done.returncode, list(tmp_path.iterdir())) == (1, [])
    assert done.stderr.startswith(f"oxidize: {tmp_path}/client.key is missing: ")
    assert len(done.stderr.splitlines()) == 1
    (tmp_path / "client.key").touch(mode=0o600)
    (tmp_path / "client.key").write_text("AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n")
    assert run_script(own, tmp_path).returncode == 0
    assert load_client(tmp_path / "client.toml").private_key == PRIVATE


# What stands for the commands that need a user of the service: each says what it was asked and how secret that was.
STUBS = {
    "id": '[ $# = 1 ] && echo "$ID" || case " $SERVICE " in *" $2 "*) ;; *) exit 1 ;; esac',
    "chown": 'owner=$1; shift; for file; do echo "chown $owner ${file##*/} $(stat -c %a "$file")"; done',
    "chmod": 'echo "chmod $*"; exec /bin/chmod "$@"',
}


@pytest.mark.parametrize(
    ("uid", "users", "service"),
    [
        ("0", "oxidize oxidize-client", "oxidize-client"),
        ("0", "oxidize", "oxidize"),  # a release that had one user for both services
        ("0", "", ""),
        ("1000", "oxidize oxidize-client", ""),
    ],
)
def test_the_scripts_files_belong_to_the_service_if_root_writes_them(
    tmp_path: Path, uid: str, users: str, service: str
) -> None:
    bin_folder, folder = tmp_path / "bin", tmp_path / "etc"
    bin_folder.mkdir()
    for name, text in STUBS.items():
        (bin_folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (bin_folder / name).chmod(0o755)
    environ = {"PATH": f"{bin_folder}:{os.environ['PATH']}", "ID": uid, "SERVICE": users}
    done = run_script(replace(SETUP, preshared_key=PRESHARED), folder, environ)
    assert (done.returncode, done.stderr) == (0, "")
    steps = [
        f"chmod 0751 {folder}",
        *(f"chown {service}:{service} {name} 600" for name in ("client.key", "client.psk")),
        "chmod 0400 client.key client.psk",
        f"chown root:{service} client.toml 600",
        "chmod 0640 client.toml",
    ]
    assert done.stdout.splitlines() == (steps if service else [])
    modes = {path.name: path.stat().st_mode & 0o777 for path in (folder, *folder.iterdir())}
    assert modes == (
        {"etc": 0o751, "client.key": 0o400, "client.psk": 0o400, "client.toml": 0o640}
        if service
        else {"etc": 0o700, "client.key": 0o600, "client.psk": 0o600, "client.toml": 0o600}
    )


def test_an_existing_folder_keeps_its_mode(tmp_path: Path) -> None:
    tmp_path.chmod(0o711)
    assert run_script(SETUP, tmp_path).returncode == 0
    assert tmp_path.stat().st_mode & 0o777 == 0o711


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("laptop", "laptop.conf"),
        ("alice@laptop.example.org", "alice-laptop.ex.conf"),
        ("a" * 64, "a" * 15 + ".conf"),
        ("exactly-fifteen", "exactly-fifteen.conf"),
        ("fourteen-chars.and-more", "fourteen-chars.conf"),
    ],
)
def test_wg_quick_accepts_the_name_of_a_peers_file(name: str, expected: str) -> None:
    assert wg_quick_file_name(name) == expected
    interface_name(expected.removesuffix(".conf"))


def test_client_toml_has_no_keys_with_default_values() -> None:
    keys = [line.partition(" =")[0] for line in client_toml(SETUP).splitlines()]
    assert keys == ["[client]", "server", "server_public_key", "private_key_file", "address", "allowed_ips"]
    assert "persistent_keepalive = 0\nmtu = 1280\n" in client_toml(replace(SETUP, persistent_keepalive=0, mtu=1280))


def test_the_repr_of_a_setup_shows_no_key() -> None:
    assert str(PRIVATE) not in repr(SETUP)


# --- The code ---


def modules(lines: list[str]) -> list[list[bool]]:
    """Return what a camera sees: which modules are dark."""
    rows = []
    for line in lines:
        assert line.startswith("\x1b[38;5;231;48;5;16m")
        assert line.endswith("\x1b[0m")
        drawn = line.removeprefix("\x1b[38;5;231;48;5;16m").removesuffix("\x1b[0m")
        rows += [[character in " ▄" for character in drawn], [character in " ▀" for character in drawn]]
    return rows


@pytest.mark.parametrize("border", [4, 2])
def test_the_qr_code_in_the_terminal_is_the_code_of_the_text(border: int) -> None:
    text = wg_quick(SETUP)
    expected = segno.make(text, error="l", boost_error=False, micro=False)
    width, height = map(int, expected.symbol_size(border=border))
    lines = draw(text, width if border == 2 else 80, 80)
    assert lines is not None
    found = modules(lines)[:height]  # an odd last row shares its characters with the terminal's ground
    assert found == [[bool(module) for module in row] for row in expected.matrix_iter(border=border)]
    assert all(len(row) == width <= 80 for row in found)


def test_no_qr_code_is_drawn_without_enough_columns() -> None:
    assert draw(wg_quick(SETUP), 30, 80) is None
    assert draw("x" * 3000, 1000, 1000) is None  # more than any code holds


def test_the_qr_code_of_a_large_configuration_fits_into_80_columns() -> None:
    most = replace(
        SETUP,
        preshared_key=PRESHARED,
        dns=[ip_address("10.9.0.1")],
        allowed_ips=[ip_network("0.0.0.0/0"), ip_network("::/0")],
        endpoint="[2001:db8:1234:5678::9abc]:51820",
    )
    assert draw(wg_quick(most), 80, 80) is not None


@pytest.mark.parametrize(
    ("endpoint", "expected"),
    [(("a.example", None), "a.example:7"), (("a.example", 9), "a.example:9"), (("fd09::1", None), "[fd09::1]:7")],
)
def test_an_endpoint_is_written_with_its_port(endpoint: tuple[str, int | None], expected: str) -> None:
    assert format_endpoint(endpoint, 7) == expected
