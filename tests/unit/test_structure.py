"""The shape of the source: which part may import which, what is pure, and how long things may be.

Imports run one way: cli -> runtime, deploy, provision, holder -> client, control -> net, hostnet, service_manager
-> takeover, state -> protocol. `takeover` knows nothing of
WireGuard, so it imports neither `protocol` nor `state`. The leaves are used by the shell alone, and use no part of it.
`provision` changes files, and knows nothing of the process that runs with them.
"""

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "oxidize"

LEAVES = frozenset({"config", "metrics", "logs", "text", "terminal"})
CORE = frozenset({"protocol", "state", "takeover", "errors"}) | LEAVES
ADAPTERS = frozenset({"net", "hostnet", "service_manager"})
WINGS = ADAPTERS | {"settings", "client", "control"}
TOPS = frozenset({"runtime", "deploy", "provision", "holder"})

# What each part may import besides itself and the version in `oxidize`.
MAY_IMPORT: dict[str, frozenset[str]] = {
    "errors": frozenset(),
    "protocol": frozenset({"errors"}),
    "state": frozenset({"protocol", "errors"}),
    "takeover": frozenset({"errors"}),
    **dict.fromkeys(LEAVES, frozenset({"errors"})),
    "terminal": frozenset({"errors", "text"}),
    **dict.fromkeys(ADAPTERS, CORE),
    "settings": CORE | {"net"},
    "client": CORE | ADAPTERS | {"settings"},
    "control": CORE | ADAPTERS | {"settings"},
    "runtime": CORE | WINGS,
    "deploy": CORE,
    "provision": frozenset({"config", "protocol", "errors"}),
    "holder": frozenset({"errors", "text"}),
    "cli": CORE | WINGS | TOPS,
    "__main__": frozenset({"cli"}),
}

# The words in which the protocol is spoken of: names and numbers without behaviour. Leaves may use them.
VOCABULARY = frozenset({"oxidize.protocol.constants", "oxidize.protocol.counters", "oxidize.protocol.endpoint"})

IMPURE = frozenset({"socket", "os", "time", "random", "select", "secrets", "asyncio", "threading", "datetime", "mmap"})

FILE_LINES_MAX = 499
FUNCTION_LINES_MAX = 70


@dataclass(frozen=True)
class Module:
    """One source file; `name` is what an import calls it."""

    name: str
    source: str
    is_package: bool = False

    @property
    def part(self) -> str:
        """The part of the project that it belongs to: `protocol` of `oxidize.protocol.counters`."""
        return part_of(self.name)

    @property
    def tree(self) -> ast.Module:
        return parse(self.source)


@dataclass(frozen=True)
class Import:
    """One import: of a whole module, or of one name from it, which may be a module as well."""

    module: str
    name: str
    line: int
    for_types_only: bool

    def target(self, known: frozenset[str]) -> str:
        """The module of ours that is meant."""
        return self.name if self.name in known else self.module


@cache
def parse(source: str) -> ast.Module:
    return ast.parse(source)


def part_of(name: str) -> str:
    """The part of the project that a module belongs to; empty for the package itself."""
    return name.partition(".")[2].partition(".")[0]


def load() -> list[Module]:
    modules = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        is_package = parts[-1] == "__init__"
        modules.append(Module(".".join(parts[:-1] if is_package else parts), path.read_text("utf-8"), is_package))
    return modules


def imports_of(module: Module) -> Iterator[Import]:
    """Every import of a module, wherever it stands."""
    tree = module.tree
    for_types = {
        id(inner)
        for outer in ast.walk(tree)
        if isinstance(outer, ast.If) and "TYPE_CHECKING" in ast.unparse(outer.test)
        for statement in outer.body
        for inner in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, alias.name, node.lineno, id(node) in for_types)
        elif isinstance(node, ast.ImportFrom):
            origin = node.module or ""
            if node.level:
                package = module.name.split(".") if module.is_package else module.name.split(".")[:-1]
                above = package[: len(package) + 1 - node.level]
                origin = ".".join([*above, origin] if origin else above)
            for alias in node.names:
                yield Import(origin, f"{origin}.{alias.name}", node.lineno, id(node) in for_types)


def is_ours(name: str) -> bool:
    return name == "oxidize" or name.startswith("oxidize.")


def layer_problems(module: Module, known: frozenset[str]) -> list[str]:
    """Imports that point the wrong way."""
    if module.part and module.part not in MAY_IMPORT:
        return [f"{module.name}: {module.part} is no part of the design; give it its place in MAY_IMPORT"]
    allowed = MAY_IMPORT.get(module.part, frozenset())
    problems = []
    for found in imports_of(module):
        target = found.target(known)
        part = part_of(target)
        if not is_ours(target) or not part or part == module.part or part in allowed:
            continue
        if module.part in LEAVES and target in VOCABULARY:
            continue
        problems.append(f"{module.name}:{found.line} imports {target}: {module.part or 'oxidize'} must not use {part}")
    return problems


def is_pure(module: Module) -> bool:
    return module.part == "protocol" or module.name == "oxidize.takeover.machine"


def purity_problems(module: Module) -> list[str]:
    """Imports through which a clock, randomness or the operating system would come in."""
    return [
        f"{module.name}:{found.line} imports {found.module}: give it what it needs as an argument"
        for found in imports_of(module)
        if found.module.partition(".")[0] in IMPURE
    ]


def find_cycle(modules: list[Module]) -> list[str]:
    """Modules that import each other in a circle; imports for type checkers alone do not count."""
    known = frozenset(module.name for module in modules)
    graph = {
        module.name: {
            found.target(known)
            for found in imports_of(module)
            if not found.for_types_only and found.target(known) in known - {module.name}
        }
        for module in modules
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        cycle: list[str] = error.args[1]
        return cycle
    return []


def size_problems(module: Module) -> list[str]:
    """The file, and its functions, that are too long to be read at once."""
    problems = []
    lines = len(module.source.splitlines())
    if lines > FILE_LINES_MAX:
        problems.append(f"{module.name} has {lines} lines; expected at most {FILE_LINES_MAX}")
    for node in ast.walk(module.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > FUNCTION_LINES_MAX:
                problems.append(
                    f"{module.name}:{node.lineno} {node.name} has {lines} lines; expected at most {FUNCTION_LINES_MAX}"
                )
    return problems


def catch_all_problems(module: Module) -> list[str]:
    """Handlers of every exception without a comment on the line that says why; `noqa` alone is no reason.

    Those that tidy up and end in a bare `raise` hide nothing.
    """
    tokens = tokenize.generate_tokens(io.StringIO(module.source).readline)
    comments = {token.start[0]: token.string for token in tokens if token.type == tokenize.COMMENT}
    problems = []
    for node in ast.walk(module.tree):
        if not isinstance(node, ast.ExceptHandler) or ast.unparse(node.body[-1]) == "raise":
            continue
        caught = (
            {name.id for name in ast.walk(node.type) if isinstance(name, ast.Name)} if node.type else {"BaseException"}
        )
        reason = re.sub(r"noqa(:\s*[A-Z]+[0-9]+(,\s*[A-Z]+[0-9]+)*)?", "", comments.get(node.lineno, ""))
        if caught & {"Exception", "BaseException"} and len(re.findall(r"[A-Za-z]+", reason)) < 2:
            problems.append(
                f"{module.name}:{node.lineno} catches everything: say why on the line, or name what is meant"
            )
    return problems


MODULES = load()
KNOWN = frozenset(module.name for module in MODULES)
DESIGNED = KNOWN | {f"oxidize.{part}" for part in MAY_IMPORT}  # whether they exist already or not

each_module = pytest.mark.parametrize("module", MODULES, ids=lambda module: module.name)


@each_module
def test_imports_run_one_way(module: Module) -> None:
    assert layer_problems(module, KNOWN) == []


@pytest.mark.parametrize("module", [module for module in MODULES if is_pure(module)], ids=lambda module: module.name)
def test_the_core_is_pure(module: Module) -> None:
    assert purity_problems(module) == []


def test_no_modules_import_each_other() -> None:
    assert find_cycle(MODULES) == []


@each_module
def test_files_and_functions_can_be_read_at_once(module: Module) -> None:
    assert size_problems(module) == []


@each_module
def test_whoever_hides_every_error_says_why(module: Module) -> None:
    assert catch_all_problems(module) == []


def test_every_module_says_what_it_is_for() -> None:
    assert [module.name for module in MODULES if not ast.get_docstring(module.tree)] == []


# --- The checks themselves: each finds what it is there for ---


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("oxidize.protocol.device", "from oxidize.state import journal"),
        ("oxidize.protocol.device", "import oxidize.metrics"),
        ("oxidize.state.journal", "from oxidize.takeover.channel import Channel"),
        ("oxidize.state.journal", "from oxidize import config"),
        ("oxidize.takeover.machine", "from oxidize.protocol.constants import KEY_SIZE"),
        ("oxidize.takeover.machine", "from ..state import journal"),
        ("oxidize.takeover.machine", "def f():\n    from oxidize.state.arena import Arena"),
        ("oxidize.runtime.server", "from oxidize import cli"),
        ("oxidize.runtime.server", "import oxidize.deploy.plan"),
        ("oxidize.deploy", "from oxidize.net.event_loop import Loop"),
        ("oxidize.provision.wg_quick", "from oxidize.runtime import status"),
        ("oxidize.runtime.server", "from oxidize.provision import client_files"),
        ("oxidize.metrics", "from oxidize.protocol.device import Device"),
        ("oxidize.net.http", "from oxidize.runtime.node import Node"),
        ("oxidize.terminal.table", "from oxidize.deploy.vitals import Vitals"),
        ("oxidize.config.keys", "if TYPE_CHECKING:\n    from oxidize.net.event_loop import Loop"),
        ("oxidize.errors", "from oxidize.protocol import counters"),
        ("oxidize.utils", ""),
        ("oxidize", "from oxidize.cli import main"),
    ],
)
def test_a_wrong_arrow_is_found(name: str, source: str) -> None:
    assert len(layer_problems(Module(name, source), DESIGNED)) == 1


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("oxidize.protocol.device", "from oxidize.errors import StateError\nfrom . import counters\nimport struct"),
        ("oxidize.state.journal", "from oxidize.protocol.changes import Change\nfrom oxidize import __version__"),
        ("oxidize.takeover.machine", "import oxidize.errors\nfrom oxidize.takeover import messages"),
        (
            "oxidize.runtime.server",
            "from oxidize import config, logs, metrics\nfrom oxidize.state import journal",
        ),
        ("oxidize.metrics", "from oxidize.protocol.counters import Total\nfrom oxidize.protocol import constants"),
        ("oxidize.terminal.screen", "from oxidize.text import printable\nfrom rich.live import Live"),
    ],
)
def test_a_right_arrow_is_not(name: str, source: str) -> None:
    assert layer_problems(Module(name, source), DESIGNED) == []


@pytest.mark.parametrize("source", ["import os.path", "from time import monotonic", "def f():\n    import secrets"])
def test_impurity_is_found(source: str) -> None:
    assert len(purity_problems(Module("oxidize.protocol.device", source))) == 1


def test_impure_modules_have_their_names_right() -> None:
    assert sys.stdlib_module_names >= IMPURE


def test_a_cycle_is_found() -> None:
    a = Module("oxidize.a", "from oxidize import b")
    c = Module("oxidize.c", "import oxidize.a")
    assert set(find_cycle([a, Module("oxidize.b", "def f():\n    from oxidize.c import x"), c])) == {
        "oxidize.a",
        "oxidize.b",
        "oxidize.c",
    }
    for_types = Module("oxidize.b", "if TYPE_CHECKING:\n    from oxidize.c import x")
    assert find_cycle([a, for_types, c]) == []


def test_relative_imports_are_resolved() -> None:
    package = Module("oxidize.state", "from .journal import Journal\nfrom ..protocol import counters", is_package=True)
    assert [found.module for found in imports_of(package)] == ["oxidize.state.journal", "oxidize.protocol"]
    module = Module("oxidize.state.journal", "from . import stream\nfrom ..protocol.counters import Total")
    assert [found.name for found in imports_of(module)] == ["oxidize.state.stream", "oxidize.protocol.counters.Total"]


def test_length_is_found() -> None:
    assert size_problems(Module("oxidize.a", "\n" * FILE_LINES_MAX)) == []
    assert len(size_problems(Module("oxidize.a", "\n" * (FILE_LINES_MAX + 1)))) == 1
    assert size_problems(Module("oxidize.a", "def f():\n" + " pass\n" * (FUNCTION_LINES_MAX - 1))) == []
    assert len(size_problems(Module("oxidize.a", "def f():\n" + " pass\n" * FUNCTION_LINES_MAX))) == 1


@pytest.mark.parametrize(
    ("handler", "expected"),
    [
        ("except Exception:", 1),
        ("except Exception:  # noqa: BLE001", 1),
        ("except (ValueError, BaseException) as error:", 1),
        ("except:  # noqa: E722, S110", 1),
        ("except Exception:  # noqa: BLE001 - the top of the loop: one batch must not end the service", 0),
        ("except BaseException:  # the child is reaped whatever happens", 0),
        ("except ValueError:", 0),
    ],
)
def test_a_catch_all_without_a_reason_is_found(handler: str, expected: int) -> None:
    assert len(catch_all_problems(Module("oxidize.a", f"try:\n    pass\n{handler}\n    pass\n"))) == expected
    assert catch_all_problems(Module("oxidize.a", f"try:\n    pass\n{handler}\n    pass\n    raise\n")) == []
