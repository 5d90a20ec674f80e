"""The commands of a document, the output that it shows, and a shell that runs them in order.

Rule: a "console" block has commands after the prompt "$ ", each followed by its output; only "..." stands for omitted
output. A command ends with status 0, unless the next one is `echo $?` and shows another status. A command followed by
"^C" is endless and is interrupted once it has printed something.
"""

import os
import re
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Self

PROMPT = "$ "
ELSEWHERE = "..."  # in a line: something; as a line: lines, or none
INTERRUPT = "^C"
ASK_STATUS = "echo $?"
INTERRUPTED_STATUS = 128 + signal.SIGINT
COMMAND_SECS = 180.0

_FENCE = re.compile(r"^```(\S*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_REVISION = r"(?:[0-9a-f]{7,}(?:-dirty)?|local)"  # of what git knows, with changes, and where there is no git
_RELEASE = rf"\d+\.\d+\.\d+-\d{{8}}T\d{{6}}Z-{_REVISION}"
_NUMBER = r"\d[\d.,:]*(?:e-?\d+)?"
_BYTES = r"\b(?:[KMGT]i)?B\b"
_TOKEN = re.compile(
    rf"(?P<release>{_RELEASE})|(?P<revision>\b(?=\d*[a-f])[0-9a-f]{{7}}\b)|(?P<number>{_NUMBER})|(?P<bytes>{_BYTES})|"
    r"(?P<gap>\s+)|(?P<open>\.\.\.)|."
)


@dataclass(slots=True)
class Command:
    """One command. shown: the lines of output in the document."""

    text: str
    shown: list[str] = field(default_factory=list)

    @property
    def is_endless(self) -> bool:
        return self.shown[-1:] == [INTERRUPT]


def blocks(document: str) -> Iterator[tuple[str, str]]:
    """Yield kind and content of each fenced block; fail on an unmatched fence."""
    fences = re.findall(r"^\s*(?:```|~~~)", document, re.MULTILINE)
    assert len(fences) == 2 * len(_FENCE.findall(document)), "expected fences of ``` at the beginning of a line"
    for found in _FENCE.finditer(document):
        yield found[1], found[2]


def commands(block: str) -> list[Command]:
    """Return the commands of a block; a backslash at the end continues a line."""
    found: list[Command] = []
    lines = iter(block.splitlines())
    for line in lines:
        if line.startswith(PROMPT):
            text = line.removeprefix(PROMPT)
            while text.endswith("\\"):
                text = f"{text[:-1].rstrip()} {next(lines).strip()}"
            found.append(Command(text))
        else:
            assert found, f"output before the first command of a block: {line!r}"
            found[-1].shown.append(line)
    return found


class Names:
    """The actual names of the releases in a document, as its commands have printed them so far."""

    def __init__(self) -> None:
        self._here: dict[str, str] = {}

    def translated(self, command: str) -> str:
        """Return a command with the actual names."""
        found = re.sub(_RELEASE, lambda match: self._here.get(match[0], match[0]), command)
        left = [name for name in re.findall(_RELEASE, command) if name not in self._here]
        assert not left, f"{command}: {left} were shown nowhere before"
        return found

    def match(self, shown: Sequence[str], printed: str) -> None:
        """Fail if the output differs from the shown one in more than numbers, units of bytes and blanks.

        A release keeps the name that it has at its first occurrence.
        """
        new: dict[str, str] = {}
        # An endless command has gone on, by the time at which it is interrupted.
        lines = (ELSEWHERE if line == INTERRUPT else line for line in shown)
        pattern = "".join(self._line(line, new) for line in lines)
        text = "".join(f"{line.strip()}\n" for line in printed.splitlines())
        found = re.fullmatch(pattern, text)
        assert found, "\n".join(["what is printed is not what is shown:", printed, "--- shown ---", *shown])
        self._here |= {name: found[group] for name, group in new.items()}

    def _line(self, line: str, new: dict[str, str]) -> str:
        if line.strip() == ELSEWHERE:
            return r"(?:[^\n]*\n)*?"
        tokens = (self._token(token, new) for token in _TOKEN.finditer(line.strip()))
        return "".join(tokens) + r"\n"

    def _token(self, token: re.Match[str], new: dict[str, str]) -> str:
        text = token[0]
        match token.lastgroup:
            case "release" if text in self._here:
                return re.escape(self._here[text])
            case "release" if text in new:
                return f"(?P={new[text]})"
            case "release":
                new[text] = f"release{len(new)}"
                return f"(?P<{new[text]}>{_RELEASE})"
            case "revision":
                return _REVISION
            case "number":
                return _NUMBER
            case "bytes":
                return _BYTES
            case "gap":
                return r"[^\S\n]+"
            case "open":
                return r"[^\n]*"
        return re.escape(text)


class Shell:
    """One bash that reads commands one by one; standard output and error are one stream.

    interrupt: sends SIGINT to a process group, given by its number as seen by bash.
    """

    def __init__(self, command: Sequence[str], interrupt: Callable[[int], None]) -> None:
        self._interrupt = interrupt
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._input, self._output = self._process.stdin, self._process.stdout
        self._number = 0
        self._write("set -m")  # each command is a process group

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._input.close()
        self._output.close()

    def run(self, command: Command, text: str) -> tuple[int, str]:
        """Run a command, interrupt it if it is endless, and return its status and output.

        text: the command with the actual names.
        """
        self._number += 1
        begun, ended = (f"{word}-{self._number}" for word in ("begun", "ended"))
        if command.is_endless:
            self._write(f"{{ {text}", "} < /dev/null &", f'printf "{begun} %d\\n" $!', "wait $!")
        else:
            self._write(f"{{ {text}", "} < /dev/null")
        # The status stays, for the next one to ask for.
        self._write("status=$?", f'printf "{ended} %d\\n" $status', "(exit $status)")
        printed = ""
        if command.is_endless:
            lines = max(len(command.shown) - 1, 1)
            printed, group = self._read_until(rf"{begun} (\d+)\n", command)
            while printed.count("\n") < lines:
                printed += self._read(command)
            self._interrupt(int(group))
        rest, status = self._read_until(rf"{ended} (\d+)\n", command)
        return int(status), printed + rest

    def _write(self, *lines: str) -> None:
        self._input.write("".join(f"{line}\n" for line in lines).encode())
        self._input.flush()

    def _read(self, command: Command) -> str:
        readable, _, _ = select.select([self._output], [], [], COMMAND_SECS)
        assert readable, f"{command.text}: printed nothing for {COMMAND_SECS:g} s"
        data = os.read(self._output.fileno(), 65536)
        assert data, f"{command.text}: the shell has ended"
        return data.decode(errors="replace")

    def _read_until(self, pattern: str, command: Command) -> tuple[str, str]:
        """Read to a marker line of the shell; return the other output and the group of the pattern."""
        text, ends_at = "", time.monotonic() + COMMAND_SECS
        while (found := re.search(pattern, text)) is None:
            assert time.monotonic() < ends_at, f"{command.text}: no end after {COMMAND_SECS:g} s\n{text}"
            text += self._read(command)
        return text[: found.start()] + text[found.end() :], found[1]
