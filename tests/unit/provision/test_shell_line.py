"""A line of shell is read as its commands; what only a shell can tell is marked, and anything else is refused."""

import pytest

from oxidize.provision.shell_line import UnreadableError, read_commands


def words(line: str) -> list[list[str]]:
    """Return the words of each command; those whose value is not known end in "?"."""
    return [
        [word.value if word.is_literal else f"{word.source}?" for word in command.words]
        for command in read_commands(line)
    ]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("", []),
        (" ;; ;", []),
        ("a b; c && d || e | f & g", [["a", "b"], ["c"], ["d"], ["e"], ["f"], ["g"]]),
        ("a 'b; c' \"d && e\" f\\;g", [["a", "b; c", "d && e", "f;g"]]),
        ("a\"b\"'c'd", [["abcd"]]),
        ("a ''", [["a", ""]]),
        (r'a "\$b \" \c"', [["a", '$b " \\c']]),
        ("a '$b' `c d` \"e $f\"", [["a", "$b", "`c d`?", '"e $f"?']]),
        ("a $(b | c '(' ; d) e", [["a", "$(b | c '(' ; d)?", "e"]]),
        ("a <(b c) e", [["a", "<(b c)?", "e"]]),
        ("A=1 B='x y'; c $A ${B} \"$B\" $D", [["c", "1", "x y", "x y", "$D?"]]),
        ("A=$(b); c $A", [["c", "$A?"]]),
        ("A=1; A=$(b); c $A", [["c", "$A?"]]),
        ("A=1 b c", [["b", "c"]]),
        ("(a; b) && { c; }", [["a"], ["b"], ["c"]]),
        ("! a", [["a"]]),
        ("a 2>/dev/null >&2 <<< b c", [["a", "c"]]),
        ("a 1 > f", [["a", "1"]]),
        ("a 1> f", [["a"]]),
        ("a $ b", [["a", "$", "b"]]),
        ("a $1 $? $$ b", [["a", "$1?", "$??", "$$?", "b"]]),
    ],
)
def test_a_line_is_read_as_its_commands(line: str, expected: list[list[str]]) -> None:
    assert words(line) == expected


@pytest.mark.parametrize(
    "line",
    [
        "if a; then b; fi",
        "a; for x in y; do b; done",
        "while :; do :; done",
        "[[ a ]] && b",
        "f() { a; }",
        "a 'b",
        'a "b',
        "a `b",
        "a $(b",
        "a ${b",
        "a <(b",
    ],
)
def test_a_line_of_anything_else_is_refused(line: str) -> None:
    with pytest.raises(UnreadableError):
        read_commands(line)


def test_a_command_knows_what_joins_it_and_where_its_output_goes() -> None:
    first, second = read_commands("echo x > /proc/sys/a | b <<< 'c d'")
    assert (first.operator, second.operator) == ("", "|")
    assert [(kind, word.value) for kind, word in (*first.redirections, *second.redirections)] == [
        (">", "/proc/sys/a"),
        ("<<<", "c d"),
    ]
    assert (first.source, second.source) == ("echo x > /proc/sys/a", "b <<< 'c d'")


def test_a_command_is_shown_with_the_values_that_its_line_sets() -> None:
    (command,) = read_commands("A='x y'; b $A $C")
    assert command.source == "b 'x y' $C"
