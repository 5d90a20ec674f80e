"""The process of `oxidize server` and `oxidize client`: from the command line to the exit status."""

import contextlib
import gc
import os
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from oxidize import logs, signals
from oxidize.config.paths import Role
from oxidize.control.reload_channel import Control
from oxidize.errors import ConfigError, OxidizeError, Phase, TakeoverError, UnreachableError, reason_of
from oxidize.net.event_loop import Loop
from oxidize.net.ipv6 import check_available
from oxidize.net.resolve import literal, split
from oxidize.oom_score import OomScore
from oxidize.runtime import validated
from oxidize.runtime.failed_start import await_correction
from oxidize.runtime.kept_settings import STORED_NAME, KeptSettings, kept_of
from oxidize.runtime.startup import start
from oxidize.service_manager import notify, systemctl
from oxidize.service_manager.privileges import Capability, forbid_core_dumps, keep_only
from oxidize.settings import NodeSettings

FAILED_START_PAUSE_SECS = 1.0
PROCESS_NAME = Path("/proc/self/comm")  # proc(5)

log = logs.get(__name__)


def run(role: Role, config_path: Path, log_level: str, control: Control, oom_score: OomScore) -> int:
    """Run until the end of service or until a successor has taken over; return the exit status.

    oom_score: restored once this process serves.
    Raises ConfigError and other OxidizeErrors if the process cannot serve, after it has told the coordinator.
    """
    _name_process()
    forbid_core_dumps()
    settings = None
    try:
        logs.configure(log_level)
        loop = Loop()
        _survive_signals(loop)
        passed = notify.listen_fds()
        settings, kept = _load(role, config_path, passed.pop(STORED_NAME, []), control.take_settings())
        handover = start(settings, kept, loop, control, passed)
        oom_score.restore()
        _give_up_rights(settings)
        gc.enable()  # which the command line leaves to what runs for long
    except OxidizeError as error:
        control.failed(reason_of(error))
        _pause(control, error, config_path if settings is None else None)
        raise
    except Exception as error:  # the boundary of a takeover: the coordinator must get the reason
        control.failed(logs.redact_text(reason_of(error)))
        log.exception("cannot start")
        _pause(control, error)
        return 1
    try:
        loop.run()
    except OxidizeError:
        raise
    except Exception:  # the top of the loop: this is a bug, and must not be printed with its secrets
        # Nothing is closed here: a successor that is preparing must see this process die, and inherit.
        log.exception("ends because of a bug")
        return 1
    handover.close()
    loop.close()
    if handover.node.failure is not None:
        raise UnreachableError(handover.node.failure)
    return 0


def _name_process() -> None:
    """Be called `oxidize` by ps and ss: a successor is started by the interpreter's path, and would be `python`."""
    with contextlib.suppress(OSError), PROCESS_NAME.open("w") as file:
        file.write("oxidize")


def _survive_signals(loop: Loop) -> None:
    """Report the signals that mean nothing here, from the start on."""
    for number in signals.MEANINGLESS:
        loop.on_signal(number, partial(log.warning, signals.text_for(number)))
    # `stty tostop` would stop a process in the background that logs to the terminal: tty_ioctl(4).
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)


def _give_up_rights(settings: NodeSettings) -> None:
    """Keep the rights that serving needs; sockets, interface and rules exist, and a successor comes with its own."""
    try:
        keep_only(rights_of(settings))
    except OSError as error:
        # The standard unit forbids the system call, and grants CAP_NET_ADMIN whatever the network of the settings.
        needed = " ".join(f"CAP_{right.name}" for right in sorted(rights_of(settings)))
        remedy = f"`systemctl edit` the unit: AmbientCapabilities={needed} and CapabilityBoundingSet={needed}"
        log.warning("serving with more rights than it needs", reason=str(error), remedy=remedy)


def rights_of(settings: NodeSettings) -> set[Capability]:
    """Return the capabilities that a process uses after its start, if it has them."""
    rights = set()
    if settings.network == "tun":
        rights.add(Capability.NET_ADMIN)  # addresses, routes, rules, nftables and marks are set right at any time
    if settings.name_servers is not None:
        # resolvconf(8) replaces files and signals programs of other users when the name servers are removed.
        rights |= {Capability.CHOWN, Capability.DAC_OVERRIDE, Capability.FOWNER, Capability.KILL}
    for path in (settings.takeover_socket, settings.endpoints_file):
        with contextlib.suppress(OSError):
            if path is not None and path.parent.stat().st_uid != os.geteuid():
                rights.add(Capability.DAC_OVERRIDE)  # root writes to a folder of another user
    return rights


def _pause(control: Control, error: Exception, mistaken: Path | None = None) -> None:
    """Pause before the exit, for systemd restarts this process at once and without a limit; a holder pauses itself.

    Not after COMMIT: no process serves until this one has ended. mistaken: the configuration that has the error.
    """
    owned = isinstance(error, TakeoverError) and error.phase is Phase.OWNING
    if not notify.is_unit() or control.is_coordinated or owned:
        return
    if mistaken is not None and isinstance(error, ConfigError) and systemctl.was_restarted():
        notify.notify(f"STATUS=waiting for a correction: {error.problems[0]}")
        log.error("waiting for a correction of the configuration", reason=error.problems[0])
        await_correction(mistaken)
    else:
        time.sleep(FAILED_START_PAUSE_SECS)


def _load(role: Role, config_path: Path, stored: list[int], given: list[int]) -> tuple[NodeSettings, KeptSettings]:
    """Return the settings, and the file with them.

    stored, given: such files that come from the service manager's store, and from the coordinator of a reload.
    """
    contents = validated.contents_of([*given, *stored])
    loaded = validated.load(role, config_path, contents.values())
    for warning in loaded.warnings:
        log.warning(warning)
    check_available(_addresses_of(loaded.settings))
    return loaded.settings, kept_of(loaded, stored, contents, given)


def _addresses_of(settings: NodeSettings) -> Iterator[tuple[str, object]]:
    """Yield the keys whose addresses the kernel must know, with each address; `listen` is checked where it is bound."""
    role = settings.role
    if settings.network == "tun":
        for address in settings.addresses:
            yield f"{role}.address", address
        for network in (*settings.routes, *settings.default_routes):
            yield f"{role}: allowed_ips", network
    if settings.server is not None and literal(settings.server) is not None:
        yield f"{role}.server", split(settings.server)[0]
    if settings.metrics_listen is not None:
        yield f"{role}.metrics_listen", settings.metrics_listen[0]
