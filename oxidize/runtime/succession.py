"""The successor's side of a takeover: restore while the predecessor serves, then own.

The rule: before the hand-off this process only reads, so a failure leaves the predecessor serving; between the
predecessor's freeze and the first packet it does only what cannot be done before.
"""

import gc
import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import oxidize
from oxidize import logs
from oxidize.client.host_setup import check_host_setup, revert_host_setup
from oxidize.clock import boot_time
from oxidize.control.reload_channel import Control
from oxidize.errors import SnapshotError, reason_of
from oxidize.hostnet.netlink import preload
from oxidize.net.event_loop import READABLE, Loop
from oxidize.net.tun import TunDevice
from oxidize.net.udp import UdpSocket
from oxidize.protocol.counters import Total
from oxidize.runtime.fd_store import apply_nat, check_nat, store_tunnel
from oxidize.runtime.handover import Handover
from oxidize.runtime.node import Node
from oxidize.runtime.offer import FdName, OfferState, descriptors_of
from oxidize.runtime.parts import NOT_CONFIGURED, NodeParts, adopt_nat, adopt_tunnel, bind_http, configure, restore
from oxidize.service_manager import notify, systemctl
from oxidize.settings import NodeSettings
from oxidize.takeover.host import NamedFd, Offer
from oxidize.takeover.successor import Commit, Successor

log = logs.get(__name__)


@dataclass(slots=True)
class Succession:
    """The successor's side of one takeover. fds, before: the contents of `offer`, decoded in `run`."""

    settings: NodeSettings
    loop: Loop
    control: Control
    successor: Successor
    offer: Offer
    fds: dict[FdName, NamedFd] = field(default_factory=dict)
    before: OfferState = field(default_factory=OfferState)
    is_tunnel_new: bool = False

    def run(self) -> Handover:
        """Take over; raises TakeoverError, or what prevented it, where the predecessor still serves."""
        try:
            node = self._restore()
            now = boot_time()
            sessions, report = node.device.live_sessions(now), node.device.restore(node.session_state.sync(), now)
            refused = {NOT_CONFIGURED: report.unknown_peers} if report.unknown_peers else {}
            summary = {"sessions": sessions, "refused": refused, "warnings": self._ignored(node)}
            self.control.prepared(summary)
            node.device.restore(node.session_state.sync(), boot_time())
        except BaseException as error:
            self.successor.failed(reason_of(error))
            self._give_back()
            raise
        commit = self.successor.ready(summary)
        blackout = self._own(node, commit)
        return self._announce(node, commit, blackout, summary)

    def _give_back(self) -> None:
        """Make the predecessor the main process again, where a coordinator that has ended had made this process that.

        Otherwise the service manager would take the end of this process for the end of the service.
        """
        if notify.is_managed() and systemctl.main_pid() == os.getpid():
            notify.notify(f"MAINPID={self.offer.pid}")
            notify.barrier()

    def _restore(self) -> Node:
        """Do all slow work, by reading alone; the predecessor serves all the while."""
        settings, offer, fds = self.settings, self.offer, self.fds
        fds.update(descriptors_of(offer))
        self.before = OfferState.decode(offer.state)
        check_host_setup(settings, self._interfaces_before())
        try:
            restored = restore(settings, fds[FdName.JOURNAL].fd, fds[FdName.ARENA].fd, boot_time())
        except SnapshotError as error:
            raise SnapshotError(
                f"taking over from pid {offer.pid} at {settings.takeover_socket}: {error}. (A second process "
                "beside it needs a takeover_socket and an interface of its own.)"
            ) from error
        http = self._fd(FdName.HTTP)
        listener = socket.socket(fileno=http) if http is not None else bind_http(settings)
        tunnel, self.is_tunnel_new = adopt_tunnel(settings, fds.get(FdName.TUN))
        udp = UdpSocket(socket.socket(fileno=fds[FdName.UDP].fd))
        nat = adopt_nat(settings, self._fd(FdName.NAT))
        check_nat(nat)
        generation = offer.generation + 1
        parts = NodeParts(settings, generation, restored.state, restored.device, udp, tunnel, nat, listener)
        parts.guard_fd, parts.upstream_dns = self._fd(FdName.GUARD), self.before.upstream_dns
        node = Node(parts, self.loop, self.before.watchdog_secs)
        if self._must_configure(node) or node.host_setup is not None:
            preload()  # it takes longer than the changes themselves
        gc.collect()
        gc.freeze()
        return node

    def _own(self, node: Node, commit: Commit) -> float | None:
        """Become the owner and read the first packets; return the blackout in seconds, None after a death."""
        state = node.session_state
        node.device.restore(state.sync(), boot_time())
        node.check_journal(commit.info)
        state.become_writer()
        # Until the predecessor has ended, not only until TAKEN: it may cross a SIGKILL, and then it thaws from here.
        state.hold()
        state.begin_generation(oxidize.__version__, node.generation)
        node.device.own()
        node.serve()
        self.loop.run_once(0)
        return boot_time() - commit.frozen_at if commit.frozen_at is not None else None

    def _announce(self, node: Node, commit: Commit, blackout: float | None, summary: dict[str, Any]) -> Handover:
        """Report to counters, journal, predecessor, service manager and coordinator, in this order."""
        blackout_ms = blackout * 1000 if blackout is not None else None
        _count_takeover(node, blackout, summary)
        way = "inherited: the predecessor died" if commit.predecessor_died else "taken over"
        node.record_start(way, summary["sessions"], blackout_ms)
        handover = Handover(node, self.loop, held=True)
        self.successor.taken({"sessions": summary["sessions"], "blackout_ms": blackout_ms or 0.0})
        node.open_http()
        node.notify_ready()
        if node.connection is not None and self.before.server != self.settings.server:
            node.connection.move()
        for _ in node.device.prepare_in_slices():
            self.loop.run_once(0)
        warnings = [*summary["warnings"], *self._finish(node)]
        self._take_log()
        for warning in warnings:
            log.warning(warning)
        log.info("took over", generation=node.generation, sessions=summary["sessions"], blackout_ms=blackout_ms)
        done = {**summary, "warnings": warnings, "generation": node.generation, "blackout_ms": blackout_ms or 0.0}
        self.control.done(done)
        _PredecessorEnd(self.loop, self.successor, handover).watch()
        return handover

    def _finish(self, node: Node) -> list[str]:
        """Do the work that can wait until this process serves; return a line for each step that failed.

        The predecessor ends, so no failure here may end this process: a tunnel without a route is better than none.
        """
        steps: list[Callable[[], None]] = [partial(apply_nat, node.nat)]
        if self.is_tunnel_new:
            steps.append(partial(store_tunnel, node.tunnel))
        if self._must_configure(node):
            steps.append(partial(configure, self.settings))
        if self.settings.role == "client":
            steps.append(partial(self._settle, node))
        problems = []
        for step in steps:
            try:
                step()
            except Exception as error:  # this process owns, and no other would
                log.exception("serving without all of its settings")
                problems.append(f"serving without all of its settings: {reason_of(error)}")
        return problems

    def _settle(self, node: Node) -> None:
        """Apply a client's host setup, or revert the predecessor's where the settings need none."""
        before, interfaces = self.before.installed_dns, self._interfaces_before()
        if node.host_setup is not None:
            node.host_setup.apply(before, interfaces, self.loop.run_once)
        elif interfaces:
            revert_host_setup(before, interfaces, self.loop.run_once)

    def _must_configure(self, node: Node) -> bool:
        is_changed = self.before.interface_digest != node.interface_digest
        return isinstance(node.tunnel, TunDevice) and (is_changed or self.is_tunnel_new)

    def _interfaces_before(self) -> list[str]:
        tun = self.fds.get(FdName.TUN)
        return [str(tun.options.get("name"))] if tun is not None else []

    def _fd(self, name: FdName) -> int | None:
        return self.fds[name].fd if name in self.fds else None

    def _ignored(self, node: Node) -> list[str]:
        """Return a line for each changed setting that only a start without a predecessor applies."""
        # Where nothing was handed over (None), this process has bound its own socket.
        changed = {
            "listen": self.before.listen not in {None, self.settings.listen},
            "metrics_listen": self.before.metrics_listen not in {None, self.settings.metrics_listen},
        }
        text = "has changed, but the socket is handed over as it is: stop and start to change it"
        return [f"{key} {text}" for key, has_changed in changed.items() if has_changed]

    def _take_log(self) -> None:
        """Log where the predecessor logged, if a coordinator in a terminal started this process."""
        fd = self._fd(FdName.STDERR)
        if fd is None:
            return
        if self.control.is_coordinated and "JOURNAL_STREAM" not in os.environ:
            os.dup2(fd, 1)
            os.dup2(fd, 2)
        os.close(fd)


class _PredecessorEnd:
    """Waits for the predecessor's end, and then admits the next successor."""

    def __init__(self, loop: Loop, successor: Successor, handover: Handover) -> None:
        self._loop = loop
        self._successor = successor
        self._handover = handover

    def watch(self) -> None:
        self._loop.register(self._successor.predecessor_fd, READABLE, self._check)
        self._loop.add_timed(self)
        self._check()

    def next_deadline(self) -> float | None:
        return self._successor.next_deadline()

    def handle_timeout(self, now: float) -> None:
        self._check()

    def _check(self) -> None:
        if self._successor.has_predecessor_ended():
            self._loop.unregister(self._successor.predecessor_fd)
            self._loop.remove_timed(self)
            self._successor.close()
            # Not before: a SIGKILL that crosses TAKEN lets the predecessor thaw, with all the peers that it knows.
            self._handover.node.session_state.unhold()
            self._handover.node.device.forget_unknown_peers()
            self._handover.predecessor.release()


def _count_takeover(node: Node, blackout: float | None, summary: Mapping[str, Any]) -> None:
    counters = node.counters
    counters[Total.TAKEOVERS_SUCCEEDED] += 1
    counters[Total.SESSIONS_RESTORED] += summary["sessions"]
    counters[Total.SESSIONS_REFUSED] += sum(summary["refused"].values())
    blackout_ns = int((blackout or 0.0) * 1e9)
    counters[Total.BLACKOUT_NS_LAST] = blackout_ns
    counters[Total.BLACKOUT_NS_SUM] += blackout_ns
    counters[Total.BLACKOUT_NS_MAX] = max(counters[Total.BLACKOUT_NS_MAX], blackout_ns)
