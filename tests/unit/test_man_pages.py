"""The manual: a page for each command that `--help` shows, with all that it says there, and without a fault of roff."""

import re
import shutil
import subprocess
from pathlib import Path

import click
import pytest

from oxidize.cli.commands import main as oxidize
from scripts.release.man_pages import escaped, pages, write

FONT = re.compile(r"\\f[BIR]")
HIDDEN = ("clean-up", "kill-switch", "name-servers")


def shown(group: click.Group, words: tuple[str, ...]) -> dict[tuple[str, ...], click.Command]:
    """Return the commands below a group that its help shows, by their words."""
    found: dict[tuple[str, ...], click.Command] = {words: group}
    for name in group.list_commands(click.Context(group)):
        command = group.get_command(click.Context(group), name)
        assert command is not None
        if isinstance(command, click.Group):
            found |= shown(command, (*words, name))
        elif not command.hidden:
            found[*words, name] = command
    return found


def plain(text: str) -> str:
    """Return the words of a page, or of a text of the help."""
    return " ".join(FONT.sub("", text).replace("\\-", "-").replace("\\(aq", "'").replace("`", "").split())


def test_each_command_has_a_page_with_its_help_and_its_options() -> None:
    found, expected = dict(pages()), shown(oxidize, ("oxidize",))
    assert sorted(found) == sorted(f"{'-'.join(words)}.1" for words in expected)
    assert not [name for name in found if any(hidden in name for hidden in HIDDEN)]
    for words, command in expected.items():
        page = found[f"{'-'.join(words)}.1"]
        assert plain((command.help or "").replace("\b", "").partition("\n\n")[0]) in plain(page)
        for option in command.params:
            if isinstance(option, click.Option) and not option.hidden:
                assert f".B {escaped(', '.join(sorted(option.opts, key=len)))}" in page, (words, option)
                assert plain(option.help or "") in plain(page), (words, option)
        assert "\n.B \\-h, \\-\\-help\n" in page


def test_the_first_page_lists_the_others() -> None:
    found = dict(pages())
    groups = "".join(found[name].partition("SEE ALSO")[0] for name in ("oxidize.1", "oxidize-peer.1"))
    listed = re.findall(r"^\.BR (\S+) \(1\)$", groups, re.MULTILINE)
    assert {"oxidize.1", *(f"{name.replace(chr(92), '')}.1" for name in listed)} == set(found)


@pytest.mark.needs("groff")
def test_every_page_is_typeset_without_a_warning(tmp_path: Path) -> None:
    write(tmp_path)
    groff = shutil.which("groff")
    assert groff is not None
    paths = sorted(tmp_path.iterdir())
    done = subprocess.run(
        [groff, "-man", "-ww", "-Tutf8", "-P-cbou", "-rLL=78n", *map(str, paths)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    (tmp_path / "plant.1").write_text(".TH PLANT 1\n.XX unknown\n")
    planted = [groff, "-man", "-ww", "-Tutf8", str(tmp_path / "plant.1")]
    assert "XX" in subprocess.run(planted, capture_output=True, text=True, check=False).stderr
    assert max(len(line) for line in done.stdout.splitlines()) <= 80
    # What roff would have taken for a request, an escape, or a typographic sign is there as it was written.
    assert "    install -o oxidize -m 0400 /dev/stdin /etc/oxidize/server.key" in done.stdout


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (".so /etc/passwd\n'br", "\\&.so /etc/passwd\n\\(aqbr"),
        ("a\\b", "a\\eb"),
        ("--full ^~", "\\-\\-full \\(ha\\(ti"),
    ],
)
def test_a_text_cannot_command_roff(text: str, expected: str) -> None:
    assert escaped(text) == expected


def test_the_date_is_that_of_the_source(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
    assert all('1 1970-01-02 "oxidize ' in page for _, page in pages())
