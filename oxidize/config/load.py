"""Load a configuration file: read it, check its tables and the key files they name, and compare them with one another.

The rule: every step reports its mistakes and lets the next one work on what is right, so one run tells the operator all
of them.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomli

from oxidize.config import checks, nat_checks
from oxidize.config.document import TooComplexError, parse_toml
from oxidize.config.report import Report
from oxidize.config.schema import ClientTable, PeerTable, ServerTable
from oxidize.config.source_file import FILE_BYTES_MAX, KeyFile, SourceFile, read_file
from oxidize.config.validation import Checked, TableT, check_table, unknown_key
from oxidize.errors import StateError


class ServerConfig(ServerTable):
    """The configuration of `oxidize server`: the keys of [server], the tables [[peer]], and what `check` warns of.

    source: the file it was loaded from. key_files: those that its keys were read from, in the order of the keys. Its
    repr shows no secret.
    """

    source: Path
    peers: tuple[PeerTable, ...]
    warnings: tuple[str, ...]
    key_files: tuple[KeyFile, ...]


class ClientConfig(ClientTable):
    """The configuration of `oxidize client`: the keys of [client]; see `ServerConfig` for the rest."""

    source: Path
    warnings: tuple[str, ...]
    key_files: tuple[KeyFile, ...]


def load_server(
    path: str | Path, environ: Mapping[str, str] = os.environ, *, content: bytes | None = None
) -> ServerConfig:
    """Load the configuration of a server; raises ConfigError with one line for every mistake in it.

    environ: XDG_RUNTIME_DIR, CREDENTIALS_DIRECTORY and STATE_DIRECTORY are used. content: used instead of the file's,
    which then need not exist.
    """
    file = _source_file(path, environ)
    document = _parse_document(read_file(Path(path)) if content is None else content, ["server", "peer"], file.report)
    server = check_table(ServerTable, _table(document, "server", file.report), "server", file)
    peers = checks.check_peers(document.get("peer", []), file)
    checks.check_server(server, peers, file.report)
    nat_checks.check_nat(server, peers, file.report)
    file.report.check(missing_last=True)
    return ServerConfig.model_construct(
        **dict(_complete(server)),
        source=Path(path),
        peers=tuple(map(_complete, peers)),
        warnings=tuple(file.report.warnings),
        key_files=tuple(file.key_files),
    )


def load_client(
    path: str | Path, environ: Mapping[str, str] = os.environ, *, content: bytes | None = None
) -> ClientConfig:
    """Load the configuration of a client; raises ConfigError with one line for every mistake in it.

    environ: XDG_RUNTIME_DIR and CREDENTIALS_DIRECTORY are used. content: as for `load_server`.
    """
    file = _source_file(path, environ)
    client = _client_table(path, file, content)
    checks.check_client(client, file.report)
    file.report.check(missing_last=True)
    return ClientConfig.model_construct(
        **dict(_complete(client)),
        source=Path(path),
        warnings=tuple(file.report.warnings),
        key_files=tuple(file.key_files),
    )


def load_client_table(path: str | Path) -> ClientTable:
    """Load a client's configuration without key files, for a process beside the client that needs no key.

    Raises ConfigError for mistakes in its table.
    """
    file = _source_file(path, os.environ, reads_keys=False)
    client = _client_table(path, file)
    checks.check_client_network(client, file.report)
    file.report.check(missing_last=True)
    return _complete(client)


def _source_file(path: str | Path, environ: Mapping[str, str], *, reads_keys: bool = True) -> SourceFile:
    return SourceFile(Report(str(path)), Path(path).parent, environ, reads_keys)


def _client_table(path: str | Path, file: SourceFile, content: bytes | None = None) -> Checked[ClientTable]:
    document = _parse_document(read_file(Path(path)) if content is None else content, ["client"], file.report)
    return check_table(ClientTable, _table(document, "client", file.report), "client", file)


def _parse_document(content: bytes, tables: list[str], report: Report) -> dict[str, Any]:
    """Return the parsed file, its unknown tables reported; raises ConfigError if it is not TOML."""
    if len(content) > FILE_BYTES_MAX:
        report.fail(f"more than {FILE_BYTES_MAX} bytes: expected a configuration file; correct the path")
    try:
        document = parse_toml(content.decode())
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        report.fail(f"line {line} is not UTF-8: expected TOML; save the file as UTF-8")
    except TooComplexError as error:
        report.fail(f"{error}: expected keys of at most two parts, as in examples/; remove it")
    except tomli.TOMLDecodeError as error:
        if str(error).startswith("Cannot "):
            once = "every key and table once, either with a value or as a table: nat = true, or [server.nat]"
            report.fail(f"{error}: expected {once}; remove one of the two")
        report.fail(f"{error}: expected TOML; correct the syntax there")
    except (ValueError, RecursionError):
        # tomli passes on what int() and the depth of the stack refuse.
        report.fail("a number too long or lists nested too deep: expected TOML as in examples/; simplify the value")
    other = {"server": "client", "client": "server"}[tables[0]]
    if other in document and tables[0] not in document:
        use = "leave --client out" if other == "server" else "use --client, or `oxidize client`"
        report.fail(f"it has a table [{other}]: expected the configuration of a {tables[0]}; {use}")
    for name, value in document.items():
        if name not in tables:
            unknown_key("", name, value, tables, report)
    return document


def _table(document: Mapping[str, Any], name: str, report: Report) -> Mapping[str, Any]:
    """Return the table `name`; an absent one is empty, so that its missing keys are reported one by one."""
    table = document.get(name, {})
    if isinstance(table, dict):
        return table
    report.wrong(name, table, f"one table [{name}]", f"write [{name}] on a line of its own, once")
    return {}


def _complete(checked: Checked[TableT]) -> TableT:
    """Return the whole table; called only when no mistake was reported."""
    if checked.table is None:
        raise StateError(f"{checked.prefix} has mistakes, expected them to be reported; this is a bug")
    return checked.table
