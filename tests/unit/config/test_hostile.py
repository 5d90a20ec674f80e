"""Values that would be more than values are refused, and a hostile file costs bounded work and bounded output."""

import difflib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import tomli

from oxidize.config import checks, load_client, takeover_socket_of
from oxidize.config.document import _LONG_KEY, _OPAQUE
from oxidize.config.report import PROBLEMS_MAX
from oxidize.config.schema import PeerTable
from oxidize.config.source_file import SourceFile
from oxidize.config.validation import Checked
from oxidize.config.values import InvalidValueError, public_endpoint
from tests.support.config_files import CLIENT, SERVER, load, peer, problem, problems

# A zone is the name of an interface; Python takes anything for one.
BAD_ZONES = [
    "",
    "x\n",
    "x\nPostUp = reboot\n",
    "\x9b31m",
    "\u202e",
    "$(id)",
    "a b",
    "a%b",
    "a]b",
    "a/b",
    "a#b",
    '"',
    "x" * 16,
]


@pytest.mark.parametrize("zone", BAD_ZONES)
def test_a_zone_is_the_name_of_an_interface(folder: Path, zone: str) -> None:
    for given in (f"fe80::1%{zone}", f"[fe80::1%{zone}]", f"[fe80::1%{zone}]:5", f"192.0.2.1%{zone}:5"):
        shown = json.dumps(given)
        assert "expected" in problem(folder, f"{SERVER}public_endpoint = {shown}\n{peer()}")
        assert "expected" in problem(folder, f"{SERVER}listen = {shown}\n{peer()}")
        assert "expected" in problem(folder, f"{SERVER}metrics_listen = {shown}\n{peer()}")
        assert "expected" in problem(folder, SERVER + peer(more=f"endpoint = {shown}"))
        text = CLIENT.replace('"vpn.example.org:51820"', shown) + 'allowed_ips = ["10.0.0.0/24"]'
        assert "client.server" in problem(folder, text, load_client)
        with pytest.raises(InvalidValueError):
            public_endpoint(given)


def test_an_endpoint_may_have_the_zone_of_an_interface(folder: Path) -> None:
    config = load(folder, f'{SERVER}listen = "[fe80::1%eth0]:5"\n' + peer(more='endpoint = "[fe80::2%wg-0.1_x]:5"'))
    assert (config.listen, config.peers[0].endpoint) == (("fe80::1%eth0", 5), "[fe80::2%wg-0.1_x]:5")


@pytest.mark.parametrize("name", ["-x", "--help", "all", "default", ".", "..", "a/b", "a:b", "a b", "", "x" * 16, "ä"])
def test_an_interface_has_a_name_that_linux_and_other_programs_accept(folder: Path, name: str) -> None:
    assert "expected 1 to 15 of letters" in problem(folder, f"{SERVER}interface = {json.dumps(name)}\n{peer()}")


@pytest.mark.parametrize("name", ["wg0", "a-b", "=+_.", "x" * 15, "all1"])
def test_an_interface_may_have_any_other_name(folder: Path, name: str) -> None:
    assert load(folder, f"{SERVER}interface = {json.dumps(name)}\n{peer()}").interface == name


# --- The work for a hostile file is bounded ---


def long_keys() -> Iterator[str]:
    """Yield statements with a key of too many parts, each of them written in another way."""
    for parts in (9, 20_000):
        yield ".".join("a" * parts) + " = 1"
        yield "[" + ".".join("a" * parts) + "]"
        yield "[[" + " . ".join("a" * parts) + "]]"
        yield "x = {" + ".".join(['"a"'] * parts) + " = 1}"
        yield "x = [{" + ".".join(["'#'"] * parts) + " = 1}] # x"
        yield 'x = "\\"" # "\n' + ".".join(["a"] * parts) + " = 1"
        yield 'x = """a"" \\""""\n' + ".".join(["a"] * parts) + " = 1"


@pytest.mark.parametrize("statement", list(long_keys()), ids=lambda text: f"{text[:12]!r} {len(text)}")
def test_a_key_of_many_parts_is_refused_before_it_is_parsed(
    folder: Path, statement: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed: list[str] = []

    def parse(text: str) -> dict[str, object]:
        parsed.append(text)
        return {}

    monkeypatch.setattr(tomli, "loads", parse)
    assert problem(folder, f"{SERVER}{statement}\n") == (
        "oxidize.toml: a key of more than 8 parts: expected keys of at most two parts, as in examples/; remove it"
    )
    assert parsed == []
    assert takeover_socket_of(folder / "oxidize.toml", "server", {}) == Path("/run/oxidize/takeover.sock")
    assert not [text for text in parsed if statement in text]


@pytest.mark.parametrize(
    "statement",
    [
        "# a.a.a.a.a.a.a.a.a.a.a.a",
        'x = "a.a.a.a.a.a.a.a.a.a.a.a.a"',
        "x = 'a.a.a.a.a.a.a.a.a.a.a.a.a' # it's",
        'x = """\na.a.a.a.a.a.a.a.a.a.a = 1\n"""',
        "x = '''\na.a.a.a.a.a.a.a.a.a.a = 1\n'''",
        "x = [1.5, 1.5, 1.5, 1.5, 1.5, 1.5, 1.5, 1.5, 1.5, 1.5]",
        "x = 1.5\n" * 12,
    ],
)
def test_dots_that_divide_no_key_are_no_parts(statement: str) -> None:
    assert _LONG_KEY.search(_OPAQUE.sub("s", statement)) is None


def test_mistakes_without_number_are_counted_and_neither_described_nor_printed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched: list[str] = []

    def search(word: str, *_: object) -> list[str]:
        searched.append(word)
        return []

    monkeypatch.setattr(difflib, "get_close_matches", search)
    lines = problems(folder, SERVER + "".join(f"k{number} = 1\n" for number in range(20_000)))
    assert len(lines) == PROBLEMS_MAX + 1
    assert lines[-1] == f"oxidize.toml: {20_000 - PROBLEMS_MAX} more mistakes: correct these first"
    assert len(searched) == PROBLEMS_MAX
    tables = "".join(f"[t{number}]\n" for number in range(3_000))
    last = problems(folder, SERVER + peer() + tables)[-1]
    assert last.endswith(f": {3_000 - PROBLEMS_MAX} more mistakes: correct these first")
    assert len(searched) == 2 * PROBLEMS_MAX


def test_no_more_tables_are_checked_than_there_may_be_peers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[str] = []
    monkeypatch.setattr(checks, "PEERS_MAX", 3)

    def check(_model: object, _given: object, prefix: str, source: SourceFile) -> Checked[PeerTable]:
        checked.append(prefix)
        return Checked(prefix, source, {})

    monkeypatch.setattr(checks, "check_table", check)
    line = problem(folder, SERVER + "[[peer]]\n" * 10)
    assert "10 tables: expected at most 3" in line
    assert len(checked) == 3
