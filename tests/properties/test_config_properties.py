"""Any file gives a configuration or a ConfigError with one line for each mistake."""

import base64
import json
from collections.abc import Callable, Mapping
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path
from typing import TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oxidize.config import ClientConfig, HostAddress, Network, ServerConfig, load_client, load_server
from oxidize.config.schema import ClientTable, PeerTable, ServerTable
from oxidize.config.validation import fields_by_key
from oxidize.errors import ConfigError
from oxidize.protocol.allowed_ips import AllowedIPs
from oxidize.settings import NodeSettings

T = TypeVar("T")
Loader = Callable[[Path, Mapping[str, str]], T]

PRIVATE = base64.b64encode(bytes(range(32))).decode()


@pytest.fixture(scope="module")
def config_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("config")
    key = folder / "server.key"
    key.write_text(PRIVATE)
    key.chmod(0o600)
    return folder / "oxidize.toml"


def load(path: Path, content: bytes, loader: Loader[T]) -> T | None:
    """Load a file, and check the form of the error if there is one."""
    path.write_bytes(content)
    try:
        return loader(path, {})
    except ConfigError as error:
        problems, text = error.problems, str(error)
    assert problems
    assert text.splitlines() == list(problems)
    for line in problems:
        assert line.startswith(f"{path}: ")
        assert "expected" in line
        assert PRIVATE not in line or "public_key = " in line  # who could tell
    return None


loaders = st.sampled_from([load_server, load_client])


@given(content=st.binary(max_size=200), loader=loaders)
def test_a_file_of_any_bytes_is_loaded_or_refused(
    config_file: Path, content: bytes, loader: Loader[ServerConfig | ClientConfig]
) -> None:
    load(config_file, content, loader)


# A file of known and unknown keys with values of every kind: written as JSON, of which TOML shares the scalars.
texts = st.one_of(
    st.sampled_from(
        [PRIVATE, "server.key", "10.0.0.1/24", "10.0.0.0/24", "::/0", "::1", "[::1]:1", "tun", "a:1", "x\0"]
    ),
    st.text(st.characters(codec="utf-8"), max_size=20),
)
scalars = st.one_of(texts, st.booleans(), st.integers(-(2**70), 2**70), st.integers(0, 70_000))
items = st.one_of(scalars, st.lists(scalars, max_size=3))
KEYS = [
    *(key for table in (ServerTable, ClientTable, PeerTable) for key in fields_by_key(table)),
    "private_key",
    "PublicKey",
]
tables = st.dictionaries(
    st.one_of(st.sampled_from(KEYS), st.text(st.characters(codec="utf-8"), max_size=8)), items, max_size=6
)


def toml(value: object) -> str:
    """Write a value as TOML: JSON, but for the escape of characters beyond the basic plane and of DEL."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def body(table: Mapping[str, object]) -> str:
    return "".join(f"{toml(key)} = {toml(value)}\n" for key, value in table.items())


@given(header=st.sampled_from(["server", "client"]), table=tables, peers=st.lists(tables, max_size=3), loader=loaders)
def test_a_configuration_with_values_of_every_kind_is_loaded_or_refused(
    config_file: Path,
    header: str,
    table: dict[str, object],
    peers: list[dict[str, object]],
    loader: Loader[ServerConfig | ClientConfig],
) -> None:
    text = f"[{header}]\n{body(table)}" + "".join(f"[[peer]]\n{body(peer)}" for peer in peers)
    load(config_file, text.encode(), loader)


hosts = st.one_of(st.integers(1, 2**32 - 2).map(IPv4Address), st.integers(2, 2**120).map(IPv6Address))


@given(
    addresses=st.lists(hosts, min_size=1, max_size=6, unique=True),
    mtu=st.integers(1280, 65_455),
    port=st.integers(0, 65_535),
    keepalive=st.integers(0, 65_535),
)
def test_a_correct_configuration_is_loaded_as_written(
    config_file: Path, addresses: list[HostAddress], mtu: int, port: int, keepalive: int
) -> None:
    peers = "".join(
        f'[[peer]]\nname = "peer-{i}"\npublic_key = "{base64.b64encode(bytes([9, i]) * 16).decode()}"\n'
        f'allowed_ips = ["{address}/{address.max_prefixlen}"]\npersistent_keepalive = {keepalive}\n'
        for i, address in enumerate(addresses)
    )
    server = f'[server]\naddress = "fd00::1/64"\nprivate_key_file = "server.key"\nmtu = {mtu}\nlisten = "[::]:{port}"\n'
    config = load(config_file, (server + peers).encode(), load_server)
    assert config is not None
    assert (config.mtu, config.listen) == (mtu, ("::", port))
    assert [peer.allowed_ips for peer in config.peers] == [(ip_network(address),) for address in addresses]
    assert [peer.name for peer in config.peers] == [f"peer-{i}" for i in range(len(addresses))]
    assert {peer.persistent_keepalive for peer in config.peers} == {keepalive}


# --- Networks of peers, against the definition ---

# Few bits, so that networks nest often; both families share them, so that their numbers coincide.
networks = st.builds(
    lambda version, bits, length: ip_network(
        (bits << 28, length) if version == 4 else (bits << 124, length), strict=False
    ),
    st.sampled_from([4, 6]),
    st.integers(0, 15),
    st.integers(1, 4),
)
networks_of_peers = st.lists(st.lists(networks, max_size=4, unique=True), max_size=4)


@given(networks_of_peers, st.integers(0, 15), st.sampled_from([4, 6]))
def test_an_address_is_the_last_peers_among_those_with_the_longest_prefix(
    config_file: Path, claimed: list[list[Network]], bits: int, version: int
) -> None:
    text = '[server]\naddress = "192.0.2.1/32"\nprivate_key_file = "server.key"\n'
    for number, own in enumerate(claimed):
        key = base64.b64encode(bytes([9, number]) * 16).decode()
        text += f'[[peer]]\nname = "{number}"\npublic_key = "{key}"\nallowed_ips = {json.dumps(list(map(str, own)))}\n'
    config = load(config_file, text.encode(), load_server)
    assert config is not None
    settings = NodeSettings.of_server(config)
    table: AllowedIPs[str] = AllowedIPs()
    for peer in settings.peers:
        for network in peer.allowed_ips:
            table.insert(network, peer.name)
    address = ip_address((bits << 28 | 7).to_bytes(4, "big") if version == 4 else (bits << 124 | 7).to_bytes(16, "big"))
    holding = [
        (network.prefixlen, number) for number, own in enumerate(claimed) for network in own if address in network
    ]
    assert table.lookup(address.packed) == (str(max(holding)[1]) if holding else None)
    # No network has two owners: what status and routes show is what counts.
    shown = [network for peer in settings.peers for network in peer.allowed_ips]
    assert sorted(map(str, shown)) == sorted({str(network) for own in claimed for network in own})
    assert (len(shown) < sum(map(len, claimed))) == any("as with wg" in warning for warning in config.warnings)
