"""The predecessor's side of a takeover: what a node offers to its successor, and how it stops and starts serving.

The rule: until COMMIT the node serves, so a takeover that fails before costs nothing. After it the node serves again
only from the state that it finds then, for a successor that is dead by now may have owned it.
"""

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from oxidize import logs
from oxidize.clock import boot_time
from oxidize.control.query import ACCEPT, DRAIN, IDENTITY, PEERS, QUERIES, SETTINGS, STATE, STATUS, VITALS
from oxidize.errors import OxidizeError, Phase, StorageError, TakeoverError, reason_of
from oxidize.log_output import STANDARD_ERROR
from oxidize.net.event_loop import READABLE, Loop
from oxidize.net.tun import TunDevice
from oxidize.protocol.counters import Total
from oxidize.runtime import status
from oxidize.runtime.compactor import JournalCompactor
from oxidize.runtime.crash_loop import Stability
from oxidize.runtime.fd_store import spare_older_release, store_again
from oxidize.runtime.freeze_preparation import FreezePreparation
from oxidize.runtime.node import Node
from oxidize.runtime.offer import (
    HAS_MANAGER,
    READS_STAGED_MORE,
    READS_TUN_FLAGS,
    TAKES_UAPI,
    FdName,
    OfferState,
    named_fd,
)
from oxidize.runtime.uapi_answers import UapiAnswers
from oxidize.runtime.uapi_socket import UapiSocket
from oxidize.service_manager import notify
from oxidize.state import writer_lock
from oxidize.takeover.host import Answer, NamedFd, Offer
from oxidize.takeover.listener import Listener
from oxidize.takeover.messages import Hello
from oxidize.takeover.path_lock import PathLock
from oxidize.takeover.predecessor import Predecessor
from oxidize.text import own_release

LINGER_SECS = 1.0  # for requests that were accepted before the hand-off
LINGER_CHECK_SECS = 0.02
LOCK_PATIENCE_SECS = 5.0  # of a thaw without memory for the writer's lock, before it ends the process
LOCK_PAUSE_SECS = 0.1  # between two attempts

log = logs.get(__name__)


class Handover:
    """A node that serves and listens for its successor (`takeover.host.TakeoverHost`).

    held: whether a successor has to wait for `predecessor.release`, because the node's own predecessor still lives.
    must_listen: False where no other process can serve, so that a path that cannot be bound is no reason to end. lock:
    of the path, which this process holds from here on, and closes. uapi: the listener of wg that was passed.
    """

    def __init__(
        self,
        node: Node,
        loop: Loop,
        *,
        held: bool,
        must_listen: bool = True,
        lock: PathLock | None = None,
        uapi: NamedFd | None = None,
    ) -> None:
        self.node = node
        self._loop = loop
        self._lock = lock
        self._successor_pid = 0
        self._has_manager = False
        self._takes_uapi = False
        self._has_handed_over = False
        self._is_tunnel_spared = False
        self.predecessor = Predecessor(
            Listener(node.settings.takeover_socket, required=must_listen),
            self,
            release=own_release(),
            register=lambda fd, callback: loop.register(fd, READABLE, callback),
            unregister=loop.unregister,
            held=held,
            lock=lock,
        )
        self.uapi = UapiSocket(node.settings, loop, UapiAnswers(node), uapi)
        node.wg_problem = lambda: self.uapi.problem
        node.on_ending = lambda: self.predecessor.withdraw("the server was told to end")
        loop.add_timed(self.predecessor)
        self._preparation = FreezePreparation(node.device.unrecorded, boot_time)
        loop.add_timed(self._preparation)
        loop.add_timed(JournalCompactor(node.session_state, boot_time))
        loop.add_timed(Stability(node.counters, boot_time, lambda: node.session_state.is_writer))

    def close(self) -> None:
        """Stop listening, and close the node; idempotent."""
        self.predecessor.close()
        if not self._has_handed_over:
            self.uapi.remove_path()
        self.uapi.close()
        self.node.close()
        if self._lock is not None:
            self._lock.close()  # last: from here on another process may serve

    def offer(self, hello: Hello) -> Offer:
        """Return all descriptors, and hold the journal; raises TakeoverError to refuse.

        It refuses a release that is too old for this state, and every successor once this process was told to end: its
        end would be forgotten.
        """
        node = self.node
        if node.is_ending:
            reason = "the server was told to end, and ends when its sessions are idle: start it again after that"
            raise TakeoverError(Phase.OFFERING, reason)
        needed = node.session_state.journal.envelope["min_reader"]
        if max(hello.snapshot_versions, default=0) < needed:
            raise TakeoverError(
                Phase.OFFERING,
                f"release {hello.release} reads state of formats {list(hello.snapshot_versions)}; expected {needed} or "
                f"later: use a release of that format",
            )
        state = OfferState(
            interface_digest=node.interface.digest,
            installed_dns=node.host_setup.installed_dns if node.host_setup is not None else {},
            watchdog_secs=node.watchdog_secs,
            listen=node.settings.listen,
            metrics_listen=node.settings.metrics_listen,
            server=node.settings.server,
            upstream_dns=tuple(node.connection.upstream_dns) if node.connection is not None else (),
            stores_tun=True,
            has_host_setup=node.host_setup is not None,
        )
        # Not the node's own generation: a successor that died after COMMIT may have written a later one.
        offer = Offer(node.session_state.generation, tuple(self._descriptors()), state.encode())
        self._successor_pid = hello.pid
        self._takes_uapi = TAKES_UAPI in hello.abilities
        if READS_TUN_FLAGS not in hello.abilities:
            # Now, for only the main process of a unit is heard, and that is the successor by the time it is ready.
            self._is_tunnel_spared = spare_older_release(node.tunnel)
        node.session_state.hold()  # last: an offer that cannot be made is never withdrawn
        self._preparation.begin()
        return offer

    def _descriptors(self) -> Iterator[NamedFd]:
        node = self.node
        yield named_fd(FdName.UDP, node.udp.fileno(), node.udp.framing())
        for name, fd in node.session_state.fds.items():
            yield named_fd(FdName(name), fd)
        if node.http_listener is not None:
            yield named_fd(FdName.HTTP, node.http_listener.fileno())
        if isinstance(node.tunnel, TunDevice):
            yield named_fd(FdName.TUN, node.tunnel.fileno(), node.tunnel.framing())
        nat = node.nat.fileno()
        if nat is not None:
            yield named_fd(FdName.NAT, nat)
        if node.host_setup is not None and node.host_setup.guard_fd is not None:
            yield named_fd(FdName.GUARD, node.host_setup.guard_fd)
        if (uapi := self.uapi.named_fd()) is not None:
            yield uapi
        yield named_fd(FdName.STDERR, STANDARD_ERROR)

    def offer_withdrawn(self, reason: str) -> None:
        """Record that the successor will not own; the node served all the while."""
        if self._is_tunnel_spared:
            self._is_tunnel_spared = False
            self._loop.add_timed(_HostRestore(self.node, self._loop))
        self.node.session_state.unhold()
        self._preparation.cancel()
        self._record_failure(reason)

    def may_freeze(self, report: dict[str, Any]) -> bool:
        """Return whether `freeze` has little left to record, as it has in time; see `FreezePreparation`."""
        return self._preparation.may_freeze(reads_more=report.get(READS_STAGED_MORE) is True)

    def freeze(self, report: dict[str, Any]) -> dict[str, Any]:
        """Stop reading and sending, and record what only this process knows; return the contents of COMMIT."""
        self._preparation.stop()
        self._has_manager = report.get(HAS_MANAGER) is True
        self.node.give_up_ownership()
        self.uapi.pause()
        self.node.session_state.stop_writing()
        return {"journal_end": self.node.session_state.end}

    def thaw(self, reason: str) -> None:
        """Serve again: read what a successor that is dead by now has recorded, and continue from there."""
        node, state = self.node, self.node.session_state
        changes = state.sync()
        self._become_writer()
        state.unhold()
        node.device.restore(changes, boot_time())
        node.device.own()
        node.serve()
        if node.http_server is not None:
            node.http_server.resume()
        self.uapi.resume()
        node.do_in_slices(node.device.prepare_in_slices())
        self._preparation.cancel()
        self._loop.add_timed(_HostRestore(node, self._loop))
        self._record_failure(reason)

    def _become_writer(self) -> None:
        """Take the writer's lock back, which the kernel may have no memory for at the moment: no other process serves.

        Raises WriterBusyError where one does, and StorageError where there is no lock for LOCK_PATIENCE_SECS.
        """
        ends_at = boot_time() + LOCK_PATIENCE_SECS
        while True:
            try:
                self.node.session_state.become_writer()
            except StorageError as error:
                if not writer_lock.is_passing(error) or boot_time() >= ends_at:
                    raise
                log.error("serving again is delayed", reason=str(error))
                time.sleep(LOCK_PAUSE_SECS)
            else:
                return

    def _record_failure(self, reason: str) -> None:
        node = self.node
        node.counters[Total.TAKEOVERS_FAILED] += 1
        node.session_state.record_takeover(
            {"at_unix": time.time(), "result": "failure", "generation": node.generation, "reason": reason}
        )

    def finish(self, taken: dict[str, Any]) -> None:
        """End, for the successor owns; requests of HTTP and of wg that are under way are answered first."""
        self._has_handed_over = True
        if not self._takes_uapi:
            self.uapi.shut_down()
        if notify.is_held() and not self._has_manager:
            notify.notify(f"MAINPID={self._successor_pid}")  # or its holder would end, and as PID 1 end the successor
        log.info("handed over", sessions=taken.get("sessions"), blackout_ms=taken.get("blackout_ms"))
        self._loop.add_timed(_Linger(self._requests, self._loop))

    def _requests(self) -> int:
        """Return the number of open connections of HTTP and of wg."""
        server = self.node.http_server
        return self.uapi.busy + (server.busy if server is not None else 0)

    def answer(self, query: str) -> Answer | Iterator[bytes]:
        """Answer a query of `control.query`, or carry it out; raises OxidizeError for any other."""
        node = self.node
        if query == STATUS:
            return status.describe(node)
        if query == PEERS:
            return status.describe_peers(node)
        if query == VITALS:
            return Answer(status.describe_vitals(node))
        if query == STATE:
            node.check_serving()
            return status.hand_out_state(node)
        if query == SETTINGS:
            return status.hand_out_settings(node)
        if query == DRAIN:
            node.drain()
        elif query == ACCEPT:
            node.accept()
        elif query != IDENTITY:
            raise OxidizeError(f"query {query!r}: expected one of {', '.join(QUERIES)}")
        return Answer(status.describe_process(node))


class _HostRestore:
    """Puts back, once the node serves again, what a successor may have changed outside of the process.

    A successor whose TAKEN crosses its SIGKILL has begun to apply its own settings. So the kernel is asked for what is
    set, and changed where it differs from the node's settings; where asking is not possible, all is set again.
    """

    def __init__(self, node: Node, loop: Loop) -> None:
        self._node = node
        self._loop = loop

    def next_deadline(self) -> float:
        return 0.0

    def handle_timeout(self, now: float) -> None:
        node = self._node
        self._loop.remove_timed(self)
        steps: list[Callable[[], None]] = [node.nat.apply, partial(store_again, node.tunnel, node.nat)]
        if isinstance(node.tunnel, TunDevice):
            steps.append(node.settle_interface)
        steps.append(node.protect)
        if node.host_setup is not None:
            steps.append(partial(node.host_setup.apply_again, node.pause))
        for step in steps:
            if not node.is_serving:
                return  # the next successor owns by now, and applies its own
            try:
                step()
            except Exception as error:  # noqa: BLE001 - this process owns, and no other would
                if node.is_serving:
                    log.error("serving without all of its settings", reason=reason_of(error))
        node.keep_network()


class _Linger:
    """Stops the loop once no request is open, or after LINGER_SECS. requests: their number."""

    def __init__(self, requests: Callable[[], int], loop: Loop) -> None:
        self._requests = requests
        self._loop = loop
        self._ends_at = boot_time() + LINGER_SECS

    def next_deadline(self) -> float:
        return min(self._ends_at, boot_time() + LINGER_CHECK_SECS) if self._requests() else 0.0

    def handle_timeout(self, now: float) -> None:
        if not self._requests() or now >= self._ends_at:
            self._loop.stop()
