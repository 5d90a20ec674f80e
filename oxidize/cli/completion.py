"""Names that a shell completes at <Tab>: the peers of a configuration, the releases of an installation.

The rule: a completion prints names and nothing else. What this user may not read has none, a mistake in the
configuration hides no name, and no process is asked. Source: click's documentation, "Shell Completion".
"""

import re
from pathlib import Path

import click

from oxidize.cli.common import SERVER_CONFIG
from oxidize.config.source_file import FILE_BYTES_MAX
from oxidize.deploy.releases import Releases

# The line of a peer's table. To parse a file of 100,000 peers takes a second, to search it a tenth of that.
_NAME = re.compile(rb"""^[ \t]*name[ \t]*=[ \t]*(?:"([^"\\\n]+)"|'([^'\n]+)')""", re.MULTILINE)


def peer_names(context: click.Context, _option: click.Parameter, begun: str) -> list[str]:
    """Return the names of peers that begin with `begun`, in the order of the configuration that -c names."""
    path = context.params.get("config_path") or SERVER_CONFIG
    try:
        with Path(path).open("rb") as file:
            content = file.read(FILE_BYTES_MAX)
    except (OSError, ValueError):
        return []
    names = ((double or single).decode(errors="replace") for double, single in _NAME.findall(content))
    return [name for name in names if name.startswith(begun)]


def release_names(context: click.Context, _option: click.Parameter, begun: str) -> list[str]:
    """Return the names of releases below the --prefix that begin with `begun`, newest first."""
    return [each.name for each in Releases(context.params["prefix"]).all() if each.name.startswith(begun)]
