"""A changed private key is announced where the running process has another one, and only there."""

from pathlib import Path
from typing import Any

import pytest

from oxidize.config.values import format_key
from oxidize.control import query
from oxidize.control.key_change import announcement, report
from oxidize.errors import OxidizeError, Phase, TakeoverError

SOCKET = Path("/run/oxidize/takeover.sock")
OLD, NEW = b"O" * 32, b"N" * 32


class Running:
    """The answers of a running process, by query; None for no process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.answers: dict[str, dict[str, Any] | None] = {}
        self.error: OxidizeError | None = None
        monkeypatch.setattr(query, "find", self.find)

    def find(self, path: Path, what: str = query.STATUS) -> dict[str, Any] | None:
        assert path == SOCKET
        if self.error is not None:
            raise self.error
        return self.answers[what]


@pytest.fixture
def running(monkeypatch: pytest.MonkeyPatch) -> Running:
    return Running(monkeypatch)


@pytest.mark.parametrize(
    ("role", "remedy"),
    [
        ("server", "each peer gets no answer until it has this server's new public key"),
        ("client", "the server gets no answer until it has this client's new public key"),
    ],
)
def test_another_key_than_the_running_one_is_announced_with_both_public_keys(
    running: Running, role: str, remedy: str
) -> None:
    running.answers = {query.IDENTITY: {"pid": 7, "public_key": format_key(OLD)}}
    assert announcement(role, SOCKET, NEW) == (
        f"the private key has changed: a reload ends all sessions; {remedy} (before, and still of pid 7: "
        f"{format_key(OLD)}; then: {format_key(NEW)})"
    )
    assert report(role, 1).startswith(f"the private key has changed: 1 session ended; {remedy}")
    assert format_key(NEW) not in report(role, 2), "no log shows a key"


def test_a_release_that_names_its_key_in_its_status_alone_is_asked_for_that(running: Running) -> None:
    running.answers = {query.IDENTITY: {"pid": 7}, query.STATUS: {"pid": 7, "public_key": format_key(OLD)}}
    assert f"then: {format_key(NEW)}" in (announcement("server", SOCKET, NEW) or "")
    assert announcement("server", SOCKET, OLD) is None


@pytest.mark.parametrize(
    "identity",
    [{"pid": 7, "public_key": format_key(NEW)}, {"pid": 7, "public_key": None}, {"pid": 7, "public_key": 5}, None],
)
def test_the_same_key_an_answer_without_one_and_no_process_are_announced_as_nothing(
    running: Running, identity: dict[str, Any] | None
) -> None:
    running.answers = {query.IDENTITY: identity}
    assert announcement("server", SOCKET, NEW) is None


def test_a_process_that_gives_no_answer_is_no_reason_for_a_warning(running: Running) -> None:
    running.error = TakeoverError(Phase.STARTING, "the server hangs")
    assert announcement("server", SOCKET, NEW) is None
