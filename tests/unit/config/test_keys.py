"""A key file that others can read, or that has no key in it, is refused; and no key is ever shown."""

import base64
import hashlib
import os
import pwd
from pathlib import Path

import pytest

from oxidize.config import load_client
from oxidize.config.report import HIDDEN, Report
from oxidize.config.schema import PeerTable
from oxidize.config.source_file import SourceFile
from oxidize.config.validation import check_table
from tests.support.config_files import (
    ALICE,
    BOB,
    CLIENT,
    PRESHARED,
    PRIVATE,
    SERVER,
    load,
    peer,
    problem,
    problems,
    secret,
)


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
    assert [line.partition(":")[2] for line in lines[1:]] == [
        f' peer.{name}.public_key = "{HIDDEN}": expected a public key, but this is the key in one of this file\'s key '
        "files, which is secret; run `oxidize pubkey` with the other side's private key, and no longer use "
        "this key"
        for name in ("alice", "bob")
    ]


def test_a_secret_key_in_the_place_of_a_public_one_is_refused_and_not_shown(folder: Path) -> None:
    key, psk = (base64.b64encode(hashlib.sha256(seed).digest()).decode() for seed in (b"key", b"psk"))
    secret(folder / "server.key", key)
    secret(folder / "alice.psk", psk)
    own = load(folder, SERVER + peer()).public_key
    bob = peer("bob", BOB, '"10.0.0.3/32"', 'preshared_key_file = "alice.psk"')
    client = CLIENT + 'preshared_key_file = "alice.psk"\nallowed_ips = ["10.0.0.0/24"]'
    digits = base64.b64decode(key).hex()
    for given in (
        key,
        psk,
        key[:-1],
        psk[:-7],
        f"x{key[5:]}",
        key.swapcase(),
        digits,
        digits.upper()[3:],
        f"{psk}{psk}",
    ):
        lines = [
            *problems(folder, SERVER + peer(key=given) + bob),
            *problems(folder, client.replace(ALICE, given), load_client),
            *problems(folder, SERVER + f'"{given}" = 1\n' + bob),
        ]
        is_shown = [part for part in (key, psk, digits, digits.upper()) for line in lines if runs(part) & runs(line)]
        assert is_shown == []
    (line,) = problems(folder, SERVER + peer(key=base64.b64encode(own).decode()))
    assert "it belongs to private_key_file of this file" in line


def runs(text: str) -> set[str]:
    """Return all runs of 16 characters."""
    return {text[start : start + 16] for start in range(len(text) - 15)}


def test_a_key_of_zeros_is_refused(folder: Path) -> None:
    secret(folder / "server.key", base64.b64encode(bytes(32)).decode())
    assert 'all zeros, which everybody knows and wg takes for none; run "oxidize genkey"' in problem(folder, SERVER)
    secret(folder / "server.key", PRIVATE)
    secret(folder / "alice.psk", base64.b64encode(bytes(32)).decode())
    line = problem(folder, SERVER + peer(more='preshared_key_file = "alice.psk"'))
    assert "all zeros" in line
    assert "remove the line for none" in line


NOBODY = 65_534
only_root = pytest.mark.skipif(os.geteuid() != 0, reason="lacks root: only root gives files away")


@only_root
def test_a_key_file_of_another_user_is_refused(folder: Path) -> None:
    os.chown(folder / "server.key", 12_345, 12_345)
    assert problem(folder, SERVER + peer()) == (
        'oxidize.toml: server.private_key_file = "server.key": expected a file of root, but it belongs to 12345, who '
        'can replace the key; run "chown root server.key" if the key in it is the right one'
    )


@only_root
@pytest.mark.parametrize("name", ["oxidize", "oxidize-client"])
def test_root_reads_the_key_file_of_a_services_user(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    users = {"oxidize": 12_345, "oxidize-client": 12_346}
    monkeypatch.setattr(pwd, "getpwnam", lambda given: pwd.struct_passwd((given, "", users[given], 1, "", "", "")))
    os.chown(folder / "server.key", users[name], 12_345)
    assert load(folder, SERVER + peer()).private_key == base64.b64decode(PRIVATE)


@only_root
@pytest.mark.parametrize(("owner", "group"), [(12_345, 0), (0, 54_321)])
def test_root_reads_the_key_file_of_the_owner_or_group_of_the_configuration(
    folder: Path, owner: int, group: int
) -> None:
    (folder / "oxidize.toml").touch()
    os.chown(folder / "oxidize.toml", owner, group)
    os.chown(folder / "server.key", 12_345, 54_321)
    assert load(folder, SERVER + peer()).private_key == base64.b64decode(PRIVATE)


@only_root
@pytest.mark.parametrize(("owner", "is_accepted"), [(NOBODY, True), (0, True), (12_345, False)])
def test_a_user_reads_key_files_of_root_and_its_own(folder: Path, owner: int, is_accepted: bool) -> None:
    (folder / "oxidize.toml").write_text(SERVER + peer())
    os.chown(folder / "oxidize.toml", 12_345, 12_345)
    os.chown(folder / "server.key", owner, NOBODY)
    found = os.stat_result((0o100600, 0, 0, 1, owner, NOBODY, 0, 0, 0, 0))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "geteuid", lambda: NOBODY)
        patch.setattr(os, "fstat", lambda _: found)
        if is_accepted:
            assert load(folder, SERVER + peer()).private_key == base64.b64decode(PRIVATE)
        else:
            assert "expected a file of root or nobody, but it belongs to 12345" in problem(folder, SERVER + peer())


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
