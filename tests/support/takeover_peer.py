"""Either side of a takeover as a separate process that crashes, hangs or fails at a given step, and the test's side.

Run as `python -m tests.support.takeover_peer successor|predecessor|asker PATH STOP_AT HOW TIMEOUTS`; prints its steps.
"""

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from oxidize.errors import Phase, TakeoverError
from oxidize.takeover import Answer, Hello, Listener, NamedFd, Offer, Predecessor, Successor, Timeouts, query
from oxidize.takeover.channel import Channel, close_fds, connect
from oxidize.takeover.messages import Message

ROOT = Path(__file__).parents[2]
WAIT_SECS = 20.0  # long enough for a loaded machine; no test waits for it to pass
NORMAL = Timeouts()

Stage = Callable[[str], None]


def clock() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Loop:
    """A minimal event loop of a host."""

    def __init__(self) -> None:
        self._poll = select.poll()
        self._callbacks: dict[int, Callable[[], None]] = {}

    def register(self, fd: int, on_readable: Callable[[], None]) -> None:
        assert fd not in self._callbacks
        self._callbacks[fd] = on_readable
        self._poll.register(fd, select.POLLIN)

    def unregister(self, fd: int) -> None:
        del self._callbacks[fd]
        self._poll.unregister(fd)

    def run_once(self, predecessor: Predecessor, timeout: float = 10.0) -> None:
        deadline = predecessor.next_deadline()
        if deadline is not None:
            timeout = min(timeout, max(0.0, deadline - clock()))
        # Like a real loop, call all callbacks of a batch, even if an earlier one has closed the descriptor of a later.
        for callback in [self._callbacks[fd] for fd, _ in self._poll.poll(timeout * 1000 + 1)]:
            callback()
        predecessor.handle_timeout(clock())

    @property
    def watched(self) -> set[int]:
        return set(self._callbacks)


class Host:
    """A server whose only resource is the right to write to a pipe; it records all calls."""

    def __init__(self, out: int, stage: Stage = lambda _: None) -> None:
        self.out = out
        self.calls: list[tuple[str, Any]] = []
        self.serves = True
        self.more_fds: tuple[NamedFd, ...] = ()
        self.answer_fds: tuple[NamedFd, ...] = ()
        self.state: dict[str, Any] = {"watchdog_secs": 10.0}
        self.commit: dict[str, Any] = {"journal_bytes": 4096}
        self.refuses = ""
        self.asked_to_freeze = 0
        self.answers_not_yet = 0  # how often `may_freeze` says no, before it says yes
        self._stage = stage

    @property
    def called(self) -> list[str]:
        return [what for what, _ in self.calls]

    def offer(self, hello: Hello) -> Offer:
        self.calls.append(("offer", hello))
        self._stage("offer")
        if self.refuses:
            raise TakeoverError(Phase.OFFERING, self.refuses)
        return Offer(7, (NamedFd("out", self.out, "pipe", {"framing": "none"}), *self.more_fds), self.state)

    def offer_withdrawn(self, reason: str) -> None:
        self.calls.append(("offer_withdrawn", reason))

    def may_freeze(self, report: dict[str, Any]) -> bool:
        assert self.serves
        self.asked_to_freeze += 1
        return self.asked_to_freeze > self.answers_not_yet

    def freeze(self, report: dict[str, Any]) -> dict[str, Any]:
        assert self.serves
        self.serves = False
        self.calls.append(("freeze", report))
        self._stage("freeze")
        return self.commit

    def thaw(self, reason: str) -> None:
        assert not self.serves
        self.serves = True
        self.calls.append(("thaw", reason))

    def finish(self, taken: dict[str, Any]) -> None:
        self.calls.append(("finish", taken))

    def answer(self, query: str) -> Answer:
        if query == "big":
            return Answer(b"big " * (5 << 18))
        if query == "fds":
            return Answer(b"with descriptors", self.answer_fds)
        if query != "status":
            raise LookupError(f"unknown query {query!r}")
        return Answer(json.dumps({"serves": self.serves}).encode())


def stopper(stop_at: str, how: str) -> Stage:
    def stage(name: str) -> None:
        if name != stop_at:
            return
        print(f"{how} at {name}", flush=True)
        match how:
            case "crash":
                os.kill(os.getpid(), signal.SIGKILL)
            case "hang":
                os.kill(os.getpid(), signal.SIGSTOP)
            case "fail":
                raise RuntimeError(f"failed at {name}")

    return stage


def succeed(path: Path, stage: Stage, timeouts: Timeouts) -> None:
    with Successor(path, release="new", snapshot_versions=[1], clock=clock, timeouts=timeouts) as successor:
        try:
            offer = successor.connect()
            if offer is None:
                print("no listener", flush=True)
                return
            print(f"offer of generation {offer.generation} by {offer.pid}", flush=True)
            stage("restoring")
            successor.check()
            commit = successor.ready({"sessions": 3})
            print(f"owns {'by death' if commit.predecessor_died else json.dumps(commit.info)}", flush=True)
            stage("owning")
            listener = Listener(path)
            stage("listening")
            os.write(offer.find("out").fd, b"S")
            successor.taken({"blackout_ms": 1.5})
            stage("taken")
            select.select([successor.predecessor_fd], [], [], 10)
            assert successor.has_predecessor_ended()
            print("alone", flush=True)
            listener.close()
        except TakeoverError as error:
            print(f"no: {error}", flush=True)
            sys.exit(1)
        except RuntimeError as error:
            successor.failed(str(error))
            print(f"gave up: {error}", flush=True)
            sys.exit(1)


def serve(path: Path, stage: Stage, timeouts: Timeouts) -> None:
    loop = Loop()
    host = Host(sys.stdout.fileno(), stage)
    listener = Listener(path)
    predecessor = Predecessor(
        listener,
        host,
        release="old",
        register=loop.register,
        unregister=loop.unregister,
        clock=clock,
        timeouts=timeouts,
    )
    print("serving", flush=True)
    told = 0
    while "finish" not in host.called:
        loop.run_once(predecessor)
        for what, detail in host.calls[told:]:
            print(f"{what} {detail}", flush=True)
        told = len(host.calls)
        if predecessor.state == "committed":
            stage("committed")
    predecessor.close()


def ask(path: Path, name: str) -> None:
    try:
        answer = query(path, name)
    except TakeoverError as error:
        print(error)
    else:
        print("no listener" if answer is None else f"{len(answer)} {answer[:40]!r}")


def main() -> None:
    role, path, stop_at, how, timeouts = sys.argv[1:]
    if role == "asker":
        ask(Path(path), stop_at)
    else:
        run = {"successor": succeed, "predecessor": serve}[role]
        run(Path(path), stopper(stop_at, how), Timeouts(**json.loads(timeouts)))


class Peer:
    """One process of this module."""

    def __init__(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "tests.support.takeover_peer", *arguments]
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        self.pid = self.process.pid

    def wait_for(self, word: str) -> str:
        assert self.process.stdout is not None
        said = []
        for line in self.process.stdout:
            said.append(line)
            if word in line:
                return line
        raise AssertionError(f"{word!r} was not printed: {said}")

    def has_ended(self) -> bool:
        return self.process.poll() is not None

    def wake(self) -> None:
        """Wait until the process has stopped itself, and continue it."""
        os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WNOWAIT)
        os.kill(self.pid, signal.SIGCONT)

    def wait(self) -> int:
        return self.process.wait(WAIT_SECS)

    def end(self) -> None:
        if not self.has_ended():
            self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


class Stand:
    """The test's own process as predecessor, and the processes that it starts."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.loop = Loop()
        self.reading, writing = os.pipe()
        self.host = Host(writing)
        self.predecessor: Predecessor | None = None
        self.peers: list[Peer] = []

    def serve(self, timeouts: Timeouts = NORMAL, *, held: bool = False) -> Predecessor:
        self.predecessor = Predecessor(
            Listener(self.path),
            self.host,
            release="old",
            register=self.loop.register,
            unregister=self.loop.unregister,
            clock=clock,
            timeouts=timeouts,
            held=held,
        )
        return self.predecessor

    def start(self, role: str, stop_at: str = "", how: str = "", timeouts: Timeouts = NORMAL) -> Peer:
        self.peers.append(Peer(role, str(self.path), stop_at, how, json.dumps(timeouts._asdict())))
        return self.peers[-1]

    def ask(self, name: str) -> Peer:
        self.peers.append(Peer("asker", str(self.path), name, "", "{}"))
        return self.peers[-1]

    def run_until(self, condition: Callable[[], bool]) -> None:
        assert self.predecessor is not None
        end = clock() + WAIT_SECS
        while not condition():
            assert clock() < end, f"{self.predecessor.state}: {self.host.calls}"
            self.loop.run_once(self.predecessor, timeout=0.05)

    def wait_for(self, what: str) -> object:
        self.run_until(lambda: what in self.host.called)
        return dict(self.host.calls)[what]

    def converse(self, message: Message) -> tuple[Channel, Message | None]:
        """Send one message from this process and wait for the answer."""
        channel = connect(self.path, 1.0)
        assert channel is not None
        channel.send(message)
        answers: list[Message | None] = []

        def answered() -> bool:
            batch = channel.receive_all()
            for each in batch.received:
                close_fds(each.fds)
                answers.append(each.message)
            return bool(answers) or batch.closed

        self.run_until(answered)
        return channel, answers[0] if answers else None

    def close(self) -> None:
        for peer in self.peers:
            peer.end()
        if self.predecessor is not None:
            self.predecessor.close()
        os.close(self.reading)
        os.close(self.host.out)
        assert self.loop.watched == set()


if __name__ == "__main__":
    main()
