"""The shape of the source: which part may import which, what is pure, how long files and functions are, what is exempt.

The contracts on imports are in pyproject.toml ([tool.importlinter]), each with a sentence as its name.
"""

import ast
import io
import re
import shutil
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LINT_IMPORTS = Path(sys.executable).with_name("lint-imports")

IMPURE = frozenset({"socket", "os", "time", "random", "select", "secrets", "asyncio", "threading", "datetime", "mmap"})

FILE_LINES_MAX = 499
FUNCTION_LINES_MAX = 70

CATCH_ALL = re.compile(r"\bexcept\s*:|\b(Base)?Exception\b")
EXEMPTION = re.compile(r"noqa(:\s*[A-Z]+[0-9]+(,\s*[A-Z]+[0-9]+)*)?|type: ignore(\[[a-z, -]+\])?")


@dataclass(frozen=True)
class Module:
    """One source file; `name` is its dotted name."""

    name: str
    source: str

    @property
    def tree(self) -> ast.Module:
        return ast.parse(self.source)


def load(*folders: str) -> Iterator[Module]:
    for path in sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        yield Module(name, path.read_text("utf-8"))


def lint_imports(folder: Path) -> tuple[int, str]:
    """Check the contracts on the package in `folder`; return the exit status and the report on one line."""
    done = subprocess.run(
        [LINT_IMPORTS, "--no-cache"], cwd=folder, capture_output=True, text=True, check=False, timeout=60
    )
    return done.returncode, " ".join(f"{done.stdout}{done.stderr}".split())


def is_pure(module: Module) -> bool:
    return module.name.startswith("oxidize.protocol.") or module.name == "oxidize.takeover.machine"


def impure_imports(module: Module) -> list[str]:
    """Return the imports that give a module a clock, randomness or the operating system."""
    names = []
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.append(node.module or "")
    return [name for name in names if name.partition(".")[0] in IMPURE]


def oversized(module: Module) -> list[str]:
    """Return the file and its functions that are longer than the limits."""
    problems = []
    lines = len(module.source.splitlines())
    if lines > FILE_LINES_MAX:
        problems.append(f"{module.name} has {lines} lines; expected at most {FILE_LINES_MAX}")
    for node in ast.walk(module.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > FUNCTION_LINES_MAX:
                problems.append(f"{module.name}:{node.lineno} {node.name} has {lines} lines")
    return problems


def comments_of(module: Module) -> dict[int, str]:
    """Return the comments by their line."""
    tokens = tokenize.generate_tokens(io.StringIO(module.source).readline)
    return {token.start[0]: token.string for token in tokens if token.type == tokenize.COMMENT}


def words_of_reason(comment: str) -> int:
    """Return the number of words of a comment; `noqa` and `type: ignore` are none."""
    return len(re.findall(r"[A-Za-z]+", EXEMPTION.sub("", comment)))


def unexplained_exemptions(module: Module) -> list[str]:
    """Return the lines that a check of style or types passes over without a reason."""
    if not EXEMPTION.search(module.source):  # tokens take a hundred times as long
        return []
    return [
        f"{module.name}:{number} {comment}: say why after it"
        for number, comment in comments_of(module).items()
        if EXEMPTION.search(comment) and not words_of_reason(comment)
    ]


def unexplained_catch_alls(module: Module) -> list[str]:
    """Return the handlers of all exceptions without a comment that says why; `noqa` alone is no reason.

    Handlers that clean up and end in a bare `raise` hide nothing.
    """
    if not CATCH_ALL.search(module.source):  # as above
        return []
    problems = []
    handlers = [node for node in ast.walk(module.tree) if isinstance(node, ast.ExceptHandler)]
    comments = comments_of(module) if handlers else {}
    for node in handlers:
        last = node.body[-1]
        if isinstance(last, ast.Raise) and last.exc is None:
            continue
        caught = {n.id for n in ast.walk(node.type) if isinstance(n, ast.Name)} if node.type else {"BaseException"}
        if caught & {"Exception", "BaseException"} and words_of_reason(comments.get(node.lineno, "")) < 2:
            problems.append(f"{module.name}:{node.lineno} catches every exception: say why in a comment on the line")
    return problems


MODULES = list(load("oxidize"))
HELPERS = list(load("benchmarks", "demo", "examples", "scripts", "tests"))
each_module = pytest.mark.parametrize("module", MODULES, ids=lambda module: module.name)


def test_the_import_contracts_are_kept() -> None:
    status, report = lint_imports(ROOT)
    assert status == 0, report


@pytest.mark.parametrize("module", [module for module in MODULES if is_pure(module)], ids=lambda module: module.name)
def test_a_pure_module_imports_no_clock_randomness_or_operating_system(module: Module) -> None:
    assert impure_imports(module) == []


@each_module
def test_a_file_and_its_functions_are_short(module: Module) -> None:
    assert oversized(module) == []


@each_module
def test_a_handler_of_every_exception_says_why(module: Module) -> None:
    assert unexplained_catch_alls(module) == []


def test_tests_and_tools_are_as_short_as_the_source() -> None:
    assert [problem for module in HELPERS for problem in oversized(module)] == []


def test_tests_and_tools_say_why_they_catch_every_exception() -> None:
    assert [problem for module in HELPERS for problem in unexplained_catch_alls(module)] == []


def test_every_exemption_from_a_check_of_style_or_types_has_a_reason() -> None:
    assert [problem for module in MODULES + HELPERS for problem in unexplained_exemptions(module)] == []


def test_every_module_has_a_docstring() -> None:
    assert [module.name for module in MODULES if not ast.get_docstring(module.tree)] == []


# --- The checks themselves: each finds what it is there for ---

# Imports that a contract forbids: the module to add them to, the statement, and the imported module.
FORBIDDEN_IMPORTS = [
    ("protocol.device", "from oxidize.state import journal", "state.journal"),
    ("protocol.device", "import oxidize.metrics", "metrics"),
    ("state.journal", "from oxidize.takeover.channel import Channel", "takeover.channel"),
    ("state.journal", "from oxidize import config", "config"),
    ("takeover.machine", "from oxidize.protocol.constants import KEY_SIZE", "protocol.constants"),
    ("takeover.machine", "from ..state import journal", "state.journal"),
    ("takeover.host", "def f():\n    from oxidize.state.arena import Arena", "state.arena"),
    ("runtime.node", "from oxidize import cli", "cli"),
    ("runtime.node", "import oxidize.deploy.deployment", "deploy.deployment"),
    ("deploy.history", "from oxidize.net.event_loop import Loop", "net.event_loop"),
    ("provision.wg_quick", "from oxidize.runtime import status", "runtime.status"),
    ("provision.wg_quick", "from oxidize.terminal.table import table", "terminal.table"),
    ("holder.fd_store", "from oxidize import logs", "logs"),
    ("net.tun", "from oxidize.hostnet import nat", "hostnet.nat"),
    ("metrics", "from oxidize.protocol.device import Device", "protocol.device"),
    ("terminal.table", "import oxidize.logs", "logs"),
    ("config.keys", "if TYPE_CHECKING:\n    from oxidize.net.event_loop import Loop", "net.event_loop"),
    ("errors", "from oxidize.protocol import constants", "protocol.constants"),
]


@pytest.fixture(scope="module")
def report_on_forbidden_imports(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the report on a copy of the package to which all the forbidden imports were added."""
    folder = tmp_path_factory.mktemp("forbidden")
    shutil.copy(ROOT / "pyproject.toml", folder)
    shutil.copytree(ROOT / "oxidize", folder / "oxidize", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "oxidize" / "utils.py").touch()
    (folder / "oxidize" / "cli" / "circle.py").write_text("from oxidize.cli import commands\n")
    with (folder / "oxidize" / "cli" / "commands.py").open("a") as file:
        file.write("\nimport oxidize.cli.circle\n")
    for name, statement, _ in FORBIDDEN_IMPORTS:
        with folder.joinpath("oxidize", *name.split(".")).with_suffix(".py").open("a") as file:
            file.write(f"\n{statement}\n")
    status, report = lint_imports(folder)
    assert status == 1, report
    return report


@pytest.mark.parametrize(("importer", "imported"), [(importer, found) for importer, _, found in FORBIDDEN_IMPORTS])
def test_a_forbidden_import_is_reported(report_on_forbidden_imports: str, importer: str, imported: str) -> None:
    assert f"oxidize.{importer} -> oxidize.{imported} (" in report_on_forbidden_imports


def test_a_part_without_a_layer_is_reported(report_on_forbidden_imports: str) -> None:
    assert "oxidize.utils" in report_on_forbidden_imports


def test_a_circle_of_imports_is_reported(report_on_forbidden_imports: str) -> None:
    assert "No cycles are allowed in oxidize.cli." in report_on_forbidden_imports


@pytest.mark.parametrize("source", ["import os.path", "from time import monotonic", "def f():\n    import secrets"])
def test_an_impure_import_is_found(source: str) -> None:
    assert len(impure_imports(Module("oxidize.protocol.device", source))) == 1


def test_every_impure_module_is_one_of_the_standard_library() -> None:
    assert sys.stdlib_module_names >= IMPURE


def test_a_long_file_or_function_is_found() -> None:
    assert oversized(Module("oxidize.a", "\n" * FILE_LINES_MAX)) == []
    assert len(oversized(Module("oxidize.a", "\n" * (FILE_LINES_MAX + 1)))) == 1
    assert oversized(Module("oxidize.a", "def f():\n" + " pass\n" * (FUNCTION_LINES_MAX - 1))) == []
    assert len(oversized(Module("oxidize.a", "def f():\n" + " pass\n" * FUNCTION_LINES_MAX))) == 1


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
    assert len(unexplained_catch_alls(Module("oxidize.a", f"try:\n    pass\n{handler}\n    pass\n"))) == expected
    assert unexplained_catch_alls(Module("oxidize.a", f"try:\n    pass\n{handler}\n    pass\n    raise\n")) == []


@pytest.mark.parametrize(
    ("comment", "expected"),
    [
        ("# type: ignore[arg-type]", 1),
        ("# type: ignore[method-assign, assignment]", 1),
        ("# type: ignore", 1),
        ("# type: ignore[attr-defined] # noqa: PLC0415", 1),
        ("# noqa: S110, E722", 1),
        ("# type: ignore[arg-type]  # a fake device", 0),
        ("# noqa: PLC0415 - late, as above", 0),
        ("# its type", 0),
    ],
)
def test_an_exemption_without_a_reason_is_found(comment: str, expected: int) -> None:
    assert len(unexplained_exemptions(Module("oxidize.a", f"a = 1  {comment}\n"))) == expected
    assert unexplained_exemptions(Module("oxidize.a", f'a = "{comment}"\n')) == []
