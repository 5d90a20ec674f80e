"""One event is one line with its fields, and a key that is logged in any way is not shown."""

import base64
import io
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, TextIO

import pytest

from oxidize import logs
from oxidize.errors import ConfigError
from oxidize.protocol.changes import KeypairState
from oxidize.protocol.endpoint import Endpoint

KEY = bytes(range(100, 132))
KEY_TEXT = base64.b64encode(KEY).decode()
SHAPES = (KEY_TEXT, KEY_TEXT.rstrip("="), KEY.hex(), KEY.hex().upper(), repr(KEY)[2:-1], repr(list(KEY))[1:20])

log = logs.get("oxidize.test")


@pytest.fixture(autouse=True)
def root() -> Iterator[logging.Logger]:
    """Yield the root logger, and restore it after the test."""
    root = logging.getLogger()
    handlers, level, raise_exceptions = root.handlers[:], root.level, logging.raiseExceptions
    yield root
    for handler in root.handlers[:]:
        if handler not in handlers:
            root.removeHandler(handler)
            handler.close()
    root.setLevel(level)
    logging.raiseExceptions = raise_exceptions


@pytest.fixture
def stream() -> io.StringIO:
    stream = io.StringIO()
    logs.configure("debug", stream=stream, environ={})
    return stream


def event(stream: io.StringIO) -> str:
    """Return the only line that was logged, without its time."""
    (line,) = stream.getvalue().splitlines()
    return line.partition(" ")[2]


# --- The format ---


def test_a_line_has_time_level_name_message_and_fields(stream: io.StringIO) -> None:
    log.info("session restored", peer="alice", sessions=3, reason="two words", empty="", none=None, ok=True)
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z INFO oxidize\.test session restored "
        r'peer=alice sessions=3 reason="two words" empty="" none=None ok=True\n',
        stream.getvalue(),
    )


def test_the_time_is_utc_in_milliseconds(stream: io.StringIO) -> None:
    record = logging.LogRecord("oxidize.test", logging.INFO, "", 0, "message", None, None)
    record.created = 1_767_225_600.0129
    logging.getLogger().handle(record)
    assert stream.getvalue() == "2026-01-01T00:00:00.012Z INFO oxidize.test message\n"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ('say "hi"', r'"say \"hi\""'),
        ("a=b", '"a=b"'),
        ("line\nbreak", r'"line\\nbreak"'),
        ("\x1b[31mred", r'"\\u001b[31mred"'),
        (Endpoint(bytes([192, 0, 2, 1]), 51820), "192.0.2.1:51820"),
        (0.00123456789, "0.00123457"),
        (("a", 1), '"[a, 1]"'),
        ({"a": 1}, '"{a: 1}"'),
        ([[[[[[1]]]]]], "[[[[…]]]]"),
        (ValueError("broken"), "broken"),
    ],
)
def test_a_value_is_shown_on_one_line_and_quoted_where_needed(stream: io.StringIO, value: object, shown: str) -> None:
    log.info("event", value=value)
    assert event(stream) == f"INFO oxidize.test event value={shown}"


def test_a_message_stays_on_its_line(stream: io.StringIO) -> None:
    log.warning("first\nsecond %s", "third\rfourth")
    assert event(stream) == r"WARNING oxidize.test first\nsecond third\rfourth"


def test_records_of_other_loggers_are_redacted_and_shown(stream: io.StringIO) -> None:
    logging.getLogger("pyroute2").error("%d of %s", 3, b"\1\2")
    assert event(stream) == "ERROR pyroute2 3 of (2 bytes)"


def test_a_traceback_is_indented(stream: io.StringIO) -> None:
    try:
        raise ValueError("broken")
    except ValueError:
        log.exception("it failed", peer="alice")
    first, *rest = stream.getvalue().splitlines()
    assert first.endswith("ERROR oxidize.test it failed peer=alice")
    assert rest[0] == "    Traceback (most recent call last):"
    assert rest[-1] == "    ValueError: broken"
    assert all(line.startswith("    ") for line in rest)


@pytest.mark.parametrize("args", [("x",), (1, 2), ({"a": 1},)])
def test_a_record_whose_arguments_do_not_fit_does_not_raise(stream: io.StringIO, args: tuple[object, ...]) -> None:
    log.info("count %d", *args)
    assert event(stream) == "INFO oxidize.test count %d (its arguments do not fit)"


def test_a_closed_stream_does_not_raise(stream: io.StringIO) -> None:
    stream.close()
    log.info("event", private_key=KEY)


def test_two_handlers_show_the_same_redacted_line(stream: io.StringIO, root: logging.Logger) -> None:
    second = io.StringIO()
    handler = logging.StreamHandler(second)
    handler.setFormatter(logs._Formatter(with_header=True))
    root.addHandler(handler)
    log.info("event", keypairs=3, secret=KEY, text="a b")
    assert stream.getvalue() == second.getvalue()
    assert "keypairs=3" in second.getvalue()


def test_configuring_again_replaces_the_handler_and_the_level(stream: io.StringIO) -> None:
    second = io.StringIO()
    logs.configure("warning", stream=second, environ={})
    log.info("no")
    log.warning("yes")
    assert stream.getvalue() == ""
    assert "yes" in second.getvalue()
    assert "no" not in second.getvalue()


def test_an_unknown_level_is_an_error() -> None:
    with pytest.raises(ConfigError, match="log level 'loud': expected one of debug, info"):
        logs.configure("loud", environ={})


# --- Keys ---


def assert_no_key(text: str) -> None:
    assert text
    for shape in SHAPES:
        assert shape not in text


def raise_with_key() -> None:
    raise ValueError(f"bad key {KEY!r} {bytearray(KEY)!r} {KEY_TEXT} {KEY.hex()}")


class Careless:
    def __str__(self) -> str:
        return f"Careless(key={KEY!r})"

    __repr__ = __str__


@pytest.mark.parametrize(
    "way",
    [
        lambda: log.info("event", value=KEY),
        lambda: log.info("event", value=bytearray(KEY)),
        lambda: log.info("event", value=memoryview(KEY)),
        lambda: log.info("event", value=KEY_TEXT),
        lambda: log.info("event", value=KEY.hex()),
        lambda: log.info("event", value=[KEY, {"x": KEY}]),
        lambda: log.info("event", value={"private_key": KEY_TEXT.rstrip("=")}),
        lambda: log.info("event", value={KEY: 1}),
        lambda: log.info("event", value=Careless()),
        lambda: log.info("event", value=[Careless()]),
        lambda: log.info("event", value=ValueError(KEY)),
        lambda: log.info("event", private_key=KEY_TEXT.rstrip("=")),
        lambda: log.info("event", key=list(KEY)),
        lambda: log.info("event", psk=KEY.hex()),
        lambda: log.info("event", cookie_secret=KEY),
        lambda: log.info("event", my_secret=int.from_bytes(KEY, "big")),
        lambda: log.info("event %s", KEY),
        lambda: log.info("event %r", KEY),
        lambda: log.info("event %r", [KEY]),
        lambda: log.info("event %(a)s", {"a": KEY}),
        lambda: log.info("event %s", Careless()),
        lambda: log.info(f"event {KEY_TEXT}"),
        lambda: log.info(f"event {KEY!r}"),
        lambda: log.info(f"event key={KEY_TEXT}, {KEY.hex()}"),
        lambda: log.info(KEY),
        lambda: logging.getLogger("other").info("event %s %s", KEY, KEY_TEXT),
        lambda: log.info("event", keypair=KeypairState(1, 2, KEY, KEY, 0.0, True, 64)),
    ],
)
def test_a_key_that_is_logged_in_any_way_is_not_shown(stream: io.StringIO, way: Callable[[], None]) -> None:
    way()
    assert_no_key(stream.getvalue())
    assert str(int.from_bytes(KEY, "big")) not in stream.getvalue()


def test_a_traceback_shows_no_key(stream: io.StringIO) -> None:
    try:
        raise_with_key()
    except ValueError:
        log.exception("it failed")
    assert_no_key("\n".join(line for line in stream.getvalue().splitlines() if "raise ValueError(f" not in line))


def test_a_public_key_is_shortened(stream: io.StringIO) -> None:
    log.info("event", public_key=KEY, peer_public_key=KEY_TEXT)
    assert event(stream) == "INFO oxidize.test event public_key=ZGVm…goM peer_public_key=ZGVm…goM".replace(
        "goM", KEY_TEXT.rstrip("=")[-4:]
    )
    assert_no_key(stream.getvalue())


def test_counts_and_paths_are_shown(stream: io.StringIO) -> None:
    path = "/opt/oxidize/releases/" + "a" * 50
    log.info("event", keypairs=3, has_key=True, path=path, digest="0" * 40)
    assert event(stream) == f"INFO oxidize.test event keypairs=3 has_key=True path={path} digest={'0' * 40}"


# --- The journal ---


def test_the_journal_gets_the_fields_of_a_record_redacted(stream: io.StringIO) -> None:
    journal = import_module("systemd.journal")
    sent: list[tuple[tuple[str, ...], dict[str, Any]]] = []
    handler = journal.JournalHandler(
        SYSLOG_IDENTIFIER="oxidize", sender_function=logs.journal_sender(lambda *a, **k: sent.append((a, k)))
    )
    handler.setFormatter(logs._Formatter(with_header=False))
    logging.getLogger().addHandler(handler)
    try:
        raise_with_key()
    except ValueError:
        log.exception("it failed %s", KEY, peer="alice", secret=KEY, message="m", priority=1, _pid=7)
    ((message,), fields) = sent[0]
    assert message.splitlines()[0] == "it failed (32 bytes) peer=alice secret=(hidden) message=m priority=1 _pid=7"
    assert fields["PEER"] == "alice"
    assert fields["SYSLOG_IDENTIFIER"] == "oxidize"
    assert fields["PRIORITY"] == "3"
    assert fields["LOGGER"] == "oxidize.test"
    assert fields["CODE_FUNC"] == "test_the_journal_gets_the_fields_of_a_record_redacted"
    assert (fields["OXIDIZE_MESSAGE"], fields["OXIDIZE_PRIORITY"], fields["PID"]) == ("m", "1", "7")
    assert all(re.fullmatch(r"[A-Z][A-Z0-9_]{0,63}", name) for name in fields)
    shown = "\n".join(
        line for line in f"{message}\n{fields}".replace("\\n", "\n").splitlines() if "raise Val" not in line
    )
    assert_no_key(shown)


@pytest.fixture
def file_stream(tmp_path: Path) -> Iterator[TextIO]:
    with (tmp_path / "stderr").open("w") as file:
        yield file


def journal_stream(file: TextIO) -> str:
    found = os.fstat(file.fileno())
    return f"{found.st_dev}:{found.st_ino}"


def test_a_stream_that_systemd_connected_is_logged_to_the_journal(file_stream: TextIO, root: logging.Logger) -> None:
    journal = import_module("systemd.journal")
    logs.configure(stream=file_stream, environ={"JOURNAL_STREAM": journal_stream(file_stream)})
    assert isinstance(root.handlers[-1], journal.JournalHandler)


def test_an_inherited_journal_stream_is_not_used(file_stream: TextIO, root: logging.Logger) -> None:
    logs.configure(stream=file_stream, environ={"JOURNAL_STREAM": "1:2"})
    assert type(root.handlers[-1]) is logging.StreamHandler


def test_under_systemd_the_package_systemd_is_required(monkeypatch: pytest.MonkeyPatch, file_stream: TextIO) -> None:
    monkeypatch.setitem(sys.modules, "systemd.journal", None)
    for environ in ({"JOURNAL_STREAM": journal_stream(file_stream)}, {"NOTIFY_SOCKET": "/run/systemd/notify"}):
        with pytest.raises(ConfigError, match=r" -m pip install systemd-python`"):
            logs.configure(stream=file_stream, environ=environ)
    logs.configure(stream=file_stream, environ={})
