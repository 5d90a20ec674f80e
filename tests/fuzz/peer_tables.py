"""Adding a peer to the text of a configuration, changing one, and removing one.

Checked: the text changes as it was meant to, and removing what was added gives the old peers. The module under test
compares that itself; its StateError is therefore a fault.

Allowed exceptions: ConfigError. A text that is no TOML, or whose peers are no tables, is not what the commands pass on.
"""

import tomllib
from collections.abc import Iterable

from oxidize.errors import ConfigError
from oxidize.provision.peer_tables import add_peer, change_peer, remove_peer
from tests.fuzz.configuration import COMMON, OF_SERVERS, check_problems
from tests.fuzz.script import Script, parts
from tests.support.config_files import BOB, SERVER, peer

ADDED = {"name": "zoe", "public_key": BOB, "allowed_ips": ["10.0.0.9/32"], "endpoint": None}
SHAPES = (
    peer("alice"),
    peer("bob", BOB),
    '[[ peer ]]\nname = "carol"\n',
    '[["peer"]]\nname = "dave"\n',
    "[[peer]] # comment\nname = 'erin'\n",
    '[[peer]]\nname = "frank"\n[peer.more]\nx = 1\n',
    '[[peer]]\nname = """grace"""\n',
    "# above\n",
    "\r\n",
    "z = [\n[1],\n]\n",
    'w = """\n[[peer]]\nname = "alice"\n"""\n',
)


def _peers(text: str) -> list[dict[str, object]] | None:
    """Return the peers of a text, None where it is not such as `load_server` accepts: tables with names, each once."""
    try:
        found = tomllib.loads(text).get("peer", [])
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
        return None
    names = [each.get("name") for each in found]
    return found if len({*map(repr, names)}) == len(names) and all(isinstance(name, str) for name in names) else None


def run(data: bytes) -> None:
    script = Script(data)
    text = SERVER if script.flag() else ""
    text += parts(script, SHAPES + OF_SERVERS + COMMON)
    before = _peers(text)
    if before is None:
        return
    try:
        longer = add_peer(text, ADDED)
        removed = remove_peer(longer, "zoe")
        assert _peers(removed.text) == [each for each in before if each["name"] != "zoe"]
        if before:
            name = str(script.pick(before)["name"])
            shorter = remove_peer(text, name)
            assert _peers(shorter.text) == [each for each in before if each["name"] != name]
            disabled = change_peer(text, name, {"enabled": False})
            assert _peers(disabled) == [{**each, "enabled": False} if each["name"] == name else each for each in before]
    except ConfigError as error:
        check_problems(error)


def seeds() -> Iterable[bytes]:
    for first in range(len(SHAPES)):
        for second in range(len(SHAPES)):
            yield bytes([1, 2, first, 0, second, 0, 0])
            yield bytes([0, 3, first, 0, second, 0, first, 1, 3, 2, 10, 35, 0, 1])
