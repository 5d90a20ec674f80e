"""The lock of the path in a takeover: each side serves only as its holder."""

import pytest

from oxidize.errors import TakeoverError
from oxidize.takeover import PathLock, Successor
from oxidize.takeover.machine import Event
from oxidize.takeover.messages import Ready, Withdrawn
from tests.unit.takeover.test_sides import Bench, Script, restoring


def test_a_frozen_predecessor_leaves_the_lock_to_its_successor(bench: Bench) -> None:
    theirs = PathLock(bench.path)
    bench.engage("restoring").send(Ready({}))
    assert not theirs.take()
    bench.run()
    assert bench.predecessor.state == "committed"
    assert theirs.take()
    theirs.close()


def test_a_predecessor_that_serves_again_holds_the_lock_again(bench: Bench) -> None:
    bench.engage("committed").close()
    bench.is_dead = True
    bench.run()
    assert bench.host.called[-1] == "thaw"
    assert bench.lock.is_held


def test_a_predecessor_does_not_serve_again_beside_a_process_that_was_started_meanwhile(bench: Bench) -> None:
    """It was stopped in the takeover, its successor has died, and there was no stored state to find it by."""
    bench.engage("committed").close()
    third = PathLock(bench.path)
    assert third.take()
    bench.is_dead = True
    with pytest.raises(TakeoverError, match=r"and pid \d+ serves, for it holds .*t\.sock\.lock"):
        bench.run()
    assert not bench.host.serves
    third.close()


def test_a_failed_freeze_keeps_the_lock(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench.host, "commit", {"not": object()})
    channel = bench.engage("restoring")
    channel.send(Ready({}))
    theirs = PathLock(bench.path)
    monkeypatch.setattr(bench.host, "thaw", lambda _: bench.host.calls.append(("thaw", theirs.take())))
    bench.run()
    assert bench.host.calls[-1] == ("thaw", False)
    theirs.close()


def test_a_successor_does_not_serve_beside_the_holder_of_the_lock(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    third, own = PathLock(bench.path), PathLock(bench.path)
    successor = restoring(Script(Withdrawn("not read")))
    successor.lock = own
    bench.lock.release()
    assert third.take()

    def commit(*_: object) -> None:
        successor._machine.observe([(Event.COMMIT, "")], closed=False, gone=False, now=100.0)

    monkeypatch.setattr(Successor, "_wait", commit)
    monkeypatch.setattr(Successor, "_observe", lambda _: None)
    with pytest.raises(TakeoverError, match="so serves already"):
        successor.ready({})
    third.close()
    own.close()
