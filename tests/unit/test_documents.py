"""The documents: every link leads somewhere, the README is short, and decisions are short and in the index."""

import ast
import re
from pathlib import Path

import pytest

from oxidize.protocol.counters import DropReason

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("contrib/**/*.md")])
README_BYTES_MAX = 10_240
DECISION_LINES_MAX = 40
QUOTE_LETTERS_MIN = 8
SOURCES = [
    path
    for folder in ("oxidize", "systemd", "scripts")
    for path in (ROOT / folder).rglob("*.*")
    if path.suffix != ".pyc"
]

_FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[[^\]\n]*(?:\n[^\]\n]*)?\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
_DEFINED = re.compile(r"`(oxidize/[\w/]+\.py):(\w+)`")
_SOURCE = re.compile(r"`((?:oxidize|tests|docs|scripts|systemd|examples|contrib|demo|benchmarks)/[\w./-]*\w/?)`")

each_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))


def anchors(text: str) -> set[str]:
    """Return the anchors of a document's headings, as forges make them."""
    headings = (heading.replace("`", "") for heading in _HEADING.findall(_FENCED.sub("", text)))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def definitions(path: Path) -> set[str]:
    """Return the names that a module defines at its top level or in its classes; none where there is no such file."""
    if not path.exists():
        return set()
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {target.id for target in targets if isinstance(target, ast.Name)}
    return found


def messages_explained(text: str) -> set[str]:
    """Return what the tables "what you see" quote, in the parts between "..."; short parts are left out."""
    found = set()
    for row in re.findall(r"^\| what you see \|.*\n((?:\|.*\n)+)", text, re.MULTILINE):
        for cell in re.findall(r"^\| ([^|]*) \|", row, re.MULTILINE):
            for quoted in re.findall(r"`([^`]*)`", cell):
                found |= {
                    part.strip(" ,()") for part in quoted.split("...") if len(part.strip(" ,()")) >= QUOTE_LETTERS_MIN
                }
    return found


def link_problems(document: Path) -> list[str]:
    """Return the links of a document to files and headings that are not there."""
    problems = []
    for target in _LINK.findall(_FENCED.sub("", document.read_text())):
        if target.startswith(("https://", "http://", "mailto:")):
            continue
        name, _, anchor = target.partition("#")
        path = (document.parent / name).resolve() if name else document
        if not path.exists():
            problems.append(f"{target}: there is no such file")
        elif anchor and anchor not in anchors(path.read_text()):
            problems.append(f"{target}: there is no such heading")
    return problems


@each_document
def test_links_of_a_document_lead_somewhere(document: Path) -> None:
    assert link_problems(document) == []


@each_document
def test_files_that_a_document_names_exist(document: Path) -> None:
    named = set(_SOURCE.findall(_FENCED.sub("", document.read_text())))
    assert sorted(name for name in named if not (ROOT / name).exists()) == []


@each_document
def test_functions_that_a_document_names_exist(document: Path) -> None:
    named = set(_DEFINED.findall(_FENCED.sub("", document.read_text())))
    assert sorted(f"{path}:{name}" for path, name in named if name not in definitions(ROOT / path)) == []


def test_messages_that_a_document_explains_are_those_of_the_source() -> None:
    source = " ".join(path.read_text() for path in SOURCES)
    quoted = {text for document in DOCUMENTS for text in messages_explained(document.read_text())}
    assert quoted, "no table explains what an operator sees"
    assert sorted(text for text in quoted if text not in source) == []


def test_every_drop_reason_is_explained_once() -> None:
    section = (ROOT / "docs/operations.md").read_text().partition("\n## Drops\n")[2].partition("\n## ")[0]
    cells = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    explained = [reason for cell in cells for reason in re.findall(r"`(\w+)`", cell)]
    assert sorted(explained) == sorted(reason.name.lower() for reason in DropReason)


def test_the_readme_is_a_door_and_not_a_house() -> None:
    assert len((ROOT / "README.md").read_bytes()) <= README_BYTES_MAX


def test_every_document_can_be_reached_from_the_readme() -> None:
    reached, waiting = set(), [ROOT / "README.md"]
    while waiting:
        document = waiting.pop()
        if document in reached or document.suffix != ".md":
            continue
        reached.add(document)
        targets = (target.partition("#")[0] for target in _LINK.findall(document.read_text()))
        linked = ((document.parent / target).resolve() for target in targets if target and "://" not in target)
        waiting += [path for path in linked if path.exists()]
    assert sorted(set(DOCUMENTS) - reached) == []


def test_decisions_are_short_and_in_the_index() -> None:
    index = (ROOT / "docs/adr/README.md").read_text()
    for decision in sorted(ROOT.glob("docs/adr/[0-9]*.md")):
        lines = decision.read_text().splitlines()
        assert len(lines) <= DECISION_LINES_MAX, f"{decision.name} has {len(lines)} lines"
        assert f"({decision.name})" in index, f"{decision.name} is not in the index"


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    (tmp_path / "other.md").write_text("# Here `it` is\n")
    document = tmp_path / "document.md"
    document.write_text("# A\n[good](other.md#here-it-is) [itself](#a) [bad](missing.md)\n[bad](other.md#there)\n")
    assert link_problems(document) == [
        "missing.md: there is no such file",
        "other.md#there: there is no such heading",
    ]
