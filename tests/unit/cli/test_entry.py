"""A process that is to serve begins without the command line, and begins as the command line would have it begin."""

import json
import os
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from oxidize.cli import commands, replacement
from oxidize.cli.entry import reload_given
from oxidize.cli.generation import Generation, recognized
from oxidize.config.paths import Role
from oxidize.holder.foreground import main_command
from oxidize.runtime import validated
from oxidize.runtime.late_imports import MODULES
from tests.support.config_files import CLIENT, PRIVATE, SERVER, secret

ROOT = Path(__file__).parents[3]
X25519 = "cryptography.hazmat.backends.openssl"  # imported by its first use
NOT_IMPORTED = (
    *("click", "rich", "prometheus_client", "ssl", "pyroute2"),
    *("oxidize.metrics", "oxidize.cli.commands", "oxidize.cli.common", "h11", "oxidize.runtime.handover"),
)
NOT_IMPORTED_AFTER_A_CRASH = (
    *NOT_IMPORTED,
    *("pydantic", "tomli", "oxidize.config.schema", "oxidize.takeover.messages"),
    *("dataclasses", "inspect"),  # with the classes of records this took a fifth of a start
    X25519,
)
UNITS = ("oxidize-daemon.service", "oxidize-client.service")


class BegunError(Exception):
    """A generation would begin now."""


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "/nowhere")


def assert_prints(code: str, expected: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.stdout == expected, done.stderr


def by_the_commands(arguments: list[str]) -> Generation | None:
    """Return the generation that the commands begin for these arguments, None if they begin none."""
    begun: list[Generation] = []

    def serve(generation: Generation) -> None:
        begun.append(generation)
        raise BegunError

    def hold(*_: Any) -> None:
        raise BegunError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(commands, "serve", serve)
        patch.setattr(commands, "load", hold)
        CliRunner().invoke(commands.main, arguments)
    return begun[0] if begun else None


@pytest.mark.usefixtures("held")
@pytest.mark.parametrize("unit", UNITS)
def test_what_a_unit_starts_is_recognized(unit: str) -> None:
    found = re.search(r"^ExecStart=\S+ (.*)$", (ROOT / "systemd" / unit).read_text(), re.MULTILINE)
    assert found is not None
    generation = recognized(found[1].split())
    assert generation is not None
    assert generation == by_the_commands(found[1].split())


@pytest.mark.usefixtures("held")
@pytest.mark.parametrize("role", ["server", "client"])
def test_what_a_holder_and_a_reload_start_is_recognized(role: str) -> None:
    command = main_command("/python", role, Path("/etc/a b.toml"), "debug")
    own = command[command.index("oxidize") + 1 :]
    for arguments in (own, [*own, "--control-fd", "3"]):
        generation = recognized(arguments)
        assert generation is not None
        assert generation == by_the_commands(arguments)


@pytest.mark.parametrize("arguments", [["--no-holder"], ["--control-fd", "7"]])
def test_a_generation_without_a_service_manager_is_recognized(arguments: list[str]) -> None:
    generation = recognized(["server", *arguments, "-c", "/a.toml"])
    assert generation is not None
    assert generation == by_the_commands(["server", *arguments, "-c", "/a.toml"])
    assert recognized(["server", "-c", "/a.toml"]) is None, "it becomes a holder"


WORDS = ("server", "client", "-c", "--config", "/a.toml", "a.toml", "--log-level", "debug", "loud", "--control-fd")
MORE_WORDS = ("3", "-1", "²", "--no-holder", "--help", "--", "", "-c/a.toml", "--config=/a.toml", "/b", "--no")


@pytest.mark.usefixtures("held")
@given(st.lists(st.sampled_from(WORDS + MORE_WORDS), max_size=7), st.sampled_from(["server", "client", "check", ""]))
def test_what_is_recognized_is_what_the_commands_would_begin(words: list[str], first: str) -> None:
    generation = recognized([first, *words])
    if generation is not None:
        assert generation == by_the_commands([first, *words])


@pytest.mark.parametrize("has_kept", [False, True], ids=["first start", "after a crash"])
@pytest.mark.parametrize(
    ("role", "text"),
    [
        ("server", SERVER.replace("[server]\n", '[server]\nlisten = "127.0.0.1:0"\nmetrics_listen = "127.0.0.1:0"\n')),
        (
            "client",
            CLIENT.replace("vpn.example.org", "127.0.0.1")
            + 'allowed_ips = ["10.0.0.0/24"]\nmetrics_listen = "127.0.0.1:0"\n',
        ),
    ],
)
def test_what_the_first_packet_does_not_need_is_imported_after_it_in_slices(
    role: Role, text: str, has_kept: bool, tmp_path: Path
) -> None:
    secret(tmp_path / "server.key", PRIVATE)
    path = tmp_path / "oxidize.toml"
    path.write_text(f'{text}network = "userspace"\ntakeover_socket = "t.sock"\n')
    kept = validated.keep(validated.load(role, path).kept)
    not_imported = NOT_IMPORTED_AFTER_A_CRASH if has_kept else NOT_IMPORTED
    code = f"""if True:
        import gc, importlib, json, os, sys
        looks, imported = [], []
        from oxidize.cli import entry
        gc.callbacks.append(lambda phase, _: looks.append(phase))
        from oxidize.net import event_loop
        from oxidize.runtime import late_imports, node
        from oxidize.service_manager import notify
        notify.listen_fds = lambda: {{"settings": [{kept}]}} if {has_kept} else {{}}
        looks.clear()
        def serve(self, before=node.Node.serve):
            found = [name for name in {not_imported!r} if name in sys.modules]
            print(json.dumps([found, len(looks)]), flush=True)
            before(self)
        def run_once(self, timeout=None, before=event_loop.Loop.run_once):
            imported.append([name for name in late_imports.MODULES if name in sys.modules])
            if "oxidize.metrics" in sys.modules:
                print(json.dumps([imported, {X25519!r} in sys.modules]), flush=True)
                os._exit(0)
            before(self, timeout)
        event_loop.Loop.run_once = run_once
        node.Node.serve = serve
        sys.argv = ["oxidize", {role!r}, "--no-holder", "-c", {str(path)!r}]
        entry.main()"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, pass_fds=[kept])
    os.close(kept)
    first, last = done.stdout.splitlines()
    assert json.loads(first) == [[], 0], "imported before the first packet, and looks for garbage"
    imported, has_x25519 = json.loads(last)
    assert has_x25519, "the first handshake waits for it"
    assert imported[-1] == list(MODULES)
    assert all(len(after) - len(before) <= 1 for before, after in pairwise(imported)), "more than one in one iteration"


def test_what_has_waited_is_answered_before_a_successor_can_come(tmp_path: Path) -> None:
    secret(tmp_path / "server.key", PRIVATE)
    path = tmp_path / "oxidize.toml"
    path.write_text(f'{SERVER}network = "userspace"\nmetrics_listen = ""\ntakeover_socket = "t.sock"\n')
    code = f"""if True:
        import os, sys
        from oxidize.cli import entry
        from oxidize.net import event_loop
        from oxidize.runtime import node
        def serve(self, before=node.Node.serve):
            before(self)
            event_loop.Loop.run_once = looked
        def looked(self, timeout=None):
            print(timeout, "oxidize.takeover.messages" in sys.modules, os.path.exists({str(tmp_path / "t.sock")!r}))
            sys.stdout.flush()
            os._exit(0)
        node.Node.serve = serve
        sys.argv = ["oxidize", "server", "--no-holder", "-c", {str(path)!r}]
        entry.main()"""
    assert_prints(code, "0 False False\n")


def test_a_server_without_an_address_for_metrics_imports_nothing_for_them(tmp_path: Path) -> None:
    secret(tmp_path / "server.key", PRIVATE)
    path = tmp_path / "oxidize.toml"
    path.write_text(f'{SERVER}network = "userspace"\nmetrics_listen = ""\ntakeover_socket = "t.sock"\n')
    code = f"""if True:
        import os, sys
        from oxidize.cli import entry
        from oxidize.net import event_loop
        from oxidize.runtime import late_imports, node
        left = 3 * len(late_imports.MODULES)
        def keep_network(self, before=node.Node.keep_network):
            before(self)
            event_loop.Loop.run_once = run_once
        def run_once(self, timeout=None, before=event_loop.Loop.run_once):
            global left
            before(self, 0)
            left -= 1
            if not left:
                print([name for name in ("h11", "prometheus_client", "oxidize.metrics") if name in sys.modules])
                sys.stdout.flush()
                os._exit(0)
        node.Node.keep_network = keep_network
        sys.argv = ["oxidize", "server", "--no-holder", "-c", {str(path)!r}]
        entry.main()"""
    assert_prints(code, "[]\n")


def test_a_mistake_in_the_configuration_is_the_same_lines_and_status(tmp_path: Path) -> None:
    path = tmp_path / "server.toml"
    path.write_text("[server]\nmtu = 1\n")
    command = [sys.executable, "-m", "oxidize", "server", "--no-holder"]
    recognized_way = subprocess.run([*command, "-c", str(path)], capture_output=True, text=True, check=False)
    by_command = subprocess.run([*command, f"--config={path}"], capture_output=True, text=True, check=False)
    assert recognized_way.returncode == by_command.returncode == 2
    assert recognized_way.stderr == by_command.stderr
    assert "server.mtu = 1: expected" in recognized_way.stderr


# --- A reload ---


def reloaded_by_the_commands(arguments: list[str]) -> list[tuple[Role, Path, str | None]]:
    """Return what the commands reload for these arguments."""
    asked: list[tuple[Role, Path, str | None]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(replacement, "reload", lambda *arguments: asked.append(arguments))
        CliRunner().invoke(commands.main, arguments)
    return asked


@pytest.mark.parametrize(("unit", "role"), [(UNITS[0], "server"), (UNITS[1], "client")])
def test_with_what_a_unit_reloads_is_recognized(unit: str, role: Role) -> None:
    found = re.search(r"^ExecReload=\S+ (reload .*)$", (ROOT / "systemd" / unit).read_text(), re.MULTILINE)
    assert found is not None
    assert reload_given(found[1].split()) == (role, Path(f"/etc/oxidize/{role}.toml"))


RELOAD_WORDS = ("--client", "-c", "--config", "/a.toml", "a.toml", "/b", "--log-level", "debug", "--help", "--", "")


@given(st.lists(st.sampled_from(RELOAD_WORDS), max_size=5), st.sampled_from(["reload", "reload", "stop", ""]))
def test_a_recognized_reload_is_the_one_that_the_commands_would_do(words: list[str], first: str) -> None:
    given_words = reload_given([first, *words])
    if given_words is not None:
        assert reloaded_by_the_commands([first, *words]) == [(*given_words, None)]


def test_a_reload_imports_what_it_needs_alone() -> None:
    code = "import sys; from oxidize.cli import entry, replacement; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout.split()
    assert "oxidize.cli.replacement" in loaded
    assert {"click", "pydantic", "tomli", "logging", "dataclasses", "oxidize.takeover.machine"}.isdisjoint(loaded)


@pytest.mark.parametrize(
    ("text", "status", "says"),
    [
        (None, 2, "No such file or directory"),
        ("[server]\nmtu = 1\n", 2, "server.mtu = 1: expected"),
        (SERVER + 'network = "userspace"\ntakeover_socket = "t.sock"\n', 1, "no process listens at"),
    ],
)
def test_a_reload_that_fails_says_the_same_with_and_without_the_command_line(
    text: str | None, status: int, says: str, tmp_path: Path
) -> None:
    secret(tmp_path / "server.key", PRIVATE)
    path = tmp_path / "server.toml"
    if text is not None:
        path.write_text(text)
    command = [sys.executable, "-m", "oxidize", "reload"]
    recognized_way = subprocess.run([*command, "-c", str(path)], capture_output=True, text=True, check=False)
    by_command = subprocess.run([*command, f"--config={path}"], capture_output=True, text=True, check=False)
    assert recognized_way.returncode == by_command.returncode == status
    assert recognized_way.stderr == by_command.stderr
    assert says in recognized_way.stderr
