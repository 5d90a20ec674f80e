"""Commands in a document, and the comparison of their output with the shown one."""

import pytest

from tests.system.transcript import Command, Names, blocks, commands

DOCUMENT = """
# Title

```console
$ one \\
    --long
printed

$ two
```

Between.

```toml
[server]
```
"""
FIRST, SECOND = "0.1.0-20261125T030904Z-558fa58", "0.2.0-20270101T000000Z-0badc0f"
HERE = "1.0.0-20300101T010101Z-abcdef0"


def test_commands_and_their_output_are_told_apart() -> None:
    (console, block), (toml, _) = blocks(DOCUMENT)
    assert (console, toml) == ("console", "toml")
    assert commands(block) == [Command("one --long", ["printed", ""]), Command("two")]
    assert Command("three", ["a", "^C"]).is_endless
    with pytest.raises(AssertionError, match="output before the first command"):
        commands("printed\n")


@pytest.mark.parametrize("block", ["  ```sh\n  one\n  ```\n", "~~~\none\n~~~\n", "```console\n$ one\n"])
def test_no_block_is_overlooked(block: str) -> None:
    with pytest.raises(AssertionError, match="at the beginning of a line"):
        list(blocks(DOCUMENT + block))


@pytest.mark.parametrize(
    ("shown", "printed"),
    [
        ([], ""),
        (["3 of 3 sessions, blackout 1.3 ms"], "10 of 10 sessions,  blackout 0.5 ms\n"),
        (["took 0.005 s, 626.4 KiB/s"], "took 5.1e-05 s, 1.1 MiB/s\n"),
        (["a", "...", "z"], "a\nz\n"),
        (["a", "...", "z"], "a\nb\nc\nz\n"),
        (["key  ..."], "key  abc=\n"),
        (["a", "^C"], "a\nb\n"),
        ([f"{FIRST}  558fa58"], f"{FIRST}-dirty  1234567-dirty\n"),
        ([f"{FIRST} -> {FIRST}"], f"{HERE} -> {HERE}\n"),
    ],
)
def test_output_like_the_transcript_matches(shown: list[str], printed: str) -> None:
    Names().match(shown, printed)


@pytest.mark.parametrize(
    ("shown", "printed"),
    [
        ([], "a\n"),
        (["a"], ""),
        (["a"], "a\nb\n"),
        (["3 sessions"], "3 peers\n"),
        (["3 sessions"], "no sessions\n"),
        (["a", "...", "z"], "a\nb\n"),
        (["a.c"], "abc\n"),
        ([f"{FIRST} -> {FIRST}"], f"{HERE} -> {SECOND}\n"),
    ],
)
def test_output_unlike_the_transcript_does_not_match(shown: list[str], printed: str) -> None:
    with pytest.raises(AssertionError, match="not what is shown"):
        Names().match(shown, printed)


def test_a_release_name_is_bound_where_it_first_appears() -> None:
    names = Names()
    with pytest.raises(AssertionError, match="shown nowhere before"):
        names.translated(f"deploy --release {FIRST}")
    names.match([f"/releases/{FIRST}"], f"/releases/{HERE}\n")
    assert names.translated(f"deploy --release {FIRST}") == f"deploy --release {HERE}"
    with pytest.raises(AssertionError, match="not what is shown"):
        names.match([FIRST], f"{SECOND}\n")
