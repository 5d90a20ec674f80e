"""Plainly written tables are read without `tomllib`, and every other document by it alone."""

import tomllib
from typing import Any

import pytest

from oxidize.config.plain_tables import PlainTables

HEAD = '[server]\naddress = "10.0.0.1/24"\n'
PEER = '[[peer]]\nname = "a"\npublic_key = "k="\nallowed_ips = ["10.0.0.2/32"]\n'


def parsed(text: str) -> tuple[dict[str, Any], list[str]]:
    """Return the document, and the texts that were left to `tomllib`."""
    texts: list[str] = []

    def parse(part: str) -> dict[str, Any]:
        texts.append(part)
        return tomllib.loads(part)

    return PlainTables("peer").loads(text, parse), texts


@pytest.mark.parametrize(
    "tail",
    [
        PEER,
        PEER.rstrip("\n"),
        PEER * 1 + '\n# a comment\n[[peer]]\nname="b"  # and more\n\tkeepalive = 25\n'.replace("\t", ""),
        "[[peer]]\n[[peer]]\nallowed_ips = []\n",
        '[[peer]]\nname = "\u00e4 # no comment, [no] \'list\'"\nlist = ["a]", "b, c","d"]\nnumber = 0\n',
    ],
)
def test_plain_tables_are_read_and_only_what_is_before_them_is_left_to_tomllib(tail: str) -> None:
    document, texts = parsed(HEAD + tail)
    assert texts == [HEAD]
    assert document == tomllib.loads(HEAD + tail)


@pytest.mark.parametrize(
    "text",
    [
        HEAD,
        "",
        HEAD + PEER + "[client]\n",
        HEAD + PEER.replace('"a"', '"a\\tb"'),
        HEAD + PEER.replace('"a"', "'a'"),
        HEAD + PEER.replace('"a"', '"""a"""'),
        HEAD + PEER.replace('["10.0.0.2/32"]', '[\n"10.0.0.2/32",\n]'),
        HEAD + PEER + "keepalive = 0x19\n",
        HEAD + PEER + "[peer.more]\n",
        HEAD + PEER.replace("[[peer]]", "[[ peer ]]"),
        HEAD + PEER.replace("\n", "\r\n"),
        '[server]\ntext = """\n[[peer]]\nname = "no table"\n"""\n',
    ],
)
def test_any_other_form_is_left_to_tomllib_as_a_whole(text: str) -> None:
    document, texts = parsed(text)
    assert texts[-1] == text
    assert document == tomllib.loads(text)


@pytest.mark.parametrize(
    "text",
    [
        HEAD + PEER + 'name = "twice"\n',
        HEAD + "[peer]\n" + PEER,
        HEAD + PEER + "keepalive = 01\n",
        HEAD + PEER + 'name = "not closed\n',
        HEAD + PEER.replace('"a"', '"a\x01"'),
        HEAD + "list = [\n" + PEER,
    ],
)
def test_a_mistake_is_that_of_tomllib(text: str) -> None:
    with pytest.raises(tomllib.TOMLDecodeError) as expected:
        tomllib.loads(text)
    with pytest.raises(tomllib.TOMLDecodeError) as found:
        parsed(text)
    assert str(found.value) == str(expected.value)
