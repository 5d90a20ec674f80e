"""Read a line of shell as the simple commands that it runs one after the other.

The rule: a word whose value only a shell can tell (a substitution, a variable that the line does not set) is marked as
not literal and never guessed, and a line with anything but simple commands is refused as a whole. Nothing is ever run.
Source: POSIX.1-2017, Shell Command Language, sections 2.2 (quoting), 2.3 (token recognition), 2.7 (redirection), 2.9
(commands); bash(1) for process substitution and here-strings.
"""

import re
import shlex
from dataclasses import dataclass

_BLANKS = " \t\r\n"
_META = ";|&<>()"
_KEYWORDS = frozenset(
    "if then else elif fi for while until do done case esac select function time [[ ((".split()  # noqa: SIM905  # words
)
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_ASSIGNMENT = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)=")
_OPERATOR = re.compile(r"&&|\|\||\|&|;;|[;|&\n]")
_REDIRECTION = re.compile(r"(?:&>>?|<<<|<<-?|<>|>>|>\||[<>]&|[<>])")


class UnreadableError(ValueError):
    """A line is more than simple commands; the text completes "the line has ..."."""


@dataclass(frozen=True, slots=True)
class Word:
    """One word: its value without quotes, its text as written, and whether the value is known without running it."""

    value: str
    source: str
    is_literal: bool


@dataclass(frozen=True, slots=True)
class Command:
    """One simple command.

    operator: what joins it to the command before, "" for the first. redirections: an operator such as ">", and its
    word. source: as written, with the values of the variables that the line sets.
    """

    words: tuple[Word, ...]
    redirections: tuple[tuple[str, Word], ...]
    operator: str
    source: str


def read_commands(line: str) -> list[Command]:
    """Return the commands of a line; raises UnreadableError."""
    return _Scanner(line).commands()


class _Scanner:
    """The state of reading one line. Each character is looked at a bounded number of times."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._variables: dict[str, str] = {}
        self._found: list[Command] = []

    def commands(self) -> list[Command]:
        operator = ""
        while True:
            self._skip_blanks()
            if self._at >= len(self._text):
                return self._found
            if self._text[self._at] in "()":  # a subshell: its commands run like the others
                self._at += 1
                continue
            match = _OPERATOR.match(self._text, self._at)
            if match is not None and not self._text.startswith(("&>",), self._at):
                self._at = match.end()
                operator = match[0]
                continue
            self._command(operator)
            operator = ""

    def _skip_blanks(self) -> None:
        while self._at < len(self._text) and self._text[self._at] in _BLANKS:
            self._at += 1

    def _command(self, operator: str) -> None:
        """Read one command and add it, unless it only sets variables."""
        words: list[Word] = []
        redirections: list[tuple[str, Word]] = []
        start = end = self._at
        while self._at < len(self._text):
            self._skip_blanks()
            rest = self._text[self._at : self._at + 2]
            redirection = None if rest in ("<(", ">(") else _REDIRECTION.match(self._text, self._at)
            if redirection is not None:
                self._at = redirection.end()
                self._skip_blanks()
                if words and words[-1].source.isdigit() and self._text[redirection.start() - 1].isdigit():
                    words.pop()  # the number of a descriptor
                redirections.append((redirection[0], self._word()))
            elif not rest or (rest[0] in _META and rest not in ("<(", ">(")):
                if rest[:1] == "(":
                    raise UnreadableError("a function")
                break
            else:
                words.append(self._word())
            end = self._at
        while words and words[0].source in ("!", "{", "}"):
            del words[0]
        if words and words[0].source in _KEYWORDS:
            raise UnreadableError(f"`{words[0].source}`")
        words = self._assigned(words)
        if words or redirections:
            source = self._text[start:end]
            for word in words:
                if word.is_literal and "$" in word.source and "'" not in word.source:
                    source = source.replace(word.source, shlex.quote(word.value))
            self._found.append(Command(tuple(words), tuple(redirections), operator, source))

    def _assigned(self, words: list[Word]) -> list[Word]:
        """Return the words after the assignments; without others, these hold for the rest of the line."""
        first = next((n for n, word in enumerate(words) if not _ASSIGNMENT.match(word.source)), len(words))
        if first == len(words):
            for word in words:
                name, _, value = word.value.partition("=")
                if word.is_literal:
                    self._variables[name] = value
                else:
                    self._variables.pop(name, None)
        return words[first:]

    def _word(self) -> Word:
        start = self._at
        value = ""
        is_literal = True
        while self._at < len(self._text):
            character = self._text[self._at]
            if character in "<>" and self._text.startswith("(", self._at + 1) and self._at == start:
                self._at += 1
                self._skip_parentheses()
                is_literal = False
            elif character in _BLANKS or character in _META:
                break
            elif character == "'":
                end = self._end_of("'", self._at + 1)
                value += self._text[self._at + 1 : end]
                self._at = end + 1
            elif character == '"':
                part, is_known = self._double_quoted()
                value += part
                is_literal &= is_known
            elif character == "\\":
                value += self._text[self._at + 1 : self._at + 2]
                self._at += 2
            elif character in "$`":
                known = self._expansion()
                value += known or ""
                is_literal &= known is not None
            else:
                value += character
                self._at += 1
        return Word(value, self._text[start : self._at], is_literal)

    def _double_quoted(self) -> tuple[str, bool]:
        value, is_literal = "", True
        self._at += 1
        while self._at < len(self._text):
            character = self._text[self._at]
            if character == '"':
                self._at += 1
                return value, is_literal
            if character == "\\" and self._text[self._at + 1 : self._at + 2] in ("$", "`", '"', "\\"):
                value += self._text[self._at + 1]
                self._at += 2
            elif character in "$`":
                known = self._expansion()
                value += known or ""
                is_literal &= known is not None
            else:
                value += character
                self._at += 1
        raise UnreadableError('a `"` without its second one')

    def _expansion(self) -> str | None:
        """Skip an expansion; return its value if that is known."""
        if self._text[self._at] == "`":
            self._at = self._end_of("`", self._at + 1) + 1
            return None
        self._at += 1
        if self._text.startswith("(", self._at):
            self._skip_parentheses()
            return None
        if self._text.startswith("{", self._at):
            end = self._end_of("}", self._at)
            name, self._at = self._text[self._at + 1 : end], end + 1
            return self._variables.get(name)
        match = _NAME.match(self._text, self._at)
        if match is None:
            if self._at < len(self._text) and self._text[self._at] in "0123456789?!#@*$-'\"":
                self._at += self._text[self._at] not in "'\""
                return None
            return "$"
        self._at = match.end()
        return self._variables.get(match[0])

    def _skip_parentheses(self) -> None:
        """Move behind the parenthesis that closes the one here."""
        depth = 0
        while self._at < len(self._text):
            character = self._text[self._at]
            self._at += 1
            if character in "'\"`":
                self._at = self._end_of(character, self._at) + 1
            elif character == "\\":
                self._at += 1
            elif character == "(":
                depth += 1
            elif character == ")":
                depth -= 1
                if not depth:
                    return
        raise UnreadableError("a `(` without its `)`")

    def _end_of(self, character: str, start: int) -> int:
        end = self._text.find(character, start)
        if end < 0:
            raise UnreadableError(f"a `{character}` without its second one")
        return end
