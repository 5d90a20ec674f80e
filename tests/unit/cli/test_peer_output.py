"""What `oxidize peer add` shows in terminals of several sizes, and the files that it writes."""

import contextlib
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from oxidize.cli.commands import main
from tests.support.config_files import BOB, PRIVATE, SERVER, peer, secret


@pytest.fixture
def path(tmp_path: Path) -> Path:
    secret(tmp_path / "server.key", PRIVATE)
    path = tmp_path / "server.toml"
    path.write_text(f'{SERVER}takeover_socket = "t.sock"\npublic_endpoint = "vpn.example.org"\n{peer()}')
    return path


def run(path: Path, *arguments: object) -> Result:
    return CliRunner().invoke(main, ["peer", *map(str, arguments), "-c", str(path)])


def in_terminal(path: Path, size: tuple[int, int], *arguments: str, **env: str) -> tuple[int, str]:
    """Run a command in a terminal of so many columns and lines; return its status and what it shows."""
    leader, follower = pty.openpty()
    command = [sys.executable, "-P", "-m", "oxidize", "peer", *arguments, "-c", str(path)]
    environ = {**os.environ, "COLUMNS": str(size[0]), "LINES": str(size[1]), "PYTHONUTF8": "1", **env}
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=follower, stderr=follower, env=environ) as running:
        os.close(follower)
        shown = b""
        with contextlib.suppress(OSError):  # EIO: the last writer is gone
            while part := os.read(leader, 65536):
                shown += part
        os.close(leader)
    return running.returncode, shown.decode().replace("\r\n", "\n")


COLOURS = "\x1b[38;5;231;48;5;16m", "\x1b[0m"


def code_in(shown: str) -> list[str]:
    """Return the lines of the QR code in an output, without their colours."""
    lines = [line for line in shown.splitlines() if line.startswith(COLOURS[0])]
    return [line.removeprefix(COLOURS[0]).partition(COLOURS[1])[0] for line in lines]


def plain(line: str) -> str:
    return re.sub("\x1b\\[[0-9;]*m", "", line)


@pytest.mark.parametrize("size", [(80, 24), (60, 24), (60, 40), (80, 50), (200, 60)])
def test_a_terminal_shows_a_code_and_a_short_form_that_fit_it(path: Path, size: tuple[int, int]) -> None:
    status, shown = in_terminal(path, size, "add", "alice@laptop", "--dns", "10.0.0.1", "--preshared-key")
    assert status == 0
    lines = shown.splitlines()
    code = code_in(shown)
    page = lines[lines.index("") + 1 :]
    assert 20 <= len(code) <= len(page) < size[1]
    assert max(len(plain(line)) for line in page) <= size[0]
    assert page[-1].startswith(COLOURS[0]), "the code is what the terminal shows in the end"
    words = " ".join(" ".join(plain(line.rpartition(COLOURS[1])[2]) for line in page).split())
    for text in ("alice@laptop", "10.0.0.3/24", "vpn.example.org:51820", "Scan the code", "peer renew alice@laptop"):
        assert text in words
    assert "PrivateKey" not in shown
    assert "PresharedKey" not in shown


def test_a_client_with_a_key_of_its_own_gets_the_file(path: Path) -> None:
    status, shown = in_terminal(path, (80, 24), "add", "alice@laptop", "--public-key", BOB)
    assert status == 0
    assert "any WireGuard app, and `oxidize import --client`: alice-laptop.conf" in shown
    assert f"# PrivateKey = <the private key of {BOB}>" in shown
    assert code_in(shown) == []


def test_a_small_terminal_gets_the_reason_instead_of_a_code(path: Path) -> None:
    status, shown = in_terminal(path, (80, 15), "add", "laptop")
    assert status == 0
    assert "(no QR code: it does not fit a terminal of 80x15: enlarge it; or use --format png -o FILE)" in shown
    assert code_in(shown) == []
    before = path.read_text()
    status, shown = in_terminal(path, (25, 50), "add", "phone", "--format", "qr")
    assert (status, "a terminal of 25x50" in " ".join(shown.split())) == (2, True)
    assert max(map(len, shown.splitlines())) <= 25, "the terminal would break a line within a word"
    status, shown = in_terminal(path, (80, 50), "add", "phone", "--format", "qr", PYTHONIOENCODING="ascii")
    assert (status, "expected a terminal of UTF-8, not ascii: set LC_ALL" in " ".join(shown.split())) == (2, True)
    assert path.read_text() == before


@pytest.mark.parametrize("form", ["png", "svg", "conf"])
def test_an_output_file_is_new_and_for_its_owner_only(path: Path, form: str) -> None:
    file = path.parent / f"phone.{form}"
    result = run(path, "add", "phone", "--format", form, "-o", file)
    assert (result.exit_code, result.stdout) == (0, "")
    assert file.stat().st_mode & 0o777 == 0o600
    content = file.read_bytes()
    assert content.startswith({"png": b"\x89PNG\r\n", "svg": b"<?xml ", "conf": b"[Interface]\n"}[form])
    before = path.read_text()
    refused = run(path, "add", "tablet", "--format", form, "-o", file)
    assert (refused.exit_code, f"-o {file}: File exists: expected the name of a new" in refused.stderr) == (2, True)
    assert (file.read_bytes(), path.read_text()) == (content, before)


@pytest.mark.parametrize("form", ["qr", "png", "svg"])
def test_a_code_is_refused_where_it_cannot_be_shown(path: Path, form: str) -> None:
    before = path.read_text()
    result = run(path, "add", "phone", "--format", form)
    assert (result.exit_code, "-o FILE" in result.stderr) == (2, True)
    assert path.read_text() == before
