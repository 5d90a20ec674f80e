"""Text of others reaches no log line and no terminal with a character that a terminal executes, reorders or hides."""

import ast
import io
import json
import logging
import os
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.text import Text

from oxidize import logs
from oxidize.cli import common, lines
from oxidize.cli.commands import main
from oxidize.config.report import Report, show
from oxidize.control.reload import notify_failure
from oxidize.errors import ConfigError, OxidizeError
from oxidize.service_manager import notify
from oxidize.terminal.screen import print_line
from oxidize.terminal.table import print_lines, table
from oxidize.text import one_line, printable

HARMFUL = frozenset({"Cc", "Cf", "Zl", "Zp", "Cs", "Co", "Cn"})
CLI = Path(common.__file__).parent

foreign = st.text(
    st.one_of(
        st.characters(categories=["Cc", "Cf", "Zl", "Zp", "Zs", "Cs", "Co", "Cn"]),
        st.characters(exclude_categories=[]),
        st.sampled_from('\x1b\x7f\x85\x9b\u202e\u2028\u2066\ufeff\U000e0001\ud800"\\\n'),
    ),
    max_size=30,
)


def harmful(text: str, allowed: str = "\n") -> list[str]:
    return [character for character in text if unicodedata.category(character) in HARMFUL and character not in allowed]


def only_line(text: str) -> str:
    """Return a text of one line, which ends in a newline, after a check that it is safe."""
    assert text.endswith("\n")
    assert harmful(text[:-1], allowed="") == []
    text.encode()
    return text[:-1]


@given(foreign)
def test_a_text_is_escaped_as_a_whole_or_on_one_line(text: str) -> None:
    assert harmful(printable(text, None)) == []
    assert harmful(one_line(text), allowed="") == []
    assert printable(text, None).count("\n") == text.count("\n")
    printable(text).encode()
    one_line(text).encode()


@given(st.text(st.characters(categories=["L", "M", "N", "P", "S"]), max_size=30))
def test_letters_of_every_script_stay_as_they_are(text: str) -> None:
    assert printable(text) == one_line(text) == text


@given(foreign)
def test_a_log_line_is_one_safe_line_however_the_text_came_into_it(text: str) -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logs._Formatter(with_header=True))
    logger = logging.Logger("oxidize.test")
    logger.addHandler(handler)
    log = logs.Log(logger)
    ways: list[Callable[[], object]] = [
        lambda: log.warning(text),
        lambda: log.warning("refused: %s", text),
        lambda: log.warning("refused", reason=text, public_key=text, names=[text, {text: text}]),
        lambda: log.warning("refused", error=OSError(1, text, text)),
    ]
    for way in ways:
        stream.seek(0)
        stream.truncate()
        way()
        only_line(stream.getvalue())


@given(foreign)
def test_a_traceback_is_safe(text: str) -> None:
    try:
        raise OxidizeError(text)
    except OxidizeError:
        record = logging.LogRecord("x", logging.ERROR, "", 0, "failed", None, __import__("sys").exc_info())
    assert harmful(logs._Formatter(with_header=True).format(record)) == []


@given(foreign)
def test_a_mistake_in_a_configuration_is_one_safe_line(text: str) -> None:
    report = Report(text)
    report.wrong(text, text, text, text)
    report.missing(text, text, text)
    report.warn(text, text)
    with pytest.raises(ConfigError) as caught:
        report.check()
    for line in (*caught.value.problems, *report.warnings, show("interface", text), show("interface", [text])):
        assert harmful(line, allowed="") == []


@given(foreign)
def test_what_a_command_prints_is_safe(text: str) -> None:
    @main.command("printing", hidden=True)
    def printing() -> None:
        common.print_json({text: text}, None)
        lines.echo(text)
        lines.print_line(text)
        lines.print_warning(text)
        raise OxidizeError(text)

    @main.command("refusing", hidden=True)
    def refusing() -> None:
        raise ConfigError(text)

    try:
        printed, refused = (CliRunner().invoke(main, [name]) for name in ("printing", "refusing"))
    finally:
        del main.commands["printing"], main.commands["refusing"]
    assert harmful(printed.output) == []
    assert json.loads(printed.stdout.splitlines()[0]) == {text: text}
    assert only_line(refused.stderr) == f"oxidize: {one_line(text)}"


CHECK = main.commands["check"].params
# What is no mistake: Hypothesis draws the words of the source too.
COMMANDS = main.list_commands(click.Context(main))
KNOWN = {"help", "version", *COMMANDS, *(name.lstrip("-") for option in CHECK for name in option.opts)}


@given(foreign.filter(lambda text: text and not text.startswith("-") and "\0" not in text and text not in KNOWN))
def test_what_is_quoted_of_the_command_line_is_safe(text: str) -> None:
    for arguments in ([text], [f"--{text}"], ["check", f"--{text}"], ["server", "--log-level", text]):
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 2
        assert harmful(result.output) == []


@given(foreign)
def test_what_a_screen_shows_is_safe(text: str) -> None:
    console = Console(file=io.StringIO(), width=10_000, color_system=None)
    print_line(console, text)
    print_lines([*table(["a"], [[text]]), Text(text)], console)
    assert isinstance(console.file, io.StringIO)
    assert harmful(console.file.getvalue()) == []
    assert len(list(table(["a"], [[text]]))) == 2
    assert harmful("".join(line.plain for line in table(["a"], [[text]])), allowed="") == []


@given(foreign)
def test_what_the_service_manager_shows_is_one_safe_line(text: str) -> None:
    told: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(notify, "notify", told.append)
        notify_failure(1, text)
    (line,) = told
    assert harmful(line, allowed="") == []


GATES = {"click.echo", "click.secho", "print", "write_line", "stream.write", "sys.stdout.write", "sys.stderr.write"}


def test_no_command_prints_past_the_gate() -> None:
    """Text is written by `lines.echo`, and as JSON; a client's own configuration is printed as it is."""
    found = []
    for path in sorted(CLI.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in GATES:
                found.append((path.name, ast.unparse(node.func), ast.unparse(node.args[0])))
    assert sorted(found) == [
        ("common.py", "write_line", "json.dumps(value, indent=indent).replace('\\x7f', '\\\\u007f')"),
        ("lines.py", "stream.write", "f'{text}\\n'.encode(encoding, 'backslashreplace').decode(encoding)"),
        ("lines.py", "write_line", "_fitted(printable(text, characters_max=None), sys.stderr if err else sys.stdout)"),
        ("peer_add.py", "click.echo", "shown"),
    ]


@pytest.mark.parametrize("command", ["check", "reload", "status", "rehearse", "server"])
def test_a_file_name_that_is_no_text_is_printed_safely(command: str, tmp_path: Path) -> None:
    name = os.fsdecode(b"\xff\x9b31m\xe2\x80\xae.toml")
    result: Any = CliRunner().invoke(main, [command, "-c", str(tmp_path / name)])
    assert result.exit_code in (1, 2)
    assert harmful(result.output) == []
    assert "\\udcff" in result.output
