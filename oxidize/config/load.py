"""Load a configuration file: read it, check its tables, compare them with one another, and read the keys.

The rule: every step reports its mistakes and lets the next one work on what is right, so one run tells the operator all
of them.
"""

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from oxidize.config.checks import (
    check_addresses,
    check_client_network,
    check_delays,
    check_foreign,
    check_mtu,
    check_nat,
    check_overlaps,
    check_peers,
    check_unique,
    warn_of_client_routes,
    warn_of_nat,
    warn_of_peers,
)
from oxidize.config.keys import private_key_path, read_key
from oxidize.config.model import ClientConfig, NameServers, PeerConfig, Role, ServerConfig
from oxidize.config.report import Report
from oxidize.config.schema import (
    Checked,
    ClientTable,
    ServerTable,
    TableT,
    check_table,
    default_takeover_socket,
    unknown_key,
)
from oxidize.config.values import SOCKET_PATH_BYTES_MAX
from oxidize.errors import StateError
from oxidize.protocol.constants import KEY_SIZE

FILE_BYTES_MAX = 16 << 20  # PEERS_MAX peers of 300 bytes are 6 MB
ENDPOINTS_FILE_NAME = "endpoints.json"
NO_PRESHARED_KEY = bytes(KEY_SIZE)  # paper, section 5.2


def load_server(
    path: str | Path, environ: Mapping[str, str] = os.environ, *, content: bytes | None = None
) -> ServerConfig:
    """Load the configuration of a server; raises ConfigError with one line for every mistake in it.

    environ: XDG_RUNTIME_DIR, CREDENTIALS_DIRECTORY and STATE_DIRECTORY are used. content: taken for what is in the
    file, which then need not be there.
    """
    source = Path(path)
    report = Report(str(path))
    document = _parse_document(_read(source, report) if content is None else content, ["server", "peer"], report)
    server = check_table(ServerTable, _table(document, "server", report), "server", report)
    peers = check_peers(document.get("peer", []), report)
    _check_interface(server, report)
    private_key, public_key = _private_key(server, source.parent, report, environ)
    check_unique(peers, "name", report)
    check_unique(peers, "public_key", report)
    check_foreign(peers, "public_key", public_key, report)
    check_overlaps(peers, report)
    check_nat(server, report)
    warn_of_peers(server, peers, report)
    warn_of_nat(server, peers, report)
    takeover_socket = _takeover_socket(server, source.parent, "server", report, environ)
    preshared_keys = [_preshared_key(peer, source.parent, report, environ) for peer in peers]
    report.check()
    table = _complete(server)
    return ServerConfig(
        source=source,
        listen=table.listen,
        interface=table.interface,
        addresses=table.address,
        mtu=table.mtu,
        private_key=private_key,
        public_key=public_key,
        metrics_listen=table.metrics_listen,
        drain_timeout_secs=table.drain_timeout_secs,
        endpoints_file=_endpoints_file(table.endpoints_file, source.parent, environ),
        takeover_socket=takeover_socket,
        network=table.network,
        nat=table.nat,
        public_endpoint=table.public_endpoint,
        peers=tuple(
            PeerConfig(
                name=peer.name,
                public_key=peer.public_key,
                preshared_key=preshared_key,
                allowed_ips=peer.allowed_ips,
                endpoint=peer.endpoint,
                persistent_keepalive=peer.persistent_keepalive,
            )
            for peer, preshared_key in zip(map(_complete, peers), preshared_keys, strict=True)
        ),
        warnings=tuple(report.warnings),
    )


def load_client(path: str | Path, environ: Mapping[str, str] = os.environ) -> ClientConfig:
    """Load the configuration of a client; raises ConfigError with one line for every mistake in it.

    environ: XDG_RUNTIME_DIR and CREDENTIALS_DIRECTORY are used.
    """
    source = Path(path)
    report = Report(str(path))
    document = _parse_document(_read(source, report), ["client"], report)
    client = check_table(ClientTable, _table(document, "client", report), "client", report)
    _check_interface(client, report)
    private_key, public_key = _private_key(client, source.parent, report, environ)
    check_delays(client, report)
    check_foreign([client], "server_public_key", public_key, report)
    check_overlaps([client], report)
    check_client_network(client, report)
    warn_of_client_routes(client, report)
    takeover_socket = _takeover_socket(client, source.parent, "client", report, environ)
    preshared_key = _preshared_key(client, source.parent, report, environ)
    report.check()
    table = _complete(client)
    return ClientConfig(
        source=source,
        server=table.server,
        server_public_key=table.server_public_key,
        interface=table.interface,
        addresses=table.address,
        mtu=table.mtu,
        private_key=private_key,
        public_key=public_key,
        preshared_key=preshared_key,
        allowed_ips=table.allowed_ips,
        persistent_keepalive=table.persistent_keepalive,
        reconnect_delay_ms=table.reconnect_delay_ms,
        max_reconnect_delay_ms=table.max_reconnect_delay_ms,
        max_reconnect_attempts=table.max_reconnect_attempts,
        reconnect_buffer_size=table.reconnect_buffer_size,
        resend_unanswered=table.resend_unanswered,
        name_servers=_name_servers(table),
        fwmark=table.fwmark,
        metrics_listen=table.metrics_listen,
        takeover_socket=takeover_socket,
        network=table.network,
        warnings=tuple(report.warnings),
    )


def load_name_servers(path: str | Path) -> NameServers:
    """Load only what a client's configuration says of name servers; raises ConfigError for mistakes in its table.

    No key file is read: this is for a root process beside the client, which needs none of them.
    """
    report = Report(str(path))
    document = _parse_document(_read(Path(path), report), ["client"], report)
    client = check_table(ClientTable, _table(document, "client", report), "client", report)
    check_client_network(client, report)
    report.check()
    return _name_servers(_complete(client))


def _name_servers(table: ClientTable) -> NameServers:
    servers = tuple(entry for entry in table.dns if not isinstance(entry, str))
    domains = tuple(entry for entry in table.dns if isinstance(entry, str))
    return NameServers(table.interface, servers, domains)


def _read(path: Path, report: Report) -> bytes:
    """Return what is in the file; raises ConfigError where it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(FILE_BYTES_MAX + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no file has such a name"
        report.fail(f"{reason}: expected a readable configuration file; correct the path, or who may read it (sudo)")


def _parse_document(content: bytes, tables: list[str], report: Report) -> dict[str, Any]:
    """Return the parsed file, its unknown tables reported; raises ConfigError when it is no TOML at all."""
    if len(content) > FILE_BYTES_MAX:
        report.fail(f"more than {FILE_BYTES_MAX} bytes: expected a configuration file; correct the path")
    try:
        document = tomllib.loads(content.decode())
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        report.fail(f"line {line} is not UTF-8: expected TOML; save the file as UTF-8")
    except tomllib.TOMLDecodeError as error:
        report.fail(f"{error}: expected TOML; correct the syntax there")
    except (ValueError, RecursionError):
        # tomllib passes on what int() and the depth of the stack refuse.
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


def _check_interface(table: Checked[TableT], report: Report) -> None:
    check_addresses(table, report)
    check_mtu(table, report)


def _private_key(
    table: Checked[TableT], folder: Path, report: Report, environ: Mapping[str, str]
) -> tuple[bytes, bytes]:
    """Return our private and public key; both empty when they cannot be had, which is reported."""
    if "private_key_file" not in table.valid:
        return b"", b""
    path = private_key_path(table.prefix, table.valid["private_key_file"], report, environ)
    key = read_key(f"{table.prefix}.private_key_file", str(path), folder, report, environ) if path else None
    if key is None:
        return b"", b""
    return key, X25519PrivateKey.from_private_bytes(key).public_key().public_bytes_raw()


def _preshared_key(table: Checked[TableT], folder: Path, report: Report, environ: Mapping[str, str]) -> bytes:
    """Return the pre-shared key, or zeros where there is none or where what is wrong with it is reported."""
    path = table.valid.get("preshared_key_file")
    if path is None:
        return NO_PRESHARED_KEY
    return read_key(f"{table.prefix}.preshared_key_file", path, folder, report, environ) or NO_PRESHARED_KEY


def _takeover_socket(
    table: Checked[TableT], folder: Path, role: Role, report: Report, environ: Mapping[str, str]
) -> Path:
    given = table.valid.get("takeover_socket")
    path = default_takeover_socket(role, environ) if given is None else Path(folder / given).absolute()
    if len(os.fsencode(path)) > SOCKET_PATH_BYTES_MAX:
        expected = f"a path of at most {SOCKET_PATH_BYTES_MAX} bytes, as Unix sockets have"
        report.wrong(f"{table.prefix}.takeover_socket", str(path), expected, "choose a shorter one")
    return path


def _endpoints_file(given: str | None, folder: Path, environ: Mapping[str, str]) -> Path | None:
    """Return where endpoints are remembered: where none is configured in systemd's state directory, if there is one."""
    if given is not None:
        return Path(folder / given).absolute() if given else None
    directory = environ.get("STATE_DIRECTORY", "").partition(":")[0]  # systemd.exec(5): several are joined by colons
    return Path(directory) / ENDPOINTS_FILE_NAME if directory else None


def _complete(checked: Checked[TableT]) -> TableT:
    """Return the whole table; called only after every mistake was raised."""
    if checked.table is None:
        raise StateError(f"{checked.prefix} has mistakes, expected them to be reported; this is a bug")
    return checked.table
