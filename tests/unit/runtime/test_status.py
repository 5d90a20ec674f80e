"""The answers to queries: parts that no process test reaches."""

import json
import socket
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from oxidize.control.query import QUERIES
from oxidize.protocol.peer_settings import PeerSettings
from oxidize.runtime import status
from oxidize.runtime.parts import boot_id
from oxidize.runtime.status import _address_of
from oxidize.state.session_state import SessionState
from tests.support.config_files import ALICE
from tests.support.node_stand import Stand


def test_the_names_of_the_queries_never_change() -> None:
    assert QUERIES == ("status", "peers", "identity", "vitals", "state", "settings", "drain", "accept")


@pytest.mark.parametrize(
    ("family", "host", "shown"), [(socket.AF_INET, "127.0.0.1", "127.0.0.1"), (socket.AF_INET6, "::1", "[::1]")]
)
def test_the_metrics_listener_is_shown_as_host_and_port(family: socket.AddressFamily, host: str, shown: str) -> None:
    with socket.create_server((host, 0), family=family) as listener:
        assert _address_of(listener) == f"{shown}:{listener.getsockname()[1]}"
    assert _address_of(None) is None


def test_a_status_names_the_disabled_peers_apart(tmp_path: Path) -> None:
    with ExitStack() as undo:
        stand = Stand(tmp_path, undo)
        alice, carol = stand.settings.peers[0], PeerSettings(bytes(31) + b"c", name="carol", enabled=False)
        stand.settings = stand.settings._replace(peers=(alice, carol))
        node = stand.make_node(SessionState.create("test", 1, boot_id(), stand.settings.public_key), 1)
        for describe in (status.describe, status.describe_peers):
            answer = json.loads(b"".join(describe(node)))
            assert [each["public_key"] for each in answer["peers"]] == [ALICE]
            assert [(each["name"], each["reason"]) for each in answer["inactive_peers"]] == [("carol", "disabled")]


def test_a_session_is_said_to_end_when_access_does(tmp_path: Path) -> None:
    with ExitStack() as undo:
        stand = Stand(tmp_path, undo)
        stand.begin_session()
        stand.peer.settings = stand.peer.settings._replace(expires_unix=time.time() + 30)
        (peer,) = json.loads(b"".join(status.describe(stand.node)))["peers"]
        assert peer["session_ends_unix"] == pytest.approx(peer["expires_unix"], abs=0.001)
        assert peer["has_session"]
