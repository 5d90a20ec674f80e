"""The tables of docs/takeover-protocol.md are what the code says: keys, types, limits and deadlines."""

import re
from pathlib import Path
from types import ModuleType
from typing import get_type_hints

import msgpack
import pytest

from oxidize.errors import DecodeError
from oxidize.takeover import acceptor, channel, listener, machine, messages, query_reply
from oxidize.takeover.machine import Timeouts
from oxidize.takeover.messages import FdEntry, Message, decode, encode
from tests.unit.takeover.test_messages import EVERY

PAGE = (Path(__file__).parents[3] / "docs" / "takeover-protocol.md").read_text("utf-8")

TYPES = {
    str: "string",
    int: "integer",
    float: "float",
    tuple[int, ...]: "array of integers",
    tuple[str, ...]: "array of strings",
    tuple[FdEntry, ...]: "array of descriptors",
    messages.Opaque: "map",
}
MODULES: tuple[ModuleType, ...] = (messages, machine, channel, acceptor, query_reply, listener)


def sections() -> dict[str, str]:
    """Return the text of each section, by its heading."""
    parts = re.split(r"^#{2,3} (.*)$", PAGE, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def rows(text: str, head: str) -> list[list[str]]:
    """Return the cells, without backticks, of the first table whose first column is `head`; none without a table."""
    found = re.search(rf"^\| {head} \|.*\n\| ---.*\n((?:\|.*\n)*)", text, re.MULTILINE)
    lines = found[1].splitlines() if found else []
    return [[cell.strip().strip("`") for cell in line.strip("|").split(" | ")] for line in lines]


def section_of(wire_name: str) -> str:
    """Return the section of a message, by its name on the wire."""
    (text,) = (text for heading, text in sections().items() if heading.startswith(f"{wire_name.upper()}: "))
    return text


def documented_keys(text: str) -> dict[str, str]:
    return {key: kind for key, kind, *_ in rows(text, "key")}


def keys_of(kind: type) -> dict[str, str]:
    return {name: TYPES[annotation] for name, annotation in get_type_hints(kind).items()}


def wire_name(message: Message) -> str:
    return str(msgpack.unpackb(encode(message))["type"])


each_message = pytest.mark.parametrize("message", EVERY, ids=wire_name)


@each_message
def test_the_page_lists_the_keys_of_each_message(message: Message) -> None:
    assert documented_keys(section_of(wire_name(message))) == keys_of(type(message))


@each_message
def test_the_page_says_which_keys_are_required(message: Message) -> None:
    wire = msgpack.unpackb(encode(message))
    for key, _, required, *_ in rows(section_of(wire_name(message)), "key"):
        without = msgpack.packb({name: value for name, value in wire.items() if name != key})
        if required == "yes":
            with pytest.raises(DecodeError, match=key):
                decode(without)
        else:
            assert decode(without)


def test_the_page_lists_the_keys_of_a_descriptor() -> None:
    text = section_of("offer").partition("A descriptor is a map")[2]
    assert documented_keys(text) == keys_of(FdEntry)


def test_the_page_has_no_message_that_the_code_has_not() -> None:
    headings = {heading.partition(":")[0].lower() for heading in sections() if re.match(r"[A-Z_]+: ", heading)}
    assert headings == {wire_name(message) for message in EVERY}


def test_the_page_has_the_limits_of_the_code() -> None:
    documented = {name: int(value.replace(",", "")) for name, value, _ in rows(sections()["Limits"], "limit")}
    defined = {name: getattr(module, name) for name in documented for module in MODULES if hasattr(module, name)}
    assert documented == defined
    assert {name for name in vars(messages) if name.endswith("_MAX")} <= set(documented)


def test_the_page_has_the_deadlines_of_the_code() -> None:
    documented = {name: float(seconds) for name, seconds, *_ in rows(sections()["Deadlines"], "deadline")}
    assert documented == Timeouts._field_defaults


def test_the_page_is_of_the_version_that_is_spoken() -> None:
    assert PAGE.startswith(f"# The takeover protocol, version {messages.PROTOCOL}\n")
