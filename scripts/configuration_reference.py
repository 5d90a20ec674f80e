"""Write docs/configuration.md, the reference of all configuration keys, from the tables in oxidize/config/schema.py.

The rule: a key's value, default and meaning are written in the schema alone, and a unit test holds the page equal to
what this script makes.

Run `python scripts/configuration_reference.py` from the repository after a change of the schema.
"""

import ast
import inspect
from pathlib import Path

from pydantic.fields import FieldInfo

from oxidize.config.nat_schema import ForwardTable, NatTable
from oxidize.config.report import show
from oxidize.config.schema import ClientTable, NodeTable, PeerTable, ServerTable
from oxidize.config.validation import Table, fields_by_key

PAGE = Path(__file__).parents[1] / "docs" / "configuration.md"

TEXT = """\
# Configuration

<!-- Made by scripts/configuration_reference.py from oxidize/config/schema.py; change it there. -->

A server and a client each read one TOML file: `oxidize server -c server.toml`, `oxidize client -c client.toml`.
[`examples/server.toml`](../examples/server.toml) and [`examples/client.toml`](../examples/client.toml) have every key
with a comment. `oxidize check -c FILE` (`--client` for a client's file) reads the file and its key files and prints
every mistake, one line each with the value, what is expected and the remedy.

Relative paths start from the folder of the file. Unknown keys are refused. A change takes effect with `oxidize reload`,
which keeps all sessions.

## [server]

{server}

## [server.nat]

Instead of `nat = true`: TOML takes only one of them. `oxidize status` shows what is in force.

{nat}

## [[server.nat.forward]]

One table for each port, or range of ports, that is forwarded.

{forward}

## [[peer]]

One table for each client of a server; `oxidize peer add` writes it.

{peer}

## [client]

{client}
"""


def page() -> str:
    """Return the page in Markdown."""
    return TEXT.format(
        server=table(ServerTable),
        nat=table(NatTable),
        forward=table(ForwardTable),
        peer=table(PeerTable),
        client=table(ClientTable),
    )


def table(model: type[Table]) -> str:
    """Return one table with a row for each key; the required keys come first."""
    texts = meanings(NodeTable) | meanings(model)
    names = {info.alias or name: name for name, info in model.model_fields.items()}
    rows = ["| key | value | default | meaning |", "| --- | --- | --- | --- |"]
    for key, info in sorted(fields_by_key(model).items(), key=lambda item: not item[1].is_required()):
        cells = [f"`{key}`", str(info.description), default(key, info), texts[names[key]]]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def default(key: str, info: FieldInfo) -> str:
    """Return the default of a key as TOML writes it."""
    if info.is_required():
        return "required"
    return "-" if info.default is None else f"`{show(key, info.default)}`"


def meanings(model: type[Table]) -> dict[str, str]:
    """Return the string below each field of a model, on one line."""
    (definition,) = ast.parse(inspect.getsource(model)).body
    found = {}
    if isinstance(definition, ast.ClassDef):
        for statement, following in zip(definition.body, definition.body[1:], strict=False):
            match statement, following:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    found[name] = " ".join(text.split())
    return found


if __name__ == "__main__":
    PAGE.write_text(page())
