"""The commands `oxidize peer` on a configuration of a test, and a simulated server that runs with it."""

import time
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from oxidize import config
from oxidize.cli.commands import main
from oxidize.cli.peer_changes import why_inactive
from oxidize.cli.replacement import Reloaded
from oxidize.config.values import format_key
from oxidize.errors import TakeoverError
from tests.support.config_files import SERVER

LINES = SERVER + 'takeover_socket = "t.sock"\npublic_endpoint = "vpn.example.org"\n'


def run(path: Path, *arguments: object) -> Result:
    return CliRunner().invoke(main, ["peer", *map(str, arguments), "-c", str(path)])


def names(path: Path) -> list[str]:
    return [one.name for one in config.load_server(path).peers]


class Running:
    """A simulated server; its peers are those of the configuration at the last reload."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.failure: TakeoverError | None = None
        self.takes_up_although_it_fails = False
        self.is_deaf = False
        self.kept: object = None  # of the configuration, for the successor
        self.reloads = 0
        self.session_of = ""
        self.load()

    def load(self) -> None:
        loaded = config.load_server(self.path)
        self.peers = [one.public_key for one in loaded.peers if why_inactive(one, time.time()) is None]

    def find(self, socket: Path, what: str = "status") -> dict[str, Any]:
        assert socket == self.path.parent / "t.sock"
        keys = [format_key(key) for key in self.peers]
        peers = [
            {"public_key": key, "has_session": key == self.session_of, "last_handshake_unix": 0, "endpoint": None}
            for key in keys
        ]
        return {"generation": 4, "pid": 4242, "log_level": "info", "listen": "[::]:4711", "peers": peers}

    def reload(self, *arguments: object) -> Reloaded:
        self.reloads += 1
        self.kept = arguments[-1]
        if not self.is_deaf and (self.failure is None or self.takes_up_although_it_fails):
            self.load()
        if self.failure is not None:
            raise self.failure
        return Reloaded("reloaded: made up", ("warning: listen",))
