"""Structured logs: a constant message and variable fields, through `logging`.

The rule: no line contains key material, whichever code logs it in whichever way. Bytes are never printed; a field whose
name suggests a key is hidden, and so is text that looks like a key in a message, a field or a traceback; public keys
are passed as the field `public_key` and shortened. One event is one line, whatever a peer's name or address contains,
and nothing in it is executed by a terminal (`oxidize.text`). No line waits for its reader (`oxidize.log_output`).
Sources: systemd.journal-fields(7), sd_journal_print(3).
"""

import base64
import importlib
import io
import json
import logging
import os
import re
import sys
from collections.abc import Callable, Mapping, MutableMapping
from datetime import UTC, datetime
from typing import Any, TextIO

from oxidize.errors import ConfigError
from oxidize.log_output import (
    IDENTIFIER,
    STANDARD_ERROR,
    JournalSocket,
    Output,
    StandardError,
    is_journal,
    journal_datagram,
)
from oxidize.text import one_line

LEVELS = ("debug", "info", "warning", "error", "critical")
HIDDEN = "(hidden)"
JOURNAL_FIELD_CHARS_MAX = 64  # systemd.journal-fields(7)
NESTING_MAX = 4  # containers within containers are shown to this depth

_FIELDS = "oxidize_fields"  # the attribute of a record that holds its fields
_IS_REDACTED = "oxidize_is_redacted"
_CONFIGURED = "_is_oxidize_handler"  # marks the handler that configure() replaces
_RESERVED = frozenset({"exc_info", "stack_info", "stacklevel", "extra"})  # what Logger.log() itself takes

_SECRET_NAME = re.compile(r"key|secret|psk|cookie|password|token", re.IGNORECASE)
_PUBLIC_NAME = re.compile(r"(\w+_)?public_key", re.IGNORECASE)
# Not within a longer word: a path or a longer hash is not a key.
_KEY_LIKE = re.compile(r"(?<![A-Za-z0-9+/])[A-Za-z0-9+/]{43}=|(?<![0-9A-Za-z])[0-9A-Fa-f]{64}(?![0-9A-Za-z])")
_BYTES_LITERAL = re.compile(r"""(?<![A-Za-z0-9_])(bytearray\()?b('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")\)?""")
_PLAIN_VALUE = re.compile(r"[^\s\"'=\\]+")

JournalSend = Callable[..., None]

_standard_error: StandardError | None = None  # this process's, once it is configured
_outputs: list[Output] = []  # all that this process logs to


class Log(logging.LoggerAdapter[logging.Logger]):
    """A logger whose methods take fields as keywords: `log.info("session restored", peer="alice", sessions=3)`."""

    def process(self, msg: object, kwargs: MutableMapping[str, Any]) -> tuple[object, MutableMapping[str, Any]]:
        """Move the fields into `extra`, where the formatter finds them."""
        fields = {name: value for name, value in kwargs.items() if name not in _RESERVED}
        passed_on = {name: value for name, value in kwargs.items() if name in _RESERVED}
        passed_on["extra"] = {**(passed_on.get("extra") or {}), _FIELDS: fields}
        return msg, passed_on


def get(name: str) -> Log:
    """Return the logger of the module `name`."""
    return Log(logging.getLogger(name))


def configure(
    level: str = "info",
    *,
    stream: TextIO | None = None,
    environ: Mapping[str, str] = os.environ,
) -> None:
    """Send all logs of this process to the journal if systemd started it, else to `stream` (default: stderr).

    Without a stream given, nothing that this process writes to `sys.stderr` blocks from here on, whatever its reader
    does. A second call replaces the handler of the first. Raises ConfigError for an unknown level, and if systemd
    started this process but the package for it is missing.
    """
    if level.lower() not in LEVELS:
        raise ConfigError(f"log level {level!r}: expected one of {', '.join(LEVELS)}; correct --log-level")
    stream = _nonblocking_standard_error() if stream is None else stream
    is_journal = _is_journal(stream, environ)
    handler = _journal_handler() if is_journal else logging.StreamHandler(stream)
    if environ.get("NOTIFY_SOCKET") and not environ.get("OXIDIZE_HOLDER") and not is_journal:
        _import_journal()  # needed later: a missing package must not show in the middle of a takeover
    handler.setFormatter(_Formatter(with_header=not is_journal))
    setattr(handler, _CONFIGURED, True)
    root = logging.getLogger()
    for old in [old for old in root.handlers if getattr(old, _CONFIGURED, False)]:
        root.removeHandler(old)
        old.close()
    # A failure to log must not raise, and logging's report of it would print the arguments unredacted.
    logging.raiseExceptions = False
    root.addHandler(handler)
    root.setLevel(level.upper())


def reopen() -> None:
    """Take note that standard error leads to another file from now on."""
    if _standard_error is not None:
        _standard_error.reopen()


def report_losses() -> bool:
    """Log how many lines were lost, where they have not been reported; return whether there was room for that."""
    reported = [output.report_losses() for output in _outputs]  # each of them, also after one without room
    return all(reported)


def _nonblocking_standard_error() -> TextIO:
    global _standard_error  # noqa: PLW0603  # as `sys.stderr`, of which a process has one
    if _fileno(sys.stderr) != STANDARD_ERROR:
        return sys.stderr  # a test's
    _standard_error = StandardError(lambda lost: f"{_Formatter(with_header=True).format(_losses(lost))}\n".encode())
    _outputs[:] = [_standard_error.output]
    sys.stderr = io.TextIOWrapper(
        _standard_error,
        encoding=sys.stderr.encoding,
        errors="backslashreplace",
        line_buffering=True,
    )
    return sys.stderr


def _losses(lost: int) -> logging.LogRecord:
    """Return the record which says how many lines were lost."""
    message = "lines of this log were lost: its reader did not read, or it was full"
    record = logging.LogRecord(__name__, logging.WARNING, __file__, 0, message, None, None)
    setattr(record, _FIELDS, {"lost": lost})
    return record


# --- Redaction ---


def redact_text(text: str) -> str:
    """Return a text on one line, without anything that looks like a key or like the contents of bytes."""
    return one_line(_KEY_LIKE.sub(HIDDEN, _BYTES_LITERAL.sub("(bytes)", text)))


def redact_field(name: str, value: object) -> str:
    """Return the value of a field as redacted text."""
    if _PUBLIC_NAME.fullmatch(name):
        return _short_public_key(value)
    # A number of 64 bits is a count or an index, such as `keypairs=3`.
    is_number = value is None or isinstance(value, bool | float) or (isinstance(value, int) and value < 1 << 64)
    if _SECRET_NAME.search(name) and not is_number:
        return HIDDEN
    return redact_text(_text(value, NESTING_MAX))


def _short_public_key(value: object) -> str:
    """Return the first and last four characters of a public key, as wireguard-go logs it."""
    encoded = base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)
    encoded = encoded.rstrip("=")
    return f"{encoded[:4]}…{encoded[-4:]}" if _KEY_LIKE.fullmatch(encoded + "=") else redact_text(encoded)


def _text(value: object, depth: int) -> str:
    if isinstance(value, bytes | bytearray | memoryview):
        return f"({memoryview(value).nbytes} bytes)"
    if isinstance(value, float):
        return f"{value:.6g}"
    has_own_text = type(value).__str__ is not object.__str__ and not isinstance(value, dict)
    if has_own_text or not isinstance(value, list | tuple | set | frozenset | dict):
        return str(value)
    if depth == 0:
        return "…"
    if isinstance(value, dict):
        items = ", ".join(f"{_text(key, 0)}: {redact_field(str(key), item)}" for key, item in value.items())
        return f"{{{items}}}"
    return f"[{', '.join(_text(item, depth - 1) for item in value)}]"


def _redact_record(record: logging.LogRecord) -> None:
    """Redact a record in place, once: another handler may format the same record again."""
    if getattr(record, _IS_REDACTED, False):
        return
    arguments = record.args
    if isinstance(arguments, Mapping):
        record.args = {name: _safe_argument(value) for name, value in arguments.items()}
    elif arguments:
        record.args = tuple(map(_safe_argument, arguments))
    try:
        message = record.getMessage()
    except (TypeError, ValueError, KeyError):
        message = f"{record.msg} (its arguments do not fit)"
    record.msg = redact_text(message)
    record.args = None
    fields: Mapping[str, object] = getattr(record, _FIELDS, {})
    setattr(record, _FIELDS, {name: redact_field(name, value) for name, value in fields.items()})
    setattr(record, _IS_REDACTED, True)


def _safe_argument(value: object) -> object:
    """Return an argument unchanged, for formats such as %d, but bytes as their length."""
    return _text(value, NESTING_MAX) if isinstance(value, bytes | bytearray | memoryview) else value


# --- Formats ---


class _Formatter(logging.Formatter):
    """Redacts a record and formats it as `2026-01-01T00:00:00.000Z INFO oxidize.server message key=value`.

    Without the header for the journal, which has its own. A handler formats before it reads anything else of a record.
    """

    def __init__(self, *, with_header: bool) -> None:
        super().__init__()
        self._with_header = with_header

    def format(self, record: logging.LogRecord) -> str:
        """Redact the record, and return its line followed by those of its traceback."""
        _redact_record(record)
        fields: Mapping[str, str] = getattr(record, _FIELDS, {})
        parts = [record.getMessage(), *(f"{name}={_quoted(value)}" for name, value in fields.items())]
        if self._with_header:
            moment = datetime.fromtimestamp(record.created, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3]
            parts = [f"{moment}Z {record.levelname} {record.name}", *parts]
        line = " ".join(parts)
        if record.exc_info:
            record.exc_text = self.formatException(record.exc_info)
            line = f"{line}\n{record.exc_text}"
        return line

    def formatException(self, ei: Any) -> str:  # noqa: N802  # the name is logging's
        """Return the redacted traceback; its lines are indented, so that they do not look like events."""
        return "\n".join(f"    {redact_text(line)}" for line in super().formatException(ei).splitlines())


def _quoted(value: str) -> str:
    return value if _PLAIN_VALUE.fullmatch(value) else json.dumps(value, ensure_ascii=False)


def _fileno(stream: TextIO) -> int | None:
    """Return the descriptor of a stream, or None for one that is no open file."""
    try:
        fd = stream.fileno()
        os.fstat(fd)
    except (OSError, ValueError):
        return None
    return fd


# --- The journal ---


def _is_journal(stream: TextIO, environ: Mapping[str, str]) -> bool:
    fd = _fileno(stream)
    return fd is not None and is_journal(fd, environ)


def _import_journal() -> Any:
    try:
        return importlib.import_module("systemd.journal")  # an extra: only needed under systemd
    except ImportError:
        problem = (
            "the Python package systemd-python is missing: expected under systemd, for sockets, fd store and journal; "
            f"install it with `{sys.executable} -m pip install systemd-python`, or install Oxidize with `make install`"
        )
        raise ConfigError(problem) from None


def _journal_handler() -> logging.Handler:
    def event(message: str, **fields: object) -> bytes:
        return journal_datagram({"MESSAGE": message, **fields})

    def report(lost: int) -> bytes:
        text = _Formatter(with_header=False).format(_losses(lost))
        return event(text, PRIORITY=4, LOGGER=__name__, LOST=lost, SYSLOG_IDENTIFIER=IDENTIFIER)

    output = Output(JournalSocket().send, report)  # that of the package waits for a journal that does not read
    _outputs.append(output)
    handler: logging.Handler = _import_journal().JournalHandler(
        SYSLOG_IDENTIFIER=IDENTIFIER,
        sender_function=journal_sender(lambda message, **fields: output.write(event(message, **fields))),
    )
    return handler


def journal_sender(send: JournalSend) -> JournalSend:
    """Return the sender function for JournalHandler: it sends the record's fields as journal fields, all redacted.

    The handler itself passes every attribute of a record, including arguments and exceptions.
    """

    def sender(message: str, /, **attributes: Any) -> None:
        fields = {name: value for name, value in attributes.items() if name.isupper() and name != "EXCEPTION_INFO"}
        for name, value in attributes.get(_FIELDS, {}).items():
            field = re.sub(r"[^A-Z0-9_]", "_", name.upper()).lstrip("_0123456789")
            if field in fields or field in {"", "MESSAGE", "MESSAGE_ID"}:
                field = f"{IDENTIFIER.upper()}_{field}"
            fields[field[:JOURNAL_FIELD_CHARS_MAX]] = value
        send(message, **fields)

    return sender
