"""`oxidize import`: convert a wg-quick file to an Oxidize configuration."""

from pathlib import Path

import click

from oxidize import config
from oxidize.cli.common import CLIENT_CONFIG, SERVER_CONFIG
from oxidize.cli.lines import print_line
from oxidize.config.source_file import FILE_BYTES_MAX, read_file
from oxidize.errors import ConfigError
from oxidize.provision import config_file, conversion, wg_quick
from oxidize.provision.config_file import NewFile, Owner

NOTES_MAX = 100  # lines


@click.command("import", short_help="Convert a wg-quick file to a configuration.")
@click.argument("source", metavar="FILE", type=click.Path(path_type=Path, readable=False))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, readable=False),
    metavar="FILE",
    help=f"File to write; key files are written beside it.  [default: {SERVER_CONFIG}; with --client {CLIENT_CONFIG}]",
)
@click.option("--client", "is_client", is_flag=True, help="The file is a client's; write client.toml.")
@click.option("--force", is_flag=True, help="Overwrite files that exist.")
def import_wg_quick(source: Path, output: Path | None, is_client: bool, force: bool) -> None:
    """Convert a wg-quick file, such as /etc/wireguard/wg0.conf, to server.toml and its key files.

    Peers are named by the comments above them. Settings without a counterpart are reported, with a remedy.
    """
    output = output or (CLIENT_CONFIG if is_client else SERVER_CONFIG)
    document = wg_quick.parse(_read(source), str(source))
    if not is_client and conversion.is_client(document):
        what = "this is a client's file: one [Peer] with an Endpoint and a default route"
        raise ConfigError(f"{source}: {what}; `oxidize import --client` converts it to client.toml")
    found = (conversion.to_client if is_client else conversion.to_server)(document, str(source))
    owner = config_file.service_owner("client" if is_client else "server")
    files = [NewFile(name, f"{key}\n", 0o600, owner) for name, key in found.keys.items()]
    # As in tmpfiles.conf: the service may read its configuration and not change it.
    mode, group = (0o640, Owner(0, owner.gid)) if owner is not None else (0o600, None)
    toml = NewFile(output.name, found.toml, mode, group)
    load = config.load_client if is_client else config.load_server
    written = config_file.install(output.parent, [*files, toml], load, force=force)
    for path in written:
        print_line(f"wrote {path}")
    for note in found.notes[:NOTES_MAX]:
        print_line(f"note: {note}")
    if len(found.notes) > NOTES_MAX:
        print_line(f"note: and {len(found.notes) - NOTES_MAX} more of this kind")
    if not is_client:
        print_line(
            "note: public_endpoint is not set, so `oxidize peer add` has to guess the server's address; "
            'write public_endpoint = "vpn.example.org" under [server]'
        )
        print_line(f"note: the interface is oxidize0: change firewall rules that name {source.stem}")
    print_line(f"note: stop the old tunnel before starting the new one: systemctl disable --now wg-quick@{source.stem}")


def _read(source: Path) -> str:
    content = read_file(source, "a wg-quick file; correct the path")
    if len(content) > FILE_BYTES_MAX:
        raise ConfigError(f"{source}: more than {FILE_BYTES_MAX} bytes: expected a wg-quick file")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{source}: line {line} is not UTF-8: expected a wg-quick file; correct it") from error
