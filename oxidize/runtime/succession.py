"""The successor's side of a takeover: restore while the predecessor serves, then own.

The rule: before the hand-off this process only reads, so a failure leaves the predecessor serving; between the
predecessor's freeze and the first packet it does only what cannot be done before. A failure after it ends this process
at once, for the predecessor waits for its end. Where the predecessor has ended no other process can serve, so only
what prevents owning may end this one: a missing coordinator, record, path or rule does not.
"""

import gc
import os
import socket
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import oxidize
from oxidize import logs
from oxidize.clock import boot_time
from oxidize.control import key_change
from oxidize.control.reload_channel import Control
from oxidize.errors import OxidizeError, Phase, SnapshotError, TakeoverError, reason_of
from oxidize.log_output import STANDARD_ERROR, is_journal, open_journal_stream
from oxidize.net.event_loop import READABLE, Loop
from oxidize.net.tun import TunDevice
from oxidize.net.udp import UdpSocket
from oxidize.oom_score import OomScore
from oxidize.protocol.counters import Counters, Total
from oxidize.runtime.fd_store import apply_nat, check_nat, store_state, store_tunnel
from oxidize.runtime.handover import Handover
from oxidize.runtime.http_binding import bind_http_if_possible
from oxidize.runtime.kept_settings import KeptSettings
from oxidize.runtime.late_imports import import_late
from oxidize.runtime.node import Node
from oxidize.runtime.offer import HAS_MANAGER, READS_STAGED_MORE, FdName, OfferState, descriptors_of
from oxidize.runtime.parts import NodeParts, adopt_nat, adopt_tunnel, lack_of_room, restore, unrestored
from oxidize.runtime.warm_up import warm_up
from oxidize.service_manager import notify, systemctl
from oxidize.settings import NodeSettings
from oxidize.state.key_change import KeyChangedState
from oxidize.takeover.host import NamedFd, Offer
from oxidize.takeover.successor import Commit, Successor

STORE_PATIENCE_SECS = 5.0  # for a busy holder, while the predecessor serves
CHECK_SECS = 1.0  # between two looks at a predecessor whose end the loop cannot watch

log = logs.get(__name__)


class Succession:
    """The successor's side of one takeover. fds, before: the contents of `offer`, decoded in `run`.

    kept: the file with the settings. key_before, ended: as of `Restored`.
    """

    def __init__(
        self,
        settings: NodeSettings,
        kept: KeptSettings,
        loop: Loop,
        control: Control,
        successor: Successor,
        offer: Offer,
    ) -> None:
        self.settings = settings
        self.kept = kept
        self.loop = loop
        self.control = control
        self.successor = successor
        self.offer = offer
        self.fds: dict[FdName, NamedFd] = {}
        self.before = OfferState()
        self.is_tunnel_new = False
        self.key_before: bytes | None = None
        self.ended = 0
        self.oom_score = OomScore()

    def run(self) -> Handover:
        """Take over; raises TakeoverError, or what prevented it, where the predecessor still serves."""
        self.oom_score.raise_()  # until this process owns, memory is the predecessor's
        try:
            node = self._restore()
            now = boot_time()
            sessions = node.device.live_sessions(now)
            node.device.restore(node.session_state.sync(), now)
            refused = {**unrestored(self.settings, node.device), key_change.KEY_CHANGED: self.ended}
            refused = {reason: number for reason, number in refused.items() if number}
            summary = {
                "sessions": sessions,
                "refused": refused,
                "warnings": [
                    *self._key_change(),
                    *self._ignored(node),
                    *lack_of_room(self.settings, node.session_state),
                ],
            }
            summary[HAS_MANAGER] = notify.is_managed()
            self._wait_for_go(summary)
            warm_up(boot_time())
            node.device.restore(node.session_state.sync(), boot_time())
            commit = self.successor.ready(
                {**summary, READS_STAGED_MORE: True},
                lambda: node.device.restore(node.session_state.sync(), boot_time()),
            )
        except BaseException as error:  # cleans up, and raises it again
            self.successor.failed(_redacted_reason(error))
            self._give_back()
            raise
        try:
            blackout = self._own(node, commit)
            handover = self._take(node, commit, blackout, summary)
        except BaseException as error:  # the predecessor waits for the end of this process, and is told why
            raise self._failure_of_owner(error) from error
        self._announce(node, blackout, summary)
        _PredecessorEnd(self.loop, self.successor, handover).watch()
        return handover

    def _wait_for_go(self, summary: dict[str, Any]) -> None:
        """Wait for the coordinator; raises TakeoverError if it is gone while the predecessor lives."""
        try:
            self.control.prepared(summary, self.successor.predecessor_fd)
        except TakeoverError:
            if not self.successor.has_inherited():
                raise
            log.warning("the predecessor and the coordinator have ended: serving without them")
            self.control.go_alone()

    def _failure_of_owner(self, error: BaseException) -> TakeoverError:
        """Tell the predecessor why this process ends after COMMIT; return the error to raise, at once."""
        reason = _redacted_reason(error)
        self.successor.failed(reason)
        self._give_back()
        if not isinstance(error, OxidizeError):
            log.error("cannot start", exc_info=error)
        return TakeoverError(Phase.OWNING, reason)

    def _give_back(self) -> None:
        """Make the predecessor the main process again, where a coordinator that has ended had made this process that.

        Otherwise the service manager would take the end of this process for the end of the service.
        """
        try:
            if notify.is_managed() and systemctl.main_pid() == os.getpid():
                notify.notify(f"MAINPID={self.offer.pid}")
                notify.barrier()
        except (OSError, OxidizeError) as error:  # no descriptor left, or a manager that is gone or hangs
            log.error("the service manager may take this end for that of the service", reason=reason_of(error))

    def _restore(self) -> Node:
        """Do all slow work, by reading alone; the predecessor serves all the while."""
        settings, offer, fds = self.settings, self.offer, self.fds
        fds.update(descriptors_of(offer))
        self.before = OfferState.decode(offer.state)
        if settings.has_host_setup:
            from oxidize.client.host_setup import check_host_setup  # noqa: PLC0415  # not for most servers

            check_host_setup(settings, self._interfaces_before())
        try:
            # Without a coordinator no operator has asked for it: it may be a second process, with a key of its own.
            may_change_key = self.control.is_coordinated
            journal, arena = fds[FdName.JOURNAL].fd, fds[FdName.ARENA].fd
            restored = restore(settings, journal, arena, boot_time(), may_change_key=may_change_key)
        except SnapshotError as error:
            raise SnapshotError(
                f"taking over from pid {offer.pid} at {settings.takeover_socket}: {error}. (A second process "
                "beside it needs a takeover_socket and an interface of its own.)"
            ) from error
        self.key_before, self.ended = restored.key_before, restored.ended
        http = self._fd(FdName.HTTP)
        listener = socket.socket(fileno=http) if http is not None else bind_http_if_possible(settings)
        tunnel, self.is_tunnel_new = adopt_tunnel(settings, fds.get(FdName.TUN))
        udp = UdpSocket(socket.socket(fileno=fds[FdName.UDP].fd))
        nat = adopt_nat(settings, udp, self._fd(FdName.NAT))
        check_nat(nat)
        generation = offer.generation + 1
        parts = NodeParts(settings, generation, restored.state, restored.device, udp, tunnel, nat, listener, self.kept)
        parts.guard_fd = self._fd(FdName.GUARD) if settings.has_host_setup else None
        parts.upstream_dns = self.before.upstream_dns
        node = Node(parts, self.loop, self.before.watchdog_secs)
        if notify.is_held() and not self.control.is_coordinated:
            self._store_all(node)
        if listener is not None:
            for _ in import_late():  # all at once: the predecessor serves
                pass
        gc.freeze()  # as in `cold_start`: without a look for garbage, which takes a second with 100,000 peers
        return node

    def _store_all(self, node: Node) -> None:
        """Store all that a start needs after a crash, in a holder that is new; raises as `notify.store_fd`.

        A successor that a coordinator guides has its predecessor's holder.
        """
        nat = node.nat.fileno()
        stored = {FdName.UDP: node.udp.fileno(), **{FdName(name): fd for name, fd in node.session_state.fds.items()}}
        if node.http_listener is not None:
            stored[FdName.HTTP] = node.http_listener.fileno()
        if nat is not None:
            stored[FdName.NAT] = nat
        if node.host_setup is not None and node.host_setup.guard_fd is not None:
            stored[FdName.GUARD] = node.host_setup.guard_fd
        for name, fd in stored.items():
            notify.store_fd(name, fd, STORE_PATIENCE_SECS)
        store_tunnel(node.tunnel)

    def _own(self, node: Node, commit: Commit) -> float | None:
        """Become the owner and read the first packets; return the blackout in seconds, None after a death."""
        state = node.session_state
        node.device.restore(state.sync(), boot_time())
        node.check_journal(commit.info)
        state.become_writer()
        state.begin_generation(oxidize.__version__, node.generation)
        node.device.own()
        node.serve()
        self.loop.measure_pauses(commit.frozen_at)
        self.loop.run_once(0)
        # Not before the epoch of this clock, whatever the predecessor says.
        return max(0.0, boot_time() - commit.frozen_at) if commit.frozen_at is not None else None

    def _take(self, node: Node, commit: Commit, blackout: float | None, summary: dict[str, Any]) -> Handover:
        """Count and record the takeover, listen, and let the predecessor exit, in this order."""
        blackout_ms = blackout * 1000 if blackout is not None else None
        _count_takeover(node, summary)
        _count_blackout(node.counters, blackout or 0.0)
        way = "inherited: the predecessor died" if commit.predecessor_died else "taken over"
        node.record_start(way, summary["sessions"], blackout_ms)
        self.loop.run_once(0)  # as after each of the steps that follow: together they take longer than the hand-off
        # A predecessor that froze may have died since, and then no process would serve without this one.
        must_listen = not (commit.predecessor_died or self.successor.is_predecessor_dead())
        handover = Handover(
            node,
            self.loop,
            held=True,
            must_listen=must_listen,
            lock=self.successor.lock,
            uapi=self.fds.get(FdName.UAPI),
        )
        self.loop.run_once(0)
        self.successor.taken({"sessions": summary["sessions"], "blackout_ms": blackout_ms or 0.0})
        self.oom_score.restore()
        self.loop.run_once(0)
        return handover

    def _announce(self, node: Node, blackout: float | None, summary: dict[str, Any]) -> None:
        """Report to service manager, operator and coordinator, and do what could wait until this process serves."""
        first: list[Callable[[], None]] = [self._take_log, node.protect, node.open_http, node.notify_ready]
        has_moved = self.before.server != self.settings.server
        if node.connection is not None and (has_moved or node.connection.is_reconfigured):
            first.append(node.connection.move)
        problems = self._attempt(first)
        for _ in node.device.prepare_in_slices():
            self.loop.run_once(0)
        problems += self._attempt([*self._last_steps(node), node.keep_network])
        problems += [f"serving without all of its settings: {missing}" for missing in node.keeper.missing]
        warnings = [*summary["warnings"], *problems]
        for warning in warnings:
            log.warning(warning)
        blackout_ms = self._blackout_ms(node, blackout)
        log.info("took over", generation=node.generation, sessions=summary["sessions"], blackout_ms=blackout_ms)
        self.loop.run_once(0)
        done = {**summary, "warnings": warnings, "generation": node.generation, "blackout_ms": blackout_ms or 0.0}
        self.control.done(done)
        self.loop.run_once(0)

    def _blackout_ms(self, node: Node, blackout: float | None) -> float | None:
        """Return the longest time without a reader until now, and correct what was recorded of it before TAKEN."""
        longest = self.loop.longest_pause_secs
        self.loop.measure_pauses(None)
        if blackout is None:
            return None
        if longest > blackout and node.is_serving:
            _count_blackout(node.counters, longest, blackout)
            node.session_state.amend_takeover(blackout_ms=longest * 1000)
        return max(longest, blackout) * 1000

    def _attempt(self, steps: Iterable[Callable[[], None]]) -> list[str]:
        """Do each step, and serve after it; return a line for each that failed.

        The predecessor ends, so no failure here may end this process: a tunnel without a route is better than none.
        """
        problems = []
        for step in steps:
            try:
                step()
            except Exception as error:  # this process owns, and no other would
                log.exception("serving without all of its settings")
                problems.append(f"serving without all of its settings: {reason_of(error)}")
            self.loop.run_once(0)
        return problems

    def _last_steps(self, node: Node) -> list[Callable[[], None]]:
        """Return the work on the host's network that can wait until this process serves."""
        steps: list[Callable[[], None]] = [self.kept.store, partial(apply_nat, node.nat, self.loop.run_once)]
        if self.is_tunnel_new or not self.before.stores_tun:
            steps.append(partial(store_tunnel, node.tunnel))
        if isinstance(node.tunnel, TunDevice):
            steps.append(partial(self._configure, node))
        if self.settings.role == "client" or node.host_setup is not None or self.before.has_host_setup:
            steps.append(partial(self._settle, node))
        return steps

    def _configure(self, node: Node) -> None:
        """Bring the interface to what the settings say, whatever was set before; the coordinator waits for it."""
        is_new = self.is_tunnel_new or self.before.interface_digest != node.interface.digest
        node.settle_interface(self.control.working, is_repair=not is_new)

    def _settle(self, node: Node) -> None:
        """Apply the host setup, or revert the predecessor's where the settings need none."""
        before, interfaces = self.before.installed_dns, self._interfaces_before()
        if node.host_setup is not None:
            node.host_setup.apply(before, interfaces, self.loop.run_once)
        elif interfaces:
            from oxidize.client.host_setup import revert_host_setup  # noqa: PLC0415  # not for most servers

            guard_fd, table = self._fd(FdName.GUARD), self.settings.table
            revert_host_setup(before, interfaces, guard_fd, self.loop.run_once, table=table)

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
            "metrics_listen": FdName.HTTP in self.fds
            and self.before.metrics_listen not in {None, self.settings.metrics_listen},
        }
        text = "has changed, but the socket is handed over as it is: stop and start to change it"
        return [f"{key} {text}" for key, has_changed in changed.items() if has_changed]

    def _key_change(self) -> list[str]:
        """Return what a private key that has changed means, as a line for the operator; none where it has not."""
        if self.key_before is None:
            return []
        return [key_change.report(self.settings.role, self.ended)]

    def _take_log(self) -> None:
        """Log where the predecessor logged from here on, if a coordinator outside of the unit started this process.

        Standard error of such a process is the coordinator's. Its caller waits until no process holds it, and gets the
        warnings from the coordinator.
        """
        fd = self._fd(FdName.STDERR)
        if self.control.is_coordinated and not is_journal(STANDARD_ERROR, os.environ):
            fd = fd if fd is not None else open_journal_stream()
            os.dup2(fd, 1)
            os.dup2(fd, STANDARD_ERROR)
            logs.reopen()
        if fd is not None:
            os.close(fd)


class _PredecessorEnd:
    """Waits for the predecessor's end, and then admits the next successor."""

    def __init__(self, loop: Loop, successor: Successor, handover: Handover) -> None:
        self._loop = loop
        self._successor = successor
        self._handover = handover
        self._check_at: float | None = None  # where the loop cannot watch it

    def watch(self) -> None:
        try:
            self._loop.register(self._successor.predecessor_fd, READABLE, self._check)
        except OSError as error:  # ENOSPC, ENOMEM: epoll_ctl(2)
            log.warning("the predecessor's end is looked for in intervals", reason=str(error))
            self._check_at = boot_time() + CHECK_SECS
        self._loop.add_timed(self)
        self._check()

    def next_deadline(self) -> float | None:
        deadlines = (self._check_at, self._successor.next_deadline())
        return min((each for each in deadlines if each is not None), default=None)

    def handle_timeout(self, now: float) -> None:
        if self._check_at is not None:
            self._check_at = now + CHECK_SECS
        self._check()

    def _check(self) -> None:
        if self._successor.has_predecessor_ended():
            self._loop.unregister(self._successor.predecessor_fd)
            self._loop.remove_timed(self)
            self._successor.close()
            # Not before: a SIGKILL that crosses TAKEN lets the predecessor thaw, with all the peers that it knows.
            node = self._handover.node
            node.session_state.raise_min_reader()
            if isinstance(node.session_state, KeyChangedState):
                _store(node.session_state)
                node.do_in_slices(node.session_state.forget_before())
            node.do_in_slices(node.settle_configuration())
            self._handover.predecessor.release()


def _store(state: KeyChangedState) -> None:
    """Store a state under the new key; without that a crash costs the sessions, and no more."""
    try:
        store_state(state)
    except OxidizeError as error:
        log.error("serving with a state that a crash will lose", reason=reason_of(error))


def _redacted_reason(error: BaseException) -> str:
    """Return the reason for other processes; the text of a bug may hold a secret."""
    return reason_of(error) if isinstance(error, OxidizeError) else logs.redact_text(reason_of(error))


def _count_takeover(node: Node, summary: Mapping[str, Any]) -> None:
    counters = node.counters
    counters[Total.TAKEOVERS_SUCCEEDED] += 1
    counters[Total.SESSIONS_RESTORED] += summary["sessions"]
    counters[Total.SESSIONS_REFUSED] += sum(summary["refused"].values())


def _count_blackout(counters: Counters, blackout: float, counted_before: float = 0.0) -> None:
    """Count the blackout of this takeover in seconds, of which a part was counted before."""
    blackout_ns = int(blackout * 1e9)
    counters[Total.BLACKOUT_NS_LAST] = blackout_ns
    counters[Total.BLACKOUT_NS_SUM] += blackout_ns - int(counted_before * 1e9)
    counters[Total.BLACKOUT_NS_MAX] = max(counters[Total.BLACKOUT_NS_MAX], blackout_ns)
