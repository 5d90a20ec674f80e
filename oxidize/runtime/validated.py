"""The settings that were validated, kept in a memory file for the next process that loads the same configuration.

The rule: what is kept is used only where a validation would say the same. Its digest covers the contents of the
configuration and of every key file, which are read again and checked each time; what else a validation looks at, this
process's user and environment; the code that validated; and what is kept. In every other case - a difference, damage, a
key file that has become unsafe - the configuration is validated. No secret key is kept: each process reads those from
its files, so one that may not do that gets none.

A validation takes longer than all the rest of a start after a crash, for its schema takes a hundred modules to import.
"""

import contextlib
import fcntl
import hashlib
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import msgpack

import oxidize
from oxidize import config
from oxidize.config.key_files import NO_PRESHARED_KEY, read_key
from oxidize.config.nat import NatSettings
from oxidize.config.paths import Role
from oxidize.config.report import Report
from oxidize.config.source_file import KeyFile, SourceFile, read_file
from oxidize.config.values import NameServers
from oxidize.net.resolve import literal
from oxidize.protocol.constants import NEVER
from oxidize.protocol.link_policy import LinkPolicy
from oxidize.protocol.peer_settings import PeerSettings
from oxidize.protocol.secret_fields import text_without
from oxidize.settings import NodeSettings, networks_of, routes_in
from oxidize.state import memory_file
from oxidize.text import own_release

FILE_NAME = "oxidize-settings"
BYTES_MAX = 128 << 20  # twice as much as the largest configuration file
DIGEST_BYTES = 32
ENVIRONMENT = ("XDG_RUNTIME_DIR", "CREDENTIALS_DIRECTORY", "STATE_DIRECTORY")  # as of `config.load`
# Of this package: what decides the outcome of a validation, and what is kept of it.
CODE = (
    "config",
    "protocol/constants.py",
    "protocol/link_policy.py",
    "protocol/peer_settings.py",
    "runtime/validated.py",
    "settings.py",
)
_SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
_NETWORK, _INTERFACE, _ADDRESS, _PATH = range(4)  # codes of msgpack's extension types
_WITHOUT = {"private_key", "peers"}  # of the settings: not in what is kept of the node itself


class Loaded(NamedTuple):
    """A configuration that this process may use. kept: what the next process gets of it."""

    settings: NodeSettings
    warnings: tuple[str, ...]
    kept: bytes


class Match(NamedTuple):
    """What was kept of this very configuration.

    own: the settings of the node, without keys and peers. peers: each as an array. keys: those of the key files, the
    private key first.
    """

    kept: bytes
    own: Mapping[str, Any]
    peers: bytes
    keys: tuple[bytes, ...]
    warnings: tuple[str, ...]

    def __repr__(self) -> str:
        return text_without(self, "keys")

    @property
    def takeover_socket(self) -> Path:
        """That of the settings."""
        path: Path = self.own["takeover_socket"]
        return path

    def loaded(self) -> Loaded:
        """Return the configuration with its keys."""
        private, *preshared = self.keys
        left = iter(preshared)
        peers = tuple(_peer(left, *each) for each in _unpack(self.peers))
        own = dict(self.own)
        if own["role"] == "server":
            own["routes"] = routes_in(own["table"], networks_of(peers))
        if own["name_servers"] is not None:
            own["name_servers"] = NameServers(*own["name_servers"])
        if own["nat"] is not None:
            own["nat"] = NatSettings.unpacked(own["nat"])
        settings = NodeSettings(**own, private_key=private, peers=peers)
        return Loaded(settings, self.warnings, self.kept)


def load(role: Role, path: Path, kept: Iterable[bytes] = (), environ: Mapping[str, str] = os.environ) -> Loaded:
    """Load the configuration of a role, from what is kept of it if possible; raises ConfigError as `config` does."""
    content = read_file(path)
    match = find(role, path, kept, environ, content=content)
    return match.loaded() if match is not None else _validate(role, path, environ, content)


def find(
    role: Role,
    path: Path,
    kept: Iterable[bytes],
    environ: Mapping[str, str] = os.environ,
    *,
    content: bytes | None = None,
) -> Match | None:
    """Return the first of `kept` that was kept of this very configuration, None where there is none.

    content: of the file, if it was read. Raises ConfigError where it cannot be read.
    """
    for each in kept:
        try:
            digest, files, warnings, own, peers = msgpack.unpackb(each, use_list=False)
            source = SourceFile(Report(str(path)), path.parent, environ)
            keys = tuple(read_key(KeyFile(*file), source) for file in files)
        except (ValueError, TypeError, msgpack.UnpackException):  # damaged, or of another release
            continue
        content = read_file(path) if content is None else content
        covered = _covered(role, path, environ, content)
        if not source.report.problems and digest == _digest(covered, files, keys, warnings, own, peers):
            return Match(each, _unpack(own), peers, keys, warnings)
    return None


def validate(role: Role, path: Path, content: bytes) -> Loaded:
    """Validate a file that is to have this content; raises ConfigError as `config` does."""
    return _validate(role, path, os.environ, content)


def _validate(role: Role, path: Path, environ: Mapping[str, str], content: bytes) -> Loaded:
    covered = _covered(role, path, environ, content)  # first: code that is replaced meanwhile is another release's
    loaded = (
        config.load_server(path, environ, content=content)
        if role == "server"
        else config.load_client(path, environ, content=content)
    )
    settings = NodeSettings.of(loaded)
    without = _WITHOUT | {"routes"} if role == "server" else _WITHOUT
    own = _pack({name: value for name, value in settings._asdict().items() if name not in without})
    peers = _pack([_fields_of(peer) for peer in settings.peers])
    preshared = [peer.preshared_key for peer in settings.peers if peer.preshared_key != NO_PRESHARED_KEY]
    digest = _digest(covered, loaded.key_files, (settings.private_key, *preshared), loaded.warnings, own, peers)
    return Loaded(settings, loaded.warnings, _pack([digest, loaded.key_files, loaded.warnings, own, peers]))


def _covered(role: Role, path: Path, environ: Mapping[str, str], content: bytes) -> list[Any]:
    """Return what decides, beside the key files, what a validation says of a configuration."""
    here = [role, str(path), os.path.abspath(path), os.geteuid(), *(environ.get(name, "") for name in ENVIRONMENT)]  # noqa: PTH100  # `Path.absolute` keeps ".."
    zone = [*time.tzname, time.timezone, time.altzone]  # of dates without an offset
    return [own_release(), *_code(), *here, *zone, content]


def _code() -> Iterator[tuple[str, int, int]]:
    """Yield path, size and time of change of the modules in CODE: a tree of sources has one release for many states."""
    package = Path(oxidize.__file__).parent
    for place in (package / name for name in CODE):
        for file in sorted(place.glob("*.py")) if place.is_dir() else [place]:
            found = file.stat()
            yield str(file), found.st_size, found.st_mtime_ns


def _digest(covered: list[Any], *kept: Any) -> bytes:
    return hashlib.blake2b(_pack([covered, *kept]), digest_size=DIGEST_BYTES).digest()


# --- The peers ---


def _fields_of(peer: PeerSettings) -> tuple[Any, ...]:
    link = peer.link
    return (
        peer.preshared_key != NO_PRESHARED_KEY,
        peer.public_key,
        peer.allowed_ips,
        peer.configured_endpoint,
        peer.persistent_keepalive,
        peer.name,
        link._asdict() if link is not None else None,
        peer.enabled,
        peer.expires_unix if peer.expires_unix < NEVER else None,
    )


def _peer(
    preshared: Iterator[bytes],
    has_preshared: bool,
    public_key: bytes,
    allowed_ips: tuple[config.Network, ...],
    endpoint: str,
    keepalive: float,
    name: str,
    policy: Mapping[str, Any] | None,
    enabled: bool,
    expires_unix: float | None,
) -> PeerSettings:
    """Return a peer. Its endpoint is parsed again: the kernel may have renumbered the interface of its zone."""
    return PeerSettings(
        public_key,
        next(preshared) if has_preshared else NO_PRESHARED_KEY,
        allowed_ips,
        literal(endpoint) if endpoint else None,
        keepalive,
        name,
        LinkPolicy(**policy) if policy is not None else None,
        endpoint,
        enabled,
        NEVER if expires_unix is None else expires_unix,
    )


# --- The encoding ---


def _pack(value: Any) -> bytes:
    packed: bytes = msgpack.packb(value, default=_extension_of)
    return packed


def _unpack(packed: bytes) -> Any:
    return msgpack.unpackb(packed, use_list=False, ext_hook=_value_of)


def _extension_of(value: object) -> msgpack.ExtType:
    match value:
        case IPv4Interface() | IPv6Interface():  # an address too, so it comes first
            return msgpack.ExtType(_INTERFACE, bytes([value.network.prefixlen]) + value.packed)
        case IPv4Network() | IPv6Network():
            return msgpack.ExtType(_NETWORK, bytes([value.prefixlen]) + value.network_address.packed)
        case IPv4Address() | IPv6Address():
            return msgpack.ExtType(_ADDRESS, value.packed)
        case PurePath():
            return msgpack.ExtType(_PATH, os.fsencode(value))
    raise TypeError(f"{type(value).__name__}: expected a type that settings have; this is a bug")


def _value_of(code: int, data: bytes) -> object:
    if code == _NETWORK:
        return (IPv4Network if len(data) == 5 else IPv6Network)((data[1:], data[0]))
    if code == _INTERFACE:
        return (IPv4Interface if len(data) == 5 else IPv6Interface)((data[1:], data[0]))
    if code == _ADDRESS:
        return (IPv4Address if len(data) == 4 else IPv6Address)(data)
    return Path(os.fsdecode(data))


# --- The memory file ---


def keep(kept: bytes) -> int:
    """Return a descriptor of a memory file with what is kept; raises OSError."""
    return memory_file.create_filled(FILE_NAME, kept)


def read(fd: int) -> bytes:
    """Return the contents of such a file; raises OSError and ValueError for any other."""
    size = os.fstat(fd).st_size
    if size > BYTES_MAX or fcntl.fcntl(fd, fcntl.F_GET_SEALS) & _SEALS != _SEALS:
        raise ValueError(f"a file of {size} bytes; expected a sealed one of at most {BYTES_MAX}")
    return os.pread(fd, size, 0)


def contents_of(fds: Iterable[int]) -> dict[int, bytes]:
    """Return what is kept in these files; one that is none is left out."""
    contents = {}
    for fd in fds:
        with contextlib.suppress(OSError, ValueError):
            contents[fd] = read(fd)
    return contents
