"""Decode and sanitise a server's answer to a query.

The rule: the answering process may be broken or hostile, and send anything. Its answer is read with limits, so that it
costs little; every text in it is made printable; and an answer that cannot be read is a DecodeError and nothing else.

Source: RFC 8259. Python's extensions of it, `NaN` and `Infinity`, are refused.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from math import isfinite
from typing import Any, NoReturn

from oxidize.errors import DecodeError, TakeoverError
from oxidize.text import printable

VALUES_MAX = 10_000_000  # PEERS_MAX peers have 3.9 million. As objects `[],` takes twenty times the memory of its text
NUMBER_CHARACTERS_MAX = 32
INTEGER_MAX = (1 << 64) - 1  # a word
DEPTH_MAX = 32


def decode(content: bytes) -> dict[str, Any]:
    """Return the JSON object of an answer, with every text made printable; raises DecodeError for anything else."""
    try:
        # Counted before the parser makes objects: the text has at most this many values.
        values = sum(content.count(mark) for mark in (b",", b"[", b"{", b":"))
        if values > VALUES_MAX:
            raise DecodeError(f"it has {values} values, expected at most {VALUES_MAX}")
        decoded = json.loads(
            content.decode(), parse_constant=_refuse_constant, parse_float=_decimal, parse_int=_integer
        )
        if type(decoded) is not dict:
            raise DecodeError(f"it is a {type(decoded).__name__}, expected an object")
        return {printable(key): _printable(value, 1) for key, value in decoded.items()}
    except (ValueError, RecursionError, DecodeError) as error:
        raise DecodeError(f"the server's answer cannot be read: {printable(str(error))}") from error


@contextmanager
def printable_reasons() -> Iterator[None]:
    """Make the reasons printable that the other process gives for a refusal."""
    try:
        yield
    except TakeoverError as error:
        # Without the cause, which has the unprintable text.
        raise TakeoverError(error.phase, printable(error.reason)) from None


def _printable(value: Any, depth: int) -> Any:
    if depth > DEPTH_MAX:
        raise DecodeError(f"it is more than {DEPTH_MAX} deep")
    if type(value) is str:
        return printable(value)
    if type(value) is list:
        return [_printable(each, depth + 1) for each in value]
    if type(value) is dict:
        return {printable(key): _printable(each, depth + 1) for key, each in value.items()}
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise DecodeError(f"{name} is no number")


def _decimal(text: str) -> float:
    if not isfinite(number := float(text)):
        raise DecodeError(f"{text[:NUMBER_CHARACTERS_MAX]} is beyond any number")
    return number


def _integer(text: str) -> int:
    if len(text) > NUMBER_CHARACTERS_MAX or abs(number := int(text)) > INTEGER_MAX:
        raise DecodeError(f"{text[:NUMBER_CHARACTERS_MAX]} is beyond a word of 64 bits")
    return number
