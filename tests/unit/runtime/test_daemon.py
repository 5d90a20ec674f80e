"""The process of a server: what its coordinator learns where it cannot start, and what is set once it serves."""

import errno
import gc
import json
import os
import socket
from pathlib import Path
from typing import NoReturn

import pytest

from oxidize.control.reload_channel import Control
from oxidize.errors import OxidizeError, Phase, TakeoverError
from oxidize.oom_score import OomScore
from oxidize.runtime import daemon


def test_a_coordinator_gets_the_reason_of_a_failed_takeover_without_its_phase(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> NoReturn:
        raise TakeoverError(Phase.AWAITING_OFFER, "another successor waits already")

    monkeypatch.setattr("oxidize.logs.configure", lambda _: None)
    monkeypatch.setattr(daemon, "_load", lambda *_: (None, None))
    monkeypatch.setattr(daemon, "start", fail)
    coordinator, end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with coordinator:
        with pytest.raises(TakeoverError):
            daemon.run("server", Path("server.toml"), "info", Control(end.detach()), OomScore())
        told = json.loads(coordinator.recv(4096))
    assert told == {"event": "failed", "pid": os.getpid(), "reason": "another successor waits already"}


def test_a_coordinator_gets_the_reason_of_a_process_without_room_for_its_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> NoReturn:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr("oxidize.logs.configure", lambda _: None)
    monkeypatch.setattr(daemon, "Loop", fail)
    coordinator, end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with coordinator:
        assert daemon.run("server", Path("server.toml"), "info", Control(end.detach()), OomScore()) == 1
        assert "Too many open files" in json.loads(coordinator.recv(4096))["reason"]


@pytest.mark.parametrize(("phase", "pauses"), [(Phase.RESTORING, 1), (Phase.OWNING, 0)])
def test_a_process_for_whose_end_its_predecessor_waits_ends_without_a_pause(
    monkeypatch: pytest.MonkeyPatch, phase: Phase, pauses: int
) -> None:
    def fail(*_: object) -> NoReturn:
        raise TakeoverError(phase, "no memory")

    paused: list[float] = []
    monkeypatch.setattr("oxidize.logs.configure", lambda _: None)
    monkeypatch.setattr(daemon, "_load", lambda *_: (None, None))
    monkeypatch.setattr(daemon, "start", fail)
    monkeypatch.setattr("oxidize.service_manager.notify.is_managed", lambda: True)
    monkeypatch.setattr("time.sleep", paused.append)
    with pytest.raises(TakeoverError):
        daemon.run("server", Path("server.toml"), "info", Control(None), OomScore())
    assert len(paused) == pauses


def test_a_process_that_serves_looks_for_garbage(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(_: object) -> NoReturn:
        looks.append(gc.isenabled())
        raise OxidizeError("the end of this test")

    looks: list[bool] = []
    monkeypatch.setattr(daemon, "_load", lambda *_: (None, None))
    for name in ("start", "_give_up_rights"):
        monkeypatch.setattr(daemon, name, lambda *_: None)
    monkeypatch.setattr("oxidize.logs.configure", lambda _: None)
    monkeypatch.setattr("oxidize.net.event_loop.Loop.run", run)
    gc.disable()
    try:
        with pytest.raises(OxidizeError):
            daemon.run("server", Path("server.toml"), "info", Control(None), OomScore())
    finally:
        gc.enable()
    assert looks == [True]
