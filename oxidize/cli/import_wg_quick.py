"""`oxidize import`: convert a wg-quick file to an Oxidize configuration."""

import errno
import os
import re
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from oxidize import config
from oxidize.cli.common import CLIENT_CONFIG, SERVER_CONFIG
from oxidize.cli.lines import print_line, print_warning
from oxidize.config.key_files import KEY_FILE_BYTES_MAX
from oxidize.config.source_file import FILE_BYTES_MAX, read_file
from oxidize.config.values import InvalidValueError, host_address, interface_name
from oxidize.errors import ConfigError
from oxidize.provision import config_file, conversion, wg_quick
from oxidize.provision.config_file import NewFile, Owner
from oxidize.provision.conversion import Converted, Machine, Output

NOTES_MAX = 100  # lines
_KEY_OF_PROBLEM = re.compile(r"[^\s:=]+")


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
@click.option("--force", is_flag=True, help="Overwrite a configuration that exists, and no key.")
def import_wg_quick(source: Path, output: Path | None, is_client: bool, force: bool) -> None:
    """Convert a wg-quick file, such as /etc/wireguard/wg0.conf, to server.toml and its key files.

    Peers are named by the comments above them. Settings and commands without a counterpart are reported, with a remedy.
    """
    output = output or (CLIENT_CONFIG if is_client else SERVER_CONFIG)
    document = wg_quick.parse(_read(source), str(source))
    if not is_client and conversion.is_client(document):
        what = "this is a client's file: it dials its only [Peer]"
        raise ConfigError(f"{source}: {what}; `oxidize import --client` converts it to client.toml")
    convert = conversion.to_client if is_client else conversion.to_server
    found = convert(document, str(source), _output(output, is_client=is_client), machine())
    owner = config_file.service_owner("client" if is_client else "server")
    files = [NewFile(name, f"{key}\n", 0o600, owner, is_key=True) for name, key in found.keys.items()]
    # As in tmpfiles.conf: the service may read its configuration and not change it.
    mode, group = (0o640, Owner(0, owner.gid)) if owner is not None else (0o600, None)
    toml = NewFile(output.name, found.toml, mode, group)
    check = _Check(found, source, output, is_client)
    written = config_file.install(output.parent, [*files, toml], check.run, force=force)
    for path in written:
        print_line(f"wrote {path}")


@dataclass(frozen=True, slots=True)
class _Check:
    """The check of a result before it is written, whose lines name the file that was read."""

    found: Converted
    source: Path
    output: Path
    is_client: bool

    def run(self, path: Path) -> None:
        """Load the configuration at `path`, and print its warnings and all notes; raises ConfigError."""
        load = config.load_client if self.is_client else config.load_server
        try:
            loaded = load(path)
        except ConfigError as error:
            raise ConfigError(*(self._told(problem, path) for problem in error.problems)) from error
        _print_some([self._told(warning, path) for warning in loaded.warnings], print_warning)
        _print_some(self.found.notes, _print_note)
        for step in self._steps():
            _print_note(step)

    def _told(self, problem: str, path: Path) -> str:
        """Return a line about the result as one about the file that was read."""
        text = problem.removeprefix(f"{path}: ").replace(f"{path.parent}/", f"{self.output.parent}/")
        match = _KEY_OF_PROBLEM.match(text)
        if match is None or match[0] not in self.found.origins:
            return f"{self.source}: {text}"
        line, name = self.found.origins[match[0]]
        return f"{self.source}: line {line}: {name or match[0]}{text[match.end() :]}"

    def _steps(self) -> list[str]:
        """Return what is left to do."""
        steps = []
        stem = self.source.stem
        if self.output.stem != ("client" if self.is_client else "server"):
            steps.append("a second tunnel of this machine needs a takeover_socket and a metrics_listen of its own")
        if not self.is_client:
            steps.append(
                "public_endpoint is not set, so `oxidize peer add` has to guess the server's address; "
                'write public_endpoint = "vpn.example.org" under [server]'
            )
            if self.found.interface != stem:
                steps.append(f"the interface is {self.found.interface}: change firewall rules that name {stem}")
        steps.append(f"stop the old tunnel before starting the new one: systemctl disable --now wg-quick@{stem}")
        return steps


def _print_some(lines: Sequence[str], write: Callable[[str], None]) -> None:
    for line in lines[:NOTES_MAX]:
        write(line)
    if len(lines) > NOTES_MAX:
        write(f"and {len(lines) - NOTES_MAX} more of this kind")


def _print_note(text: str) -> None:
    print_line(f"note: {text}")


def _read(source: Path) -> str:
    content = read_file(source, "a wg-quick file; correct the path")
    if len(content) > FILE_BYTES_MAX:
        raise ConfigError(f"{source}: more than {FILE_BYTES_MAX} bytes: expected a wg-quick file")
    return wg_quick.decode(content, str(source))


def _output(path: Path, *, is_client: bool) -> Output:
    """Return what the result is named after: beside the usual file, the interface too, so that two can run."""
    if path.stem == ("client" if is_client else "server"):
        return Output(path.stem)
    try:
        return Output(path.stem, interface_name(path.stem))
    except InvalidValueError:
        return Output(path.stem)


def machine() -> Machine:
    """Return what a conversion asks this machine."""
    return Machine(_read_key, uplink_mtu)


def _read_key(path: str) -> str:
    """Return the contents of a file with a key; raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # opening a pipe would wait for its writer
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        return os.read(descriptor, KEY_FILE_BYTES_MAX).decode("latin-1")
    finally:
        os.close(descriptor)


def uplink_mtu(endpoints: Sequence[str]) -> tuple[int, str] | None:
    """Return MTU and name of the way to the endpoints that wg-quick would take the tunnel's MTU from."""
    from oxidize.hostnet.uplink import find_uplink  # noqa: PLC0415  # only an import asks the kernel

    return find_uplink(host for host in map(host_address, endpoints) if host is not None)
