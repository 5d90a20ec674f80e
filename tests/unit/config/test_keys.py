"""A key file that others can read, or that has no key in it, is refused; and no key is ever shown."""

import base64
import os
from pathlib import Path

import pytest

from oxidize.config import load_client
from oxidize.config.report import HIDDEN, Report
from oxidize.config.schema import PeerTable
from oxidize.config.validation import SourceFile, check_table
from tests.support.config_files import CLIENT, PRESHARED, PRIVATE, SERVER, load, peer, problem, problems, secret


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    secret(tmp_path / "server.key", PRIVATE + "\n")
    secret(tmp_path / "alice.psk", PRESHARED + "\n")
    return tmp_path


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644, 0o610])
def test_a_key_that_others_can_read_is_refused(folder: Path, mode: int) -> None:
    (folder / "server.key").chmod(mode)
    assert problem(folder, SERVER + peer()) == (
        'oxidize.toml: server.private_key_file = "server.key": expected a file that only its owner can read, '
        f'but its mode is {mode:04o}; run "chmod 600 server.key"'
    )


@pytest.mark.parametrize(
    "content", ["", "\n", "not a key", PRIVATE[:-1], PRIVATE + PRIVATE, PRIVATE[:-4], "\xff\xfe", "x" * 10_000]
)
def test_a_file_without_one_key_is_refused(folder: Path, content: str) -> None:
    secret(folder / "server.key", content)
    line = problem(folder, SERVER + peer())
    assert (
        'expected a file with one key: 44 characters of base64 for 32 bytes; write the key to it as "oxidize genkey"'
        in line
    )
    secret(folder / "server.key", PRIVATE)
    secret(folder / "alice.psk", content)
    line = problem(folder, SERVER + peer(more='preshared_key_file = "alice.psk"'))
    assert 'peer.alice.preshared_key_file = "alice.psk"' in line
    assert '"oxidize genpsk" prints it' in line


def test_a_key_file_must_be_a_file(folder: Path) -> None:
    (folder / "server.key").unlink()
    assert "No such file or directory; correct the path" in problem(folder, SERVER + peer())
    (folder / "server.key").mkdir()
    assert "expected a regular file" in problem(folder, SERVER + peer())
    (folder / "server.key").rmdir()
    os.mkfifo(folder / "server.key")
    assert "expected a regular file" in problem(folder, SERVER + peer())


def test_a_private_key_in_the_wrong_place_is_not_shown(folder: Path) -> None:
    start = '[server]\naddress = "10.0.0.1/24"\n'
    for line in (
        f'private_key_file = "{PRIVATE}"',
        f'private_key_file = "{PRIVATE[:-2]}"',
        f'private_key_file = "server.key"\nprivate_key = "{PRIVATE}"',
        'private_key_file = "server.key"\nsecret = "short"',
        f'private_key_file = "server.key"\nnetwork = "{PRIVATE}"',
        f'private_key_file = "server.key"\ninterface = ["{PRIVATE}"]',
        f'private_key_file = "server.key"\ninterface = "{base64.b64decode(PRIVATE).hex()}"',
    ):
        shown = problem(folder, f"{start}{line}\n{peer()}")
        assert HIDDEN in shown
        assert PRIVATE[:10] not in shown
        assert "short" not in shown
    assert "did you mean private_key_file?" in problem(folder, f'{SERVER}private_key = "{PRIVATE}"\n{peer()}')
    assert PRESHARED[:10] not in problem(folder, SERVER + peer(more=f'preshared_key = "{PRESHARED}"'))


def test_the_private_key_as_a_peers_public_key_is_not_shown(folder: Path) -> None:
    lines = problems(folder, SERVER + peer(key=PRIVATE) + peer("bob", PRIVATE, '"10.0.0.3/32"'))
    assert f'peer.bob.public_key = "{HIDDEN}": expected a public key of its own' in lines[0]


def test_a_loaded_configuration_prints_no_secret(folder: Path) -> None:
    server = load(folder, SERVER + peer(more='preshared_key_file = "alice.psk"'))
    client = load(folder, CLIENT + 'allowed_ips = ["10.0.0.0/24"]\npreshared_key_file = "alice.psk"', load_client)
    for shown in (repr(server), repr(client)):
        for key in (PRIVATE, PRESHARED):
            assert key not in shown
            assert repr(base64.b64decode(key)) not in shown


def test_a_table_with_a_mistake_prints_no_secret(folder: Path) -> None:
    source = SourceFile(Report("oxidize.toml"), folder, {})
    checked = check_table(PeerTable, {"name": "alice", "preshared_key_file": "alice.psk"}, "peer.alice", source)
    assert checked.table is None
    assert checked.valid["preshared_key"] == base64.b64decode(PRESHARED)
    assert repr(base64.b64decode(PRESHARED)) not in repr(checked)
