"""`oxidize releases` in terminals of several widths."""

import io
import re
import sys
from typing import Any

import pytest

from oxidize.cli.releases_page import render

NAME, EARLIER = "0.1.0-20261128T113850Z-5c3d83a", "0.1.0-20261125T033030Z-152fc8b"
PROBLEM = "/opt/bin/python: No such file or directory: expected python3.11, as it was built with"
FOUND: dict[str, Any] = {
    "releases": [
        {
            "name": name,
            "version": "0.1.0",
            "built_unix": 1.79e9,
            "revision": name[-7:],
            "marks": marks,
            "problem": problem,
        }
        for name, marks, problem in ((NAME, ["running", "current"], ""), (EARLIER, ["rollback"], PROBLEM))
    ],
    "incomplete": [],
    "running_elsewhere": None,
    "problem": "",
    "under_way": None,
    "holder": None,
    "deployments": [
        {
            "at_unix": 1.79e9,
            "who": "alice",
            "action": "deploy",
            "source": EARLIER,
            "target": NAME,
            "blackout_ms": 0.6,
            "result": "success",
            "reason": "",
        }
    ],
}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(monkeypatch: pytest.MonkeyPatch, file: io.StringIO, width: int) -> list[str]:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stdout", file)
    render(FOUND, 10)
    return file.getvalue().splitlines()


def test_a_narrow_terminal_shows_each_release_and_deployment_on_lines_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines = shown(monkeypatch, Terminal(), 60)
    assert lines[:4] == [
        NAME,
        "  built 2026-09-21 14:13:20, running, current",
        EARLIER,
        "  built 2026-09-21 14:13:20, rollback",
    ]
    assert " ".join(lines[4:7]) == f"{EARLIER}: cannot run: {PROBLEM}"
    assert lines[-4:] == [
        "2026-09-21 14:13:20  deploy by alice",
        f"  {EARLIER} ->",
        f"  {NAME}",
        "  success, blackout 0.6 ms",
    ]
    assert max(map(len, lines)) <= 60


@pytest.mark.parametrize(("file", "width"), [(Terminal(), 160), (io.StringIO(), 60)])
def test_a_wide_terminal_and_a_pipe_get_tables(monkeypatch: pytest.MonkeyPatch, file: io.StringIO, width: int) -> None:
    lines = shown(monkeypatch, file, width)
    assert re.sub(r"\x1b\[[0-9;]*m", "", lines[0]).split() == ["release", "version", "built", "revision"]
    assert any(EARLIER in line and NAME in line for line in lines)
