"""A file with the last endpoints of the peers, for a start without any state: after a reboot, or a stop.

The rule: the file holds no private key and no session, only public keys and endpoints. With it a server that has lost
its state can tell which peer sends the datagrams that it cannot open, ask that peer for a new session
(`protocol.handshaker`), and reach its peers before they send. A defect of the file costs that and nothing else. The
file is written in steps between batches, and never during a hand-off.
"""

import base64
import contextlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from oxidize import logs
from oxidize.net.resolve import literal
from oxidize.protocol.device import Device
from oxidize.protocol.peer import Peer

FORMAT = 1
WRITE_SECS = 30.0  # between two checks whether an endpoint has changed
STEP_PEERS = 256  # written at a time: less than a millisecond
STEP_PAUSE_SECS = 0.002  # between two steps, so that batches have their turn
FILE_BYTES_MAX = 16 << 20

_END = object()

log = logs.get(__name__)


def load_endpoints(
    path: Path, device: Device, interleave: Callable[[Iterable[Peer]], Iterator[Peer]], now: float
) -> None:
    """Give the device the last endpoints of the peers of which it knows none.

    interleave: iterates over peers, and does other work between some of them.
    """
    endpoints = _read(path)
    for peer in interleave([peer for peer in device.peers.values() if peer.endpoint is None] if endpoints else []):
        text = endpoints.get(base64.b64encode(peer.public_key).decode())
        endpoint = literal(text) if isinstance(text, str) else None
        if endpoint is not None:
            device.endpoints.use_cached(peer, endpoint, now)


def _read(path: Path) -> dict[str, object]:
    try:
        # Without O_NONBLOCK the opening of a pipe would wait for a writer.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            document = json.loads(file.read(FILE_BYTES_MAX))
        if document["format"] > FORMAT or not isinstance(document["endpoints"], dict):
            raise ValueError(f"expected format {FORMAT} and a table of endpoints")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        log.warning("the cached endpoints are not used", path=str(path), reason=str(error) or type(error).__name__)
        return {}
    endpoints: dict[str, object] = document["endpoints"]
    return endpoints


class EndpointCache:
    """Writes the endpoints of a device's peers to a file after a change. `now`: the loop's time."""

    def __init__(self, path: Path, device: Device, now: Callable[[], float]) -> None:
        self._path = path
        self._device = device
        self._due_at = now() + WRITE_SECS
        self._written = 0  # the device's count of endpoint changes when the file was last written
        self._work: Iterator[None] | None = None
        self._has_failed = False

    def next_deadline(self) -> float:
        """Return when the next check or step is due."""
        return self._due_at

    def handle_timeout(self, now: float) -> None:
        """Check for a change, or write one step of the file."""
        if self._work is None and self._device.endpoint_changes != self._written:
            self._work = self._write()
        if self._work is not None and next(self._work, _END) is _END:
            self._work = None
        self._due_at = now + (WRITE_SECS if self._work is None else STEP_PAUSE_SECS)

    def write_now(self) -> None:
        """Write the whole file at once, for this process ends."""
        if self._device.endpoint_changes != self._written:
            for _ in self._write():
                pass

    def _write(self) -> Iterator[None]:
        changes = self._device.endpoint_changes
        entries: list[str] = []  # encoded step by step: all at once would stop the loop for 50 ms with 100,000 peers
        for number, peer in enumerate(list(self._device.peers.values()), start=1):
            if peer.endpoint is not None and not peer.endpoint.scope_id:  # a link's index may change
                key = base64.b64encode(peer.public_key).decode()
                entries.append(f"{json.dumps(key)}: {json.dumps(str(peer.endpoint))}")
            if number % STEP_PEERS == 0:
                yield
        content = f'{{"format": {FORMAT}, "endpoints": {{{", ".join(entries)}}}}}'
        if self._replace(content.encode()):
            self._written = changes

    def _replace(self, content: bytes) -> bool:
        """Replace the file atomically; return whether that succeeded."""
        temporary = self._path.with_name(f"{self._path.name}.new")
        try:
            with contextlib.suppress(FileNotFoundError):
                temporary.unlink()
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
            temporary.replace(self._path)
        except OSError as error:
            if not self._has_failed:
                log.warning("the endpoints cannot be cached", path=str(self._path), reason=str(error.strerror))
            self._has_failed = True
            return False
        self._has_failed = False
        return True
