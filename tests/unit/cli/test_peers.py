"""`oxidize peer`: its outputs, the changed file, and the state after a failed reload."""

import json
import threading
from ipaddress import ip_address
from pathlib import Path

import pytest
from click.testing import CliRunner

from oxidize import config
from oxidize.cli import reload as reload_module
from oxidize.cli.commands import main
from oxidize.cli.peer_add import add
from oxidize.cli.peer_changes import REMOVED_NOT_MOVED
from oxidize.cli.replacement import Reloaded
from oxidize.config.values import format_key
from oxidize.errors import Phase, TakeoverError
from oxidize.protocol.crypto import public_key
from oxidize.provision import server_endpoint
from oxidize.provision.wg_quick import parse
from oxidize.runtime import validated
from oxidize.service_manager import systemctl
from tests.support.config_files import ALICE, BOB, OWN_PUBLIC, PRESHARED, peer, secret
from tests.support.peer_commands import LINES, Running, names, run


@pytest.mark.parametrize("change", [("add", "laptop"), ("remove", "alice")])
def test_a_successor_gets_what_the_command_has_validated(path: Path, running: Running, change: tuple[str, str]) -> None:
    assert run(path, *change).exit_code == 0
    assert isinstance(running.kept, bytes)
    assert validated.find("server", path, [running.kept]) is not None


# --- add ---


def test_a_peer_is_added_without_a_running_server(path: Path) -> None:
    before = path.read_text()
    result = run(path, "add", "laptop")
    assert result.exit_code == 0
    assert result.stderr.splitlines() == [
        "added laptop: 10.0.0.3",
        "no server is running: the change takes effect with the next start",
        "its private key is shown only once and is not stored on this machine",
    ]
    document = parse(result.stdout, "stdout")
    private = document.interface.last("PrivateKey")
    assert private is not None
    (server,) = document.peers
    values = {setting.name: setting.value for setting in [*document.interface.settings, *server.settings]}
    assert values == {
        "PrivateKey": private.value,
        "Address": "10.0.0.3/24",
        "PublicKey": OWN_PUBLIC,
        "Endpoint": "vpn.example.org:51820",
        "AllowedIPs": "10.0.0.0/24",
        "PersistentKeepalive": "25",
    }
    assert path.read_text().startswith(before)
    added = config.load_server(path).peers[1]
    key = config.values.parse_key(private.value)
    assert key is not None
    assert (added.name, added.public_key) == ("laptop", public_key(key))
    assert [str(network) for network in added.allowed_ips] == ["10.0.0.3/32"]
    assert private.value not in "".join(file.read_text() for file in path.parent.iterdir())


def test_peer_add_applies_every_option(path: Path) -> None:
    result = run(
        path,
        *(
            "add",
            "laptop",
            "--format",
            "script",
            "--endpoint",
            "[2001:db8::1]:9",
            "--full",
            "--dns",
            "10.0.0.1,fd09::1, corp.example.org",
        ),
        *("--keepalive", "0", "--public-key", BOB, "--preshared-key", "--no-reload"),
    )
    assert result.exit_code == 0, result.stderr
    assert "not reloaded: the change takes effect with the next reload or start\n" in result.stderr
    preshared = (path.parent / "laptop.psk").read_text().strip()
    for text in (
        '\nserver = "[2001:db8::1]:9"\n',
        '\nallowed_ips = ["0.0.0.0/0", "::/0"]\n',
        '\ndns = ["10.0.0.1", "fd09::1", "corp.example.org"]\n',
        "\npersistent_keepalive = 0\n",
        f"\n{preshared}\n",
    ):
        assert text in result.stdout
    assert "client.key <<" not in result.stdout
    added = config.load_server(path).peers[1]
    assert (format_key(added.public_key), format_key(added.preshared_key)) == (BOB, preshared)


def test_the_running_server_applies_an_added_peer(path: Path, running: Running) -> None:
    result = run(path, "add", "laptop")
    assert result.exit_code == 0
    assert result.stderr.splitlines()[1:3] == ["reloaded: made up", "oxidize: warning: listen"]
    assert "Endpoint = vpn.example.org:4711\n" in result.stdout
    assert (running.reloads, len(running.peers)) == (1, 2)


def test_systemd_reloads_its_own_server(path: Path, running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    reloaded: list[str] = []

    def reload(service: str) -> None:
        reloaded.append(service)
        running.load()

    monkeypatch.setattr(systemctl, "service_of", lambda pid: "oxidize-daemon.service")
    monkeypatch.setattr(systemctl, "reload", reload)
    result = run(path, "add", "laptop")
    assert (result.exit_code, reloaded, running.reloads) == (0, ["oxidize-daemon.service"], 0)
    assert "reloaded oxidize-daemon.service\n" in result.stderr


@pytest.mark.parametrize("command", [("add", "laptop", "--preshared-key"), ("remove", "alice")])
def test_a_failed_reload_restores_the_file(path: Path, running: Running, command: tuple[str, ...]) -> None:
    before = {file.name: file.read_text() for file in path.parent.iterdir()}
    running.failure = TakeoverError(Phase.PREPARING, "no such release")
    result = run(path, *command)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.splitlines()[1:] == [
        "oxidize: failed while preparing: no such release",
        "oxidize: not reloaded: generation 4, pid 4242, still serves",
        f"oxidize: {path} has been restored",
    ]
    assert {file.name: file.read_text() for file in path.parent.iterdir()} == before


def test_a_reload_that_fails_after_the_change_is_applied_is_a_warning(path: Path, running: Running) -> None:
    running.failure = TakeoverError(Phase.TAKING_OVER, "the successor ended without a reason")
    running.takes_up_although_it_fails = True
    result = run(path, "add", "laptop")
    assert result.exit_code == 0
    assert "oxidize: warning: the reload ended with an error, but the change is in force" in result.stderr
    assert names(path) == ["alice", "laptop"]


def test_a_server_with_another_configuration_is_an_error(path: Path, running: Running) -> None:
    running.is_deaf = True
    before = path.read_text()
    result = run(path, "add", "laptop")
    assert result.exit_code == 1
    assert "it runs with another configuration" in result.stderr
    assert path.read_text() == before


def test_an_edit_saved_during_the_reload_is_not_lost(
    path: Path, running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reload(*arguments: object) -> Reloaded:
        path.write_text(path.read_text() + "# edited\n")
        raise TakeoverError(Phase.PREPARING, "no")

    monkeypatch.setattr(reload_module, "replace_process", reload)
    result = run(path, "add", "laptop")
    assert result.exit_code == 1
    assert f"oxidize: {path}: the change is still in the file" in result.stderr
    assert path.read_text().endswith("# edited\n")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["alice"], "NAME alice: expected a name that no peer has"),
        (["a b"], "NAME a b: expected 1 to 64 of letters"),
        (["x", "--endpoint", "a:b"], '--endpoint a:b: expected "host" or "host:port"'),
        (["x", "--endpoint", "a:b:99999"], '--endpoint a:b:99999: expected "host" or "host:port"'),
        (["x", "--endpoint", "+:99999"], '--endpoint +:99999: expected "host" or "host:port"'),
        (["x", "--endpoint", "fd09::1:99999"], 'write "[fd09::1]:99999"'),
        (["x", "--endpoint", "a:0"], "--endpoint a:0: expected a port from 1 to 65535, and 0 is out of that range"),
        (["x", "--endpoint", "a:99999"], "a:99999: expected a port from 1 to 65535, and 99999 is out of that range"),
        (["x", "--endpoint", f"[fd09::1]:{'9' * 5000}"], "expected a port from 1 to 65535, and 999"),
        (["x", "--allowed-ips", "10.0.0.1/24"], "--allowed-ips 10.0.0.1/24: expected a network without host bits"),
        (["x", "--allowed-ips", "10.0.0.0/24", "--full"], "--full and --allowed-ips: expected one of them"),
        (["x", "--dns", "dns.example"], "--dns dns.example: expected the address of at least one name server"),
        (["x", "--dns", "10.9.0.1,,x"], "--dns 10.9.0.1,,x: expected the address of a name server"),
        (["x", "--public-key", BOB[:-2]], f"--public-key {BOB[:-2]}: expected a public key"),
        (
            ["x", "--public-key", ALICE],
            f"--public-key {ALICE}: expected a key that no peer has, but alice has it; `oxidize peer remove alice` fi",
        ),
        (["x", "--public-key", OWN_PUBLIC], "expected the other side's public key"),
    ],
)
def test_an_invalid_option_is_a_one_line_error_and_changes_nothing(
    path: Path, arguments: list[str], expected: str
) -> None:
    before = path.read_text()
    result = run(path, "add", *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert expected in line
    assert path.read_text() == before


def test_a_broken_configuration_is_reported_and_left_alone(path: Path) -> None:
    path.write_text(path.read_text() + "nonsense = 1\n")
    before = path.read_bytes()
    for command in (("add", "laptop"), ("remove", "alice"), ("list",)):
        result = run(path, *command)
        assert (result.exit_code, result.stdout) == (2, "")
        assert result.stderr.startswith(f"oxidize: {path}: peer.alice.nonsense = 1")
    assert path.read_bytes() == before


def test_a_full_network_is_an_error(path: Path) -> None:
    path.write_text(path.read_text().replace('"10.0.0.1/24"', '"10.0.0.1/30"'))
    result = run(path, "add", "laptop")
    assert result.exit_code == 2
    assert "10.0.0.0/30: no free address" in result.stderr


def test_a_preshared_key_that_is_there_already_is_not_overwritten(path: Path) -> None:
    secret(path.parent / "laptop.psk", PRESHARED)
    before = path.read_text()
    result = run(path, "add", "laptop", "--preshared-key")
    assert result.exit_code == 2
    assert "laptop.psk: File exists" in result.stderr
    assert (path.parent / "laptop.psk").read_text() == PRESHARED
    assert path.read_text() == before


@pytest.mark.parametrize(
    ("address", "warning"),
    [("9.9.9.9", "own address;"), ("10.1.2.3", "and private: no")],
)
def test_a_guessed_endpoint_is_a_warning(
    path: Path, monkeypatch: pytest.MonkeyPatch, address: str, warning: str
) -> None:
    path.write_text(path.read_text().replace('public_endpoint = "vpn.example.org"\n', 'listen = "[::]:7"\n'))
    monkeypatch.setattr(server_endpoint, "guess", lambda: ip_address(address))
    result = run(path, "add", "laptop")
    assert f"Endpoint = {address}:7\n" in result.stdout
    (line,) = (line for line in result.stderr.splitlines() if "guess" in line)
    assert warning in line
    assert "--endpoint HOST, or set public_endpoint" in line
    monkeypatch.setattr(server_endpoint, "guess", lambda: None)
    assert "--endpoint is missing" in run(path, "add", "phone").stderr


@pytest.mark.parametrize(
    ("lines", "arguments", "warning"),
    [
        ("", ["--full"], "laptop routes 0.0.0.0/0 and ::/0 to this server, and without nat = true it reaches nothing"),
        ("", ["--allowed-ips", "10.0.0.0/24,::/0"], "laptop routes ::/0 to this server, "),
        ("", ["--full"], "; write nat = true under [server], and reload"),
        ('network = "userspace"\n', ["--full"], '; write network = "tun" and nat = true under [server], and restart'),
        ("", ["--allowed-ips", "10.0.0.0/8"], None),
        ("nat = true\n", ["--full"], None),
        ('nat = {sources = ["10.0.0.0/24", "::/0"]}\n', ["--full"], None),
        (
            "nat = {sources = []}\n",
            ["--full"],
            "which does not translate 10.0.0.3; add that to sources under [server.nat",
        ),
        ("", [], None),
    ],
)
def test_a_client_whose_traffic_would_not_be_forwarded_is_a_warning(
    path: Path, lines: str, arguments: list[str], warning: str | None
) -> None:
    path.write_text(path.read_text().replace("\n# Alice\n", f"{lines}\n# Alice\n"))
    result = run(path, "add", "laptop", *arguments)
    assert result.exit_code == 0, result.stderr
    warnings = [line for line in result.stderr.splitlines() if line.startswith("oxidize: warning: ")]
    assert len(warnings) == (warning is not None)
    assert all(str(warning) in line for line in warnings)


def test_a_link_to_the_configuration_is_followed(path: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.toml"
    link.symlink_to(path)
    assert run(link, "add", "laptop").exit_code == 0
    assert link.is_symlink()
    assert names(path) == ["alice", "laptop"]


def test_concurrent_additions_lose_no_peer(path: Path) -> None:
    """Threads, each with its own lock on the folder as processes have."""
    results: list[int] = []

    def one(number: int) -> None:
        arguments = [f"peer-{number}", "--no-reload", "--format", "conf", "-c", str(path)]
        try:
            add.main(arguments, standalone_mode=False)
        except SystemExit as error:
            results.append(int(str(error.code)))

    threads = [threading.Thread(target=one, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == []
    loaded = config.load_server(path)
    assert len(loaded.peers) == 21
    assert len({network for one in loaded.peers for network in one.allowed_ips}) == 21


def test_an_output_file_goes_with_a_failed_reload(path: Path, running: Running) -> None:
    running.failure = TakeoverError(Phase.PREPARING, "made up")
    assert run(path, "add", "phone", "-o", path.parent / "phone.conf").exit_code == 1
    assert not (path.parent / "phone.conf").exists()


# --- list and remove ---


def test_peer_list_shows_connections(path: Path, running: Running) -> None:
    running.session_of = ALICE
    path.write_text(path.read_text() + peer("bob", BOB, '"10.0.0.3/32", "10.0.0.128/25"'))
    result = run(path, "list")
    assert result.stdout.splitlines() == [
        "peer   public key  allowed ips                 connected  last handshake",
        f"alice  {ALICE[:10]}  10.0.0.2/32                 yes        never",
        f"bob    {BOB[:10]}  10.0.0.3/32, 10.0.0.128/25  no         never",
    ]
    assert result.stderr == "not loaded by the running server: bob; run `oxidize reload`\n"
    found = json.loads(run(path, "list", "--json").stdout)
    assert [(row["name"], row["is_loaded"], row["has_session"]) for row in found] == [
        ("alice", True, True),
        ("bob", False, False),
    ]


def test_peer_list_without_a_running_server_shows_no_connections(path: Path) -> None:
    result = run(path, "list")
    assert result.stdout.splitlines()[0] == "peer   public key  allowed ips"
    assert result.stderr == "no server is running\n"
    assert json.loads(run(path, "list", "--json").stdout)[0]["has_session"] is None


def test_peer_list_shows_disabled_peers(path: Path, running: Running) -> None:
    path.write_text(path.read_text() + peer("bob", BOB, '"10.0.0.2/32"', "enabled = false"))
    lines = run(path, "list").stdout.splitlines()
    assert lines[2].split() == ["bob", BOB[:10], "10.0.0.2/32", "disabled", "never"]
    rows = json.loads(run(path, "list", "--json").stdout)
    assert [(row["enabled"], row["is_loaded"]) for row in rows] == [(True, True), (False, True)]
    running.peers.append(config.load_server(path).peers[1].public_key)
    assert run(path, "list").stderr == "not loaded by the running server: bob; run `oxidize reload`\n"


def test_peer_list_shows_disabled_peers_without_a_running_server(path: Path) -> None:
    path.write_text(path.read_text() + peer("bob", BOB, '"10.0.0.3/32"', "enabled = false"))
    assert [line.split()[3:] for line in run(path, "list").stdout.splitlines()[1:]] == [[], ["disabled"]]


def test_a_peer_is_removed(path: Path, running: Running) -> None:
    running.session_of = ALICE
    result = run(path, "remove", "alice")
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr.splitlines() == [
        "removed alice and the comment above it",
        "reloaded: made up",
        "oxidize: warning: listen",
        "its session has ended",
    ]
    assert path.read_text() == LINES


@pytest.mark.parametrize(
    ("number", "expected"),
    [("1 peer", []), ("2 peers", [f"oxidize: {REMOVED_NOT_MOVED.replace('1 peer', '2 peers')}"])],
)
def test_a_removal_is_reported_once(
    path: Path, running: Running, monkeypatch: pytest.MonkeyPatch, number: str, expected: list[str]
) -> None:
    def reload(*arguments: object) -> Reloaded:
        running.load()
        return Reloaded("reloaded: made up", (REMOVED_NOT_MOVED.replace("1 peer", number),))

    monkeypatch.setattr(reload_module, "replace_process", reload)
    running.session_of = ALICE
    lines = run(path, "remove", "alice").stderr.splitlines()
    assert lines[1:] == ["reloaded: made up", *expected, "its session has ended"]


def test_a_removed_peer_takes_its_preshared_key_with_it(path: Path) -> None:
    assert run(path, "add", "laptop", "--preshared-key").exit_code == 0
    secret(path.parent / "own.psk", PRESHARED)
    path.write_text(path.read_text() + peer("bob", BOB, '"10.0.0.9/32"', 'preshared_key_file = "own.psk"'))
    assert run(path, "remove", "laptop").exit_code == run(path, "remove", "bob").exit_code == 0
    assert not (path.parent / "laptop.psk").exists()
    assert (path.parent / "own.psk").exists()


def test_an_unknown_name_suggests_a_close_match(path: Path) -> None:
    result = run(path, "remove", "alise")
    assert result.exit_code == 2
    assert result.stderr == "oxidize: alise: expected the name of a peer; did you mean alice?\n"


def test_the_help_of_peer_fits_into_80_columns() -> None:
    for command in ("add", "list", "remove"):
        result = CliRunner().invoke(main, ["peer", command, "-h"], terminal_width=80)
        assert result.exit_code == 0
        assert max(map(len, result.output.splitlines())) <= 80
