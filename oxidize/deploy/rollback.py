"""Letting a release serve that served before, whatever serves now.

The rule: `current` first, for whatever crashes meanwhile is started anew from there; then takeover after takeover until
it serves. Who serves is asked of the kernel: a release that is to be taken back need not answer, and nothing that it
answers ends the way back.
"""

from oxidize.deploy.releases import Release, Releases
from oxidize.deploy.server import Clock, Server, Serving
from oxidize.deploy.vitals import Vitals
from oxidize.errors import DeployError, OxidizeError

ROLL_BACK_SECS = 60.0  # a release that hangs is ended by the watchdog first
RELOAD_SECS = 95.0  # more than TimeoutStartSec= of the unit
RETRY_SECS = 0.25


class Returning:
    """The ways to have a release serve. has_left_source: whether anything else was seen to serve on the way."""

    def __init__(self, releases: Releases, server: Server, clock: Clock) -> None:
        self.has_left_source = False
        self._releases = releases
        self._server = server
        self._clock = clock

    def to(self, release: Release, *, needs_answer: bool) -> Vitals | None:
        """Let a release serve; raises DeployError if it does not within ROLL_BACK_SECS.

        needs_answer: it must also say that it is ready, and what it says is returned.
        """
        has_waited, problem = False, "nobody serves"
        deadline = self._clock.now() + ROLL_BACK_SECS
        while self._clock.now() < deadline:
            try:
                if self._releases.current() != release:
                    self._releases.point_current_at(release)
                if not has_waited:
                    self.wait_for_reload()
                    has_waited, deadline = True, self._clock.now() + ROLL_BACK_SECS
                serving = self._server.serving()
                if serving is not None and serving.folder == str(release.folder):
                    return self._answer(needs_answer=needs_answer)
                if serving is not None:
                    problem = self._reload(release, serving)
            except Exception as error:  # noqa: BLE001 - whatever a bad release brings about, the next try may succeed
                problem = str(error) or type(error).__name__
            self._clock.sleep(RETRY_SECS)
        raise DeployError(problem)

    def wait_for_reload(self) -> None:
        """Wait until nothing is being replaced, for RELOAD_SECS at most.

        A reload that is under way may still replace the process by what `current` led to.
        """
        deadline = self._clock.now() + RELOAD_SECS
        while self._server.is_reloading() and self._clock.now() < deadline:
            self._clock.sleep(RETRY_SECS)

    def _answer(self, *, needs_answer: bool) -> Vitals | None:
        try:
            vitals = self._server.vitals()
            unready = self._server.unready(vitals) if vitals is not None else "nobody answers"
        except OxidizeError as error:
            vitals, unready = None, str(error)
        if needs_answer and unready:
            raise DeployError(unready)
        return vitals

    def _reload(self, release: Release, serving: Serving) -> str:
        """Replace what serves; return what is wrong if it serves still."""
        self.has_left_source = True
        self._server.reload(release.program)
        return f"{serving.folder or f'pid {serving.pid}'} goes on serving, whatever is reloaded"
