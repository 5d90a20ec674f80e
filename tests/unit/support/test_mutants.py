"""The catalogue of mutants fits the source, and its runner tells a caught mutant from one that survives.

Rule: the mutants themselves take minutes (`make mutants`); a mutant that no longer applies is found here, in seconds.
"""

import ast
import asyncio
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import pytest

from tests.mutants import runner
from tests.mutants.catalogue import EQUIVALENT, MUTANTS
from tests.mutants.mutant import Mutant, MutantError
from tests.mutants.runner import Outcome, run

ROOT = Path(__file__).parents[3]
RUFF = Path(sys.executable).with_name("ruff")
PASSING = "def test_two_is_two() -> None:\n    assert 2 == 2\n"
CATCHING = "from oxidize.a import ONE\n\n\ndef test_one_is_one() -> None:\n    assert ONE == 1\n"
CATCHING_TEST = "unit/test_catching.py::test_one_is_one"

each_mutant = pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)


@cache
def dumped(source: str) -> str:
    """Return the syntax tree of a module, which many mutants are planted in."""
    return ast.dump(ast.parse(source))


@cache
def names_of_tests(path: Path) -> set[str]:
    """Return the names by which pytest calls the tests of a file, without parameters."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.ClassDef):
            found |= {f"{node.name}::{each.name}" for each in node.body if isinstance(each, ast.FunctionDef)}
    return {name for name in found if name.rpartition("::")[2].startswith("test_")}


@each_mutant
def test_a_mutant_applies_to_the_source_and_compiles(mutant: Mutant) -> None:
    source = mutant.path(ROOT).read_text()
    mutated = mutant.mutated(source)
    assert ast.dump(ast.parse(mutated)) != dumped(source), "the mutant changes nothing"


@each_mutant
def test_the_tests_that_catch_a_mutant_exist(mutant: Mutant) -> None:
    assert mutant.caught_by, "no test is named"
    for name in mutant.caught_by:
        file, _, test = name.partition("::")
        assert test.partition("[")[0] in names_of_tests(ROOT / "tests" / file), name


def test_no_mutant_uses_a_name_that_is_not_defined(tmp_path: Path) -> None:
    for mutant in MUTANTS:
        (tmp_path / f"{mutant.name}.py").write_text(mutant.mutated(mutant.path(ROOT).read_text()))
    command = [str(RUFF), "check", "--isolated", "--quiet", "--no-cache", "--select", "F821,F823", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_mutant_is_another_bug_with_a_name_of_its_own_and_says_why_it_matters() -> None:
    names = Counter(mutant.name for mutant in MUTANTS)
    assert [name for name, count in names.items() if count > 1] == []
    bugs = Counter((mutant.file, mutant.mutated(mutant.path(ROOT).read_text())) for mutant in MUTANTS)
    assert [file for (file, _), count in bugs.items() if count > 1] == []
    assert [mutant.name for mutant in MUTANTS if not mutant.why] == []
    assert [each.name for each in EQUIVALENT if not each.reason] == []


def test_a_mutant_whose_text_is_not_found_once_is_an_error() -> None:
    mutant = Mutant("m", "a.py", "ONE", "TWO", (), "why")
    for source, times in (("", 0), ("ONE = ONE\n", 2)):
        with pytest.raises(MutantError, match=f"occurs {times} times in oxidize/a.py; expected once"):
            mutant.mutated(source)


# --- The runner, on a tree of one module ---


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    for name, content in {
        "oxidize/__init__.py": "",
        "oxidize/a.py": "ONE = 1\n",
        "tests/unit/test_passing.py": PASSING,
        "tests/unit/test_catching.py": CATCHING,
        "pyproject.toml": '[tool.pytest.ini_options]\naddopts = "-ra"\n',
    }.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


def mutant_of(new: str, test: str = CATCHING_TEST) -> Mutant:
    return Mutant("m", "a.py", "ONE = 1", new, (test,), "why")


def test_a_mutant_is_caught_in_a_copy_of_the_tree(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert asyncio.run(run(tree, [mutant_of("ONE = 2")])) == 0
    caught, total = capsys.readouterr().out.splitlines()
    assert caught.endswith(f"s  {CATCHING_TEST}")
    assert total.endswith("1 caught, 0 of them by a test that is not named with them, 0 not")
    assert (tree / "oxidize/a.py").read_text() == "ONE = 1\n", "the tree itself was changed"


# --- The runner, with answers of pytest that are made up ---


class Answers:
    """pytest's exit statuses and output in the order of its calls, and what it was called for."""

    def __init__(self, *answers: tuple[int, str] | None) -> None:
        self.answers = list(answers)
        self.calls: list[list[str]] = []

    async def __call__(self, tree: Path, arguments: Sequence[str], secs_max: float) -> tuple[int, str]:
        self.calls.append([argument for argument in arguments if argument.startswith("tests/")])
        answer = self.answers.pop(0)
        if answer is None:
            raise TimeoutError
        return answer


@pytest.fixture
def checked(tree: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Outcome, list[list[str]]]]:
    """Return a function that checks a mutant with given answers, and returns the outcome and what pytest ran."""

    def check_with(*answers: tuple[int, str] | None, mutant: Mutant | None = None) -> tuple[Outcome, list[list[str]]]:
        pytest_ = Answers(*answers)
        monkeypatch.setattr(runner, "_pytest", pytest_)
        outcome = asyncio.run(runner.check(tree, mutant or mutant_of("ONE = 2")))
        assert (tree / "oxidize/a.py").read_text() == "ONE = 1\n", "the mutant is still there"
        return outcome, pytest_.calls

    return check_with


Checked = Callable[..., tuple[Outcome, list[list[str]]]]
PASSED = (0, "1 passed")


def failed(test: str) -> tuple[int, str]:
    return 1, f"F\nFAILED tests/{test} - assert 2 == 1\n1 failed"


def test_a_mutant_that_only_another_test_catches_is_told(checked: Checked) -> None:
    outcome, calls = checked(PASSED, failed("unit/test_b.py::test_b[1 - 2]"))
    assert (outcome.test, outcome.wider) == ("unit/test_b.py::test_b[1", True)
    assert calls == [[f"tests/{CATCHING_TEST}"], ["tests/unit"]]


def test_an_error_in_a_fixture_catches_a_mutant_and_one_in_the_collection_does_not(checked: Checked) -> None:
    outcome, _ = checked((1, "E\nERROR tests/unit/test_b.py::test_b - a descriptor leaked\n"))
    assert outcome.test == "unit/test_b.py::test_b"
    outcome, _ = checked((2, "ERROR tests/unit/test_b.py - NameError: ONE\n"))
    assert not outcome.test
    assert "pytest ended with status 2" in outcome.problem


def test_tests_that_do_not_end_catch_no_mutant(checked: Checked) -> None:
    outcome, _ = checked(None)
    assert not outcome.test
    assert "did not end" in outcome.problem


def test_a_mutant_that_does_not_apply_is_not_caught(checked: Checked) -> None:
    outcome, calls = checked(mutant=Mutant("m", "a.py", "THREE", "4", (CATCHING_TEST,), "why"))
    assert not outcome.test
    assert "occurs 0 times" in outcome.problem
    assert calls == []


def test_a_mutant_that_no_test_catches_survives(checked: Checked) -> None:
    outcome, calls = checked(PASSED, PASSED)
    assert (outcome.test, outcome.problem) == ("", "")
    assert calls == [[f"tests/{CATCHING_TEST}"], ["tests/unit"]]


@pytest.mark.parametrize(
    ("test", "problem", "status", "printed"),
    [
        ("unit/t.py::test", "", 0, "unit/t.py::test"),
        ("", "", 1, "SURVIVED"),
        ("", "does not apply", 1, "does not apply"),
    ],
)
def test_a_run_fails_unless_every_mutant_is_caught(
    tree: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    test: str,
    problem: str,
    status: int,
    printed: str,
) -> None:
    async def no_problem(tree: Path, mutants: Sequence[Mutant]) -> str:
        return ""

    async def outcome_of(tree: Path, mutant: Mutant) -> Outcome:
        return Outcome(mutant, test, 1.0, problem=problem)

    monkeypatch.setattr(runner, "_baseline", no_problem)
    monkeypatch.setattr(runner, "check", outcome_of)
    assert asyncio.run(run(tree, [mutant_of("ONE = 2")])) == status
    assert capsys.readouterr().out.splitlines()[0].endswith(f"s  {printed}")


def test_an_interrupted_run_leaves_no_copy(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copies: list[Path] = []

    async def no_problem(tree: Path, mutants: Sequence[Mutant]) -> str:
        return ""

    async def interrupted(copy: Path, mutant: Mutant) -> Outcome:
        copies.append(copy)
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.Event().wait()
        raise AssertionError("it was not interrupted")

    monkeypatch.setattr(runner, "_baseline", no_problem)
    monkeypatch.setattr(runner, "check", interrupted)
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(run(tree, [mutant_of("ONE = 2")]))
    assert [copy.exists() for copy in copies] == [False]


def test_tests_that_fail_without_a_mutant_catch_none(
    tree: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(runner, "_pytest", Answers(failed(CATCHING_TEST)))
    assert asyncio.run(run(tree, [mutant_of("ONE = 2")])) == 2
    assert "the tests fail without any mutant" in capsys.readouterr().out
