"""The fd store has the settings of the process that serves, and no failure about them ends one."""

import os

import pytest

from oxidize.errors import ConfigError
from oxidize.runtime import validated
from oxidize.runtime.kept_settings import STORED_NAME, KeptSettings, kept_of
from oxidize.service_manager import notify
from tests.support.node_settings import settings_with
from tests.support.service_manager import Manager


@pytest.fixture(autouse=True)
def _holder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(notify.HOLDER_VARIABLE, "test")


def stored_by(manager: Manager) -> list[bytes]:
    """Return what is stored."""
    assert set(manager.store.names) <= {STORED_NAME}
    return [validated.read(fd) for _, fd in manager.store.entries]


def loaded(kept: bytes) -> validated.Loaded:
    return validated.Loaded(settings_with(), (), kept)


def passed(*kept: bytes) -> list[int]:
    return [validated.keep(each) for each in kept]


def test_what_was_validated_replaces_what_is_stored(manager: Manager) -> None:
    for content in (b"one", b"two"):
        file = kept_of(loaded(content), [], {})
        file.store()
        file.store()
        assert manager.process() == 2, "nothing is stored twice"
        assert stored_by(manager) == [content]
        assert file.fd is not None
        os.close(file.fd)


def test_what_is_stored_and_used_stays_as_it_is(manager: Manager) -> None:
    stored = passed(b"one")
    contents = validated.contents_of(stored)
    file = kept_of(loaded(contents[stored[0]]), stored, contents)
    assert (file.fd, file.is_stored) == (stored[0], True)
    file.store()
    assert manager.process() == 0
    os.close(stored[0])


def test_of_several_the_one_in_use_is_stored_alone_and_the_others_are_closed(manager: Manager) -> None:
    stored = [*passed(b"one", b"two", b"two"), os.memfd_create("no settings")]
    contents = validated.contents_of(stored)
    assert set(contents) == set(stored[:3])
    file = kept_of(loaded(contents[stored[1]]), stored, contents)
    assert (file.fd, file.is_stored) == (stored[1], False)
    file.store()
    manager.process()
    assert stored_by(manager) == [b"two"]
    os.close(stored[1])


def test_a_process_without_room_for_the_file_serves(
    manager: Manager, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(_: bytes) -> int:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(validated, "keep", refuse)
    file = kept_of(loaded(b"one"), [], {})
    file.store()
    manager.process()
    assert stored_by(manager) == []
    assert "the next start validates the configuration again" in caplog.text


def test_a_manager_that_does_not_listen_is_no_reason_to_end(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise ConfigError("NOTIFY_SOCKET: no manager")

    monkeypatch.setattr(notify, "is_managed", lambda: True)
    monkeypatch.setattr(notify, "forget_fds", lambda *_: None)
    monkeypatch.setattr(notify, "store_fd", refuse)
    file = KeptSettings(7)
    file.store()
    assert not file.is_stored
    assert "the next start validates the configuration again" in caplog.text
