"""Configuration files for tests, and the check of the form of every problem."""

import base64
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar, overload

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from oxidize.config import ServerConfig, load_server
from oxidize.errors import ConfigError

T = TypeVar("T")


def b64(number: int) -> str:
    """Return a key in base64, made of a number."""
    return base64.b64encode(number.to_bytes(32, "big")).decode()


PRIVATE = b64(0x11 << 200 | 7)
PRESHARED = b64(0x22 << 200 | 9)
OWN_PUBLIC = base64.b64encode(
    X25519PrivateKey.from_private_bytes(base64.b64decode(PRIVATE)).public_key().public_bytes_raw()
).decode()
ALICE, BOB = b64(0xA11CE << 100), b64(0xB0B << 100)


def secret(path: Path, text: str, mode: int = 0o600) -> Path:
    """Write a file of a mode."""
    path.write_text(text)
    path.chmod(mode)
    return path


SERVER = '[server]\naddress = "10.0.0.1/24"\nprivate_key_file = "server.key"\n'
CLIENT = (
    '[client]\nserver = "vpn.example.org:51820"\nprivate_key_file = "server.key"\n'
    f'server_public_key = "{ALICE}"\naddress = "10.0.0.2/24"\n'
)


def peer(name: str = "alice", key: str = ALICE, ips: str = '"10.0.0.2/32"', more: str = "") -> str:
    return f'[[peer]]\nname = "{name}"\npublic_key = "{key}"\nallowed_ips = [{ips}]\n{more}\n'


@overload
def load(folder: Path, text: str) -> ServerConfig: ...
@overload
def load(folder: Path, text: str, loader: Callable[[Path], T]) -> T: ...
def load(folder: Path, text: str, loader: Callable[[Path], object] = load_server) -> object:
    """Write a configuration and load it."""
    path = folder / "oxidize.toml"
    path.write_text(text)
    return loader(path)


def problems(folder: Path, text: str, loader: Callable[[Path], object] = load_server) -> list[str]:
    """Load a configuration with mistakes; return its lines without the folder of this test."""
    with pytest.raises(ConfigError) as caught:
        load(folder, text, loader)
    lines = list(caught.value.problems)
    assert str(caught.value).splitlines() == lines  # one line each
    for line in lines:
        assert line.startswith(f"{folder}/oxidize.toml: ")
        assert PRIVATE not in line
        assert PRESHARED not in line
    return [line.replace(f"{folder}/", "") for line in lines]


def problem(folder: Path, text: str, loader: Callable[[Path], object] = load_server) -> str:
    """Load a configuration with one mistake; return its line without the folder of this test."""
    (line,) = problems(folder, text, loader)
    return line
