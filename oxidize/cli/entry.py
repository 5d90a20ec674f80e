"""Where each process begins: a generation and a reload by themselves, everything else with the commands.

The rule: a generation and a reload take a processor's time from a server that serves, or keep its packets waiting, so
neither imports the command line.
"""

import gc
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from oxidize.cli.generation import recognized, serve
from oxidize.log_output import open_standard_streams

if TYPE_CHECKING:
    from oxidize.config.paths import Role


def main() -> None:
    """Run `oxidize`."""
    _serve_if_recognized(sys.argv[1:])
    _reload_if_recognized(sys.argv[1:])
    from oxidize.cli import commands  # noqa: PLC0415  # slow, and not for a generation

    commands.main()


def server_main() -> None:
    """Run `oxidize server`."""
    _serve_if_recognized(["server", *sys.argv[1:]])
    from oxidize.cli import commands  # noqa: PLC0415  # slow, and not for a generation

    open_standard_streams()
    commands.server(prog_name="oxidize-server")


def client_main() -> None:
    """Run `oxidize client`."""
    _serve_if_recognized(["client", *sys.argv[1:]])
    from oxidize.cli import commands  # noqa: PLC0415  # slow, and not for a generation

    open_standard_streams()
    commands.client(prog_name="oxidize-client")


def _serve_if_recognized(arguments: list[str]) -> None:
    """Serve and exit, if these arguments are those of a generation."""
    generation = recognized(arguments)
    if generation is None:
        return
    open_standard_streams()  # whatever this process opens, standard input, output and error keep their numbers
    try:
        serve(generation)
    except KeyboardInterrupt:  # before it serves; from then on a signal ends it in order
        sys.exit(1)


def _reload_if_recognized(arguments: list[str]) -> None:
    """Reload and exit, if these arguments are those with which a unit does."""
    given = reload_given(arguments)
    if given is None:
        return
    role, config_path = given
    open_standard_streams()
    gc.disable()  # as in `commands`
    try:
        from oxidize.cli import replacement  # noqa: PLC0415  # slow, and not for a generation

        replacement.reload(role, config_path, None)
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - raised again
        from oxidize.cli import commands  # noqa: PLC0415  # slow, and not for a generation

        commands.end_with(error, role, config_path)
    os._exit(0)  # to free every object first takes a tenth of the whole


def reload_given(arguments: list[str]) -> "tuple[Role, Path] | None":
    """Return the role and the configuration of a reload, None for any other command."""
    match arguments:
        case ["reload", "-c", path] if path.startswith("/"):
            return "server", Path(path)
        case ["reload", "--client", "-c", path] if path.startswith("/"):
            return "client", Path(path)
    return None
