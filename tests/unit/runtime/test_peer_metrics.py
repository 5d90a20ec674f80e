"""The metrics of each peer: read at a scrape, in pieces that scrapes share, in the format of Prometheus."""

import gc
import logging
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from oxidize.clock import boot_time
from oxidize.protocol.counters import RECEIVED_BYTES, RECEIVED_PACKETS, SENT_BYTES, SENT_PACKETS
from oxidize.runtime import peer_metrics
from oxidize.runtime.peer_metrics import FAMILIES, PEERS_PER_PIECE, SHARED_SECS, PeerMetrics
from tests.support.config_files import ALICE
from tests.support.node_stand import Stand

ALL = 100_000


@pytest.fixture
def stand(tmp_path: Path) -> Iterator[Stand]:
    with ExitStack() as undo:
        yield Stand(tmp_path, undo)


def metrics_of(stand: Stand, peers_max: int = ALL) -> PeerMetrics:
    return PeerMetrics(stand.node.device, stand.node.counters, peers_max, boot_time)


def text_of(metrics: PeerMetrics) -> str:
    return b"".join(metrics.pieces() or ()).decode()


def have_peers(stand: Stand, number: int) -> None:
    """Give the device so many peers, all of which are the same one."""
    peers: Any = {index.to_bytes(4, "big"): stand.peer for index in range(number)}
    stand.node.device._table.peers = peers


def test_the_values_are_those_of_the_counters(stand: Stand) -> None:
    stand.begin_session()
    stand.peer.last_handshake_unix = 1_795_992_488.5
    for word, value in ((RECEIVED_BYTES, 404), (SENT_BYTES, 348), (RECEIVED_PACKETS, 3), (SENT_PACKETS, 2)):
        stand.node.counters[stand.peer.slot + word] = value
    found = {}
    for family in text_string_to_metric_families(text_of(metrics_of(stand))):
        (sample,) = family.samples
        assert sample.labels == {"public_key": ALICE, "name": "alice"}
        found[sample.name] = (family.type, sample.value)
    assert found == {
        "oxidize_peer_received_bytes_total": ("counter", 404.0),
        "oxidize_peer_sent_bytes_total": ("counter", 348.0),
        "oxidize_peer_received_packets_total": ("counter", 3.0),
        "oxidize_peer_sent_packets_total": ("counter", 2.0),
        "oxidize_peer_last_handshake_timestamp_seconds": ("gauge", 1_795_992_488.5),
        "oxidize_peer_connected": ("gauge", 1.0),
    }


def test_a_peer_that_was_never_heard_has_zeros(stand: Stand) -> None:
    values = [
        sample.value
        for family in text_string_to_metric_families(text_of(metrics_of(stand)))
        for sample in family.samples
    ]
    assert values == [0.0] * len(FAMILIES)


@pytest.mark.parametrize("name", ['a"b', "a\\b", "a\nb", "Жанна", "a\\n", '\\"'])
def test_any_name_is_written_as_the_format_asks(stand: Stand, name: str) -> None:
    stand.peer.settings = stand.peer.settings._replace(name=name)
    for family in text_string_to_metric_families(text_of(metrics_of(stand))):
        assert family.samples[0].labels["name"] == name


@pytest.mark.parametrize("number", [1, PEERS_PER_PIECE, PEERS_PER_PIECE + 1, 5 * PEERS_PER_PIECE])
def test_many_peers_come_in_pieces_and_each_metric_in_one_place(stand: Stand, number: int) -> None:
    have_peers(stand, number)
    pieces = list(metrics_of(stand).pieces() or ())
    assert len(pieces) == len(FAMILIES) * (1 + -(-number // PEERS_PER_PIECE))
    assert max(piece.count(b"\n") for piece in pieces) <= PEERS_PER_PIECE
    names = [line.split("{")[0] for line in b"".join(pieces).decode().splitlines() if not line.startswith("#")]
    assert names == [family.name for family in FAMILIES for _ in range(number)]


@pytest.mark.parametrize(("number", "peers_max", "left_out"), [(3, 3, 0), (4, 3, 4), (1, 0, 1), (0, 3, 0)])
def test_more_peers_than_are_wanted_have_none(stand: Stand, number: int, peers_max: int, left_out: int) -> None:
    have_peers(stand, number)
    metrics = metrics_of(stand, peers_max)
    assert metrics.left_out == left_out
    assert (metrics.pieces() is None) == (left_out > 0 or number == 0)


class Counting:
    """Values that count how often they were asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked = 0
        family = FAMILIES[0]._replace(value=self.value)
        monkeypatch.setattr(peer_metrics, "FAMILIES", (family,))

    def value(self, *_: object) -> int:
        self.asked += 1
        return self.asked


def test_scrapes_at_the_same_time_share_what_is_made(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    have_peers(stand, 3 * PEERS_PER_PIECE)
    counting, metrics, now = Counting(monkeypatch), metrics_of(stand), [100.0]
    metrics._clock = lambda: now[0]
    one, other = metrics.pieces(), metrics.pieces()
    assert one is not None
    assert other is not None
    first = next(one), next(one)
    now[0] += 10 * SHARED_SECS  # it is not complete
    third = metrics.pieces()
    assert third is not None
    assert (next(third), next(third)) == first
    assert counting.asked == PEERS_PER_PIECE
    assert list(other) == [*first, *one]
    assert counting.asked == 3 * PEERS_PER_PIECE


def test_a_later_scrape_is_made_anew_and_nothing_is_kept_in_between(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    counting, metrics = Counting(monkeypatch), metrics_of(stand)
    text_of(metrics)
    gc.collect()
    assert metrics._latest is not None
    assert metrics._latest() is None
    text_of(metrics)
    assert counting.asked == 2


def test_a_bug_ends_every_answer_that_shares_it_and_nothing_else(
    stand: Stand, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> object:
        raise ValueError("a bug")

    monkeypatch.setattr(peer_metrics, "FAMILIES", (FAMILIES[0]._replace(value=fail),))
    metrics = metrics_of(stand)
    both = metrics.pieces(), metrics.pieces()
    for pieces in both:
        assert pieces is not None
        with pytest.raises(ConnectionAbortedError):
            list(pieces)
    assert [record.levelno for record in caplog.records] == [logging.ERROR] * 2


def scrape(stand: Stand) -> dict[str, float]:
    """Return the samples of a node without labels, and those of its peers by their name."""
    response = stand.node.respond("GET", "/metrics")
    text = b"".join((response.body, *(response.more or ()))).decode()
    families = list(text_string_to_metric_families(text))
    assert len({family.name for family in families}) == len(families)
    return {
        sample.name: sample.value
        for family in families
        for sample in family.samples
        if not sample.labels or "public_key" in sample.labels
    }


def test_a_scrape_of_a_node_has_its_metrics_and_those_of_its_peers(stand: Stand) -> None:
    found = scrape(stand)
    assert (found["oxidize_peers"], found["oxidize_peers_left_out"]) == (1.0, 0.0)
    assert found["oxidize_peer_connected"] == 0.0
    assert set(found) >= {family.name for family in FAMILIES}


def test_a_node_with_too_many_peers_says_so_once(stand: Stand, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    have_peers(stand, 1001)
    for _ in range(2):
        found = scrape(stand)
        assert found["oxidize_peers_left_out"] == 1001.0
        assert not any(name.startswith("oxidize_peer_") for name in found)
    assert [record.getMessage() for record in caplog.records] == ["no metrics of each peer"]


def test_a_node_that_is_told_to_name_no_peer_does_not_say_so(stand: Stand, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    stand.node.settings = stand.node.settings._replace(metrics_peers=0)
    assert scrape(stand)["oxidize_peers_left_out"] == 1.0
    assert caplog.records == []
