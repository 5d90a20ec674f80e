"""What wg is answered: read-only, keys for root alone, many peers in pieces."""

import logging
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from oxidize.protocol.counters import RECEIVED_BYTES, SENT_BYTES
from oxidize.protocol.endpoint import Endpoint
from oxidize.runtime.uapi_answers import PEERS_PER_PIECE, ROOT, UapiAnswers
from oxidize.service_manager import notify, systemctl
from tests.support.node_stand import Stand

OTHER_USER = 1000
NOT_SUPPORTED, NOT_VALID, FAILED = b"errno=-95\n\n", b"errno=22\n\n", b"errno=5\n\n"
SECRET = "ab" * 32


@pytest.fixture
def stand(tmp_path: Path) -> Iterator[Stand]:
    with ExitStack() as undo:
        yield Stand(tmp_path, undo)


def get(stand: Stand, uid: int = ROOT) -> dict[str, list[str]]:
    """Return the values of an answer by their name."""
    answer = b"".join(UapiAnswers(stand.node)(b"get=1\n\n", uid)).decode()
    assert answer.endswith("\n\n")
    found: dict[str, list[str]] = {}
    for line in answer.splitlines()[:-1]:
        name, _, value = line.partition("=")
        found.setdefault(name, []).append(value)
    return found


def test_an_answer_has_the_settings_and_the_counters(stand: Stand) -> None:
    stand.begin_session()
    peer = stand.peer
    peer.last_handshake_unix = 1_795_992_488.5
    stand.node.counters[peer.slot + RECEIVED_BYTES] = 404
    stand.node.counters[peer.slot + SENT_BYTES] = 348
    port = stand.peer_socket.getsockname()[1]
    assert get(stand) == {
        "private_key": [stand.settings.private_key.hex()],
        "listen_port": [stand.node.udp.local_address.rpartition(":")[2]],
        "public_key": [peer.public_key.hex()],
        "endpoint": [f"127.0.0.1:{port}"],
        "protocol_version": ["1"],
        "last_handshake_time_sec": ["1795992488"],
        "last_handshake_time_nsec": ["500000000"],
        "rx_bytes": ["404"],
        "tx_bytes": ["348"],
        "persistent_keepalive_interval": ["0"],
        "allowed_ip": ["10.9.0.2/32"],
        "errno": ["0"],
    }


def test_a_peer_that_was_never_heard_has_counted_nothing(stand: Stand) -> None:
    stand.peer.endpoint = None
    found = get(stand)
    assert "endpoint" not in found
    assert (found["rx_bytes"], found["tx_bytes"], found["last_handshake_time_sec"]) == (["0"], ["0"], ["0"])


def test_keys_are_for_root_alone(stand: Stand) -> None:
    peer = stand.peer
    peer.settings = peer.settings._replace(preshared_key=bytes([9]) * 32)
    root, other = get(stand), get(stand, OTHER_USER)
    assert root["preshared_key"] == ["09" * 32]
    assert root.keys() - other.keys() == {"private_key", "preshared_key"}
    assert {name: root[name] for name in other} == other


def test_a_mark_and_a_zone_are_shown_as_wg_reads_them(stand: Stand) -> None:
    stand.node.settings = stand.node.settings._replace(fwmark=0x6F78)
    stand.peer.endpoint = Endpoint(bytes.fromhex("fe80" + 13 * "00" + "01"), 51820, 3)
    found = get(stand)
    assert (found["fwmark"], found["endpoint"]) == (["28536"], ["[fe80::1%3]:51820"])


@pytest.mark.parametrize("number", [0, 1, PEERS_PER_PIECE, PEERS_PER_PIECE + 1, 10 * PEERS_PER_PIECE])
def test_many_peers_come_in_pieces(stand: Stand, number: int) -> None:
    peers: Any = {index.to_bytes(2, "big"): stand.peer for index in range(number)}
    stand.node.device._table.peers = peers
    head, *pieces, end = UapiAnswers(stand.node)(b"get=1\n\n", ROOT)
    assert (head[:12], end) == (b"private_key=", b"errno=0\n\n")
    assert len(pieces) == -(-number // PEERS_PER_PIECE)
    assert b"".join(pieces).count(b"public_key=") == number


KEY = "{key}"
REFUSED = [
    pytest.param(f"private_key={SECRET}\nlisten_port=3\n", "edit server.toml, then `oxidize reload`", id="the node"),
    pytest.param(f"public_key={'cd' * 32}\n", "`oxidize peer add NAME --public-key KEY`", id="a new peer"),
    pytest.param("public_key={key}\nremove=true\n", "`oxidize peer remove alice`", id="a peer that goes"),
    pytest.param(
        f"public_key={KEY}\npreshared_key={SECRET}\n",
        "edit [[peer]] alice in server.toml, then `oxidize reload`",
        id="a peer that changes",
    ),
    pytest.param("public_key=no hex\n", "`oxidize peer add NAME --public-key KEY`", id="no key"),
    pytest.param("public_key=\xff\n", "`oxidize peer add NAME --public-key KEY`", id="no text"),
]


@pytest.mark.parametrize(("lines", "instead"), REFUSED)
def test_a_request_to_change_something_is_refused_with_the_command_to_use(
    stand: Stand, caplog: pytest.LogCaptureFixture, lines: str, instead: str
) -> None:
    before = get(stand)
    request = f"set=1\n{lines.replace(KEY, stand.peer.public_key.hex())}\n".encode("latin-1")
    assert list(UapiAnswers(stand.node)(request, ROOT)) == [NOT_SUPPORTED]
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert instead in str(vars(record))
    assert SECRET not in str(vars(record))
    assert get(stand) == before


def test_a_clients_request_names_its_own_file(stand: Stand, caplog: pytest.LogCaptureFixture) -> None:
    stand.node.settings = stand.node.settings._replace(role="client")
    assert list(UapiAnswers(stand.node)(b"set=1\npublic_key=\n\n", ROOT)) == [NOT_SUPPORTED]
    assert "edit client.toml, then `oxidize reload --client`" in str(vars(caplog.records[0]))


def test_a_peer_that_may_have_no_session_is_known(
    stand: Stand, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = stand.peer.settings
    stand.node.device._table.peers.clear()
    monkeypatch.setattr(stand.node.terms, "inactive", lambda: [(settings, "disabled")])
    request = f"set=1\npublic_key={settings.public_key.hex()}\nremove=true\n\n".encode()
    assert list(UapiAnswers(stand.node)(request, ROOT)) == [NOT_SUPPORTED]
    assert "`oxidize peer remove alice`" in str(vars(caplog.records[0]))


def test_a_service_is_reloaded_by_its_unit(
    stand: Stand, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notify, "is_unit", lambda: True)
    monkeypatch.setattr(systemctl, "service_of", lambda pid: "oxidize-daemon@wg0.service")
    assert list(UapiAnswers(stand.node)(b"set=1\nlisten_port=1\n\n", ROOT)) == [NOT_SUPPORTED]
    assert "then `systemctl reload oxidize-daemon@wg0.service`" in str(vars(caplog.records[0]))


def test_a_program_that_tries_again_and_again_does_not_fill_the_log(
    stand: Stand, caplog: pytest.LogCaptureFixture
) -> None:
    answers = UapiAnswers(stand.node)
    for _ in range(50):
        assert list(answers(b"set=1\nlisten_port=1\n\n", ROOT)) == [NOT_SUPPORTED]
    assert len(caplog.records) == 1


@pytest.mark.parametrize("request_", [b"\n\n", b"get=2\n\n", b"get\n\n", b"\xff\n\n", b"peer=1\n\n"])
def test_a_request_of_another_kind_is_not_valid(stand: Stand, request_: bytes) -> None:
    assert list(UapiAnswers(stand.node)(request_, ROOT)) == [NOT_VALID]


def test_a_bug_ends_the_answer_and_nothing_else(stand: Stand, caplog: pytest.LogCaptureFixture) -> None:
    stand.peer.settings = None  # type: ignore[assignment]  # the bug
    assert list(UapiAnswers(stand.node)(b"get=1\n\n", ROOT))[-1] == FAILED
    assert "a request of wg failed" in caplog.text
