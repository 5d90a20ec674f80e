"""A client as an operator runs it, replaced and ended by commands and signals; the counterpart of `server.Server`.

Rule: every process that is started here has ended when the `Lab` is left.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from demo.processes import reap
from oxidize.control.query import fetch
from oxidize.errors import OxidizeError
from tests.support.traffic.server import OXIDIZE, WAIT_SECS, WITHOUT_HOLDER, Identity, Lab, Outcome, b64, kill, wait_for


class OxidizeClient:
    """The configuration of one client, and the generations that run it.

    server: "host:port" of the server. inside: a context in which commands run, such as a network namespace. options:
    further keys of [client].
    """

    def __init__(
        self,
        lab: Lab,
        server: str,
        server_public_key: bytes,
        *,
        address: Sequence[str],
        allowed_ips: Sequence[str],
        name: str = "client",
        inside: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext,
        identity: Identity | None = None,
        **options: object,
    ) -> None:
        self.lab = lab
        self.name = name
        self.identity = identity or Identity.make()
        self.config_path = lab.folder / f"{name}.toml"
        self.takeover_socket = lab.folder / f"{name}-takeover.sock"
        self.log_path = lab.folder / f"{name}.log"
        self._inside = inside
        self._options: dict[str, object] = {
            "server": server,
            "server_public_key": b64(server_public_key),
            "address": list(address),
            "allowed_ips": list(allowed_ips),
            "private_key_file": f"{name}.key",
            "takeover_socket": str(self.takeover_socket),
            **options,
        }
        self.change_key(self.identity)
        self.write_config()

    def change_key(self, identity: Identity) -> None:
        """Replace the private key in its file."""
        self.identity = identity
        key = self.lab.folder / f"{self.name}.key"
        key.touch(mode=0o600)
        key.write_text(b64(identity.private) + "\n")

    def write_config(self, **options: object) -> None:
        """Write the configuration with these keys changed, this time only; None omits a key."""
        merged = {key: value for key, value in (self._options | options).items() if value is not None}
        lines = ["[client]", *(f"{key} = {json.dumps(value)}" for key, value in merged.items())]
        self.config_path.write_text("\n".join(lines) + "\n")

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    # --- Processes ---

    def spawn(
        self,
        env: Mapping[str, str] | None = None,
        options: Sequence[str] = WITHOUT_HOLDER,
        program: Sequence[str] = OXIDIZE,
    ) -> int:
        """Start `oxidize client` and return its pid at once. options: of the command, as its release knows them."""
        with self._inside():
            return self.lab.spawn((*program, "client", *options, "-c", str(self.config_path)), self.name, env)

    def start(
        self,
        env: Mapping[str, str] | None = None,
        options: Sequence[str] = WITHOUT_HOLDER,
        program: Sequence[str] = OXIDIZE,
    ) -> int:
        """Start `oxidize client`; return its pid once it serves."""
        pid = self.spawn(env, options, program)

        def look() -> bool:
            ended = reap(pid)
            assert ended is None, f"the client has ended, {ended}: {self.log}"
            with contextlib.suppress(OxidizeError):
                return bool(self.status()["pid"] == pid)
            return False

        wait_for("the client to serve", look)
        return pid

    def start_in_vain(self, env: Mapping[str, str] | None = None) -> str:
        """Start `oxidize client`, which must fail; return its log."""
        assert self.lab.wait_ended(self.spawn(env)) not in (0, None)
        return self.log

    def reload(self, env: Mapping[str, str] | None = None) -> Outcome:
        """Run `oxidize reload --client` to its end."""
        return self.command("reload", "--client", env=env)

    def replace(self, env: Mapping[str, str] | None = None) -> dict[str, Any]:
        """Run a reload that must succeed and wait for the predecessor's end; return the new status."""
        before = self.status()
        outcome = self.reload(env)
        assert outcome.status == 0, f"{outcome}\n{self.log}"
        assert self.lab.wait_ended(before["pid"]) == 0
        after = self.status()
        assert after["generation"] == before["generation"] + 1
        return after

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Send a signal to the serving process and wait for its end."""
        pid = self.status()["pid"]
        kill(pid, number)
        expected = -number if number == signal.SIGKILL else 0
        assert self.lab.wait_ended(pid) == expected, self.log

    def kill(self) -> None:
        """Kill the serving process."""
        self.stop(signal.SIGKILL)

    # --- Queries ---

    def status(self) -> dict[str, Any]:
        """Return the status; raises OxidizeError if no process serves."""
        return fetch(self.takeover_socket)

    def metrics(self) -> dict[str, float]:
        """Return the samples of /metrics by name with labels."""
        host, _, port = str(self._options["metrics_listen"]).rpartition(":")
        with self._inside():
            connection = socket.create_connection((host, int(port)), timeout=10)
        with connection:
            connection.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            answer = b"".join(iter(lambda: connection.recv(65536), b""))
        lines = answer.partition(b"\r\n\r\n")[2].decode().splitlines()
        rows = (line.rpartition(" ") for line in lines if line.startswith(("oxidize_", "process_")))
        return {name: float(value) for name, _, value in rows}

    @property
    def port(self) -> int:
        """The UDP port of the client."""
        return int(str(self.status()["listen"]).rpartition(":")[2])

    def command(self, *arguments: str, env: Mapping[str, str] | None = None) -> Outcome:
        """Run another command of `oxidize` on this configuration."""
        output, errors = self.lab.folder / f"{self.name}.out", self.lab.folder / f"{self.name}.err"
        # Files, not pipes: a successor or a cleanup guard may hold them open.
        with self._inside(), output.open("wb") as out, errors.open("wb") as err:
            done = subprocess.run(
                [*OXIDIZE, *arguments, "-c", str(self.config_path)],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env=os.environ if env is None else env,
                check=False,
                timeout=WAIT_SECS,
            )
        return Outcome(done.returncode, output.read_text(), errors.read_text())
