"""Write the manual pages: oxidize(1), and one page for each command, such as oxidize-peer-add(1).

The rule: what the commands say about themselves in `--help` is written there alone, and the pages are made from it when
a release is built; none is in the repository. Sources: man(7), man-pages(7), lexgrog(1).

Run `python scripts/release/man_pages.py FOLDER`; FOLDER gets the files of man1.
"""

import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click

from oxidize import __version__
from oxidize.cli.commands import main as oxidize

SECTION = 1
# For oxidize(1), below its list of commands: what no single command says.
MORE = r"""
.SH FILES
.TP
.I /etc/oxidize/server.toml, /etc/oxidize/client.toml
The configuration of the server and of the client. Every key is described in
.IR docs/configuration.md .
.TP
.I /var/lib/oxidize/deployments.jsonl
The log of deployments, one JSON object a line.
.TP
.I /opt/oxidize/releases, /opt/oxidize/current
The installed releases, and a link to the one that the next start runs.
.TP
.I /opt/oxidize/current/share/doc/oxidize
The documents that this page refers to. The first ones to read are
.I README.md
and
.IR docs/operations.md .
.SH UNITS
.TP
.B oxidize-daemon.service, oxidize.socket, oxidize-http.socket
The server; the socket of the tunnels; the socket of /health and /metrics.
.TP
.B oxidize-client.service, oxidize-kill-switch.service
The client, and its kill switch.
.PP
.B systemctl reload
replaces the process of a service under traffic.
.SH EXIT STATUS
.TP
.B 0
Success.
.TP
.B 1
A failure; each reason is one line on standard error.
.TP
.B 2
A mistake in the configuration or the command; each one is a line on standard error.
.TP
.B 3
A client gave up on its server.
.SH EXAMPLES
A first server and its first client:
.PP
.RS 4
.EX
oxidize genkey |
    install \-o oxidize \-m 0400 /dev/stdin /etc/oxidize/server.key
editor /etc/oxidize/server.toml
systemctl enable \-\-now oxidize\-daemon
oxidize peer add phone
.EE
.RE
.PP
A change of the configuration, which no client notices:
.PP
.RS 4
.EX
editor /etc/oxidize/server.toml
systemctl reload oxidize\-daemon
.EE
.RE
""".strip()
SEE_ALSO = ("wg(8)", "wg-quick(8)", "systemctl(1)", "journalctl(1)")

_NOT_FILLED = "\b\n"  # click's mark of a paragraph whose lines are kept
# Characters that are signs of roff, or become typographic ones (groff_char(7)).
_ESCAPES = str.maketrans({"\\": "\\e", "-": "\\-", "'": "\\(aq", "^": "\\(ha", "~": "\\(ti"})
_QUOTED = re.compile(r"`([^`\n]+)`")


def pages() -> Iterator[tuple[str, str]]:
    """Yield the name and the text of each page."""
    return _pages(oxidize, _context(oxidize, "oxidize"))


def _pages(command: click.Command, context: click.Context) -> Iterator[tuple[str, str]]:
    name = _name(context)
    yield f"{name}.{SECTION}", "\n".join(_page(command, context)) + "\n"
    for each, below in _commands(command, context):
        yield from _pages(each, below)


def _context(command: click.Command, name: str, parent: click.Context | None = None) -> click.Context:
    return click.Context(command, parent, name, **command.context_settings)


def _commands(command: click.Command, context: click.Context) -> list[tuple[click.Command, click.Context]]:
    """Return the commands of a group that are shown in its help, with their contexts."""
    if not isinstance(command, click.Group):
        return []
    found = [(name, command.get_command(context, name)) for name in command.list_commands(context)]
    return [(each, _context(each, name, context)) for name, each in found if each is not None and not each.hidden]


def _page(command: click.Command, context: click.Context) -> Iterator[str]:
    name, words = _name(context), context.command_path
    yield f'.TH {name.upper()} {SECTION} {_date()} "oxidize {__version__}" "Oxidize Manual"'
    # Words are not divided, and lines are not spread out.
    yield from (".nh", ".ad l", ".SH NAME", f"{escaped(name)} \\- {_headline(command)}", ".SH SYNOPSIS")
    usage = " ".join(command.collect_usage_pieces(context))
    yield f".B {escaped(words)}\n{escaped(usage)}"
    yield ".SH DESCRIPTION"
    yield from _paragraphs(command.help or "")
    if below := _commands(command, context):
        yield ".SH COMMANDS"
        for each, its_context in below:
            yield from (".TP", f".BR {escaped(_name(its_context))} ({SECTION})", _filled(_short_help(each)))
    options = [each for each in command.get_params(context) if isinstance(each, click.Option)]
    if records := [record for each in options if (record := each.get_help_record(context))]:
        yield ".SH OPTIONS"
        for option, meaning in records:
            yield from (".TP", f".B {escaped(option)}", _filled(meaning))
    if context.parent is None:
        yield MORE
    yield ".SH SEE ALSO"
    yield " ,\n".join(f".BR {escaped(page)} ({section})" for page, section in _see_also(context))


def _see_also(context: click.Context) -> list[tuple[str, str]]:
    """Return names and sections of the pages to look at after one."""
    above = [_name(each) for each in (context.parent, context.find_root()) if each is not None and each is not context]
    others = [re.fullmatch(r"(.*)\((\d)\)", page) for page in SEE_ALSO]
    return [(name, str(SECTION)) for name in dict.fromkeys(above)] + [(each[1], each[2]) for each in others if each]


def _name(context: click.Context) -> str:
    return context.command_path.replace(" ", "-")


def _date() -> str:
    """Return the date of the build, that of the source where it is given (reproducible-builds.org)."""
    seconds = float(os.environ.get("SOURCE_DATE_EPOCH") or time.time())
    return time.strftime("%Y-%m-%d", time.gmtime(seconds))


def _short_help(command: click.Command) -> str:
    return command.get_short_help_str(limit=1000)


def _headline(command: click.Command) -> str:
    """Return the line by which whatis(1) lists a page."""
    text = escaped(_short_help(command).rstrip("."))
    return text[:1].lower() + text[1:]


def _paragraphs(text: str) -> Iterator[str]:
    """Yield the lines of a help text."""
    for number, paragraph in enumerate(text.split("\n\n")):
        if number:
            yield ".PP"
        if paragraph.startswith(_NOT_FILLED):
            yield from (".nf", _lines(paragraph.removeprefix(_NOT_FILLED)), ".fi")
        else:
            yield _filled(paragraph)


def _filled(text: str) -> str:
    return _lines(" ".join(text.split()))


def _lines(text: str) -> str:
    """Return text for the body of a page: commands between backquotes are bold."""
    return _QUOTED.sub(r"\\fB\1\\fR", escaped(text))


def escaped(text: str) -> str:
    """Return text without anything that roff takes for a request, an escape or another character."""
    found = (
        text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq").replace("^", "\\(ha").replace("~", "\\(ti")
    )
    return re.sub(r"^\.", r"\\&.", found, flags=re.MULTILINE)


def write(folder: Path) -> None:
    """Write all pages into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in pages():
        (folder / name).write_text(text, "utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
