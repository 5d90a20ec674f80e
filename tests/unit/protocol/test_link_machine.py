"""Every transition of a link, and the order in which the counters that hold its state are written."""

import re
from itertools import product
from pathlib import Path

import pytest

import oxidize.protocol
from oxidize.protocol.counters import LINK_STATE, OUTAGE_SINCE_NS, SLOT_WORDS, TOTALS_WORDS, Counters, LinkState
from oxidize.protocol.link_machine import DEVICE_DOES, LINK_TABLE, LinkEvent, advance
from tests.support.counters import ArraySlots
from tests.support.mortal_hosts import Fuse, Killed, fused

S, E = LinkState, LinkEvent
SLOT = TOTALS_WORDS
NOW, NOW_NS, EARLIER_NS = 20.0, 20_000_000_000, 5_000_000_000

# By event: what it leads to from CONNECTING, CONNECTED, RECONNECTING and FAILED.
EXPECTED: dict[LinkEvent, tuple[str, str, str, str]] = {
    E.BEGIN: (
        "CONNECTING INITIATE",
        "CONNECTED",
        "RECONNECTING PROBE_NOW INITIATE",
        "CONNECTING CLEAR_RETRIES INITIATE",
    ),
    E.BEGIN_IN_OUTAGE: (
        "CONNECTING INITIATE",
        "CONNECTED",
        "RECONNECTING PROBE_NOW INITIATE",
        "RECONNECTING CLEAR_RETRIES PROBE_NOW INITIATE",
    ),
    E.BEGIN_NEW: (
        "CONNECTING INITIATE",
        "CONNECTING CLEAR_RETRIES INITIATE",
        "CONNECTING CLEAR_RETRIES INITIATE",
        "CONNECTING CLEAR_RETRIES INITIATE",
    ),
    E.RECEIVED: (
        "CONNECTED END_OUTAGE REPORT SEND_STAGED",
        "CONNECTED",
        "CONNECTED END_OUTAGE REPORT SEND_STAGED",
        "CONNECTED END_OUTAGE REPORT SEND_STAGED",
    ),
    E.SESSION: (
        "CONNECTED END_OUTAGE REPORT",
        "CONNECTED",
        "CONNECTED END_OUTAGE REPORT",
        "CONNECTED END_OUTAGE REPORT",
    ),
    E.SESSION_REPLACED: (
        "CONNECTED END_OUTAGE REPORT",
        "CONNECTED STAGE_UNANSWERED",
        "CONNECTED END_OUTAGE REPORT",
        "CONNECTED END_OUTAGE REPORT",
    ),
    E.UNANSWERED: ("CONNECTING RETRY", "CONNECTED RETRY", "RECONNECTING RETRY", "FAILED GIVE_UP"),
    E.SILENT: ("CONNECTING REPORT", "RECONNECTING START_OUTAGE REPORT", "RECONNECTING", "FAILED"),
    E.EXHAUSTED: ("FAILED REPORT GIVE_UP", "CONNECTED RETRY", "FAILED REPORT GIVE_UP", "FAILED GIVE_UP"),
    E.UNREACHABLE: ("CONNECTING", "CONNECTED DOUBT", "RECONNECTING", "FAILED"),
    E.REFUSED: ("CONNECTING PROBE_REFUSED", "CONNECTED DOUBT", "RECONNECTING PROBE_REFUSED", "FAILED"),
    E.DOUBTED: ("CONNECTING", "CONNECTED INITIATE", "RECONNECTING", "FAILED"),
    E.ROUTE_LOST: ("CONNECTING", "RECONNECTING START_OUTAGE REPORT RETRY_SOON", "RECONNECTING", "FAILED"),
    E.REFUSALS_ENDED: ("CONNECTING RESET_BACKOFF", "CONNECTED", "RECONNECTING RESET_BACKOFF", "FAILED RESET_BACKOFF"),
    E.ROUTE_CHANGED: (
        "CONNECTING RESET_BACKOFF",
        "CONNECTED ASSUME_LOST INITIATE",
        "RECONNECTING RESET_BACKOFF",
        "FAILED RESET_BACKOFF",
    ),
}
PAIRS = list(product(S, E))


def counters_with(state: LinkState, since_ns: int, fuse: Fuse) -> Counters:
    """Return counters with a link in a state; stores to it burn the fuse."""
    counters = ArraySlots(1).counters
    assert len(counters) == TOTALS_WORDS + SLOT_WORDS
    counters[SLOT + LINK_STATE], counters[SLOT + OUTAGE_SINCE_NS] = state, since_ns
    return fused(counters, fuse)


def outages_possible(state: LinkState) -> tuple[int, ...]:
    """Return the values of OUTAGE_SINCE_NS that agree with a state."""
    return {S.RECONNECTING: (EARLIER_NS,), S.FAILED: (0, EARLIER_NS)}.get(state, (0,))


def outage_agrees(counters: Counters) -> bool:
    state, is_open = counters[SLOT + LINK_STATE], counters[SLOT + OUTAGE_SINCE_NS] != 0
    return state == S.FAILED or is_open == (state == S.RECONNECTING)


def test_every_event_has_a_place_in_every_state_of_a_link() -> None:
    assert set(LINK_TABLE) == set(PAIRS)
    assert set(EXPECTED) == set(E)


@pytest.mark.parametrize(("state", "event"), PAIRS)
def test_each_link_event_leads_to_its_state_and_actions(state: LinkState, event: LinkEvent) -> None:
    counters = counters_with(state, 0, Fuse())
    to_do = advance(counters, SLOT, event, NOW)
    after = LinkState(counters[SLOT + LINK_STATE])
    assert " ".join([after.name, *(do.name for do in to_do)]) == EXPECTED[event][state]


@pytest.mark.parametrize(("state", "event"), PAIRS)
def test_the_outage_agrees_with_the_link_state_after_each_event(state: LinkState, event: LinkEvent) -> None:
    for since_ns in outages_possible(state):
        counters = counters_with(state, since_ns, Fuse())
        advance(counters, SLOT, event, NOW)
        assert outage_agrees(counters)
        if counters[SLOT + OUTAGE_SINCE_NS]:
            assert counters[SLOT + OUTAGE_SINCE_NS] == (since_ns or NOW_NS), "an outage keeps its beginning"


@pytest.mark.parametrize(("state", "event"), PAIRS)
def test_a_successor_repairs_a_link_whose_owner_was_killed_between_two_counters(
    state: LinkState, event: LinkEvent
) -> None:
    for since_ns, left in product(outages_possible(state), range(3)):
        fuse = Fuse()
        counters = counters_with(state, since_ns, fuse)
        fuse.left = left
        try:
            advance(counters, SLOT, event, NOW)
        except Killed:
            assert counters[SLOT + LINK_STATE] == state, "the state is written last"
        fuse.left = 2  # BEGIN survives: it writes two counters at most
        before = LinkState(counters[SLOT + LINK_STATE])
        is_in_outage = counters[SLOT + OUTAGE_SINCE_NS] != 0
        advance(counters, SLOT, E.BEGIN_IN_OUTAGE if is_in_outage else E.BEGIN, NOW)
        assert outage_agrees(counters)
        assert before == S.FAILED or counters[SLOT + LINK_STATE] == before, "a new owner keeps the state"


def test_the_events_that_return_nothing_to_the_device_leave_nothing_to_it() -> None:
    for state, event in product(S, (E.SILENT, E.SESSION, E.SESSION_REPLACED)):
        assert not DEVICE_DOES.intersection(LINK_TABLE[state, event][1])


def test_the_link_state_is_written_at_one_place() -> None:
    sources = [path.read_text("utf-8") for path in Path(oxidize.protocol.__file__).parent.glob("*.py")]
    assert sum(len(re.findall(r"LINK_STATE\] = ", source)) for source in sources) == 1
