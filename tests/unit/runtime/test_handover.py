"""The predecessor's side of a takeover: parts that no process test reaches."""

from types import SimpleNamespace

import pytest

from oxidize.runtime.handover import Handover
from oxidize.takeover.messages import Hello


def test_an_offer_that_cannot_be_made_does_not_hold_compaction() -> None:
    held: list[bool] = []

    def fileno() -> int:
        raise OSError("no descriptor")

    handover = object.__new__(Handover)
    handover.node = SimpleNamespace(  # type: ignore[assignment]
        session_state=SimpleNamespace(
            journal=SimpleNamespace(envelope={"min_reader": 1}), generation=1, hold=lambda: held.append(True)
        ),
        is_ending=False,
        settings=SimpleNamespace(listen=("::", 0), metrics_listen=None, server=None),
        interface_digest="",
        host_setup=None,
        watchdog_secs=0.0,
        connection=None,
        udp=SimpleNamespace(fileno=fileno),
    )
    with pytest.raises(OSError, match="no descriptor"):
        handover.offer(Hello("1.0", 1, (1,)))
    assert not held
