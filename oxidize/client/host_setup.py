"""What a tunnel sets on its host beyond its interface: packet filter, policy routing, DNS, and their cleanup guard.

A client always has it, a server where a peer has a default route that needs rules.

The rule: `check_host_setup` finds every obstacle before anything is changed, at a reload while the predecessor serves.
Only the owner changes anything, after the hand-off. The first of these reverts it: the process itself when it ends for
good, its cleanup guard, or ExecStopPost= of its unit under systemd. A kill switch ends with a planned end alone: not
with a crash, nor where the client gives up.
"""

import contextlib
import os
import socket
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from oxidize import logs
from oxidize.clock import boot_time
from oxidize.config import NameServers
from oxidize.errors import OxidizeError
from oxidize.hostnet.cleanup_guard import STORED_AS, Cleanup, start_guard, update_guard
from oxidize.hostnet.dns_config import (
    NameServersPart,
    apply_dns,
    check_dns,
    record_name,
    revert_dns,
)
from oxidize.hostnet.packet_filter import Filter, FilterPart, apply_filter, prove_filter, remove_filter
from oxidize.hostnet.part import Part, Pause, run, summary_of
from oxidize.hostnet.policy_routing import Policy, PolicyPart, apply_policy, check_policy, remove_policy
from oxidize.log_output import STANDARD_ERROR
from oxidize.service_manager import notify, systemctl
from oxidize.settings import NodeSettings

HOOK_SECS = 10.0  # for the unit's hook to set the name servers, once the process is ready

log = logs.get(__name__)


def check_host_setup(settings: NodeSettings, replaced: Collection[str] = ()) -> None:
    """Raise OxidizeError if these rules or name servers could not be set; change nothing.

    replaced: interfaces of the generation before, whose rules this client's replace.
    """
    if not settings.has_host_setup:
        return
    if settings.name_servers is not None:
        check_dns(settings.name_servers, by_this_process=_sets_names())
    if settings.default_routes:
        _check_mark(settings)
        check_policy(_policy(settings), [settings.interface, *replaced])
    if settings.kill_switch:
        prove_filter(_filter(settings))


def revert_host_setup(
    before: Mapping[str, Any],
    interfaces: Collection[str],
    guard_fd: int | None,
    pause: Pause = time.sleep,
    *,
    table: int = 0,
) -> None:
    """Remove what a predecessor had set, for settings that need nothing of it any longer; raises OxidizeError.

    before: the predecessor's `installed_dns`. interfaces: the predecessor's. guard_fd: the pipe to its guard, which is
    told, and closed. pause: see `part.Pause`. table: that of the settings, whose routes stay.
    """
    with contextlib.ExitStack() as at_end:
        if guard_fd is not None:
            at_end.callback(os.close, guard_fd)
        _log_changes("policy routing", run(remove_policy(interfaces, spared=table), pause))
        _log_changes("packet filter", remove_filter(interfaces))
        if before:
            run(revert_dns(before.get("interface"), str(before.get("record"))), pause)
        if guard_fd is not None:
            update_guard(guard_fd, None)
    forget_guard()


def forget_guard() -> None:
    """Let the guard of a process that needs none any longer end, where a holder keeps it."""
    if notify.is_held():
        notify.forget_fds(STORED_AS)


class HostSetup:
    """The host setup of one generation.

    port: that of its UDP socket. guard_fd: the pipe to the guard that a predecessor started; `close` closes it.
    installed_dns: the name servers that are set, for a successor to compare with its own; empty if there are none.
    names_kept_from: when the name servers are compared first, in seconds since the boot.
    """

    def __init__(self, settings: NodeSettings, port: int, guard_fd: int | None) -> None:
        self.guard_fd = guard_fd
        self._is_reverted = False
        self._is_unprotected = False
        self.installed_dns: dict[str, Any] = {}
        self._settings = settings
        self._port = port
        self.names_kept_from = boot_time() + (0.0 if _sets_names() else HOOK_SECS)

    @property
    def parts(self) -> list[Part]:
        """What is set, for `runtime.network_keeper` to compare with the kernel's state."""
        policy = _policy(self._settings)
        parts: list[Part] = [FilterPart(_filter(self._settings))]
        if policy.versions:
            parts.append(PolicyPart(policy, self._settings.interface, self._port))
        wanted = self._settings.name_servers
        if wanted is not None:
            record = self._record if _sets_names() else None
            parts.append(NameServersPart(wanted, record, boot_time, self.names_kept_from))
        return parts

    def protect(self) -> None:
        """Bring the packet filter to what the settings and this machine's networks say; it comes before any packet.

        Raises OxidizeError if there is no kill switch although one is configured.
        """
        if self._is_reverted:
            return
        try:
            _log_changes("packet filter", apply_filter(_filter(self._settings)))
        except OxidizeError as error:
            if self._settings.kill_switch:
                raise
            if not self._is_unprotected:
                log.warning("a neighbour could send into the tunnel's flows", reason=str(error))
            self._is_unprotected = True

    def apply(self, before: Mapping[str, Any], replaced: Collection[str] = (), pause: Pause = time.sleep) -> None:
        """Bring the host to what the settings say; raises OxidizeError.

        before: the predecessor's `installed_dns`, empty without one. replaced: interfaces that the client had before.
        pause: see `part.Pause`.
        """
        settings = self._settings
        self._update_guard()
        changes = run(apply_policy(_policy(settings), settings.interface, self._port, replaced), pause)
        _log_changes("policy routing", changes)
        _log_changes("packet filter", remove_filter(set(replaced) - {settings.interface}))
        names = self._names
        now = self._describe(names) if names is not None else {}
        if before and before.get("record") != now.get("record"):
            run(revert_dns(before.get("interface"), str(before.get("record"))), pause)
            log.info("name servers", removed=before.get("servers"))
        if names is not None and now != before:
            run(apply_dns(names, now["record"]), pause)
            log.info("name servers", set=now["servers"], domains=now["domains"])
        self.installed_dns = now
        if self._is_reverted:  # this process was told to end while a program ran
            self.revert()

    def apply_again(self, pause: Pause) -> None:
        """Set everything, whatever is believed to be set: a successor that is dead may have changed it.

        Raises OxidizeError. pause: as in `apply`.
        """
        if self._settings.role == "client" and self._names is None and os.geteuid() == 0:
            run(revert_dns(self._settings.interface, self._record()), pause)
        self.apply({}, (), pause)

    def revert(self, *, spare_kill_switch: bool = False) -> None:
        """Remove everything that was set; a failure is logged, and left to the guard or the unit.

        spare_kill_switch: leave that, for the end is not a planned one.
        """
        self._is_reverted = True
        interface = self._settings.interface
        try:
            if self.guard_fd is not None and not spare_kill_switch:
                with contextlib.suppress(OSError):  # the interface is gone: the guard keeps what it was told before
                    update_guard(self.guard_fd, self._cleanup(is_ending=True))
            _log_changes("policy routing", run(remove_policy([interface])))
            _log_changes("packet filter", remove_filter([interface], spare_kill_switch=spare_kill_switch))
            if self.installed_dns:
                run(revert_dns(self.installed_dns["interface"], self.installed_dns["record"]))
            if self.guard_fd is not None:
                update_guard(self.guard_fd, None)
        except (OxidizeError, OSError) as error:
            log.error("host setup not completely removed", reason=str(error))

    def close(self) -> None:
        """Close the pipe to the guard; idempotent."""
        guard_fd, self.guard_fd = self.guard_fd, None
        if guard_fd is not None:
            os.close(guard_fd)

    @property
    def _names(self) -> NameServers | None:
        """The name servers that this process sets itself."""
        return self._settings.name_servers if _sets_names() else None

    def _describe(self, names: NameServers) -> dict[str, Any]:
        return {
            "interface": names.interface,
            "record": self._record(),
            "servers": [str(server) for server in names.servers],
            "domains": list(names.domains),
        }

    def _record(self) -> str:
        name = self._settings.interface
        if notify.is_unit():
            return record_name(systemctl.own_name() or name)
        return record_name(name, socket.if_nametoindex(name))

    def _update_guard(self) -> None:
        """Start or update the guard for what is about to be set, unless a service manager does its work."""
        if notify.is_unit():
            return
        cleanup = self._cleanup()
        if self.guard_fd is not None:
            if update_guard(self.guard_fd, cleanup):
                return
            self.close()
        try:
            self.guard_fd = start_guard(cleanup, STANDARD_ERROR)
        except OSError as error:
            log.warning("no cleanup guard: a crash would leave rules behind until the next start", reason=str(error))
            return
        if notify.is_held():
            self._store_guard(self.guard_fd)

    @staticmethod
    def _store_guard(guard_fd: int) -> None:
        """Have the holder keep the guard waiting after a crash, for the next generation comes at once."""
        notify.forget_fds(STORED_AS)
        try:
            notify.store_fd(STORED_AS, guard_fd)
        except OxidizeError as error:
            log.warning("a crash would remove the rules until the next start", reason=str(error))

    def _cleanup(self, *, is_ending: bool = False) -> Cleanup:
        interface = self._settings.interface
        record = self._record() if self._names else None
        index = socket.if_nametoindex(interface)
        return Cleanup(interface_index=index, record=record, interface=interface, is_ending=is_ending)


def _log_changes(part: str, changes: Sequence[str]) -> None:
    if changes:
        log.info("changed", part=part, changes=summary_of(changes))


def _filter(settings: NodeSettings) -> Filter:
    networks = [network for peer in settings.peers for network in peer.allowed_ips] if settings.kill_switch else []
    inside = tuple(network for network in networks if network.prefixlen > 0)
    return Filter(settings.interface, tuple(settings.addresses), inside, settings.fwmark, settings.kill_switch)


def _policy(settings: NodeSettings) -> Policy:
    versions = frozenset(network.version for network in settings.default_routes)
    return Policy(settings.fwmark, versions, 0 if versions else settings.table)


def _sets_names() -> bool:
    """Return whether this process sets the name servers, and not a root hook of its unit."""
    return os.geteuid() == 0 or not notify.is_unit()


def _check_mark(settings: NodeSettings) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as trial:
        try:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, settings.fwmark)
        except PermissionError:
            role = settings.role
            where, unit = ("client.", "oxidize-client") if role == "client" else ("a peer's ", "oxidize-daemon")
            raise OxidizeError(
                f"{where}allowed_ips has a default route, which needs CAP_NET_ADMIN: run as root, or by the unit "
                f"{unit}.service"
            ) from None
