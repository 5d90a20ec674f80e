"""Foreign text is printable: without control characters, and of limited length."""

import pytest

import oxidize
from oxidize.text import counted, own_release, printable, wrapped


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain, ünïcode, 漢字 and\na second line", "plain, ünïcode, 漢字 and\na second line"),
        ("\x1b]0;owned\x07\x1b[2J", r"\x1b]0;owned\x07\x1b[2J"),
        ("\x00\t\r\x7f\x80\x9b", r"\x00\x09\x0d\x7f\x80\x9b"),
        ("\u202egnp.exe\u202c \u2066\u2069 \u200f", r"\u202egnp.exe\u202c \u2066\u2069 \u200f"),
        ("a\u2028b", r"a\u2028b"),
        ("\ud800", r"\ud800"),
    ],
)
def test_what_is_unprintable_is_shown(text: str, expected: str) -> None:
    assert printable(text) == expected
    expected.encode()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("one two three", ["one two", "three"]),
        ("fits in.", ["fits in."]),
        ("a  run `x y z` now", ["a  run", "`x y z`", "now"]),
        ("unbreakable word", ["unbreakable", "word"]),
        ("it`s a quote", ["it`s a", "quote"]),
        ("two\n\nlines of it", ["two", "", "lines of", "it"]),
        ("  indented by two", ["  indented", "by two"]),
    ],
)
def test_a_line_breaks_between_words_and_never_within_a_command(text: str, expected: list[str]) -> None:
    assert wrapped(text, 8) == "\n".join(expected)


def test_a_long_text_is_cut() -> None:
    assert printable("x" * 10, 10) == "x" * 10
    assert printable("x" * 11, 10) == "x" * 7 + "..."
    assert printable("\x1b" * 10, 10) == r"\x1b\x1" + "..."
    assert len(printable("y" * 5000)) == 4096


def test_nouns_agree_with_their_numbers() -> None:
    assert [counted(number, "peer") for number in (0, 1, 2)] == ["0 peers", "1 peer", "2 peers"]


def test_a_process_knows_the_name_of_its_own_release(monkeypatch: pytest.MonkeyPatch) -> None:
    version = oxidize.__version__
    assert own_release() == version
    monkeypatch.setattr("sys.prefix", f"/opt/oxidize/releases/{version}-20261125T033030Z-152fc8b")
    assert own_release() == f"{version}-20261125T033030Z-152fc8b"
