"""A server's answer is decoded in full or refused, and none of its texts controls the terminal."""

import json
from pathlib import Path

import pytest

from oxidize.control import query as query_module
from oxidize.control.decode import INTEGER_MAX, VALUES_MAX, decode
from oxidize.control.query import (
    ANSWER_BYTES_MAX,
    IDENTITY,
    PEERS,
    STATUS,
    STATUS_BYTES_MAX,
    VITALS,
    fetch,
    find,
    find_peers,
)
from oxidize.errors import DecodeError, OxidizeError, Phase, TakeoverError

SOCKET = Path("takeover.sock")


def test_every_text_of_an_answer_is_made_printable() -> None:
    said = {
        "state": "\x1b[2J",
        "peers": [{"na\x07me": "\u202ea", "deep": [["\x9b"]]}],
        "pid": 1,
        "x": [1.5, None, True],
    }
    assert decode(json.dumps(said).encode()) == {
        "state": r"\x1b[2J",
        "peers": [{r"na\x07me": r"\u202ea", "deep": [[r"\x9b"]]}],
        "pid": 1,
        "x": [1.5, None, True],
    }


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"text"',
        b"1",
        b'{"a": "\xff"}',
        '{"a": 1}'.encode("utf-16"),
        b'{"a": NaN}',
        b'{"a": Infinity}',
        b'{"a": -Infinity}',
        b'{"a": 1e999}',
        b'{"a": 18446744073709551616}',
        b'{"a": ' + b"9" * 5000 + b"}",
        b'{"a": ' + b"[" * 100_000,
        b'{"a": ' + b"[" * 100 + b"]" * 100 + b"}",
        b'{"\x1b": 1',
    ],
)
def test_an_unreadable_answer_is_a_decode_error(content: bytes) -> None:
    with pytest.raises(DecodeError, match="the server's answer cannot be read") as caught:
        decode(content)
    assert "\x1b" not in str(caught.value)


def test_a_64_bit_counter_is_decoded() -> None:
    assert decode(b'{"a": %d}' % INTEGER_MAX) == {"a": INTEGER_MAX}


def test_an_answer_of_too_many_values_is_refused_before_it_is_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json, "loads", lambda *_, **__: pytest.fail("parsed"))
    with pytest.raises(DecodeError, match="values, expected at most"):
        decode(b'{"a": [' + b"[]," * (VALUES_MAX // 2) + b"0]}")


def test_each_query_has_a_limit_for_its_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    limits: dict[str, int] = {}

    def query(_path: Path, what: str, *, bytes_max: int, **_: object) -> bytes:
        limits[what] = bytes_max
        return b"{}"

    monkeypatch.setattr(query_module, "query", query)
    for what in (STATUS, PEERS, VITALS, IDENTITY):
        assert find(SOCKET, what) == {}
    assert {what for what, limit in limits.items() if limit == STATUS_BYTES_MAX} == {STATUS, PEERS}
    assert limits[VITALS] == limits[IDENTITY] == ANSWER_BYTES_MAX


def test_a_process_of_an_older_release_is_asked_for_its_whole_status(monkeypatch: pytest.MonkeyPatch) -> None:
    def query(_path: Path, what: str, **_: object) -> bytes:
        if what == STATUS:
            return b'{"pid": 7, "peers": []}'
        raise TakeoverError(Phase.QUERYING, refusal)

    monkeypatch.setattr(query_module, "query", query)
    refusal = "query 'peers': expected one of status, identity"
    assert find_peers(SOCKET) == {"pid": 7, "peers": []}
    refusal = "pid 7 gives no answer: does it hang?"
    with pytest.raises(TakeoverError, match="does it hang"):
        find_peers(SOCKET)


def test_the_reason_of_a_refusal_is_made_printable(monkeypatch: pytest.MonkeyPatch) -> None:
    def query(*_: object, **__: object) -> bytes:
        raise TakeoverError(Phase.QUERYING, "no\x1b[2J")

    monkeypatch.setattr(query_module, "query", query)
    with pytest.raises(TakeoverError) as caught:
        fetch(SOCKET)
    assert (caught.value.phase, caught.value.reason) == (Phase.QUERYING, r"no\x1b[2J")


def test_a_missing_process_is_distinguished_from_a_silent_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(query_module, "query", lambda *_, **__: None)
    assert find(SOCKET) is None
    with pytest.raises(OxidizeError, match="nothing runs"):
        fetch(SOCKET)
    monkeypatch.setattr(query_module, "query", lambda *_, **__: b"null")
    with pytest.raises(DecodeError, match="NoneType, expected an object"):
        find(SOCKET)
