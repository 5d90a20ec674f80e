"""What was validated is used again where a validation would say the same, and holds no key."""

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

import oxidize
from oxidize import config
from oxidize.config import load_client, load_server
from oxidize.config.paths import Role
from oxidize.config.values import parse_key
from oxidize.errors import ConfigError
from oxidize.runtime import validated
from oxidize.settings import NodeSettings
from tests.support.config_files import ALICE, BOB, CLIENT, PRESHARED, PRIVATE, SERVER, b64, peer, secret
from tests.support.open_fds import no_leaked_fds

OTHER_KEY = b64(0x33 << 200 | 3)
CAROL = b64(0xCA201 << 100)
WITH_KEY = 'preshared_key_file = "psk"\n'
TEXTS: dict[Role, str] = {
    "server": (
        SERVER.replace('"10.0.0.1/24"', '["10.0.0.1/24", "fd00::1/64"]')
        + 'mtu = 1300\nlisten = "[::1]:7"\nendpoints_file = "ends.json"\n'
        + '[server.nat]\nsnat = "203.0.113.9"\nforward = [{protocol = "tcp", port = "1-2", to = "10.0.0.2"}, '
        + '{protocol = "both", port = 3, to = "[fd00::2]:4", interface = "eth0", address = "2001:db8::/64"}]\n'
        + peer(ips='"10.0.0.2/32", "fd00::2/128", "192.0.2.0/24"', more=f'{WITH_KEY}endpoint = "192.0.2.7:9"\n')
        + peer("bob", BOB, '"10.0.0.3/32"', 'endpoint = "bob.example:7"\npersistent_keepalive = 25\n')
        + peer("carol", CAROL, '"10.0.0.2/32"', f"{WITH_KEY}enabled = false\nexpires = 2030-12-31\n")
    ),
    "client": CLIENT
    + WITH_KEY
    + 'allowed_ips = ["0.0.0.0/0", "fd00::/64"]\ndns = ["10.0.0.1", "fd00::1", "example.org"]\n'
    + "kill_switch = true\nmax_reconnect_attempts = 3\n",
}


@pytest.fixture(params=["server", "client"])
def role(request: pytest.FixtureRequest) -> Role:
    found: Role = request.param
    return found


@pytest.fixture
def path(tmp_path: Path, role: Role) -> Path:
    secret(tmp_path / "server.key", PRIVATE)
    secret(tmp_path / "psk", PRESHARED)
    (tmp_path / "oxidize.toml").write_text(TEXTS[role])
    return tmp_path / "oxidize.toml"


@pytest.fixture
def validations(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Return the paths of the configurations that are validated from now on."""
    seen: list[Path] = []
    for name, real in (("load_server", load_server), ("load_client", load_client)):

        def note(path: Path, *rest: object, real: Callable[..., object] = real, **more: object) -> object:
            seen.append(path)
            return real(path, *rest, **more)

        monkeypatch.setattr(config, name, note)
    return seen


def test_what_is_kept_gives_the_same_settings_and_warnings(role: Role, path: Path, validations: list[Path]) -> None:
    first = validated.load(role, path)
    again = validated.load(role, path, [b"damaged", first.kept])
    assert validations == [path]
    assert again == first
    for name in NodeSettings._fields:
        one, other = getattr(first.settings, name), getattr(again.settings, name)
        assert (type(one), one) == (type(other), other), name
    assert again.kept is first.kept
    loaded = load_server(path) if role == "server" else load_client(path)
    assert again.warnings == loaded.warnings
    assert again.settings == NodeSettings.of(loaded)


def test_warnings_are_given_again(tmp_path: Path) -> None:
    secret(tmp_path / "server.key", PRIVATE)
    path = tmp_path / "oxidize.toml"
    path.write_text(SERVER + peer(ips=""))
    first = validated.load("server", path)
    assert len(first.warnings) == 1
    assert validated.load("server", path, [first.kept]).warnings == first.warnings


def change_key(folder: Path) -> None:
    secret(folder / "server.key", OTHER_KEY)


def change_preshared_key(folder: Path) -> None:
    secret(folder / "psk", OTHER_KEY)


def change_a_comment(folder: Path) -> None:
    with (folder / "oxidize.toml").open("a") as file:
        file.write("#")


@pytest.mark.parametrize("change", [change_key, change_preshared_key, change_a_comment])
def test_a_file_with_other_contents_is_validated(
    role: Role, path: Path, validations: list[Path], change: Callable[[Path], None]
) -> None:
    kept = validated.load(role, path).kept
    change(path.parent)
    assert validated.find(role, path, [kept]) is None
    again = validated.load(role, path, [kept])
    assert len(validations) == 2
    assert again.settings == NodeSettings.of(load_server(path) if role == "server" else load_client(path))


@pytest.mark.parametrize("name", ["server.key", "psk"])
@pytest.mark.parametrize("mode", [0o640, 0o604])
def test_a_key_file_that_has_become_unsafe_is_refused_as_always(role: Role, path: Path, name: str, mode: int) -> None:
    kept = validated.load(role, path).kept
    (path.parent / name).chmod(mode)
    with pytest.raises(ConfigError, match=f"but its mode is 0{mode:o}"):
        validated.load(role, path, [kept])


@pytest.mark.parametrize("name", ["server.key", "psk"])
def test_a_key_file_that_is_gone_is_refused_as_always(role: Role, path: Path, name: str) -> None:
    kept = validated.load(role, path).kept
    (path.parent / name).unlink()
    with pytest.raises(ConfigError, match=f"{name}.*No such file"):
        validated.load(role, path, [kept])


def test_a_configuration_that_is_gone_is_refused_as_always(role: Role, path: Path) -> None:
    kept = validated.load(role, path).kept
    path.unlink()
    with pytest.raises(ConfigError, match="No such file"):
        validated.load(role, path, [kept])


def test_another_time_zone_is_validated(role: Role, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = validated.load(role, path).kept
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "EST5")
        time.tzset()
        assert validated.find(role, path, [kept]) is None
    time.tzset()
    assert validated.find(role, path, [kept]) is not None


@pytest.mark.parametrize("name", validated.ENVIRONMENT)
def test_another_environment_is_validated(role: Role, path: Path, name: str) -> None:
    kept = validated.load(role, path, environ={}).kept
    assert validated.find(role, path, [kept], {"HOME": "/root"}) is not None
    assert validated.find(role, path, [kept], {name: "/somewhere"}) is None


def test_another_user_is_validated(role: Role, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = validated.load(role, path).kept
    monkeypatch.setattr(os, "geteuid", lambda: 4321)  # root's key files are anyone's who can read them
    assert validated.find(role, path, [kept]) is None


def test_another_release_or_role_or_place_is_validated(
    role: Role, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = validated.load(role, path).kept
    assert validated.find("client" if role == "server" else "server", path, [kept]) is None
    copy = path.with_name("copy.toml")
    copy.write_text(path.read_text())
    assert validated.find(role, copy, [kept]) is None
    monkeypatch.chdir(tmp_path)
    assert validated.find(role, Path(path.name), [kept]) is None, "lines name the path as it was given"
    assert validated.find(role, path, [kept]) is not None
    monkeypatch.setattr("oxidize.runtime.validated.own_release", lambda: "9.9.9")
    assert validated.find(role, path, [kept]) is None


@pytest.mark.parametrize("module", ["config/checks.py", "config/schema.py", "settings.py", "runtime/validated.py"])
def test_changed_code_of_the_same_release_validates(
    role: Role, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    package = tmp_path / "oxidize"
    real = Path(str(oxidize.__file__)).parent
    for name in validated.CODE:
        for source in (real / name).glob("*.py") if (real / name).is_dir() else [real / name]:
            copy = package / source.relative_to(real)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(source.read_bytes())
    monkeypatch.setattr(oxidize, "__file__", str(package / "__init__.py"))
    kept = validated.load(role, path).kept
    assert validated.find(role, path, [kept]) is not None
    os.utime(package / module, ns=(1, 1))
    assert validated.find(role, path, [kept]) is None


@given(st.data())
def test_damage_is_found(data: st.DataObject) -> None:
    kept = KEPT[0]
    if data.draw(st.booleans(), "truncated"):
        damaged = kept[: data.draw(st.integers(0, len(kept) - 1))]
    else:
        at = data.draw(st.integers(0, len(kept) - 1))
        damaged = kept[:at] + bytes([kept[at] ^ data.draw(st.integers(1, 255))]) + kept[at + 1 :]
    found = validated.find("server", KEPT_PATH[0], [damaged])
    assert found is None


@given(st.recursive(st.binary() | st.integers(0, 9) | st.none() | st.text(), st.lists, max_leaves=20))
def test_anything_else_is_no_match(value: object) -> None:
    assert validated.find("server", KEPT_PATH[0], [msgpack.packb(value)]) is None


KEPT: list[bytes] = []
KEPT_PATH: list[Path] = []


@pytest.fixture(autouse=True, scope="module")
def _kept(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("kept")
    secret(folder / "server.key", PRIVATE)
    secret(folder / "psk", PRESHARED)
    path = folder / "oxidize.toml"
    path.write_text(TEXTS["server"])
    KEPT_PATH[:] = [path]
    KEPT[:] = [validated.load("server", path).kept]


def test_no_key_is_kept_logged_or_shown(role: Role, path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    loaded = validated.load(role, path)
    match = validated.find(role, path, [loaded.kept])
    assert match is not None
    shown = repr(loaded) + repr(match) + caplog.text
    for text in (PRIVATE, PRESHARED):
        key = parse_key(text)
        assert key is not None
        assert key not in loaded.kept
        assert text.encode() not in loaded.kept
        assert key.hex().encode() not in loaded.kept
        assert text not in shown
        assert repr(key) not in shown


def test_the_memory_file_holds_it_and_cannot_be_changed(role: Role, path: Path) -> None:
    kept = validated.load(role, path).kept
    with no_leaked_fds():
        fd = validated.keep(kept)
        assert validated.read(fd) == kept
        for change in (lambda: os.pwrite(fd, b"x", 0), lambda: os.ftruncate(fd, 1), lambda: os.ftruncate(fd, 1 << 20)):
            with pytest.raises(PermissionError):
                change()
        os.close(fd)


def test_only_a_sealed_memory_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    read_end, write_end = os.pipe()
    unsealed = os.memfd_create("unsealed", os.MFD_ALLOW_SEALING)
    plain = os.open(tmp_path / "file", os.O_RDONLY)
    for fd in (read_end, unsealed, plain):
        with pytest.raises((OSError, ValueError)):
            validated.read(fd)
    for fd in (read_end, write_end, unsealed, plain):
        os.close(fd)


def test_a_hundred_thousand_peers_take_little_room() -> None:
    text = SERVER + "".join(
        peer(f"p{number}", b64(number + 1), f'"10.{number >> 16}.{number >> 8 & 255}.{number & 255}/32"')
        for number in range(256, 1256)
    )
    path = KEPT_PATH[0].with_name("many.toml")
    path.write_text(text)
    assert len(validated.load("server", path).kept) / 1000 < 70, "bytes a peer"
    assert ALICE not in text
