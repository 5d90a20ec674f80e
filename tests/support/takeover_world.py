"""A seeded simulation of processes that take over from one another and are killed or stopped at any point.

Both state machines run as simulated processes, which may be killed or stopped between any two actions. As in the
kernel, sent messages can be read at once and survive their sender, a connection ends a little before its process is
reported dead, and SIGKILL needs some time to end a running process.
"""

import random
from collections import deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from functools import partial

from oxidize.takeover.machine import (
    Action,
    Do,
    Event,
    Observation,
    PredecessorMachine,
    SuccessorMachine,
    SuccessorState,
)

FOREVER = 1e9
HORIZON = 600.0  # seconds after which every deadline has passed several times
STEPS_MAX = 5_000
HANGS = (0.5, 3.0, 7.0, 12.0, 40.0, 120.0, FOREVER)


@dataclass
class Wait:
    """Sleep until there is an event or the deadline has passed; without both, only yield."""

    has_work: Callable[[], bool] = lambda: True
    deadline: float | None = None


@dataclass
class Connection:
    successor: "Process"
    server: "Process"
    to_server: deque[Observation] = field(default_factory=deque)
    to_successor: deque[Observation] = field(default_factory=deque)
    closed_by_server: bool = False
    closed_by_successor: bool = False

    def is_closed_for(self, who: "Process") -> bool:
        if who is self.server:
            return self.closed_by_successor or not self.successor.runs
        return self.closed_by_server or not self.server.runs


class Process:
    def __init__(self, world: "World", name: str) -> None:
        self.world = world
        self.name = name
        self.program: Generator[Wait, None, None] | None = None
        self.wait = Wait()
        self.runs = True
        self.gone_at = FOREVER  # when its pidfd becomes readable
        self.hung_until = 0.0
        self.kill_at = FOREVER
        self.serves = False
        self.has_exited = False  # without a signal
        self.points = 0
        self.faults: dict[int, float] = {}  # point -> hang in seconds, 0 to crash
        self.connections: list[Connection] = []
        self.void_for: set[Process] = set()  # successors whose offer was forgotten

    def end(self) -> None:
        if self.runs:
            self.runs = False
            self.serves = False
            self.gone_at = self.world.now + self.world.random.choice((0.0, 0.001, 0.2))

    def is_gone(self) -> bool:
        return not self.runs and self.world.now >= self.gone_at

    def kill(self) -> None:
        self.kill_at = min(self.kill_at, self.world.now + self.world.random.choice((0.0, 0.01, 0.4)))

    def is_runnable(self) -> bool:
        if not self.runs or self.world.now < self.hung_until:
            return False
        deadline = self.wait.deadline
        return self.wait.has_work() or (deadline is not None and self.world.now >= deadline)


class World:
    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.now = 1000.0
        self.processes: list[Process] = []
        self.spawns: list[tuple[float, Process]] = []
        self.listener: Process | None = None
        self.trace: list[str] = []
        self.refuses_freeze = False
        self.lingering = 0.0  # how long a failed successor takes to end

    def spawn(self, name: str, program: Callable[[Process], Generator[Wait, None, None]], at: float = 0.0) -> Process:
        process = Process(self, name)
        process.program = program(process)
        self.spawns.append((self.now + at, process))
        return process

    def note(self, process: Process, what: str) -> None:
        self.trace.append(f"{self.now:9.3f} {process.name} {what}")

    def check(self) -> None:
        owners = [each.name for each in self.processes if each.serves]
        assert len(owners) <= 1, f"two owners: {owners}"

    def run(self) -> None:
        until = self.now + HORIZON
        for _ in range(STEPS_MAX):
            self._apply_time()
            self.check()
            runnable = [each for each in self.processes if each.is_runnable()]
            if runnable:
                self._step(self.random.choice(runnable))
                self.now += self.random.choice((0.0, 0.0001, 0.001))
            else:
                following = min(self._instants(), default=FOREVER)
                if following >= until:
                    return
                self.now = following
        raise AssertionError(f"still active after {STEPS_MAX} steps: a process spins")

    def _apply_time(self) -> None:
        for at, process in [each for each in self.spawns if each[0] <= self.now]:
            self.spawns.remove((at, process))
            self.processes.append(process)
        for process in self.processes:
            if process.runs and self.now >= process.kill_at:
                self.note(process, "is killed")
                process.end()

    def _instants(self) -> Iterator[float]:
        yield from (at for at, _ in self.spawns)
        for process in self.processes:
            if process.runs:
                waits_until = FOREVER if process.wait.deadline is None else process.wait.deadline
                yield from (each for each in (process.kill_at, waits_until, process.hung_until) if each > self.now)
            elif process.gone_at > self.now:
                yield process.gone_at

    def _step(self, process: Process) -> None:
        process.points += 1
        fault = process.faults.pop(process.points, None)
        if fault == 0:
            self.note(process, f"crashes at point {process.points}")
            process.end()
        elif fault is not None:
            self.note(process, f"hangs at point {process.points} for {fault:g} s")
            process.hung_until = self.now + fault
        else:
            assert process.program is not None
            try:
                process.wait = next(process.program)
            except StopIteration:
                self.note(process, "exits")
                process.has_exited = True
                process.end()


class Server:
    """The steps of predecessor.py, with a fault point before every action."""

    def __init__(self, me: Process) -> None:
        self.me = me
        self.machine = PredecessorMachine()
        self.current: Connection | None = None
        self.closed_seen = False
        self.has_finished = False

    def has_work(self) -> bool:
        if any(each.to_server for each in self.me.connections):
            return True
        if self.current is None:
            return False
        closed = self.current.is_closed_for(self.me)
        return (closed and not self.closed_seen) or self.current.successor.is_gone()

    def observe(self) -> tuple[Action, ...]:
        """Return the actions after what came on the connections."""
        now = self.me.world.now
        greeted: list[Action] = []
        for pending in [each for each in self.me.connections if each is not self.current and each.to_server]:
            pending.to_server.popleft()  # HELLO
            actions = self.machine.hello(now)
            if actions[0].do is Do.SEND_BUSY:
                pending.to_successor.append((Event.BUSY, "busy"))
                pending.closed_by_server = True
                self.me.connections.remove(pending)
            else:
                self.current, self.closed_seen = pending, False
                greeted += actions
        if self.current is None or greeted:
            return tuple(greeted)
        gone = self.current.successor.is_gone()
        closed = self.closed_seen = self.current.is_closed_for(self.me)
        seen = list(self.current.to_server)
        self.current.to_server.clear()
        return self.machine.observe(seen, closed=closed, gone=gone, now=now)

    def carry_out(self, actions: tuple[Action, ...]) -> Generator[Wait, None, None]:
        me, world = self.me, self.me.world
        todo = deque(actions)
        while todo:
            yield Wait()
            action = todo.popleft()
            world.note(me, f"{action.do.name} {action.reason}")
            current = self.current
            assert current is not None
            match action.do:
                case Do.SEND_OFFER:
                    if not current.is_closed_for(me):
                        current.to_successor.append((Event.OFFER, ""))
                case Do.FREEZE:
                    me.serves = False
                    yield Wait()
                    todo += (
                        self.machine.freeze_failed("it raised", world.now)
                        if world.refuses_freeze
                        else self.machine.frozen(world.now)
                    )
                case Do.SEND_COMMIT if current.is_closed_for(me):
                    todo += self.machine.observe((), closed=True, gone=False, now=world.now)
                case Do.SEND_COMMIT:
                    current.to_successor.append((Event.COMMIT, ""))
                case Do.SEND_WITHDRAWN:
                    if not current.is_closed_for(me):
                        current.to_successor.append((Event.WITHDRAWN, action.reason))
                case Do.FORGET_OFFER:
                    me.void_for.add(current.successor)
                case Do.THAW:
                    me.serves, world.listener = True, me
                    me.void_for.add(current.successor)
                case Do.KILL_SUCCESSOR:
                    current.successor.kill()
                case Do.RELEASE:
                    current.closed_by_server = True
                    me.connections.remove(current)
                    self.current = None
                    assert not todo
                case Do.FINISH:
                    assert current.successor.kill_at == FOREVER, "hands over to a process that it has killed"
                    self.has_finished = True
                    return
                case other:
                    raise AssertionError(other)


def serve(me: Process, *, first: bool = True) -> Generator[Wait, None, None]:
    """A server from its first generation on."""
    server = Server(me)
    if first:
        me.serves, me.world.listener = True, me
    while not server.has_finished:
        yield Wait(server.has_work, server.machine.next_deadline())
        yield from server.carry_out(server.observe())


class Successor:
    """The steps of successor.py and its host, with a fault point before every action."""

    def __init__(self, me: Process) -> None:
        self.me = me
        self.machine = SuccessorMachine()
        self.connection: Connection | None = None

    @property
    def link(self) -> Connection:
        assert self.connection is not None
        return self.connection

    def has_work(self) -> bool:
        if self.connection is None:
            return False
        closed = self.link.is_closed_for(self.me) and self.machine.state is not SuccessorState.LOST
        return bool(self.link.to_successor) or closed or self.link.server.is_gone()

    def observe(self) -> tuple[Action, ...]:
        """Return the actions after what came from the predecessor."""
        gone, closed = self.link.server.is_gone(), self.link.is_closed_for(self.me)
        seen = list(self.link.to_successor)
        self.link.to_successor.clear()
        return self.machine.observe(seen, closed=closed, gone=gone, now=self.me.world.now)

    def carry_out(self, actions: tuple[Action, ...]) -> Generator[Wait, None, None]:
        todo = deque(actions)
        while todo:
            yield Wait()
            action = todo.popleft()
            self.me.world.note(self.me, f"{action.do.name} {action.reason}")
            match action.do:
                case Do.CONNECT:
                    todo += self.connect()
                case Do.SEND_HELLO:
                    self.send(Event.HELLO)
                case Do.SEND_READY:
                    self.send(Event.READY)
                case Do.SEND_FAILED:
                    self.send(Event.FAILED, action.reason)
                case Do.SEND_TAKEN:
                    self.send(Event.TAKEN)
                case Do.OWN:
                    self.me.serves = True
                case Do.INHERIT:
                    assert self.me not in self.link.server.void_for, "inherited an offer that was withdrawn"
                    self.me.serves = True
                case Do.KILL_PREDECESSOR:
                    self.link.server.kill()
                case Do.FAIL:
                    self.me.serves = False
                    self.link.closed_by_successor = True
                case Do.DONE:
                    pass
                case other:
                    raise AssertionError(other)

    def connect(self) -> tuple[Action, ...]:
        world = self.me.world
        server = world.listener
        if server is None or not server.runs:
            return self.machine.no_listener(world.now)
        self.connection = Connection(self.me, server)
        server.connections.append(self.connection)
        return self.machine.connected(world.now)

    def send(self, event: Event, reason: str = "") -> None:
        if not self.link.is_closed_for(self.me):
            self.link.to_server.append((event, reason))


def take_over(
    me: Process, *, restore_points: int = 3, fails_at: SuccessorState | None = None, hangs_up: bool = False
) -> Generator[Wait, None, None]:
    """A process that takes over, or starts without a predecessor, and then serves."""
    world, successor = me.world, Successor(me)
    machine = successor.machine
    yield from successor.carry_out(successor.connect())
    while machine.state is SuccessorState.HELLO_SENT:
        yield Wait(successor.has_work, machine.next_deadline())
        yield from successor.carry_out(successor.observe())
    if machine.state is SuccessorState.ABSENT:
        # A start without a predecessor: it cannot bind a port that another process holds.
        me.serves = not any(each.runs for each in world.processes if each is not me)
        if me.serves:
            yield from serve(me)
        return
    for _ in range(restore_points):
        if machine.state is SuccessorState.RESTORING:
            yield Wait()
    if machine.state is SuccessorState.RESTORING:
        yield from successor.carry_out(successor.observe())
    if machine.state is not SuccessorState.FAILED and fails_at is SuccessorState.RESTORING:
        yield from successor.carry_out(machine.fail("it cannot restore", world.now))
    if machine.state in {SuccessorState.RESTORING, SuccessorState.INHERITING}:
        yield from successor.carry_out(machine.restored(world.now))
    while machine.state in {SuccessorState.READY_SENT, SuccessorState.LOST}:
        yield Wait(successor.has_work, machine.next_deadline())
        yield from successor.carry_out(successor.observe())
    if machine.state is SuccessorState.OWNING and fails_at is SuccessorState.OWNING:
        yield from successor.carry_out(machine.fail("the tail cannot be read", world.now))
    if machine.state is SuccessorState.FAILED:
        end = world.now + world.lingering
        yield Wait(lambda: world.now >= end, end)
        return
    if hangs_up:  # against the protocol, while it owns
        successor.link.closed_by_successor = True
        yield Wait(lambda: False, world.now + 20.0)
    world.listener = me
    yield from successor.carry_out(machine.take(world.now))
    while machine.state is not SuccessorState.DONE:
        yield Wait(successor.link.server.is_gone, machine.next_deadline())
        yield from successor.carry_out(successor.observe())
    yield from serve(me, first=False)


def start(
    seed: int, *, fails_at: SuccessorState | None = None, hangs_up: bool = False
) -> tuple[World, Process, Process]:
    world = World(seed)
    first = world.spawn("P", serve)
    second = world.spawn("S", partial(take_over, fails_at=fails_at, hangs_up=hangs_up), at=0.1)
    return world, first, second


def run(world: World, what: str) -> None:
    try:
        world.run()
    except BaseException as error:  # the test fails with the trace of what happened before
        raise AssertionError("\n".join([what, *world.trace, f"{type(error).__name__}: {error}"])) from error


def assert_settled(world: World, what: str) -> None:
    """Check that there is exactly one owner, or that no process is left."""
    world.check()
    able = [each for each in world.processes if each.runs and each.hung_until < world.now]
    owners = [each.name for each in world.processes if each.serves]
    assert owners or not able, "\n".join([what, *world.trace, "no process serves"])
