"""The code that tests break on purpose exists: a fault at a place that was renamed would test nothing.

Rule: the tests that plant these faults need root or minutes; a renamed function is found here, in seconds.
"""

import ast
import builtins
import contextlib
import functools
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system import broken_releases

ROOT = Path(__file__).parents[3]
_FAULT = re.compile(r'"(oxidize(?:\.\w+)+):((?:\w+(?:\.\w+)*)?)"')


def planted_faults() -> Iterator[tuple[str, str]]:
    for path in sorted(ROOT.glob("tests/*/test_*.py")):
        yield from _FAULT.findall(path.read_text())


def added_code() -> Iterator[tuple[str, str]]:
    for name, broken in vars(broken_releases).items():
        if name.isupper() and isinstance(broken, dict):
            yield from broken.items()
    for path in sorted(ROOT.glob("tests/system/test_*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(".add_release"):
                for added in (argument for argument in node.args if isinstance(argument, ast.Dict)):
                    with contextlib.suppress(ValueError):  # a dictionary of constants that the loop above yields
                        yield from ast.literal_eval(added).items()


@pytest.mark.parametrize(("module", "name"), sorted(set(planted_faults())))
def test_the_place_of_a_planted_fault_exists(module: str, name: str) -> None:
    imported = importlib.import_module(module)
    found = functools.reduce(getattr, name.split("."), imported) if name else None
    assert not name or callable(found) or isinstance(found, int)  # an integer: a constant of TEST_LACKS


@pytest.mark.parametrize(("module", "code"), sorted(set(added_code())))
def test_what_a_broken_release_replaces_exists(module: str, code: str) -> None:
    imported = importlib.import_module(f"oxidize.{module}")
    nodes = list(ast.walk(ast.parse(code)))
    names = [node for node in nodes if isinstance(node, ast.Name)]
    made = {node.id for node in names if isinstance(node.ctx, ast.Store)} | {"got_there"}
    made |= {node.arg for node in nodes if isinstance(node, ast.arg)}
    made |= {node.asname or node.name for node in nodes if isinstance(node, ast.alias)}
    functions = {node.name for node in nodes if isinstance(node, ast.FunctionDef)}
    used = {node.id for node in names if isinstance(node.ctx, ast.Load)}
    for name in used - made - functions:
        assert hasattr(imported, name) or hasattr(builtins, name), name
    for name in functions - used:
        assert hasattr(imported, name), f"{name} takes the place of nothing"
    for node in nodes:
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and hasattr(imported, node.value.id):
            assert hasattr(getattr(imported, node.value.id), node.attr), ast.unparse(node)
