"""The verdict on synthetic runs: which observations fail a run."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from demo.records import Kind, Record
from demo.verdict import OVERDUE_SECS, Action, Replacement, Tally, Verdict, early_handshakes, judge, longest_gap
from oxidize.protocol.constants import BATCH_PACKETS_MAX, REKEY_AFTER_TIME
from oxidize.protocol.counters import DropReason

START = 1000.0
CLIENTS = 4
RATE = 400.0
LATENCY = 0.001
KILLED_AT = START + 1.0


def reload(at: float, took: float = 0.1, succeeded: bool = True) -> Replacement:
    return Replacement(Action.RELOAD, at, at + took, succeeded, 3.0, "moved", at + took)


KILL = Replacement(Action.KILL, KILLED_AT, KILLED_AT + 0.2, True, None, "again", KILLED_AT + 0.2)


class Run:
    """A perfect run of 3 s, for a test to modify."""

    def __init__(self) -> None:
        self.sent = [Record(Kind.SENT, k % CLIENTS, k // CLIENTS, START + k / RATE) for k in range(round(3 * RATE))]
        self.replies = [Record(Kind.REPLY, r.client, r.number, r.at + LATENCY, r.at) for r in self.sent]
        self.others = [Record(Kind.HANDSHAKE, c, 1, START - 0.1) for c in range(CLIENTS)]
        self.others += [Record(Kind.STARTED, 0, 0, START), Record(Kind.FINISHED, 0, 0, START + 3.1)]

    def lose(self, begin: float, end: float) -> int:
        before = len(self.replies)
        self.replies = [r for r in self.replies if not begin <= r.sent_at < end]
        return before - len(self.replies)

    def tally(self) -> Tally:
        tally = Tally()
        tally.add(sorted([*self.sent, *self.replies, *self.others], key=lambda r: r.at))
        return tally

    def judge(self, *replacements: Replacement) -> Verdict:
        return judge(self.tally(), replacements, CLIENTS, len(replacements))


@pytest.fixture
def run() -> Run:
    return Run()


def test_a_perfect_run_passes(run: Run) -> None:
    verdict = run.judge(reload(START + 0.5), KILL)
    assert verdict.ok
    assert (verdict.sent, verdict.replies) == (1200, 1200)
    assert (verdict.lost, verdict.duplicated, verdict.reordered, verdict.corrupted, verdict.sessions_lost) == (0,) * 5
    assert verdict.handshakes == CLIENTS
    assert verdict.latency_median_ms == pytest.approx(1.0)
    assert [judged.gap_ms for judged in verdict.replacements] == pytest.approx([2.5, 2.5])


def test_one_request_lost_by_a_reload_fails(run: Run) -> None:
    assert run.lose(START + 0.5 - 1e-6, START + 0.5 + 1e-6) == 1
    verdict = run.judge(reload(START + 0.5))
    assert verdict.reasons == ("1 requests lost beyond a killed process's batch: expected none",)


@pytest.mark.parametrize("count", [1, BATCH_PACKETS_MAX])
def test_one_batch_lost_by_a_kill_passes(run: Run, count: int) -> None:
    assert run.lose(KILLED_AT - count / RATE - 1e-6, KILLED_AT - 1e-6) == count
    verdict = run.judge(KILL)
    assert verdict.ok
    assert (verdict.lost, verdict.lost_in_hand, verdict.replacements[0].lost) == (count, count, count)


def test_more_than_one_batch_lost_by_a_kill_fails(run: Run) -> None:
    count = BATCH_PACKETS_MAX + 1
    assert run.lose(KILLED_AT - count / RATE - 1e-6, KILLED_AT - 1e-6) == count
    verdict = run.judge(KILL)
    assert (verdict.lost, verdict.lost_in_hand) == (count, BATCH_PACKETS_MAX)
    assert verdict.reasons[0].startswith("1 requests lost")


def test_a_loss_after_a_kill_is_not_excused_by_it(run: Run) -> None:
    assert run.lose(KILLED_AT + 0.1 - 1e-6, KILLED_AT + 0.1 + 1e-6) == 1
    verdict = run.judge(KILL)
    assert (verdict.lost, verdict.lost_in_hand) == (1, 0)
    assert not verdict.ok


def test_two_kills_do_not_excuse_the_same_loss_twice(run: Run) -> None:
    second = Replacement(Action.KILL, KILLED_AT + 0.1, KILLED_AT + 0.3, True, None, "", None)
    run.lose(KILLED_AT - 10 / RATE - 1e-6, KILLED_AT - 1e-6)
    verdict = run.judge(KILL, second)
    assert (verdict.lost, verdict.lost_in_hand) == (10, 10)
    assert [judged.lost for judged in verdict.replacements] == [10, 0]


def test_a_reply_that_arrives_twice_fails(run: Run) -> None:
    run.others.append(run.replies[7]._replace(at=START + 2))
    verdict = run.judge()
    assert (verdict.replies, verdict.duplicated) == (1200, 1)
    assert verdict.reasons == ("1 replies arrived twice: expected none",)


def test_a_counter_that_is_sealed_twice_is_a_duplicate(run: Run) -> None:
    run.others.append(Record(Kind.DROPPED, 1, DropReason.REPLAYED_COUNTER, START + 2))
    assert run.judge().duplicated == 1


def test_drops_by_a_client_fail_with_their_reason(run: Run) -> None:
    run.others += [Record(Kind.DROPPED, 1, DropReason.UNKNOWN_INDEX, START + 2)] * 2
    assert run.judge().reasons == ("clients refused 2 datagrams (unknown_index): expected none",)


def test_reordering_is_reported_and_passes(run: Run) -> None:
    late = run.replies[8]
    run.replies[8] = late._replace(at=late.at + 2.5 * CLIENTS / RATE)
    verdict = run.judge()
    assert (verdict.reordered, verdict.ok) == (1, True)


def test_a_second_handshake_is_a_lost_session(run: Run) -> None:
    run.others.append(Record(Kind.HANDSHAKE, 2, 2, START + 1))
    verdict = run.judge()
    assert (verdict.handshakes, verdict.sessions_lost) == (CLIENTS + 1, 1)
    assert verdict.reasons == ("1 sessions lost (another handshake before a rekey was due): expected none",)


def test_a_rekey_that_was_due_is_no_lost_session() -> None:
    assert early_handshakes([0.0, REKEY_AFTER_TIME, 2 * REKEY_AFTER_TIME]) == 0
    assert early_handshakes([0.0, REKEY_AFTER_TIME - 0.1, REKEY_AFTER_TIME]) == 2


def test_a_client_without_a_session_fails(run: Run) -> None:
    run.others = [r for r in run.others if (r.kind, r.client) != (Kind.HANDSHAKE, 3)]
    assert run.judge().reasons == ("1 of 4 clients never had a session",)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [(Kind.CORRUPTED, "answer no request"), (Kind.UNREACHABLE, "the port was unreachable 1 times")],
)
def test_corrupted_packets_and_an_unreachable_port_fail(run: Run, kind: Kind, reason: str) -> None:
    run.others.append(Record(kind, 0, 0, START + 1))
    (found,) = run.judge().reasons
    assert reason in found


def test_clients_that_end_early_fail(run: Run) -> None:
    run.others = [r for r in run.others if r.kind is not Kind.FINISHED]
    assert run.judge().reasons == ("the clients ended before their schedule did",)


def test_a_run_without_replies_fails() -> None:
    verdict = judge(Tally(), [], 1, 0)
    assert verdict.reasons[0] == "no reply arrived: expected one for each request"


def test_a_replacement_that_did_not_end_as_intended_fails(run: Run) -> None:
    verdict = run.judge(reload(START + 0.5, succeeded=False))
    assert verdict.reasons == ("reload did not end as intended: moved",)


def test_a_replacement_that_was_never_made_fails(run: Run) -> None:
    verdict = judge(run.tally(), [reload(START + 0.5)], CLIENTS, 3)
    assert verdict.reasons == ("only 1 of 3 actions took place: the run was too short",)


def test_the_silence_of_a_replacement_is_measured(run: Run) -> None:
    held = [r for r in run.replies if START + 1 <= r.sent_at < START + 1.2]
    run.replies = [r._replace(at=START + 1.2 + LATENCY) if r in held else r for r in run.replies]
    early, kill = run.judge(reload(START + 0.5), KILL).replacements
    assert early.gap_ms == pytest.approx(2.5)
    assert kill.gap_ms == pytest.approx(202.5, abs=0.1)


def test_the_time_after_the_last_request_is_no_silence(run: Run) -> None:
    (judged,) = run.judge(reload(START + 2.85)).replacements
    assert judged.gap_ms == pytest.approx(2.5)


def test_longest_gap_counts_both_ends() -> None:
    assert longest_gap([], 1.0, 3.0) == 2.0
    assert longest_gap([2.5], 1.0, 3.0) == 1.5
    assert longest_gap([0.0, 1.2, 2.0, 9.0], 1.0, 3.0) == 1.0
    assert longest_gap([5.0], 2.0, 1.0) == 0.0


def test_an_overdue_request_counts_as_lost_so_far() -> None:
    tally = Tally()
    tally.add([Record(Kind.SENT, 0, i, START + i / 10) for i in range(10)])
    assert tally.overdue(START) == 0
    assert tally.overdue(START + OVERDUE_SECS + 0.45) == 5
    tally.add([Record(Kind.REPLY, 0, 0, START + 1.5, START)])
    assert tally.overdue(START + OVERDUE_SECS + 0.45) == 4


@given(st.permutations(range(24)))
def test_the_counts_do_not_depend_on_the_order_of_the_records(order: list[int]) -> None:
    sent = [Record(Kind.SENT, i % 2, i // 2, START + i) for i in range(12)]
    replies = [Record(Kind.REPLY, r.client, r.number, r.at + LATENCY, r.at) for r in sent[:10]]
    everything = [*sent, *replies, replies[0], replies[3]]
    tally = Tally()
    for position in order:
        tally.add([everything[position]])
    assert (tally.sent, tally.replies, tally.duplicated) == (12, 10, 2)
    assert set(tally.waiting) == {(0, 5), (1, 5)}
