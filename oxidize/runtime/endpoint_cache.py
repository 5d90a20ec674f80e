"""Where the peers were, remembered in a file for a start without any state: after a reboot, or a stop.

The rule: no key and no session is in it, only public keys and the endpoints that peers were last seen at. So a server
that has lost everything knows whose datagrams they are which it cannot open, and asks those peers for a new session
(`protocol.handshaking`), and can reach its peers before they have said anything. What is wrong with the file costs that
and nothing else. It is written in steps between batches, and never during a hand-off.
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
WRITE_SECS = 30.0  # between two looks whether anybody has moved
STEP_PEERS = 256  # written at a time: less than a millisecond
STEP_PAUSE_SECS = 0.002  # between two steps, so that batches have their turn
FILE_BYTES_MAX = 16 << 20

_END = object()

log = logs.get(__name__)


def recall(path: Path, device: Device, between: Callable[[Iterable[Peer]], Iterator[Peer]], now: float) -> None:
    """Tell the device where those peers were of which it does not know where they are.

    between: iterates over peers, and does something else between some of them.
    """
    remembered = _read(path)
    for peer in between([peer for peer in device.peers.values() if peer.endpoint is None] if remembered else []):
        text = remembered.get(base64.b64encode(peer.public_key).decode())
        endpoint = literal(text) if isinstance(text, str) else None
        if endpoint is not None:
            device.use_cached_endpoint(peer, endpoint, now)


def _read(path: Path) -> dict[str, object]:
    try:
        # A pipe without a writer would be waited for.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            document = json.loads(file.read(FILE_BYTES_MAX))
        if document["format"] > FORMAT or not isinstance(document["endpoints"], dict):
            raise ValueError(f"expected format {FORMAT} and a table of endpoints")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        log.warning("the remembered endpoints are not used", path=str(path), reason=str(error) or type(error).__name__)
        return {}
    endpoints: dict[str, object] = document["endpoints"]
    return endpoints


class EndpointMemory:
    """Writes the endpoints of a device's peers to a file whenever some have changed. `now`: the loop's time."""

    def __init__(self, path: Path, device: Device, now: Callable[[], float]) -> None:
        self._path = path
        self._device = device
        self._due_at = now() + WRITE_SECS
        self._written = 0  # the device's number of places when the file was last written
        self._work: Iterator[None] | None = None
        self._has_failed = False

    def next_deadline(self) -> float:
        """Return when the next look or step is due."""
        return self._due_at

    def handle_timeout(self, now: float) -> None:
        """Do one step."""
        if self._work is None and self._device.endpoint_changes != self._written:
            self._work = self._write()
        if self._work is not None and next(self._work, _END) is _END:
            self._work = None
        self._due_at = now + (WRITE_SECS if self._work is None else STEP_PAUSE_SECS)

    def write_now(self) -> None:
        """Write at once: this process ends."""
        if self._device.endpoint_changes != self._written:
            for _ in self._write():
                pass

    def _write(self) -> Iterator[None]:
        places = self._device.endpoint_changes
        endpoints = {}
        for number, peer in enumerate(list(self._device.peers.values()), start=1):
            if peer.endpoint is not None and not peer.endpoint.scope_id:  # a link's number may be another's next time
                endpoints[base64.b64encode(peer.public_key).decode()] = str(peer.endpoint)
            if number % STEP_PEERS == 0:
                yield
        if self._replace(json.dumps({"format": FORMAT, "endpoints": endpoints}).encode()):
            self._written = places

    def _replace(self, content: bytes) -> bool:
        """Put a new file in the place of the old one, nobody finds a half of it; tell whether that succeeded."""
        beside = self._path.with_name(f"{self._path.name}.new")
        try:
            with contextlib.suppress(FileNotFoundError):
                beside.unlink()
            descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
            beside.replace(self._path)
        except OSError as error:
            if not self._has_failed:
                log.warning("the endpoints cannot be remembered", path=str(self._path), reason=str(error.strerror))
            self._has_failed = True
            return False
        self._has_failed = False
        return True
