"""What a generation is made of: warnings about a state that is too small for the configuration."""

from types import SimpleNamespace
from typing import Any, cast

from oxidize.runtime.parts import lack_of_room
from oxidize.settings import NodeSettings
from oxidize.state.session_state import SessionState


def lacking(peers: int, room: int) -> list[str]:
    settings: Any = SimpleNamespace(peers=(None,) * peers)
    state: Any = SimpleNamespace(arena=SimpleNamespace(peers_max=room))
    return lack_of_room(cast("NodeSettings", settings), cast("SessionState", state))


def test_a_state_of_an_older_release_that_is_too_small_is_reported_with_the_remedy() -> None:
    assert lacking(20_000, 20_000) == []
    (line,) = lacking(20_001, 20_000)
    assert line.startswith("20001 peers, and the state of an older release has room for the sessions of 20000: stop")
