"""Observations that count against a release, and those that do not."""

from dataclasses import replace
from typing import Any

import pytest

from oxidize.deploy.health_check import Baseline, HealthCheck, Observation, missing_sessions
from oxidize.deploy.server import Serving
from oxidize.deploy.vitals import PeerVitals, Takeover, Vitals, rates
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
SERVING = Serving(11, TWO)


def later(
    vitals: Vitals, seconds: float, *, received: int = 0, drops: int = 0, kernel: int = 0, **changed: Any
) -> Vitals:
    totals = dict(vitals.totals)
    for name in ("received_packets", "sent_packets", "received_datagrams"):
        totals[name] = totals.get(name, 0) + received
    dropped = {"no_route": vitals.drops.get("no_route", 0) + drops}
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


def judged(
    before: Baseline, samples: int = 20, *, received: int = 500, drops: int = 0, kernel: int = 0, shed: int = 0
) -> list[str]:
    check, reasons = HealthCheck(before, TWO), []
    now = replace(before.last, generation=5, pid=11)
    for _ in range(samples):
        now = later(now, 0.5, received=received, drops=drops, kernel=kernel)
        now = replace(now, totals={**now.totals, "shed_datagrams": now.total("shed_datagrams") + shed})
        reasons += check.observe(Observation(SERVING, now))
    return reasons


def test_a_release_that_behaves_like_its_predecessor_is_good() -> None:
    assert judged(baseline()) == []


def test_a_low_rate_that_pauses_is_no_reason() -> None:
    assert judged(baseline(received=2), received=0) == []


def test_a_flow_that_pauses_for_a_moment_is_no_reason() -> None:
    assert judged(baseline(), samples=5, received=0) == []


def test_a_flow_that_stops_is_a_reason() -> None:
    assert any("packets received: 0 a second" in reason for reason in judged(baseline(), samples=7, received=0))


def test_a_flow_that_is_less_by_half_is_no_reason() -> None:
    assert judged(baseline(), received=250) == []


def test_drops_at_the_rate_of_before_are_no_reason() -> None:
    assert judged(baseline(received=100, drops=50), received=100, drops=60) == []
    assert any("no route" in reason for reason in judged(baseline(received=100, drops=2), received=100, drops=50))


def test_a_few_drops_are_no_reason() -> None:
    assert judged(baseline(), samples=10, drops=1) == []


def test_a_queue_that_overflows_is_a_reason_unless_it_did_before() -> None:
    assert any("the queue of the socket was full" in reason for reason in judged(baseline(), kernel=1))
    assert judged(baseline(kernel=5), kernel=5) == []


def test_one_unready_observation_is_no_reason() -> None:
    check = HealthCheck(baseline(), TWO)
    now = replace(FIRST, at=104.0, generation=5, pid=11)
    assert check.observe(Observation(SERVING, now, "503 starting")) == []
    assert check.observe(Observation(SERVING, now)) == []
    assert check.observe(Observation(SERVING, now, "503 starting")) == []
    assert check.observe(Observation(SERVING, now, "503 starting")) == [
        "/health: 503 starting; expected it to be ready"
    ]


@pytest.mark.parametrize(
    ("serving", "changed", "main_pid", "expected"),
    [
        (SERVING, {"generation": 4}, 11, "generation 4 serves; expected a later one than 4"),
        (Serving(11, "/elsewhere"), {}, 11, f"/elsewhere serves; expected {TWO}"),
        (Serving(11, ""), {}, 11, f"pid 11 serves; expected {TWO}"),
    ],
)
def test_a_wrong_serving_process_is_a_reason(
    serving: Serving, changed: dict[str, Any], main_pid: int | None, expected: str
) -> None:
    now = replace(FIRST, **{"at": 104.0, "generation": 5, "pid": 11, **changed})
    assert HealthCheck(baseline(), TWO).observe(Observation(serving, now, main_pid=main_pid)) == [expected]


@pytest.mark.parametrize("serving", [SERVING, None])
def test_a_missing_server_is_a_reason(serving: Serving | None) -> None:
    check = HealthCheck(baseline(), TWO)
    assert check.observe(Observation(serving, None)) == ["no server is running: the process has ended"]


@pytest.mark.parametrize(
    ("serving", "pid", "main_pid", "expected"),
    [
        (SERVING, 12, 11, "pid 12 answers; expected 11, which serves"),
        (SERVING, 11, 12, "the main process of the service is 12; expected 11, which serves"),
        (None, 11, None, "pid 11 answers, but no process serves"),
    ],
)
def test_answering_and_serving_process_may_differ_only_briefly(
    serving: Serving | None, pid: int, main_pid: int | None, expected: str
) -> None:
    check = HealthCheck(baseline(), TWO)
    now = replace(FIRST, at=104.0, generation=5, pid=pid)
    reasons = check.observe(Observation(serving, now, main_pid=main_pid))
    assert (reasons, check.is_unsettled) == ([], True)
    reasons = check.observe(Observation(Serving(pid, TWO), now, main_pid=pid))
    assert (reasons, check.is_unsettled) == ([], False)
    found = [check.observe(Observation(serving, now, main_pid=main_pid)) for _ in range(3)]
    assert found == [[], [], [expected]]


@pytest.mark.parametrize(
    ("takeovers", "is_reason"),
    [
        ([(6, "taken over")], False),
        ([(6, "restored from the store")], True),
        ([(6, "inherited: the predecessor died")], True),
        ([], True),
    ],
)
def test_another_process_of_the_same_release_is_a_reason_unless_it_took_over(
    takeovers: list[tuple[int, str]], is_reason: bool
) -> None:
    check = HealthCheck(baseline(), TWO)
    now = later(replace(baseline().last, generation=5, pid=11), 0.5, received=500)
    assert check.observe(Observation(SERVING, now)) == []
    entries = tuple(Takeover(result="success", generation=number, way=way) for number, way in takeovers)
    now = later(replace(now, generation=6, pid=12, takeovers=entries), 0.5, received=500)
    assert bool(check.observe(Observation(Serving(12, TWO), now))) is is_reason


def test_a_flood_that_overflows_the_queue_is_no_reason() -> None:
    assert judged(baseline(), received=5000, kernel=100) == []
    assert judged(baseline(), received=0, kernel=100)


def test_what_the_kernel_sheds_of_a_flood_at_the_servers_request_is_no_reason() -> None:
    assert judged(baseline(), kernel=100, shed=100) == []
    assert judged(baseline(), kernel=100, shed=90) == [], "the second number is an estimate"


def test_only_errors_of_the_release_itself_count() -> None:
    now = later(replace(baseline().last, generation=5, pid=11), 0.5, received=500)
    now = replace(now, totals={**now.totals, "errors_logged": 7})
    for before, reasons in ((7, []), (5, ["2 lines logged as errors since the switch"]), (None, ["7 lines"])):
        found = HealthCheck(baseline(), TWO).observe(Observation(SERVING, replace(now, errors_before=before)))
        assert len(found) == len(reasons)
        assert all(given in seen for given, seen in zip(reasons, found, strict=True))


def test_rates_are_measured_by_the_servers_clock() -> None:
    passed = rates(FIRST, later(FIRST, 2.0, received=500))
    assert (passed.received, passed.sent) == (250.0, 250.0)
    assert rates(FIRST, FIRST).received == 0.0
    assert rates(later(FIRST, 1.0, received=5), replace(FIRST, at=102.0)).received == 0.0


@pytest.mark.parametrize("answer", [{}, {"at_boot_secs": "x"}, {"at_boot_secs": None}])
def test_invalid_vitals_are_a_decode_error(answer: dict[str, Any]) -> None:
    with pytest.raises(DecodeError):
        Vitals.of(answer)


# --- Sessions ---


def peer(name: str, *, has_session: bool = True, age: float = 10.0, ends: float = 0.0) -> PeerVitals:
    return PeerVitals(
        name=name,
        public_key=name,
        has_session=has_session,
        last_handshake_unix=1000.0 - age,
        session_ends_unix=ends,
        received_packets=0,
    )


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
def test_a_session_that_ended_by_age_is_not_missing(
    before: list[PeerVitals], after: list[PeerVitals], missing: list[str]
) -> None:
    assert missing_sessions(before, after, 1000.0) == missing


def test_the_age_of_a_session_is_that_of_its_keypair() -> None:
    gone = [peer("a", has_session=False)]
    assert missing_sessions([peer("a", ends=999.0)], gone, 1000.0) == []  # confirmed late
    assert missing_sessions([peer("a", age=1000.0, ends=1100.0)], gone, 1000.0) == ["a"]


@pytest.mark.parametrize(
    "answer",
    [None, [], {}, {"peers": None}, {"peers": {}}, {"peers": [None]}, {"peers": [{}]}, {"peers": [{"name": 1}]}],
)
def test_an_invalid_status_is_a_decode_error(answer: Any) -> None:
    with pytest.raises(DecodeError):
        PeerVitals.all_of(answer)
