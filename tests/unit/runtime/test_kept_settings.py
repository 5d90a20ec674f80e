"""The fd store has the settings of the process that serves, and no failure about them ends one."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from oxidize.errors import ConfigError
from oxidize.holder.fd_store import FdStore, bind_notify_socket, receive_notification
from oxidize.runtime import validated
from oxidize.runtime.kept_settings import STORED_NAME, KeptSettings, contents_of, kept_of
from oxidize.service_manager import notify
from tests.support.node_settings import settings_with
from tests.support.open_fds import no_leaked_fds


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator["Store"]:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    monkeypatch.setenv(notify.HOLDER_VARIABLE, "test")
    store = Store(tmp_path / "notify")
    yield store
    store.close()


class Store:
    """A manager with a store. messages: what it was told."""

    def __init__(self, path: Path) -> None:
        self._socket = bind_notify_socket(str(path))
        self.kept = FdStore()
        self.messages = 0

    def contents(self) -> list[bytes]:
        while (notification := receive_notification(self._socket)) is not None:
            self.messages += 1
            self.kept.apply(notification)
            notification.close()
        assert set(self.kept.names) <= {STORED_NAME}
        return [validated.read(fd) for _, fd in self.kept.entries]

    def close(self) -> None:
        self._socket.close()
        self.kept.close()


def loaded(kept: bytes) -> validated.Loaded:
    return validated.Loaded(settings_with(), (), kept)


def passed(*kept: bytes) -> list[int]:
    return [validated.keep(each) for each in kept]


def test_what_was_validated_replaces_what_is_stored(store: Store) -> None:
    with no_leaked_fds():
        for content in (b"one", b"two"):
            file = kept_of(loaded(content), [], {})
            file.store()
            file.store()
            assert store.contents() == [content]
            assert file.fd is not None
            os.close(file.fd)
        assert store.messages == 4, "nothing is stored twice"
        store.kept.remove(STORED_NAME)


def test_what_is_stored_and_used_stays_as_it_is(store: Store) -> None:
    with no_leaked_fds():
        stored = passed(b"one")
        contents = contents_of(stored)
        file = kept_of(loaded(contents[stored[0]]), stored, contents)
        assert file == KeptSettings(stored[0], is_stored=True)
        file.store()
        assert store.contents() == []
        assert store.messages == 0
        os.close(stored[0])


def test_of_several_the_one_in_use_is_stored_alone_and_the_others_are_closed(store: Store) -> None:
    with no_leaked_fds():
        stored = [*passed(b"one", b"two", b"two"), os.memfd_create("no settings")]
        contents = contents_of(stored)
        assert set(contents) == set(stored[:3])
        file = kept_of(loaded(contents[stored[1]]), stored, contents)
        assert file == KeptSettings(stored[1], is_stored=False)
        file.store()
        assert store.contents() == [b"two"]
        os.close(stored[1])
        store.kept.remove(STORED_NAME)


def test_a_process_without_room_for_the_file_serves(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(_: bytes) -> int:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(validated, "keep", refuse)
    file = kept_of(loaded(b"one"), [], {})
    file.store()
    assert store.contents() == []
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
