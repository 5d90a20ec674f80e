"""Where each process begins: a generation by itself, everything else with the commands."""

import sys

from oxidize.cli.generation import recognized, serve
from oxidize.log_output import open_standard_streams


def main() -> None:
    """Run `oxidize`."""
    _serve_if_recognized(sys.argv[1:])
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
