"""What is read of a configuration that may be broken: like the whole of it, and of many peers nothing."""

from pathlib import Path
from typing import Any

import pytest

from oxidize.config import takeover_socket_of
from oxidize.config.document import parse_toml

SERVER = '[server]\ntakeover_socket = "a.sock"\n'
PEER = '[[peer]]\nname = "a"\n'
DEFAULT = Path("/run/oxidize/takeover.sock")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"{SERVER}{PEER}", "a.sock"),
        (f"{PEER}{SERVER}", "a.sock"),
        (f"[server.more]\nx = 1\n{PEER}{SERVER}", "a.sock"),
        (f"server.takeover_socket = 'a.sock'\n{PEER}", "a.sock"),
        (f"{SERVER}{PEER}takeover_socket = 'b.sock'\n", "a.sock"),
        (f"{SERVER}{PEER}=\n", "a.sock"),
        (f'[server]\nx = """\n{PEER}"""\ntakeover_socket = "a.sock"\n', "a.sock"),
        (f"[server]\nx = [\n[[1]]]\ntakeover_socket = 'a.sock'\n{PEER}", "a.sock"),
        (f"[server]\nx = 1\n{PEER}takeover_socket = 'b.sock'\n", None),
    ],
)
def test_the_takeover_socket_is_that_of_the_whole_file(tmp_path: Path, text: str, expected: str | None) -> None:
    path = tmp_path / "server.toml"
    path.write_text(text)
    assert takeover_socket_of(path, "server", {}) == (tmp_path / expected if expected else DEFAULT)


def test_peers_behind_the_table_are_not_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "server.toml"
    path.write_text(f"{SERVER}{PEER}")
    parsed: list[str] = []

    def parse(text: str) -> dict[str, Any]:
        parsed.append(text)
        return parse_toml(text)

    monkeypatch.setattr("oxidize.config.locate.parse_toml", parse)
    assert takeover_socket_of(path, "server", {}) == tmp_path / "a.sock"
    assert parsed == [SERVER]
