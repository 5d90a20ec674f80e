"""`oxidize import`: a file of wg-quick becomes a configuration of ours."""

from pathlib import Path

import click

from oxidize import config
from oxidize.cli.common import CLIENT_CONFIG, SERVER_CONFIG, errors_as_lines, say
from oxidize.errors import ConfigError

INPUT_BYTES_MAX = 16 << 20


@click.command("import", short_help="Turn a wg-quick file into a configuration.")
@click.argument("source", metavar="FILE", type=click.Path(path_type=Path, readable=False))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, readable=False),
    help=f"What to write; key files go beside it.  [default: {SERVER_CONFIG}; with --client {CLIENT_CONFIG}]",
)
@click.option("--client", "is_client", is_flag=True, help="The file is a client's; write client.toml.")
@click.option("--force", is_flag=True, help="Overwrite files that exist.")
def import_wg_quick(source: Path, output: Path | None, is_client: bool, force: bool) -> None:
    """Turn a wg-quick file, such as /etc/wireguard/wg0.conf, into server.toml and its key files.

    Peers are named by the comments above them. What has no counterpart is reported, with what to do instead.
    """
    from oxidize.provision import conversion, wg_quick  # noqa: PLC0415
    from oxidize.provision.config_file import NewFile, install, service_owner  # noqa: PLC0415

    output = output or (CLIENT_CONFIG if is_client else SERVER_CONFIG)
    with errors_as_lines():
        document = wg_quick.parse(_read(source), str(source))
        if not is_client and conversion.is_client(document):
            what = "this is a client's file, with one [Peer], its Endpoint, and a default route to it"
            raise ConfigError([f"{source}: {what}; `oxidize import --client` makes a client.toml of it"])
        found = (conversion.to_client if is_client else conversion.to_server)(document, str(source))
        owner = service_owner()
        files = [NewFile(name, f"{key}\n", 0o600, owner) for name, key in found.keys.items()]
        # As tmpfiles.conf has it: the service reads its configuration and may not change it.
        readable = owner is not None
        toml = NewFile(
            output.name, found.toml, 0o640 if readable else 0o600, owner.as_group_of_root() if owner else None
        )
        load = config.load_client if is_client else config.load_server
        written = install(output.parent, [*files, toml], load, force=force)
        for path in written:
            say(f"wrote {path}")
        for note in found.notes:
            say(f"note: {note}")
        if not is_client:
            say(
                "note: public_endpoint is not set: `oxidize peer add` tells clients where the server is, and guesses "
                'without it; write public_endpoint = "vpn.example.org" under [server]'
            )
            say(f"note: the interface is oxidize0: firewall rules that name {source.stem} are to name it instead")
        say(f"note: end the old tunnel before the new one starts: systemctl disable --now wg-quick@{source.stem}")


def _read(source: Path) -> str:
    try:
        with source.open("rb") as file:
            content = file.read(INPUT_BYTES_MAX + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no file has such a name"
        raise ConfigError([f"{source}: {reason}: expected a file of wg-quick; correct the path"]) from error
    if len(content) > INPUT_BYTES_MAX:
        raise ConfigError([f"{source}: more than {INPUT_BYTES_MAX} bytes: expected a file of wg-quick"])
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError([f"{source}: line {line} is not UTF-8: expected a file of wg-quick; correct it"]) from error
