"""The process of one generation: the arguments that start it, and its run.

The rule: after a crash the first packet waits for every import, so a generation imports no command line. The arguments
with which a service manager, a holder and `oxidize reload` start one are recognized here; whatever differs from them is
for `oxidize.cli.commands` to read, and to say what is wrong with it.
"""

import gc
import os
from pathlib import Path
from typing import Literal, NamedTuple, NoReturn, cast

from oxidize.errors import OxidizeError
from oxidize.oom_score import OomScore
from oxidize.service_manager import notify

Role = Literal["server", "client"]

LOG_LEVELS = ("debug", "info", "warning", "error")
FIRST_PID = 1
_CONFIG, _LOG_LEVEL, _CONTROL_FD, _NO_HOLDER = "-c", "--log-level", "--control-fd", "--no-holder"


class Generation(NamedTuple):
    """What a process is to serve with. control_fd: the socket of the coordinator of a reload, if there is one."""

    role: Role
    config_path: Path
    log_level: str = "info"
    control_fd: int | None = None


def recognized(arguments: list[str]) -> Generation | None:
    """Return the generation that these arguments start, None where a command has to read them.

    Recognized are the subcommand, an absolute path with -c, and the other options once at most, in any order.
    """
    role, *options = arguments or [""]
    given: dict[str, str] = {}
    is_alone = False
    words = iter(options)
    for word in words:
        if word == _NO_HOLDER and not is_alone:
            is_alone = True
            continue
        value = next(words, "")
        if word not in {_CONFIG, _LOG_LEVEL, _CONTROL_FD} or word in given or not value:
            return None
        given[word] = value
    path, level, control = given.get(_CONFIG, ""), given.get(_LOG_LEVEL, "info"), given.get(_CONTROL_FD)
    if role not in {"server", "client"} or not path.startswith("/") or level not in LOG_LEVELS:
        return None
    if control is not None and not (control.isascii() and control.isdecimal()):
        return None
    if control is None and not is_alone and not is_held():
        return None
    return Generation(cast("Role", role), Path(path), level, int(control) if control is not None else None)


def is_held() -> bool:
    """Return whether a service manager or a holder keeps what a generation stores, so that it needs no other one."""
    # The end of PID 1 ends a container with it, whatever listens there.
    return notify.is_managed() and os.getpid() != FIRST_PID


def serve(generation: Generation) -> NoReturn:
    """Serve in this process until the end of service or until a successor has taken over, and exit."""
    gc.disable()  # imports and a file that is read make no garbage: to look for it takes a sixth of their time
    oom_score, priority = OomScore(), None
    if generation.control_fd is not None:  # a successor, which has most of its memory still to get, and its work to do
        from oxidize.cpu_priority import CpuPriority  # noqa: PLC0415  # not for a start after a crash

        oom_score.raise_()
        priority = CpuPriority()
        priority.lower()
    from oxidize.control.reload_channel import Control  # noqa: PLC0415  # only a generation needs them
    from oxidize.runtime.daemon import run  # noqa: PLC0415  # only a generation needs them

    control = Control(generation.control_fd, priority)
    try:
        status = run(generation.role, generation.config_path, generation.log_level, control, oom_score)
    except OxidizeError:
        from oxidize.cli.common import errors_as_lines  # noqa: PLC0415  # the rule

        with errors_as_lines(is_told=lambda: control.has_told_failure):
            raise
    import logging  # noqa: PLC0415  # which the generation has imported

    # Not `sys.exit`: to free every object first takes 0.04 s and more of a processor that the successor needs.
    logging.shutdown()
    os._exit(status)
