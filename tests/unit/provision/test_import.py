"""`oxidize import` converts a wg-quick file, notes what has no counterpart, and reports every mistake."""

import os
import tomllib
from collections.abc import Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from oxidize.cli import import_wg_quick as command
from oxidize.cli.commands import main
from oxidize.cli.import_wg_quick import uplink_mtu
from oxidize.config import load_client, load_server
from oxidize.errors import ConfigError
from oxidize.provision import config_file, conversion, wg_quick
from oxidize.provision.peer_names import peer_names
from tests.support.config_files import ALICE, BOB, OWN_PUBLIC, PRESHARED, PRIVATE, b64, secret

CAROL = b64(0xCA401 << 100)

SERVER = f"""\
# made by hand
[Interface]
Address = 10.8.0.1/24, fd42::1/64
Address = 172.16.0.1
PRIVATEKEY={PRIVATE}   # secret
ListenPort = 51830
MTU = 1380
SaveConfig = false
Table = auto

# laptop
[Peer]
PublicKey = {ALICE}
PresharedKey = {PRESHARED}
AllowedIPs = 10.8.0.2, fd42::2/128

[peer]
# Name = Bob's phone
PublicKey = {BOB}
AllowedIPs = 10.8.0.3/32
AllowedIPs = 192.168.9.1/24
Endpoint = [2001:db8::1]:4
Endpoint = office.example:51820
PersistentKeepalive = 15

[Peer]
PublicKey = {CAROL}
PersistentKeepalive = off
PresharedKey = AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=
AllowedIPs =
"""

CLIENT = f"""\
[Interface]
PrivateKey = {PRIVATE}
Address = 10.8.0.2/24
DNS = 10.8.0.1, corp.example

[Peer]
PublicKey = {ALICE}
PresharedKey = {PRESHARED}
Endpoint = vpn.example.org:51820
AllowedIPs = 10.8.0.0/24
"""


@pytest.fixture
def wg0(tmp_path: Path) -> Path:
    path = tmp_path / "wg0.conf"
    path.write_text(SERVER)
    (tmp_path / "out").mkdir()
    return path


def run(path: Path, *arguments: str, name: str = "server.toml") -> Result:
    result = CliRunner().invoke(main, ["import", str(path), "-o", str(path.parent / "out" / name), *arguments])
    assert PRIVATE not in result.output
    assert PRESHARED not in result.output
    assert result.stdout == ""
    return result


def notes(text: str) -> list[str]:
    return list(conversion.to_server(wg_quick.parse(text, "wg0.conf"), "wg0.conf").notes)


def problems(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        notes(text)
    assert all(line.startswith("wg0.conf: ") for line in caught.value.problems)
    return [line.removeprefix("wg0.conf: ") for line in caught.value.problems]


def test_a_server_is_imported(wg0: Path) -> None:
    result = run(wg0)
    assert result.exit_code == 0, result.stderr
    out = wg0.parent / "out"
    assert {path.name: path.stat().st_mode & 0o077 for path in out.iterdir()} in (
        {"server.toml": 0, "server.key": 0, "laptop.psk": 0},
        {"server.toml": 0o040, "server.key": 0, "laptop.psk": 0},  # where the service's user exists
    )
    server = load_server(out / "server.toml")
    assert [str(address) for address in server.addresses] == ["10.8.0.1/24", "fd42::1/64", "172.16.0.1/32"]
    assert (server.listen, server.mtu, server.interface) == (("::", 51830), 1380, "oxidize0")
    assert [
        (one.name, [str(network) for network in one.allowed_ips], one.endpoint, one.persistent_keepalive)
        for one in server.peers
    ] == [
        ("laptop", ["10.8.0.2/32", "fd42::2/128"], None, 0),
        ("Bob-s-phone", ["10.8.0.3/32", "192.168.9.0/24"], "office.example:51820", 15),
        ("peer-3", [], None, 0),
    ]
    assert [any(one.preshared_key) for one in server.peers] == [True, False, False]
    assert result.stderr.splitlines() == [
        f"oxidize: warning: {wg0}: line 30: AllowedIPs: the list is empty, so every packet of this peer is dropped",
        (
            "note: ListenPort = 51830: under systemd oxidize.socket sets the port: `systemctl edit "
            "oxidize.socket`, and write [Socket], ListenDatagram= and ListenDatagram=51830 on three lines"
        ),
        (
            "note: public_endpoint is not set, so `oxidize peer add` has to guess the server's address; "
            'write public_endpoint = "vpn.example.org" under [server]'
        ),
        "note: the interface is oxidize0: change firewall rules that name wg0",
        "note: stop the old tunnel before starting the new one: systemctl disable --now wg-quick@wg0",
        *(f"wrote {out}/{name}" for name in ("server.key", "laptop.psk", "server.toml")),
    ]


def test_an_import_overwrites_nothing_without_force(wg0: Path) -> None:
    assert run(wg0).exit_code == 0
    wg0.write_text(SERVER.replace("51830", "51831"))
    result = run(wg0)
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 3
    assert load_server(wg0.parent / "out/server.toml").listen[1] == 51830
    assert run(wg0, "--force").exit_code == 0
    assert load_server(wg0.parent / "out/server.toml").listen[1] == 51831


def test_a_key_is_never_overwritten(wg0: Path) -> None:
    assert run(wg0).exit_code == 0
    out = wg0.parent / "out"
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    wg0.write_text(SERVER.replace(PRIVATE, PRESHARED))
    result = run(wg0, "--force")
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"oxidize: {out}/server.key has another key, which --force does not overwrite; ")
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_two_tunnels_in_one_folder_share_no_file(wg0: Path) -> None:
    assert run(wg0).exit_code == 0
    second = wg0.with_name("wg1.conf")
    second.write_text(SERVER.replace(PRIVATE, PRESHARED).replace("51830", "51831"))
    result = run(second, name="site.toml")
    assert result.exit_code == 0, result.stderr
    out = wg0.parent / "out"
    names = {path.name for path in out.iterdir()}
    assert names == {"server.toml", "server.key", "laptop.psk", "site.toml", "site.key", "site-laptop.psk"}
    first, site = load_server(out / "server.toml"), load_server(out / "site.toml")
    assert first.private_key != site.private_key
    assert (first.interface, site.interface) == ("oxidize0", "site")
    assert "the interface is site: change firewall rules that name wg1" in result.stderr


def test_nothing_is_written_where_the_result_has_a_mistake(wg0: Path) -> None:
    wg0.write_text(SERVER.replace("MTU = 1380", "MTU = 1200"))
    result = run(wg0)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"oxidize: {wg0}: line 7: MTU = 1200: expected at least 1280, which IPv6 needs")
    assert list((wg0.parent / "out").iterdir()) == []


def test_without_an_mtu_the_one_of_wg_quick_is_kept(wg0: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wg0.write_text(SERVER.replace("MTU = 1380\n", ""))
    asked: list[str] = []

    def uplink(endpoints: Sequence[str]) -> tuple[int, str]:
        asked.extend(endpoints)
        return 1460, "ens4"

    monkeypatch.setattr(command, "uplink_mtu", uplink)
    result = run(wg0)
    assert load_server(wg0.parent / "out/server.toml").mtu == 1380
    assert asked == ["office.example:51820"]
    assert "note: mtu = 1380: there is no MTU, and wg-quick takes that of ens4, 1460, less 80" in result.stderr


def test_the_uplinks_mtu_is_the_kernels() -> None:
    links = {path.name: int((path / "mtu").read_text()) for path in Path("/sys/class/net").iterdir()}
    assert uplink_mtu(["127.0.0.1:1"]) == (links["lo"], "lo")


def test_a_key_is_read_from_the_file_of_a_hook(wg0: Path, tmp_path: Path) -> None:
    key = secret(tmp_path / "private", f"{PRIVATE}\n")
    wg0.write_text(SERVER.replace(f"PRIVATEKEY={PRIVATE}", f"PostUp = wg set %i private-key {key}"))
    result = run(wg0)
    assert result.exit_code == 0, result.stderr
    assert f"note: line 5: PrivateKey is taken from {key}" in result.stderr
    assert (wg0.parent / "out/server.key").read_text() == f"{PRIVATE}\n"
    key.unlink()
    os.mkfifo(key)
    result = run(wg0, "--force")
    assert "not a regular file: expected a file with one key" in result.stderr


def test_a_client_is_imported_with_its_option(wg0: Path) -> None:
    wg0.write_text(CLIENT)
    result = run(wg0, "--client", name="client.toml")
    assert result.exit_code == 0, result.stderr
    client = load_client(wg0.parent / "out/client.toml")
    assert (client.server, b64(int.from_bytes(client.server_public_key, "big"))) == ("vpn.example.org:51820", ALICE)
    assert (client.persistent_keepalive, any(client.preshared_key)) == (0, True)
    assert {path.name for path in (wg0.parent / "out").iterdir()} == {"client.toml", "client.key", "client.psk"}
    assert [str(address) for address in client.name_servers.servers] == ["10.8.0.1"]
    assert client.name_servers.domains == ("corp.example",)
    (note,) = (line for line in result.stderr.splitlines() if line.startswith("note: "))
    assert note.startswith("note: stop the old tunnel")


def test_an_import_makes_the_missing_folder(wg0: Path) -> None:
    (wg0.parent / "out").rmdir()
    assert run(wg0).exit_code == 0
    assert load_server(wg0.parent / "out/server.toml").listen[1] == 51830


@pytest.mark.skipif(os.geteuid() != 0, reason="lacks root: only root gives files away")
@pytest.mark.parametrize(("text", "role"), [(SERVER, "server"), (CLIENT, "client")])
def test_imported_files_belong_to_the_service(wg0: Path, monkeypatch: pytest.MonkeyPatch, text: str, role: str) -> None:
    monkeypatch.setattr(config_file, "service_owner", lambda _role: config_file.Owner(12345, 54321))
    wg0.write_text(text)
    assert run(wg0, *(["--client"] if role == "client" else []), name=f"{role}.toml").exit_code == 0
    found = {path.name: path.stat() for path in (wg0.parent / "out").iterdir()}
    owners = {name: (one.st_uid, one.st_gid, one.st_mode & 0o777) for name, one in found.items()}
    assert owners.pop(f"{role}.toml") == (0, 54321, 0o640)
    assert len(owners) == 2
    assert set(owners.values()) == {(12345, 54321, 0o600)}


def dns_of_client(*lines: str) -> tuple[object, list[str]]:
    """Return the key dns and the notes for these lines of a client."""
    text = CLIENT.replace("DNS = 10.8.0.1, corp.example\n", "".join(f"{line}\n" for line in lines))
    found = conversion.to_client(wg_quick.parse(text, "wg0.conf"), "wg0.conf")
    return tomllib.loads(found.toml)["client"].get("dns"), list(found.notes)


def test_dns_gives_name_servers_and_search_domains() -> None:
    assert dns_of_client() == (None, [])
    assert dns_of_client("DNS = corp.example. fd42::1,", "DNS = 10.8.0.1") == (
        ["corp.example", "fd42::1", "10.8.0.1"],
        [],
    )
    entries, (note,) = dns_of_client("DNS = 10.8.0.1, 0.0.0.0")
    assert entries == ["10.8.0.1"]
    assert note == 'line 4: DNS = "0.0.0.0": ignored: expected an address that one machine can have, without a zone'
    assert dns_of_client("DNS = corp.example") == (
        None,
        ["DNS has no name server, so its domains are ignored, as by wg-quick"],
    )


def test_the_file_of_the_other_role_is_refused(wg0: Path) -> None:
    wg0.write_text(CLIENT.replace("10.8.0.0/24", "0.0.0.0/0, ::/0"))
    result = run(wg0)
    assert result.exit_code == 2
    assert "this is a client's file" in result.stderr
    assert "`oxidize import --client`" in result.stderr
    wg0.write_text(SERVER)
    assert "expected one [Peer] with an Endpoint" in run(wg0, "--client").stderr
    assert list((wg0.parent / "out").iterdir()) == []


@pytest.mark.parametrize("content", [None, b"\xff", b""])
def test_a_file_that_is_not_of_wg_quick_is_one_error(wg0: Path, content: bytes | None) -> None:
    wg0.unlink()
    if content is not None:
        wg0.write_bytes(content)
    result = run(wg0)
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"oxidize: {wg0}: ")
    assert "expected" in line


# --- What has no counterpart ---

UNIT = "commands for a unit"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("PostUp = iptables -t nat -A POSTROUTING -o eth0 -j MASQUERADE", ["[server.nat] does this"]),
        ("PostUp = nft add rule ip nat post oifname eth0 masquerade", ["[server.nat] does this"]),
        ("PostUp = sysctl -w net.ipv4.ip_forward=1", ["/etc/sysctl.d/"]),
        ("PostUp = iptables -A FORWARD -i %i -j ACCEPT", ["iptables -A FORWARD -i oxidize0 -j ACCEPT"]),
        ("PostUp = ip rule add; sysctl net.ipv4.ip_forward=1 # x", ["/etc/sysctl.d/", "a unit run it", UNIT]),
        ("PostUp = /root/hook", ["after oxidize-daemon has started: /root/hook", UNIT]),
        (f"PostUp = wg set %i private-key <(echo {PRIVATE})", []),
        ("PreUp = a", ["before oxidize-daemon starts: a", UNIT]),
        ("PreDown = a", ["before oxidize-daemon ends: a", UNIT]),
        ("PostDown = a", ["after oxidize-daemon has ended: a", UNIT]),
        ("PostDown = iptables -t nat -D POSTROUTING -o eth0 -j MASQUERADE", ["after oxidize-daemon has ended", UNIT]),
        ("SaveConfig = true", ["only you, `oxidize peer add`"]),
        ("SaveConfig = false", []),
        ("Table = off", []),
        ("Table = auto", []),
        ("FwMark = 0x1", []),
        ("FwMark = off", []),
        ("DNS = 1.1.1.1", ["a server sets no name servers"]),
    ],
)
def test_a_setting_without_a_counterpart_is_reported(line: str, expected: list[str]) -> None:
    found = notes(f"[Interface]\nPrivateKey = {PRIVATE}\nAddress = 10.8.0.1/24\n{line}\nListenPort = 51820\n")
    assert len(found) == len(expected)
    assert all(text in note for text, note in zip(expected, found, strict=True))
    assert all(PRIVATE not in note for note in found)


def test_a_file_without_a_port_is_reported_with_the_port_it_gets() -> None:
    (note,) = notes(f"[Interface]\nPrivateKey = {PRIVATE}\nAddress = 10.8.0.1/24\n")
    assert note == "there is no ListenPort, so wg used any port; this server listens at 51820"


def test_an_address_of_two_peers_goes_to_the_last_one() -> None:
    text = (
        f"[Interface]\nPrivateKey = {PRIVATE}\nAddress = 10.8.0.1/24\nListenPort = 51820\n"
        f"[Peer]\nPublicKey = {ALICE}\nAllowedIPs = 10.8.0.2/32, 10.8.0.2/32, 10.8.0.9/32\n"
        f"[Peer]\nPublicKey = {BOB}\nAllowedIPs = 10.8.0.2/32\n"
    )
    assert notes(text) == ["line 8: 10.8.0.2/32 of peer-1 goes to peer-2, as with wg"]


def test_networks_within_another_peers_networks_are_kept() -> None:
    text = (
        f"[Interface]\nPrivateKey = {PRIVATE}\nAddress = 10.8.0.1/24\nListenPort = 51820\n"
        f"# alice\n[Peer]\nPublicKey = {ALICE}\nAllowedIPs = 10.8.0.2/24, 0.0.0.0/0\n"
        f"# bob\n[Peer]\nPublicKey = {BOB}\nAllowedIPs = 10.8.0.3\n"
    )
    converted = conversion.to_server(wg_quick.parse(text, "wg0.conf"), "wg0.conf")
    assert converted.notes == ()
    assert 'allowed_ips = ["10.8.0.0/24", "0.0.0.0/0"]' in converted.toml
    assert 'allowed_ips = ["10.8.0.3/32"]' in converted.toml


# --- What is wrong ---


def test_every_mistake_is_reported_with_its_line() -> None:
    assert problems("[Interface]\nPrivatKey = x\nfoo\nNonsense = 1\n[Pear]\nPublicKey = a\n = 3\n") == [
        "line 2: PrivatKey: expected a name that [Interface] has; did you mean PrivateKey?",
        "line 3: expected Name = value, or a section in brackets; correct it, or begin it with #",
        "line 4: Nonsense: expected a name that [Interface] has; correct it, or begin the line with #",
        "line 5: expected [Interface] or [Peer]; correct it",
        "line 7: expected Name = value, or a section in brackets; correct it, or begin it with #",
    ]
    text = (
        f"[Interface]\nPrivateKey = {PRIVATE[:-1]}\nListenPort = 99999\nMTU = big\n"
        f"[Peer]\nAllowedIPs = 10.0.0.256, +10.0.0.1/32\nEndpoint = nowhere\nPersistentKeepalive = -1\n"
        f"[Peer]\nPublicKey = {PRIVATE[:-3]}\nPresharedKey = {PRIVATE}{PRIVATE}\n"
    )
    found = problems(text)
    assert [line.partition(":")[0] for line in found] == [f"line {n}" for n in (1, 2, 3, 4, 5, 6, 6, 7, 8, 10, 11)]
    assert PRIVATE[:-3] not in "".join(found).replace(f"PublicKey = {PRIVATE[:-3]}", "")
    assert all("expected" in line or "is missing" in line for line in found)


def test_a_setting_before_any_section_is_reported() -> None:
    assert problems("MTU = 3\n")[0] == "line 1: expected a section first; write [Interface] above it"


# --- Names ---


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("# laptop\n[Peer]\n", ["laptop"]),
        ("[Peer] # laptop\n", ["laptop"]),
        ("[Peer]\n# laptop\nPublicKey = a\n", ["laptop"]),
        ("[Peer]\nPublicKey = a # laptop\n", ["laptop"]),
        ("# Name = laptop\n# of Alice\n[Peer]\n", ["laptop"]),
        ("# friendly_name=laptop\n[Peer]\n", ["laptop"]),
        ("# something else\n# laptop\n[Peer]\n", ["laptop"]),
        ("### Client laptop\n[Peer]\n", ["laptop"]),
        ("### begin laptop ###\n[Peer]\nPublicKey = a\n### end laptop ###\n### begin b ###\n[Peer]\n", ["laptop", "b"]),
        ("# a\n[Peer]\nPublicKey = a\n# b\n[Peer]\n", ["a", "b"]),
        ("[Peer]\nPublicKey = a\n# b\n[Peer]\n", ["peer-1", "b"]),
        ("[Peer]\nPublicKey = a\n\n# b\n\n[Peer]\n", ["b", "peer-2"]),  # not right above
        ("# a\n[Peer]\n# a\n[Peer]\n", ["a", "a-2"]),
        ("# this one is a long story\n[Peer]\n", ["peer-1"]),
        ("# Alice's big box!\n[Peer]\n", ["Alice-s-big-box"]),
        ("# ###\n[Peer]\n", ["peer-1"]),
        ("# übung\n[Peer]\n", ["übung"]),
        ("[Peer]\n#Endpoint = 1.2.3.4:5\n#PresharedKey = x\n", ["peer-1"]),
        ("# Client: Zoe's new red tablet (51a6c3f0-0b1d-4f0c-9d7e-2b1f0c6d5e4a)\n[Peer]\n", ["Zoe-s-new-red-tablet"]),
        ("# 51a6c3f0-0b1d-4f0c-9d7e-2b1f0c6d5e4a\n[Peer]\n", ["51a6c3f0-0b1d-4f0c-9d7e-2b1f0c6d5e4a"]),
        ("# 10: laptop > wgclient_laptop.conf\n[Peer]\n", ["laptop"]),
        ("# zoe / zoe@example.net / Updated: 2024-01-01 / Created: 2024-01-01\n[Peer]\n", ["zoe"]),
        ("# a start\n[Peer]\n# a end\n# b start\n[Peer]\n# b end\n", ["a", "b"]),
        ("# quick start\n[Peer]\n# week end\n[Peer]\n", ["quick", "peer-2"]),
        ("# fresh start\n[Peer]\n", ["fresh-start"]),
        ('# friendly_json = {"mail": "x", "name": "zoe"}\n[Peer]\n', ["zoe"]),
        ("# Телефон Анны\n[Peer]\n# 東京\n[Peer]\n", ["Телефон-Анны", "東京"]),
        ("# e\u0301te\u0301\n[Peer]\n", ["été"]),
        ("# " + "я" * 100 + "\n[Peer]\n", ["я" * 64]),
        ("# " + "東" * 60 + "\n[Peer]\n# " + "東" * 60 + "\n[Peer]\n", ["東" * 42, "東" * 42 + "-2"]),
        ("# 😀\n[Peer]\n", ["peer-1"]),
        ("[Peer]\nPublicKey = a\n\n# b\n#[Peer]\n#PublicKey = x\n\n[Peer]\n", ["peer-1", "b", "peer-3"]),
        ("[Peer]\nPublicKey = a\n#[Peer]\n## Name = b\n#PublicKey = x\n# c\n[Peer]\n", ["peer-1", "b", "c"]),
        ("#[disabled] ### begin b ###\n#[disabled] [Peer]\n#[disabled] PublicKey = x\n[Peer]\n", ["b", "peer-2"]),
        (f"[Peer]\n# {PRIVATE}\n", ["peer-1"]),
        (f"# Name = {PRIVATE}\n[Peer]\n", ["peer-1"]),
        ("# " + "n" * 100 + "\n[Peer]\n", ["peer-1"]),
    ],
)
def test_the_names_of_peers_come_from_comments(text: str, expected: list[str]) -> None:
    document = wg_quick.parse("[Interface]\nMTU = 1\n\n" + text, "wg0.conf")
    assert peer_names(document.peers) == expected


def test_a_parsed_and_a_converted_file_show_no_key() -> None:
    document = wg_quick.parse(SERVER, "wg0.conf")
    found = conversion.to_server(document, "wg0.conf")
    for shown in (repr(document), repr(found), found.toml):
        assert PRIVATE not in shown
        assert PRESHARED not in shown
    assert OWN_PUBLIC not in found.toml
