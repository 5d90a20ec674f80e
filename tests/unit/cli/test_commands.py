"""The command line: what each command prints, and its exit status: 2 for the operator's mistakes, 1 for failures."""

import base64
import errno
import gc
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import click
import pytest
from click.testing import CliRunner, Result

import oxidize
from oxidize import config, takeover
from oxidize.cli import common
from oxidize.cli.commands import main
from oxidize.control import query as query_module
from oxidize.control import reload as reload_module
from oxidize.errors import ConfigError, Phase, TakeoverError
from tests.support.config_files import ALICE, BOB, CLIENT, PRIVATE, SERVER, peer, secret

RUNNING = {"generation": 4, "pid": 4242, "log_level": "debug"}


SCORE = Path("/proc/self/oom_score_adj")
CONTEXT = click.Context(main)
COMMANDS = main.list_commands(CONTEXT)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    secret(tmp_path / "server.key", PRIVATE)
    path = tmp_path / "server.toml"
    path.write_text(SERVER + 'takeover_socket = "t.sock"\n' + peer())
    return path


def run(*arguments: object, stdin: bytes = b"") -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], input=stdin)


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_fits_into_80_columns_and_no_summary_is_cut(command: str) -> None:
    result = CliRunner().invoke(main, [*([command] if command else []), "-h"], terminal_width=80)
    assert result.exit_code == 0
    assert max(map(len, result.output.splitlines())) <= 80
    assert not any(line.endswith("...") for line in result.output.splitlines()[1:])


def test_version_option_prints_the_version() -> None:
    assert run("--version").output == f"oxidize, version {oxidize.__version__}\n"


def test_no_garbage_is_looked_for_while_a_command_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def generate(_: object) -> bytes:
        looks.append(gc.isenabled())
        return bytes(32)

    looks: list[bool] = []
    monkeypatch.setattr("oxidize.protocol.crypto.generate_private_key", generate)
    assert run("genkey").exit_code == 0
    assert (looks, gc.isenabled()) == ([False], True)


@pytest.mark.parametrize("arguments", [["nonsense"], ["server", "--nonsense"], ["genkey", "extra"], []])
def test_wrong_usage_exits_with_2(arguments: list[str]) -> None:
    assert run(*arguments).exit_code == 2


# --- check ---


def test_check_reports_a_valid_configuration(path: Path) -> None:
    result = run("check", "-c", path)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == f"{path}: good: 1 peer\n"
    path.write_text(path.read_text() + peer("bob", BOB, '"10.0.0.3/32"'))
    assert run("check", "-c", path).stdout == f"{path}: good: 2 peers\n"


def test_check_accepts_a_client_configuration(path: Path) -> None:
    path.write_text(CLIENT + 'allowed_ips = ["10.0.0.0/24"]\n')
    assert run("check", "-c", path, "--client").stdout == f"{path}: good: 1 peer\n"


def test_check_prints_one_line_for_each_mistake(path: Path) -> None:
    path.write_text(path.read_text() + "nonsense = 1\n" + peer("alice", ALICE, '"10.0.0.2/32"'))
    (path.parent / "server.key").chmod(0o644)
    result = run("check", "-c", path)
    lines = result.stderr.splitlines()
    assert (result.exit_code, result.stdout) == (2, "")
    assert len(lines) >= 4
    assert all(line.startswith(f"oxidize: {path}: ") for line in lines)


@pytest.mark.parametrize("command", ["server", "client", "check", "reload", "status"])
@pytest.mark.parametrize("what", ["missing", "a folder"])
def test_an_unreadable_configuration_is_a_one_line_error(command: str, what: str, tmp_path: Path) -> None:
    path = tmp_path / "none.toml" if what == "missing" else tmp_path
    result = run(command, "-c", path)
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"oxidize: {path}: ")


@pytest.mark.parametrize("command", [["server"], ["client"], ["check"], ["reload"], ["status"], ["peer", "list"]])
def test_a_configuration_of_another_user_is_a_one_line_error(
    command: list[str], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refuse to open the file, as for a user without the right to read it."""

    def refuse(*arguments: object) -> NoReturn:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "access", lambda *arguments: False)
    monkeypatch.setattr(Path, "open", refuse)
    result = run(*command, "-c", path)
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"oxidize: {path}: Permission denied: expected a readable configuration file")


@pytest.mark.root
@pytest.mark.needs("setpriv")
@pytest.mark.parametrize("unreadable", ["server.key", "server.toml"])
def test_root_without_the_right_to_files_of_others_is_told_so(path: Path, tmp_path: Path, unreadable: str) -> None:
    file = tmp_path / unreadable
    file.chmod(0o600)
    os.chown(file, 65_534, 65_534)
    os.chown(path, 65_534, 65_534)  # so that a key of the same user is accepted
    command = ("setpriv", "--bounding-set=-all", sys.executable, "-P", "-m", "oxidize", "check", "-c", str(path))
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "Permission denied" in line
    assert "as in a container without CAP_DAC_OVERRIDE" in line
    assert "`sudo chown -R root: FOLDER`" in line


# --- keys ---


def test_generated_keys_have_the_form_of_wg() -> None:
    private = run("genkey").stdout
    key = base64.b64decode(private)
    assert len(key) == 32
    assert (key[0] & 7, key[31] & 0xC0) == (0, 0x40)  # clamped, as wg genkey writes it
    assert private == base64.b64encode(key).decode() + "\n"
    assert len(base64.b64decode(run("genpsk").stdout)) == 32
    assert run("genpsk").stdout != run("genpsk").stdout


def wg(command: str, stdin: bytes = b"") -> tuple[int, bytes]:
    done = subprocess.run(["wg", command], input=stdin, capture_output=True, check=False)
    return done.returncode, done.stdout


@pytest.mark.needs("wg")
@pytest.mark.parametrize("maker", ["oxidize", "wg"])
def test_pubkey_agrees_with_wg(maker: str) -> None:
    private = run("genkey").stdout_bytes if maker == "oxidize" else wg("genkey")[1]
    assert (0, run("pubkey", stdin=private).stdout_bytes) == wg("pubkey", private)


@pytest.mark.needs("wg")
@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"AAAA\n",
        b"\xff\xfe\n",
        b"A" * 43 + b"\n",
        b"A" * 42 + b"B=\n",  # bits that belong to no byte
        b"A" * 44 + b"\n",
        b"A" * 43 + b"=" + b"A\n",
        b"!" * 43 + b"=\n",
    ],
)
def test_pubkey_refuses_what_wg_refuses(text: bytes) -> None:
    result = run("pubkey", stdin=text)
    assert wg("pubkey", text)[0] == result.exit_code == 1
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("oxidize: standard input: expected one key")
    assert (text.decode("latin-1").strip() or "none") not in line


# --- status and reload, of a process that is not there, or is made up ---


@pytest.mark.parametrize("command", ["status", "reload"])
def test_a_command_without_a_running_process_is_a_one_line_error(command: str, path: Path) -> None:
    result = run(command, "-c", path)
    assert (result.exit_code, result.stdout) == (1, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"oxidize: nothing runs: no process listens at {path.parent}/t.sock; start it with")


def test_a_regular_file_at_the_takeover_socket_is_a_one_line_error(path: Path) -> None:
    (path.parent / "t.sock").write_text("")
    result = run("status", "-c", path)
    assert (result.exit_code, len(result.stderr.splitlines())) == (1, 1)


@pytest.mark.parametrize("command", ["check", "reload", "status"])
def test_the_default_configuration_depends_on_the_role(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(common, "SERVER_CONFIG", tmp_path / "server.toml")
    monkeypatch.setattr(common, "CLIENT_CONFIG", tmp_path / "client.toml")
    assert run(command).stderr.startswith(f"oxidize: {tmp_path}/server.toml: No such file")
    assert run(command, "--client").stderr.startswith(f"oxidize: {tmp_path}/client.toml: No such file")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The takeover sockets that were queried; a process answers at each."""
    asked: list[Path] = []

    def fetch(socket: Path, what: str = "status") -> dict[str, object]:
        asked.append(socket)
        return dict(RUNNING)

    monkeypatch.setattr(query_module, "fetch", fetch)
    monkeypatch.setattr(takeover, "who_listens", lambda *_, **__: (RUNNING["pid"], os.getuid()))
    return asked


def test_status_prints_json(path: Path, asked: list[Path]) -> None:
    result = run("status", "-c", path, "--json")
    assert result.exit_code == 0
    assert result.stdout.startswith('{\n  "generation": 4,\n')
    assert asked == [path.parent / "t.sock"]


def test_status_needs_neither_a_valid_configuration_nor_the_key(path: Path, asked: list[Path]) -> None:
    (path.parent / "server.key").unlink()
    path.write_text(path.read_text() + "nonsense = 1\n[server\n")
    assert run("status", "-c", path, "--json").exit_code == 0
    assert asked == [path.parent / "t.sock"]


def test_reload_prints_its_outcome(path: Path, asked: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def reload(*arguments: object, **_: object) -> dict[str, object]:
        calls.append(arguments)
        report: dict[str, object] = {"generation": 5, "pid": 77, "sessions": 1, "blackout_ms": 1.26}
        report |= {"refused": {"not wanted": 2}, "warnings": ["listen"]}
        return {**report, "seconds": 0.5}

    monkeypatch.setattr(reload_module, "reload", reload)
    result = run("reload", "-c", path)
    assert result.exit_code == 0
    assert result.stdout == "reloaded: generation 5, pid 77: 1 session moved, blackout 1.3 ms, 0.50 s in all\n"
    assert result.stderr == "oxidize: warning: listen\noxidize: 2 peers not moved: not wanted\n"
    assert run("reload", "-c", path, "--log-level", "error").exit_code == 0
    found = path.parent / "t.sock"
    assert calls == [("server", path, "debug", found, 4242, None), ("server", path, "error", found, 4242, None)]


@pytest.mark.parametrize(
    ("command", "function"),
    [("rehearse", "oxidize.runtime.rehearsal.rehearse"), ("reload", "oxidize.control.reload.reload")],
)
def test_a_command_with_the_memory_of_a_server_is_what_the_kernel_ends_first(
    path: Path, asked: list[Path], monkeypatch: pytest.MonkeyPatch, command: str, function: str
) -> None:
    def tell_score(*_: object, **__: object) -> NoReturn:
        raise TakeoverError(Phase.PREPARING, f"score {SCORE.read_text().strip()}")

    before = SCORE.read_text()
    monkeypatch.setattr(function, tell_score)
    assert "score 1000" in run(command, "-c", path).stderr
    assert SCORE.read_text() == before


def test_a_failed_reload_prints_the_reason_and_the_serving_process(
    path: Path, asked: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def reload(*arguments: object, **_: object) -> dict[str, object]:
        raise TakeoverError(Phase.PREPARING, "no such release")

    monkeypatch.setattr(reload_module, "reload", reload)
    result = run("reload", "-c", path)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.splitlines() == [
        "oxidize: reload failed while preparing: no such release",
        "oxidize: not reloaded: generation 4, pid 4242, still serves",
    ]


def test_a_reload_with_an_invalid_configuration_prints_the_serving_process(path: Path, asked: list[Path]) -> None:
    path.write_text(path.read_text() + "nonsense = 1\n")
    result = run("reload", "-c", path)
    assert result.exit_code == 2
    lines = result.stderr.splitlines()
    assert lines[0].startswith(f"oxidize: {path}: peer.alice.nonsense = 1")
    assert lines[1:] == ["oxidize: not reloaded: generation 4, pid 4242, still serves"]


# --- Where a process is found by a broken configuration ---


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('[server]\ntakeover_socket = "a.sock"\nlisten = 3\n', "a.sock"),
        ('[server]\n[server\n takeover_socket = "a.sock" # here\n', "a.sock"),
        ("[server]\ntakeover_socket = '/run/x/a.sock'\n= =\n", "/run/x/a.sock"),
        ('[server]\n\xff\ntakeover_socket = "a.sock"\n', "a.sock"),
        ('[server]\ntakeover_socket = "a.sock\n', None),
        ("[server]\ntakeover_socket = 3\n", None),
        ('[client]\ntakeover_socket = 3\n[server]\nlisten = "x"\n', None),
        ("", None),
    ],
)
def test_the_takeover_socket_is_read_from_any_configuration(tmp_path: Path, text: str, expected: str | None) -> None:
    path = tmp_path / "server.toml"
    path.write_bytes(text.encode("latin-1"))
    environ = {"XDG_RUNTIME_DIR": "/run/user/7"}
    default = config.default_takeover_socket(environ=environ)
    assert config.takeover_socket_of(path, "server", environ) == (tmp_path / expected if expected else default)


def test_a_client_has_a_default_takeover_socket_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "client.toml"
    path.write_text("")
    assert config.takeover_socket_of(path, "client", {}) == Path("/run/oxidize-client/takeover.sock")


def test_the_takeover_socket_agrees_with_the_loaded_configuration(path: Path) -> None:
    assert config.takeover_socket_of(path, "server") == config.load_server(path).takeover_socket
    path.write_text(SERVER + peer())
    assert config.takeover_socket_of(path, "server") == config.load_server(path).takeover_socket


def test_every_installed_program_runs() -> None:
    assert COMMANDS == [
        "check",
        "clean-up",
        "client",
        "deploy",
        "drain",
        "genkey",
        "genpsk",
        "import",
        "init",
        "kill-switch",
        "name-servers",
        "peer",
        "pubkey",
        "rehearse",
        "releases",
        "reload",
        "rollback",
        "server",
        "status",
        "stop",
        "watch",
    ]
    assert all(isinstance(main.get_command(CONTEXT, name), click.Command) for name in COMMANDS)
    assert issubclass(ConfigError, Exception)


def test_a_command_that_only_asks_the_running_process_imports_no_schema() -> None:
    code = "import sys, oxidize.cli.commands, oxidize.cli.status_page, oxidize.cli.reload; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout.split()
    assert "oxidize.cli.status_page" in loaded
    assert {"pydantic", "oxidize.config.schema"}.isdisjoint(loaded)


def test_the_version_is_the_name_of_the_installed_release() -> None:
    name = f"{oxidize.__version__}-20261125T033030Z-152fc8b"
    code = f"import sys; sys.prefix = '/opt/oxidize/releases/{name}'; from oxidize.cli.commands import main; main()"
    command = [sys.executable, "-P", "-c", code, "--version"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == f"oxidize, version {name}\n"


def test_a_missing_configuration_says_how_to_get_one(tmp_path: Path) -> None:
    for command in (["check"], ["status"], ["server"], ["peer", "add", "a"], ["peer", "remove", "a"], ["peer", "list"]):
        (line,) = run(*command, "-c", tmp_path / "none.toml").stderr.splitlines()
        assert "No such file or directory: expected a configuration file; name another one with -c FILE" in line
        for source in ("oxidize init", "oxidize import", "oxidize peer add", "examples/"):
            assert source in line


def test_commands_work_in_a_folder_that_was_removed(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    for given in (path, "../server.toml"):
        result = run("check", "-c", given)
        assert (result.exit_code, result.stdout) == (0, f"{path}: good: 1 peer\n"), result
    for command in (["check"], ["server"], ["reload"], ["peer", "list"]):
        (line,) = run(*command, "-c", "none.toml").stderr.splitlines()
        assert line.startswith("oxidize: none.toml: No such file or directory: expected a path from a folder that was")
    (line,) = run("deploy").stderr.splitlines()
    assert "gone (deleted): expected a checkout of Oxidize; name one with --source" in line


def test_a_copy_is_checked_as_if_it_were_in_its_place(path: Path, tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere/copy"
    copy.parent.mkdir()
    copy.write_text(path.read_text())
    assert "server.key" in run("check", "-c", copy).stderr
    result = run("check", "-c", copy, "--as", path)
    assert (result.exit_code, result.stderr) == (0, "")
    copy.write_text(CLIENT + 'allowed_ips = ["10.0.0.0/24"]\n')
    assert run("check", "-c", copy, "--client", "--as", path).exit_code == 0


@pytest.mark.parametrize("arguments", [["genkey"], ["genpsk"], ["--help"], ["check", "--help"]])
def test_an_output_that_cannot_be_written_is_a_one_line_error(arguments: list[str]) -> None:
    with Path("/dev/full").open("wb") as full:
        command = [sys.executable, "-P", "-m", "oxidize", *arguments]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    expected = "oxidize: standard output: No space left on device: expected a file or terminal that can be written to\n"
    assert done.stderr == expected


@pytest.mark.parametrize("command", COMMANDS)
def test_help_names_values_as_the_documents_do(command: str) -> None:
    shown = run(*command.split(), "--help").output
    assert re.findall(r" (?:TEXT|FLOAT|INTEGER|[A-Z ]*RANGE|PATH)\b", shown) == []
