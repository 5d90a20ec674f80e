"""The steps of a takeover at which a process is stopped or killed: where `server.fault` stalls it."""

from collections.abc import Mapping

import pytest

Steps = Mapping[str, tuple[str, str]]  # a step -> a function of the source, and whether before or after it

_SUCCESSOR = "oxidize.takeover.successor:Successor"
_PREDECESSOR = "oxidize.takeover.predecessor:Predecessor"

SUCCESSOR_BEFORE_TAKEN: Steps = {
    "before HELLO": (f"{_SUCCESSOR}.connect", "before"),
    "after OFFER": (f"{_SUCCESSOR}.connect", "after"),
    "in the restore": ("oxidize.protocol.device:Device.prepare", "before"),
    "before READY": (f"{_SUCCESSOR}.ready", "before"),
    "after COMMIT": (f"{_SUCCESSOR}.ready", "after"),
    "after its first iteration": ("oxidize.runtime.succession:Succession._own", "after"),
    "before TAKEN": (f"{_SUCCESSOR}.taken", "before"),
}
SUCCESSOR: Steps = {**SUCCESSOR_BEFORE_TAKEN, "after TAKEN": (f"{_SUCCESSOR}.taken", "after")}
PREDECESSOR: Steps = {
    "before OFFER": ("oxidize.runtime.handover:Handover.offer", "before"),
    "before the freeze": (f"{_PREDECESSOR}._freeze", "before"),
    "before COMMIT": (f"{_PREDECESSOR}._send_commit", "before"),
    "after COMMIT": (f"{_PREDECESSOR}._send_commit", "after"),
    "after TAKEN": (f"{_PREDECESSOR}._finish", "before"),
}
COORDINATOR: Steps = {
    "after it started the successor": ("oxidize.control.reload:_prepare", "before"),
    "before GO": ("oxidize.control.reload:_set_main_pid", "before"),
    "after GO": ("oxidize.control.reload:send", "after"),
}


def at_each(steps: Steps, *, but: str = "") -> pytest.MarkDecorator:
    """Run a test at each step, as `where` and `when`, without the step `but`."""
    rows = [pytest.param(*place, id=name) for name, place in steps.items() if name != but]
    return pytest.mark.parametrize(("where", "when"), rows)
