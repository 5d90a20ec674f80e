"""The log of past deployments, and a record of the deployment under way.

The rule: each step of a deployment is recorded before it is taken, so that the next deployment knows what a kill left
behind. The log is lines of JSON and is only appended to. Sources: rename(2), fsync(2).
"""

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from oxidize.errors import DeployError

LOG = "deployments.jsonl"
UNDER_WAY = "deployment.json"
LOG_BYTES_MAX = 1 << 20  # about 3,000 deployments; then the older half is removed
FOLDER_MODE = 0o755

DEPLOY, ROLLBACK = "deploy", "rollback"
SUCCESS = "success"
REFUSED = "refused"  # before anything was switched
FAILED = "failed"  # it never served: the reload failed
ROLLED_BACK = "rolled back"  # it served, and was rolled back
LOST = "lost"  # it served, and the rollback failed
INTERRUPTED = "interrupted"

_Entry = TypeVar("_Entry", "Deployment", "PendingDeployment")


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """One line of the log. source, target: names of releases, "" for none. result: one of the constants above."""

    at_unix: float
    who: str
    action: str
    source: str
    target: str
    result: str
    reason: str = ""
    sessions: int | None = None
    blackout_ms: float | None = None
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingDeployment:
    """A deployment that has not ended. step: the present one, or the one at which it was killed."""

    at_unix: float
    who: str
    action: str
    source: str
    target: str
    step: str


class History:
    """The state directory of deployments, `/var/lib/oxidize`; raises DeployError if it cannot be written."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / LOG
        self._under_way = folder / UNDER_WAY

    def prepare(self) -> None:
        """Make the folder; raises DeployError."""
        with self._errors():
            self.folder.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)

    def entries(self) -> list[Deployment]:
        """Return the deployments that have ended, oldest first; lines that cannot be read are skipped."""
        try:
            text = self.log.read_text(errors="replace")
        except OSError:
            return []
        return [entry for line in text.splitlines() if (entry := _parse(Deployment, line)) is not None]

    def append(self, entry: Deployment) -> None:
        """Record the end of a deployment; none is under way after that. Raises DeployError."""
        with self._errors():
            flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            descriptor = os.open(self.log, flags, 0o644)
            try:
                # A line that was written only in part must not corrupt this one.
                size = os.fstat(descriptor).st_size
                is_torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
                os.write(descriptor, f"{chr(10) if is_torn else ''}{json.dumps(asdict(entry))}\n".encode())
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            if size > LOG_BYTES_MAX:
                lines = self.log.read_text(errors="replace").splitlines(keepends=True)
                self._replace(self.log, "".join(lines[len(lines) // 2 :]))
            self._under_way.unlink(missing_ok=True)

    def begin(self, under_way: PendingDeployment) -> None:
        """Record what is about to be done; raises DeployError."""
        with self._errors():
            self._replace(self._under_way, json.dumps(asdict(under_way)) + "\n")

    def under_way(self) -> PendingDeployment | None:
        """Return the deployment that has begun and not ended; None if there is none."""
        try:
            return _parse(PendingDeployment, self._under_way.read_text(errors="replace"))
        except OSError:
            return None

    def _replace(self, path: Path, text: str) -> None:
        beside = path.with_name(path.name + ".new")
        beside.unlink(missing_ok=True)
        # A file that has appeared since the unlink is not this process's, and is not written to.
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        with os.fdopen(os.open(beside, flags, 0o644), "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        beside.rename(path)

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            where = error.filename or self.folder
            raise DeployError(f"{where}: {error.strerror}; expected a folder that this user may write to") from error


def _parse(kind: type[_Entry], line: str) -> _Entry | None:
    """Parse what `asdict` wrote; fields that only another release has are ignored."""
    try:
        found: dict[str, Any] = json.loads(line)
        return kind(**{field.name: found[field.name] for field in fields(kind) if field.name in found})
    except (ValueError, TypeError):
        return None
