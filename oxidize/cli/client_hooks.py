"""`oxidize clean-up` and `oxidize name-servers`: what the unit of a client runs beside it, and hardly anybody by hand.

The rule: they say what they did, and while the unit goes on they take nothing back.
"""

import os
from pathlib import Path

import click

from oxidize.cli.common import CLIENT_CONFIG, GAVE_UP_STATUS, config_option, errors_as_lines


@click.command(hidden=True)
@config_option(CLIENT_CONFIG)
def clean_up(config_path: Path) -> None:
    """Remove a client's rules after its end: ExecStopPost= of its unit."""
    from oxidize.client import unit_hooks  # noqa: PLC0415  # the other commands need none of it

    with errors_as_lines():
        for change in unit_hooks.clean_up(config_path, gave_up=_has_given_up()):
            click.echo(change)


@click.command(hidden=True)
@click.argument("action", type=click.Choice(["set", "remove"]))
@config_option(CLIENT_CONFIG)
def name_servers(action: str, config_path: Path) -> None:
    """Set or remove a client's name servers: hooks of its unit, which run as root where the client does not."""
    from oxidize.client import unit_hooks  # noqa: PLC0415

    with errors_as_lines():
        if action == "remove":
            unit_hooks.remove_names(config_path, gave_up=_has_given_up())
        elif servers := unit_hooks.set_names(config_path):
            click.echo(f"name servers: {', '.join(servers)}")


def _has_given_up() -> bool:
    """Tell whether the unit's main process gave up, after which it is not started again (systemd.exec(5))."""
    return os.environ.get("EXIT_STATUS") == str(GAVE_UP_STATUS)
