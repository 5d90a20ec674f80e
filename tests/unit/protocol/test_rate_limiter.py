"""Handshakes by source address: 20 a second, 5 at once, as the reference implementations have it."""

import random
from ipaddress import ip_address

import pytest

from oxidize.protocol import rate_limiter
from oxidize.protocol.rate_limiter import (
    HANDSHAKES_BURST,
    HANDSHAKES_PER_SECOND,
    UNDER_LOAD_HANDSHAKES,
    Budget,
    LoadMeter,
    RateLimiter,
)

A = ip_address("192.0.2.1").packed
B = ip_address("192.0.2.2").packed


def test_the_limits_are_those_of_the_reference_implementations() -> None:
    assert (HANDSHAKES_PER_SECOND, HANDSHAKES_BURST) == (20, 5)


@pytest.mark.parametrize("now", [0.0, 1.0, 12_345.678, 1e8 + 1 / 3])
def test_a_source_is_allowed_a_burst_and_then_the_rate(now: float) -> None:
    limiter = RateLimiter()
    assert [limiter.allow(A, now) for _ in range(7)] == [True] * 5 + [False] * 2
    assert not limiter.allow(A, now + 0.049)
    assert limiter.allow(A, now + 0.051)
    assert not limiter.allow(A, now + 0.052)
    assert [limiter.allow(A, now + 10) for _ in range(7)] == [True] * 5 + [False] * 2


def test_a_source_that_keeps_to_the_rate_is_never_denied() -> None:
    limiter = RateLimiter()
    for _ in range(5):
        assert limiter.allow(A, 100.0)
    for step in range(1, 1000):
        assert limiter.allow(A, 100.0 + step * 0.05)


def test_denied_handshakes_take_no_tokens() -> None:
    limiter = RateLimiter()
    allowed = sum(limiter.allow(A, 5.0 + step / 1000) for step in range(1000))  # 50 times the rate, for a second
    assert allowed == 5 + 19


def test_sources_do_not_share_tokens() -> None:
    limiter = RateLimiter()
    for _ in range(6):
        limiter.allow(A, 1.0)
    assert not limiter.allow(A, 1.0)
    assert limiter.allow(B, 1.0)


def test_ipv6_sources_of_one_64_share_tokens() -> None:
    limiter = RateLimiter()
    for host in range(5):
        assert limiter.allow(ip_address(f"2001:db8::{host:x}").packed, 1.0)
    assert not limiter.allow(ip_address("2001:db8::ffff:ffff:ffff:ffff").packed, 1.0)
    assert limiter.allow(ip_address("2001:db8:0:1::").packed, 1.0)
    assert limiter.allow(ip_address("32.1.13.184").packed, 1.0)  # the same first four bytes


def test_the_number_of_remembered_sources_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate_limiter, "SOURCES_MAX", 100)
    limiter = RateLimiter()
    for number in range(1000):
        source = number.to_bytes(4, "big")
        for _ in range(5):
            assert limiter.allow(source, 1.0)
        assert not limiter.allow(source, 1.0)  # the newest is not the one that is forgotten
        assert len(limiter) <= 100
    assert not limiter.allow((901).to_bytes(4, "big"), 1.0)
    assert limiter.allow((899).to_bytes(4, "big"), 1.0)  # the oldest is


def test_sources_with_a_full_bucket_are_forgotten() -> None:
    limiter = RateLimiter()
    for number in range(1000):
        limiter.allow(number.to_bytes(4, "big"), 1.0)
    for _ in range(600):
        limiter.allow(A, 2.0)
    assert len(limiter) == 1


def test_forgetting_sources_changes_no_answer() -> None:
    """Against a bucket for each source that is never forgotten."""
    source = random.Random(3)
    limiter = RateLimiter()
    buckets: dict[int, tuple[float, int]] = {}
    now_ms = 0
    for _ in range(5000):
        now_ms += source.choice([0, 0, 0, 1, 5, 20])
        number = source.randrange(12)
        tokens, at_ms = buckets.get(number, (5.0, 0))
        tokens = min(5.0, tokens + (now_ms - at_ms) / 50)
        expected = tokens >= 1 - 1e-9
        buckets[number] = (tokens - expected, now_ms)
        assert limiter.allow(number.to_bytes(4, "big"), now_ms / 1000) == expected


# --- All sources together ---


@pytest.mark.parametrize("now", [0.0, 12_345.678, 1e8 + 1 / 3])
def test_a_budget_allows_its_burst_and_then_its_rate(now: float) -> None:
    budget = Budget(per_second=100, burst=10)
    assert [budget.take(now) for _ in range(12)] == [True] * 10 + [False] * 2
    assert not budget.take(now + 0.004)
    assert budget.take(now + 0.011)
    assert not budget.take(now + 0.012)
    assert sum(budget.take(now + 10 + step / 1000) for step in range(1000)) in range(109, 112)


def test_a_budget_keeps_reserved_tokens_for_other_requests() -> None:
    budget = Budget(per_second=100, burst=10)
    assert [budget.take(1.0, reserved=6) for _ in range(6)] == [True] * 4 + [False] * 2
    assert [budget.take(1.0) for _ in range(7)] == [True] * 6 + [False]
    assert not budget.take(1.05, reserved=6), "the reserve is filled first"
    assert budget.take(1.08, reserved=6)


def test_reserved_places_follow_each_other_at_the_rate() -> None:
    budget = Budget(per_second=100, burst=1)
    assert [round(budget.reserve(5.0), 6) for _ in range(4)] == [5.0, 5.01, 5.02, 5.03]
    assert round(budget.reserve(9.0), 6) == 9.0


def test_a_burst_of_handshakes_is_no_load_and_more_than_that_is() -> None:
    meter = LoadMeter()
    for _ in range(UNDER_LOAD_HANDSHAKES):
        assert not meter.is_loaded(7.0)
        meter.note(7.0)
    assert meter.is_loaded(7.0)
    assert not meter.is_loaded(7.01)


def test_load_lasts_a_second_at_most_after_any_flood() -> None:
    meter = LoadMeter()
    for _ in range(100 * UNDER_LOAD_HANDSHAKES):
        meter.note(7.0)
    assert meter.is_loaded(7.99)
    assert not meter.is_loaded(8.01)


def test_a_threshold_of_zero_is_load_at_all_times() -> None:
    meter = LoadMeter(0)
    assert meter.is_loaded(0.0)
    meter.note(1.0)
    assert meter.is_loaded(1e9)


def test_a_budget_has_a_token_again_when_it_says() -> None:
    budget = Budget(1000, 10)
    while budget.take(5.0, 4):
        pass
    next_at = budget.next_at(4)
    assert 5.0 < next_at <= 5.001
    assert not budget.has(next_at - 1e-5, 4)
    assert budget.has(next_at + 1e-5, 4)
