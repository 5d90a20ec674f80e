"""Metrics: totals come only from the counters, and names follow the conventions of Prometheus."""

import re

import pytest
from prometheus_client.parser import text_string_to_metric_families

from oxidize.metrics import STATES, Live, Metrics
from oxidize.protocol.counters import DROPS_START, TOTALS_WORDS, Counters, DropReason, LinkState, Total

BASE_UNITS = ("seconds", "bytes")
NOT_BASE_UNITS = ("ms", "milliseconds", "us", "microseconds", "ns", "nanoseconds", "minutes", "kb", "kilobytes", "bits")


def live(generation: int = 7) -> Live:
    return Live(
        connections_active=lambda: 2,
        peers=lambda: 3,
        kernel_drops=lambda: 5,
        generation=lambda: generation,
        state=lambda: "healthy",
        link=lambda: LinkState.CONNECTED,
    )


@pytest.fixture
def counters() -> Counters:
    return memoryview(bytearray(8 * TOTALS_WORDS)).cast("Q")


@pytest.fixture
def metrics(counters: Counters) -> Metrics:
    return Metrics(counters, live(), release="0.1.0")


def samples(metrics: Metrics) -> dict[tuple[str, ...], float]:
    """Return every sample of a scrape: its value by its name and labels."""
    body, _ = metrics.render()
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
    }


def test_live_values_are_read_at_every_scrape(metrics: Metrics) -> None:
    found = samples(metrics)
    assert found["oxidize_connections_active",] == 2
    assert found["oxidize_peers",] == 3
    assert found["oxidize_socket_drops_total",] == 5
    assert found["oxidize_generation",] == 7
    assert found["oxidize_info", "0.1.0"] == 1
    assert [found["oxidize_state", state] for state in STATES] == [0, 1, 0, 0]
    assert found["process_start_time_seconds",] > 1e9
    assert found["process_open_fds",] > 0


def test_every_total_has_a_counter_of_its_own(counters: Counters, metrics: Metrics) -> None:
    before = samples(metrics)
    seen: set[tuple[str, ...]] = set()
    for total in Total:
        counters[total] = 3_000_000_000
        after = samples(metrics)
        changed = {name for name in after if name[0].startswith("oxidize_") and after[name] != before[name]}
        assert changed, total.name
        assert not changed & seen, total.name
        for name in changed:
            assert after[name] == (3.0 if "seconds" in name[0] and "count" not in name[0] else 3e9)
        seen |= changed
        before = after


def test_the_names_that_dashboards_use_have_the_right_counters(counters: Counters, metrics: Metrics) -> None:
    for number, total in enumerate(Total, start=1):
        counters[total] = number
    found = samples(metrics)
    assert found["oxidize_received_bytes_total",] == counters[Total.RECEIVED_BYTES]
    assert found["oxidize_sent_bytes_total",] == counters[Total.SENT_BYTES]
    assert found["oxidize_received_datagrams_total",] == counters[Total.RECEIVED_DATAGRAMS]
    assert found["oxidize_tunnel_received_packets_total",] == counters[Total.RECEIVED_PACKETS]
    assert found["oxidize_tunnel_sent_bytes_total",] == counters[Total.SENT_PACKET_BYTES]
    assert found["oxidize_handshakes_total", "initiator"] == counters[Total.HANDSHAKES_INITIATOR]
    assert found["oxidize_handshakes_total", "responder"] == counters[Total.HANDSHAKES_RESPONDER]
    assert found["oxidize_takeovers_total", "success"] == counters[Total.TAKEOVERS_SUCCEEDED]
    assert found["oxidize_takeovers_total", "failure"] == counters[Total.TAKEOVERS_FAILED]
    assert found["oxidize_sessions_restored_total",] == counters[Total.SESSIONS_RESTORED]


def test_every_drop_reason_is_exported_from_the_start(counters: Counters, metrics: Metrics) -> None:
    found = samples(metrics)
    for reason in DropReason:
        assert found["oxidize_dropped_packets_total", reason.name.lower()] == 0
    counters[DROPS_START + DropReason.REPLAYED_COUNTER] = 4
    assert samples(metrics)["oxidize_dropped_packets_total", "replayed_counter"] == 4


def test_blackouts_are_a_summary_in_seconds(counters: Counters, metrics: Metrics) -> None:
    counters[Total.TAKEOVERS_SUCCEEDED] = 3
    counters[Total.BLACKOUT_NS_SUM] = 12_000_000
    counters[Total.BLACKOUT_NS_LAST] = 2_500_000
    counters[Total.BLACKOUT_NS_MAX] = 7_000_000
    found = samples(metrics)
    assert found["oxidize_takeover_blackout_seconds_count",] == 3
    assert found["oxidize_takeover_blackout_seconds_sum",] == pytest.approx(0.012)
    assert found["oxidize_takeover_blackout_last_seconds",] == pytest.approx(0.0025)
    assert found["oxidize_takeover_blackout_max_seconds",] == pytest.approx(0.007)


def test_the_totals_of_a_successor_continue_those_of_its_predecessor(counters: Counters, metrics: Metrics) -> None:
    counters[Total.RECEIVED_BYTES] = 1000
    samples(metrics)
    successor = Metrics(counters, live(generation=8), release="0.2.0")
    counters[Total.RECEIVED_BYTES] += 1
    found = samples(successor)
    assert found["oxidize_received_bytes_total",] == 1001
    assert found["oxidize_generation",] == 8


def test_a_counter_at_its_limit_is_exported(counters: Counters, metrics: Metrics) -> None:
    for number in range(TOTALS_WORDS):
        counters[number] = 2**64 - 1
    assert samples(metrics)["oxidize_received_bytes_total",] == float(2**64 - 1)


def test_the_content_type_is_the_one_of_prometheus(metrics: Metrics) -> None:
    body, content_type = metrics.render()
    assert content_type.startswith("text/plain; version=")
    assert body.endswith(b"\n")


def test_metric_names_follow_the_conventions(metrics: Metrics) -> None:
    families = list(text_string_to_metric_families(metrics.render()[0].decode()))
    assert len({family.name for family in families}) == len(families)
    for family in families:
        assert re.fullmatch(r"(oxidize|process)_[a-z]+(_[a-z]+)*", family.name), family.name
        assert family.documentation.endswith("."), family.name
        assert family.samples, family.name
        words = family.name.split("_")
        assert not set(words) & set(NOT_BASE_UNITS), family.name
        assert set(words[:-1]).isdisjoint(BASE_UNITS), f"{family.name}: the unit is the last word"
        assert family.type in {"counter", "gauge", "summary", "histogram"}, family.name
        for sample in family.samples:
            # The parser takes `_total` off a counter's name; nothing but a counter may have it.
            assert sample.name.endswith("_total") == (family.type == "counter"), sample.name
            assert set(sample.labels) <= {"reason", "role", "result", "state", "release", "le"}, sample.name
