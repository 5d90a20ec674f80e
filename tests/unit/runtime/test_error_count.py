"""The error count: only the owner counts, and a failure of it does not disturb logging."""

import logging
import threading
from collections.abc import Iterator

import pytest

from oxidize import logs
from oxidize.protocol.counters import Total
from oxidize.runtime.error_count import ErrorCount
from tests.support.counters import ArraySlots

log = logs.get("tests.error_count")


@pytest.fixture
def slots() -> ArraySlots:
    return ArraySlots(1)


@pytest.fixture
def count(slots: ArraySlots) -> Iterator[ErrorCount]:
    before = logging.getLogger().handlers[:]
    count = ErrorCount(slots.counters)
    yield count
    count.end()
    assert logging.getLogger().handlers == before


def test_errors_and_worse_are_counted_from_begin_to_end(slots: ArraySlots, count: ErrorCount) -> None:
    log.error("before")
    count.begin()
    count.begin()
    log.warning("no error")
    log.error("an error", peer="alice")
    logging.getLogger("another.module").critical("%d of them", 2)
    try:
        raise ValueError
    except ValueError:
        log.exception("with a traceback")
    assert slots.counters[Total.ERRORS_LOGGED] == 3
    count.end()
    count.end()
    log.error("after")
    assert slots.counters[Total.ERRORS_LOGGED] == 3
    count.begin()  # a thaw
    log.error("again")
    assert slots.counters[Total.ERRORS_LOGGED] == 4


def test_the_error_count_continues_from_the_predecessors(slots: ArraySlots, count: ErrorCount) -> None:
    slots.counters[Total.ERRORS_LOGGED] = 41
    count.begin()
    log.error("one more")
    assert slots.counters[Total.ERRORS_LOGGED] == 42


def test_the_errors_before_a_generation_are_unknown_until_it_serves(count: ErrorCount) -> None:
    assert count.before is None


def test_the_errors_before_this_generation_are_kept_after_a_thaw(slots: ArraySlots, count: ErrorCount) -> None:
    slots.counters[Total.ERRORS_LOGGED] = 41
    count.begin()
    log.error("an error")
    count.end()
    count.begin()
    log.error("another error")
    assert (count.before, slots.counters[Total.ERRORS_LOGGED]) == (41, 43)


def test_counters_that_are_gone_do_not_break_logging(
    slots: ArraySlots, count: ErrorCount, caplog: pytest.LogCaptureFixture
) -> None:
    count.begin()
    slots.counters.release()
    log.error("still logged")
    assert caplog.messages == ["still logged"]


def test_a_record_of_another_thread_is_counted_before_the_end_or_not_at_all(
    slots: ArraySlots, count: ErrorCount
) -> None:
    count.begin()
    count.acquire()  # as if it were just being counted here
    ending = threading.Thread(target=count.end)
    ending.start()
    assert ending.is_alive()  # it waits for the lock
    count.emit(logging.LogRecord("x", logging.ERROR, "", 0, "in time", None, None))
    count.release()
    ending.join()
    assert slots.counters[Total.ERRORS_LOGGED] == 1
    count.handle(logging.LogRecord("x", logging.ERROR, "", 0, "late", None, None))
    assert slots.counters[Total.ERRORS_LOGGED] == 1
