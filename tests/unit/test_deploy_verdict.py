"""What speaks against a release, and what does not."""

from dataclasses import replace
from typing import Any

import pytest

from oxidize.deploy.verdict import Baseline, Judge, Observation, missing_sessions
from oxidize.deploy.vitals import Vitals, rates
from oxidize.errors import DecodeError

FIRST = Vitals(
    at=100.0,
    state="healthy",
    generation=4,
    release="0.1.0",
    release_folder="/opt/oxidize/releases/one",
    pid=10,
    uptime_secs=50.0,
    sessions=3,
    peers=4,
    totals={},
    drops={},
    kernel_drops=0,
    takeovers=(),
    metrics_listen=None,
)
TWO = "/opt/oxidize/releases/two"


def later(
    vitals: Vitals, seconds: float, *, received: int = 0, drops: int = 0, kernel: int = 0, **changed: Any
) -> Vitals:
    totals = dict(vitals.totals)
    for name in ("received_packets", "sent_packets", "received_datagrams"):
        totals[name] = totals.get(name, 0) + received
    dropped = {"mac1_invalid": vitals.drops.get("mac1_invalid", 0) + drops}
    return replace(
        vitals,
        **{
            "at": vitals.at + seconds,
            "totals": totals,
            "drops": dropped,
            "kernel_drops": vitals.kernel_drops + kernel,
            **changed,
        },
    )


def baseline(*, received: int = 500, drops: int = 0, kernel: int = 0) -> Baseline:
    seen = [FIRST]
    for _ in range(6):
        seen.append(later(seen[-1], 0.5, received=received, drops=drops, kernel=kernel))
    return Baseline(tuple(seen))


def judged(before: Baseline, samples: int = 20, *, received: int = 500, drops: int = 0, kernel: int = 0) -> list[str]:
    judge, reasons = Judge(before, TWO), []
    now = replace(before.last, generation=5, pid=11, release_folder=TWO)
    for _ in range(samples):
        now = later(now, 0.5, received=received, drops=drops, kernel=kernel)
        reasons += judge.judge(Observation(now))
    return reasons


def test_a_release_that_does_what_the_one_before_did_is_good() -> None:
    assert judged(baseline()) == []


def test_a_trickle_that_stops_is_no_reason() -> None:
    assert judged(baseline(received=2), received=0) == []


def test_a_flow_that_pauses_for_a_moment_is_no_reason() -> None:
    assert judged(baseline(), samples=5, received=0) == []


def test_a_flow_that_stops_is_one() -> None:
    assert any("packets received: 0 a second" in reason for reason in judged(baseline(), samples=7, received=0))


def test_a_flow_that_is_less_by_half_is_no_reason() -> None:
    assert judged(baseline(), received=250) == []


def test_rubbish_that_came_before_as_well_is_no_reason() -> None:
    assert judged(baseline(received=100, drops=50), received=100, drops=60) == []
    assert any("mac1 invalid" in reason for reason in judged(baseline(received=100, drops=2), received=100, drops=50))


def test_a_few_drops_are_no_reason() -> None:
    assert judged(baseline(), samples=10, drops=1) == []


def test_a_queue_that_overflows_is_a_reason_unless_it_did_before() -> None:
    assert any("the queue of the socket was full" in reason for reason in judged(baseline(), kernel=1))
    assert judged(baseline(kernel=5), kernel=5) == []


def test_not_ready_once_is_no_reason() -> None:
    judge = Judge(baseline(), TWO)
    now = replace(FIRST, at=104.0, generation=5, release_folder=TWO)
    assert judge.judge(Observation(now, "503 starting")) == []
    assert judge.judge(Observation(now)) == []
    assert judge.judge(Observation(now, "503 starting")) == []
    assert judge.judge(Observation(now, "503 starting")) == ["/health: 503 starting; expected it to be ready"]


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"generation": 4}, "generation 4 serves; expected a later one than 4"),
        ({"release_folder": "/elsewhere"}, f"/elsewhere serves; expected {TWO}"),
    ],
)
def test_who_serves_is_who_should(changed: dict[str, Any], expected: str) -> None:
    now = replace(FIRST, **{"at": 104.0, "generation": 5, "release_folder": TWO, **changed})
    assert expected in Judge(baseline(), TWO).judge(Observation(now))


def test_nobody_is_a_reason() -> None:
    assert Judge(baseline(), TWO).judge(Observation(None)) == ["nobody serves any more: the process has ended"]


def test_rates_come_of_the_servers_own_clock() -> None:
    passed = rates(FIRST, later(FIRST, 2.0, received=500))
    assert (passed.received, passed.sent, passed.packets) == (250.0, 250.0, 500.0)
    assert rates(FIRST, FIRST).received == 0.0
    assert rates(later(FIRST, 1.0, received=5), replace(FIRST, at=102.0)).received == 0.0


@pytest.mark.parametrize("answer", [{}, {"at_boot_secs": "x"}, {"at_boot_secs": None}])
def test_an_answer_that_is_none_is_a_decode_error(answer: dict[str, Any]) -> None:
    with pytest.raises(DecodeError):
        Vitals.of(answer)


# --- Sessions ---


def peer(name: str, *, has_session: bool = True, age: float = 10.0) -> dict[str, Any]:
    return {"name": name, "public_key": name, "has_session": has_session, "last_handshake_unix": 1000.0 - age}


@pytest.mark.parametrize(
    ("before", "after", "missing"),
    [
        ([peer("a")], [peer("a")], []),
        ([peer("a")], [peer("a", has_session=False)], ["a"]),
        ([peer("a", age=179.0)], [peer("a", has_session=False, age=179.0)], []),
        ([peer("a", has_session=False)], [peer("a", has_session=False)], []),
        ([peer("a"), peer("b")], [peer("b")], ["a"]),
        ([], [peer("b")], []),
    ],
)
def test_only_a_session_that_did_not_end_by_age_is_missing(
    before: list[dict[str, Any]], after: list[dict[str, Any]], missing: list[str]
) -> None:
    assert missing_sessions(before, after, 1000.0, may_leave=False) == missing


def test_a_peer_that_was_taken_out_on_purpose_is_not_missing() -> None:
    assert missing_sessions([peer("a")], [], 1000.0, may_leave=True) == []
