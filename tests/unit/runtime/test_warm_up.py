"""A successor does every step that its first packets may need once before, with nothing of its own state."""

import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import pytest

from oxidize.control.reload_channel import Control
from oxidize.protocol.counters import DROPS_START, DropReason, Total
from oxidize.protocol.handshaker import Handshaker
from oxidize.protocol.row_receiver import RowReceiver
from oxidize.protocol.row_sender import RowSender
from oxidize.runtime import succession, warm_up
from tests.support.traffic.clients import EchoClient
from tests.support.two_generations import two_generations

NEEDED = (
    Handshaker.receive,
    Handshaker.confirm,
    RowReceiver.receive,
    RowReceiver._open,
    RowReceiver._open_one,
    RowSender.send,
)


@pytest.fixture
def called() -> Iterator[set[object]]:
    """The code objects that have run."""
    found: set[object] = set()

    def note(frame: FrameType, event: str, _argument: object) -> None:
        if event == "call":
            found.add(frame.f_code)

    before = sys.getprofile()
    sys.setprofile(note)
    yield found
    sys.setprofile(before)


def test_a_handshake_and_batches_in_both_directions_take_the_fast_path(called: set[object]) -> None:
    counters = warm_up.warm_up(1000.0)
    assert counters[Total.HANDSHAKES_RESPONDER] == counters[Total.HANDSHAKES_INITIATOR] == 1
    assert counters[Total.RECEIVED_PACKETS] == counters[Total.SENT_PACKETS] == 1 + 2 * sum(warm_up.BATCHES)
    assert [reason.name for reason in DropReason if counters[DROPS_START + reason]] == []
    assert [function.__qualname__ for function in NEEDED if function.__code__ not in called] == []


def test_a_successor_warms_up_while_its_predecessor_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with two_generations(tmp_path, [EchoClient(2)], monkeypatch) as generations:
        served: list[bool] = []
        monkeypatch.setattr(succession, "warm_up", lambda _now: served.append(generations.handover.node.is_serving))
        generations.next_handover = generations.succession(Control(None)).run()
    assert served == [True]
