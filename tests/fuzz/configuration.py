"""Configurations of a server and of a client, as text of known lines, changed, or as any bytes.

Checked: no message shows a private key, and every mistake is one line that names the file.

Allowed exceptions: ConfigError.
"""

import tempfile
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from oxidize.config import load_client, load_server
from oxidize.config.load import load_client_table
from oxidize.config.locate import client_interface_of, takeover_socket_of
from oxidize.config.report import PROBLEMS_MAX
from oxidize.errors import ConfigError
from tests.fuzz.script import Script, parts
from tests.support.config_files import ALICE, BOB, CLIENT, PRESHARED, PRIVATE, SERVER, secret

COMMON = (
    'address = "10.0.0.1/24"\n',
    'address = ["10.0.0.1/24", "fd00::1/64"]\n',
    'private_key_file = "server.key"\n',
    f'private_key = "{PRIVATE}"\n',
    "mtu = 1420\n",
    'interface = "wg0"\n',
    'takeover_socket = "t.sock"\n',
    'network = "userspace"\n',
    'log_level = "debug"\n',
    "fwmark = 0x33\n",
    "# a comment\n",
    "\n",
    "x = 1\n",
    "y = [\n [\n",
    "]\n]\n",
    'x = """\n[[peer]]\n"""\n',
)
OF_SERVERS = (
    "[server]\n",
    "[[peer]]\n",
    'name = "alice"\n',
    'name = "bob"\n',
    f'public_key = "{ALICE}"\n',
    f'public_key = "{BOB}"\n',
    'preshared_key_file = "alice.psk"\n',
    'allowed_ips = ["10.0.0.2/32"]\n',
    'allowed_ips = ["10.0.0.0/24", "::/0"]\n',
    'endpoint = "vpn.example.org:51820"\n',
    "persistent_keepalive = 25\n",
    'listen = "[::]:51820"\n',
    'metrics_listen = "127.0.0.1:9090"\n',
    "nat = true\n",
    "[server.nat]\n",
    'sources = ["10.0.0.0/24", "0.0.0.0/0"]\n',
    'snat = ["203.0.113.9", "2001:db8::9"]\n',
    '[[server.nat.forward]]\nprotocol = "both"\nport = 443\nto = "10.0.0.2:8443"\n',
    'port = "8000-8010"\n',
    'to = "[fd00::2]:80"\n',
    "drain_timeout_secs = 30\n",
    'public_endpoint = "vpn.example.org:51820"\n',
    'dns = ["10.0.0.1"]\n',
    "peer = []\n",
)
OF_CLIENTS = (
    "[client]\n",
    'server = "192.0.2.1:51820"\n',
    'server = "vpn.example.org:51820"\n',
    f'server_public_key = "{ALICE}"\n',
    'allowed_ips = ["0.0.0.0/0", "::/0"]\n',
    'dns = ["10.0.0.1", "example.org"]\n',
    "persistent_keepalive = 25\n",
    "give_up_after = 3\n",
)


@cache
def _folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="oxidize-fuzz-"))
    secret(folder / "server.key", PRIVATE)
    secret(folder / "alice.psk", PRESHARED)
    return folder


def run(data: bytes) -> None:
    script = Script(data)
    folder, environ = _folder(), {"XDG_RUNTIME_DIR": "/nonexistent"}
    is_client, is_text = script.flag(), script.number(3)
    if not is_text:
        content = script.rest()
    elif is_text == 1:
        content = (CLIENT if is_client else SERVER).encode() + script.rest()
    else:
        content = parts(script, (OF_CLIENTS if is_client else OF_SERVERS) + COMMON, 20).encode()
    path = folder / "oxidize.toml"
    path.write_bytes(content)
    takeover_socket_of(path, "client" if is_client else "server", environ)
    client_interface_of(path)
    loads = (
        (lambda: load_client(path, environ), lambda: load_client_table(path))
        if is_client
        else (lambda: load_server(path, environ), lambda: load_server("server.toml", environ, content=content))
    )
    for load in loads:
        try:
            loaded = load()
            assert PRIVATE not in repr(loaded)
        except ConfigError as error:
            check_problems(error)


def check_problems(error: ConfigError) -> None:
    """Check that an error has a line for each mistake, and that none shows a secret."""
    assert error.problems
    assert len(error.problems) <= PROBLEMS_MAX + 1, "a further line says how many are not shown"
    for problem in error.problems[:PROBLEMS_MAX]:
        assert "expected" in problem or ";" in problem, problem
    for problem in error.problems:
        assert PRIVATE not in problem, problem
        assert PRESHARED not in problem, problem
        assert len(problem.splitlines()) == 1, problem


def seeds() -> Iterable[bytes]:
    examples = Path(__file__).parents[2] / "examples"
    yield b"\0\0" + (examples / "server.toml").read_bytes()
    yield b"\1\0" + (examples / "client.toml").read_bytes()
    for is_client, fragments in ((0, OF_SERVERS + COMMON), (1, OF_CLIENTS + COMMON)):
        yield bytes([is_client, 1])
        for number in range(len(fragments)):
            yield bytes([is_client, 1]) + fragments[number].encode()
            yield (
                bytes([is_client, 2, 6, 0, 0, 1, 0, number, 0, len(fragments) - 14, 0, 3, 0, 5, 1, 4, 4]) + b"\xffab\0"
            )
