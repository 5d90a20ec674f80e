"""What happens in a world: traffic, replacements, and faults in families that a world draws.

A deed is a function of the world. A family is a set of deeds with weights; a world draws some families, so that most
worlds have few kinds of faults and the ones that break a promise stay readable.
"""

import errno
import pathlib
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, cast

from oxidize.control import query
from oxidize.errors import OxidizeError
from oxidize.protocol.constants import REJECT_AFTER_TIME
from oxidize.takeover.machine import DEFAULT_TIMEOUTS
from tests.support.sim.clients import CROSSING_SECS, LINK_SECS
from tests.support.sim.files import MemoryFile
from tests.support.sim.kernel import Fault, Process
from tests.support.sim.manager import LOCK, SOCKET
from tests.support.sim.releases import INCOMPATIBLE, RELEASES
from tests.support.sim.rogues import ROGUES

if TYPE_CHECKING:
    from tests.support.sim.world import World

Deed = Callable[["World"], None]

STOPS_SECS = (0.001, 0.01, 0.5, 3.0, DEFAULT_TIMEOUTS.taken, 7.0, 12.0)
CALLS_AHEAD = (3, 30, 150)
LONG_SUSPEND_SECS = 10.0


def _servers(world: "World") -> list[Process]:
    return [each for each in world.manager.servers if each.alive]


def _owner(world: "World") -> Process | None:
    owner = world.model.owner
    return owner if owner is not None and owner.alive else None


def _ahead(world: "World") -> int:
    return world.random.randrange(1, world.random.choice(CALLS_AHEAD))


# --- Traffic ---


def send_some(world: "World") -> None:
    for _ in range(world.random.randint(1, 4)):
        source, destination = world.random.sample([None, *world.clients], 2)
        world.send_burst(source, destination)


def send_later(world: "World") -> None:
    """Let packets come during what follows."""
    for number in range(world.random.randint(1, 10)):
        world.kernel.at(number * world.random.choice((0.0005, 0.005, 0.1)), lambda: send_one(world))


def send_one(world: "World") -> None:
    source, destination = world.random.sample([None, *world.clients], 2)
    world.send(source, destination)


# --- Replacements ---


def reload(world: "World") -> None:
    world.manager.reload()


def start_beside(world: "World") -> None:
    world.manager.start_beside()


def wait(world: "World") -> None:
    world.kernel.run(world.random.choice((0.5, 2.0, 6.0, 16.0)))


# --- Faults ---


def crash(world: "World") -> None:
    servers = _servers(world)
    if servers:
        world.model.disturb()
        world.random.choice(servers).plan(_ahead(world), Fault("crash"))
        _lose_without_manager(world)


def crash_the_next(world: "World") -> None:
    """Let the process that starts next crash, at a call or at a store to shared memory."""
    ahead = world.random.randrange(1, 200)
    at_store = world.random.random() < 0.3

    def prepare(process: Process) -> None:
        world.prepare_more = lambda _process: None
        if at_store:
            process.dies_at_stores = True
            process.stores_left = ahead // 3
        else:
            process.plan(ahead, Fault("crash"))

    world.prepare_more = prepare
    _lose_without_manager(world)


def crash_owner_at_store(world: "World") -> None:
    owner = _owner(world)
    if owner is not None:
        owner.stores_left = world.random.randrange(12)
        _lose_without_manager(world)


def kill_owner(world: "World") -> None:
    owner = _owner(world)
    if owner is not None:
        world.kernel.kill(owner)
        _lose_without_manager(world)


def _lose_without_manager(world: "World") -> None:
    if not world.manager.is_managing:
        world.is_strict = False


def replace_with_a_fault(world: "World") -> None:
    """Begin a takeover in which something happens to either side, or to both."""
    owner = _owner(world)
    victims = world.random.choice(("predecessor", "successor", "successor", "both"))
    if owner is not None and victims != "successor":
        owner.plan(world.random.randrange(1, 45), _drawn_fault(world))
    if victims != "predecessor":
        fault, ahead = _drawn_fault(world), world.random.randrange(1, 75)

        def prepare(process: Process) -> None:
            world.prepare_more = lambda _process: None
            process.plan(ahead, fault)

        world.prepare_more = prepare
    _lose_without_manager(world)
    world.manager.reload() if world.random.random() < 0.5 else world.manager.start_beside()
    world.kernel.run(world.random.choice((0.05, 2.0)))


def die_in_the_first_batch(world: "World") -> None:
    """Replace the server by one that dies as soon as it owns, after it has read handshakes and packets."""
    _lose_without_manager(world)
    _shake_hands_at(world, "commit", lambda successor: successor.plan(world.random.randrange(14, 60), Fault("crash")))


def shake_hands_at_the_freeze(world: "World") -> None:
    """Replace the server while handshakes and packets come, in the last batch before the freeze or the first after."""
    _shake_hands_at(world, world.random.choice(("ready", "commit")))


def packets_at_the_freeze(world: "World") -> None:
    """Replace the server while one packet comes from each client, to which there is only a keepalive to answer."""

    def hold(_successor: Process) -> None:
        if world.model.owner is not None:
            world.kernel.hold(world.model.owner, 0.0002)
        for client in world.clients:
            world.kernel.at(0.0, partial(world.send, client, None))

    world.kernel.run(0.5)
    world.link_secs = LINK_SECS[0]
    world.at_step["ready"] = hold
    world.manager.reload()
    world.kernel.run(world.random.choice((0.2, 16.0)))


def _shake_hands_at(world: "World", step: str, then: Callable[[Process], object] = lambda _successor: None) -> None:
    def come() -> None:
        for client in world.clients:
            if not client.is_crossing():
                client.rekey()
            world.send(client, None)
        send_some(world)

    def hold(successor: Process) -> None:
        then(successor)
        receiver = successor if step == "commit" else world.model.owner
        if receiver is not None:
            world.kernel.hold(receiver, 0.0002)
        world.kernel.at(0.0, come)

    world.kernel.run(CROSSING_SECS)
    world.link_secs = LINK_SECS[0]
    world.at_step[step] = hold
    world.manager.reload()
    world.kernel.run(0.2)


def _drawn_fault(world: "World") -> Fault:
    if "crashes" in world.families and ("stops" not in world.families or world.random.random() < 0.6):
        return Fault("crash")
    return Fault("stop", secs=world.random.choice(STOPS_SECS))


def kill_coordinator(world: "World") -> None:
    for each in world.kernel.living[:]:
        if each not in world.manager.servers:
            each.plan(_ahead(world) // 3 + 1, Fault("crash"))


def stop(world: "World") -> None:
    servers = _servers(world)
    if servers:
        world.model.disturb()
        secs = world.random.choice(STOPS_SECS)
        world.random.choice(servers).plan(_ahead(world), Fault("stop", secs=secs))


def stop_the_next(world: "World") -> None:
    secs, ahead = world.random.choice(STOPS_SECS), world.random.randrange(1, 200)

    def prepare(process: Process) -> None:
        world.prepare_more = lambda _process: None
        process.plan(ahead, Fault("stop", secs=secs))

    world.prepare_more = prepare


def hang_until_the_deadline(world: "World") -> None:
    """Replace the server by one that hangs after COMMIT until its TAKEN crosses the SIGKILL."""

    def hang(successor: Process) -> None:
        secs = DEFAULT_TIMEOUTS.taken + world.random.choice((-0.0005, 0.0, 0.0))
        successor.plan(world.random.randrange(1, 45), Fault("stop", secs=secs))

    if "configuration" in world.families:
        configure_otherwise(world)
    world.at_step["commit"] = hang
    # A service manager takes the end of one that a coordinator has started for the end of the service.
    world.random.choice((world.manager.reload, world.manager.start_beside))()
    world.kernel.run(6.0)
    for client in world.clients:
        world.send(client, None)
    world.kernel.run(0.1)


def hang_past_a_deadline(world: "World") -> None:
    """Replace the server by one that hangs, after OFFER or after COMMIT, for longer than the server waits for it."""
    step, secs = world.random.choice((("offer", DEFAULT_TIMEOUTS.restore), ("commit", DEFAULT_TIMEOUTS.taken)))
    late_secs = world.random.choice((0.0002, 0.5))
    world.at_step[step] = lambda successor: world.kernel.hold(successor, secs + late_secs)
    world.random.choice((world.manager.reload, world.manager.start_beside))()
    world.kernel.run(1.0)
    world.model.excuse_all()
    world.kernel.run(secs)


def suspend(world: "World") -> None:
    """Stop everything at once: the clock of deadlines runs on."""
    world.model.disturb()
    secs = world.random.choice((1.0, 8.0, 35.0))
    if secs > LONG_SUSPEND_SECS:
        world.model.excuse_all()  # staged packets are dropped in time
    world.kernel.now += secs


def restart(world: "World") -> None:
    """Tell the main process to end; the manager starts the next one."""
    owner = world.manager.main
    if owner is not None and owner.alive:
        world.kernel.signal(owner, 15)


def end_during_a_takeover(world: "World") -> None:
    """Tell the main process to end while it has a successor, which sleeps just then or cannot be told."""

    def end(successor: Process) -> None:
        main, secs = world.manager.main, world.random.choice((0.001, 0.1))
        if main is None or not main.alive:
            return
        successor.plan(_ahead(world), Fault("stop", secs=secs, only=frozenset({"poll"})))
        if world.random.random() < 0.5:
            main.plan(1, Fault("error", number=errno.ENOBUFS, only=frozenset({"sendmsg"})))
            world.is_strict = False
        world.kernel.at(world.random.random() * world.random.choice((0.001, 0.03)), partial(restart, world))

    world.at_step[world.random.choice(("offer", "ready"))] = end
    world.manager.reload() if world.random.random() < 0.5 else world.manager.start_beside()
    world.kernel.run(world.random.choice((0.2, 2.0)))


def stop_the_unit(world: "World") -> None:
    """Stop the service, which drains, and start it again."""
    if not world.manager.is_managing:
        return
    world.manager.stop()
    send_some(world)
    world.kernel.run(world.random.choice((0.5, 8.0)))
    world.model.excuse_all()
    world.manager.start_again()
    world.kernel.run(2.0)
    world.model.excuse_all()


def drain(world: "World") -> None:
    """Drain the server by a query, for a while."""
    world.is_strict = False  # a session may end by its age meanwhile

    if world.is_asking:
        return  # the server may answer two queries in another order
    _ask(world, query.DRAIN)
    world.kernel.at(world.random.choice((0.3, 4.0, 10.0)), partial(accept, world))


def accept(world: "World") -> None:
    world.model.is_draining = False
    _ask(world, query.ACCEPT)


def _ask(world: "World", name: str) -> None:
    world.asked += 1
    number = world.asked
    world.is_asking = True

    def ask() -> None:
        try:
            query.fetch(cast("pathlib.Path", SOCKET), name)
        except (OSError, OxidizeError):
            return
        world.kernel.count("drains")
        world.is_asking = name == query.DRAIN
        if world.asked == number:  # one that was asked later may be answered before
            world.model.is_draining = name == query.DRAIN

    world.kernel.spawn(name, ask)


def start_twice(world: "World") -> None:
    if world.manager.is_managing:
        world.manager.start_twice()


def rogue(world: "World") -> None:
    name = world.random.choice(sorted(ROGUES))
    world.kernel.note(f"rogue: {name}")
    world.kernel.count("peers that break the protocol")
    world.kernel.spawn("rogue", lambda: ROGUES[name](world))
    _lose_without_manager(world)  # one that is committed to, and says TAKEN, is believed


def remove_path(world: "World") -> None:
    """Remove the name of the takeover socket, of its lock, or both, as a cleaner of temporary files does."""
    for path in world.random.choice(((SOCKET,), (LOCK,), (SOCKET, LOCK))):
        world.kernel.paths.pop(str(path), None)


def fill_folder(world: "World") -> None:
    """Let there be no room for a new file beside the takeover socket for a while, as in a full /run."""
    world.kernel.is_folder_full, world.is_strict = True, False  # a takeover fails after the freeze
    world.kernel.at(world.random.choice((0.1, 3.0, 15.0)), partial(setattr, world.kernel, "is_folder_full", False))


# --- Resources ---

_MEMORY_CALLS = frozenset({"pwrite", "mmap", "memfd_create", "epoll_ctl", "fallocate", "socket", "accept"})


def error(world: "World") -> None:
    servers = _servers(world)
    if servers:
        number = world.random.choice((errno.ENOMEM, errno.ENOSPC))
        # fcntl(2): a lock finds no memory, but never no space.
        only = _MEMORY_CALLS | {"lockf"} if number == errno.ENOMEM else _MEMORY_CALLS
        world.random.choice(servers).plan(_ahead(world), Fault("error", number=number, only=only))
        world.is_strict = False


def exhaust_descriptors(world: "World") -> None:
    servers = _servers(world)
    if servers:
        process = world.random.choice(servers)
        process.fds_max = len(process.fds) + world.random.randrange(3)
        world.kernel.at(world.random.choice((0.1, 3.0)), partial(setattr, process, "fds_max", 1024))


def exhaust_memory(world: "World") -> None:
    """Let the journal find no memory beyond its end for a while."""
    for file in world.kernel.memory_files:
        if isinstance(file, MemoryFile) and file.is_journal and file.refs > 0:
            file.limit = 0
            world.kernel.at(world.random.choice((0.05, 2.0)), partial(setattr, file, "limit", 1 << 62))
    world.is_strict = False


# --- The network ---


def rekey(world: "World") -> None:
    calm = [client for client in world.clients if not client.is_crossing()]
    client = world.random.choice(calm or world.clients)
    client.rekey()
    world.send(client, None)


def roam(world: "World") -> None:
    client = world.random.choice(world.clients)
    client.roam()
    world.send(client, None)


def worsen_the_link(world: "World") -> None:
    world.loss, world.repeats, world.jitter = world.random.choice(
        ((0.2, 0.0, 0.0), (0.0, 0.3, 0.0), (0.0, 0.1, 0.01), (0.1, 0.1, 0.05), (0.0, 0.0, 0.0))
    )
    if world.loss:
        world.is_strict = False


def let_sessions_age(world: "World") -> None:
    world.kernel.run(1.0)
    world.model.excuse_all()
    secs = world.random.choice((60.0, 125.0, 190.0, 190.0))
    world.kernel.run(secs)
    if secs > REJECT_AFTER_TIME:
        world.link_secs = LINK_SECS[-1]  # a handshake takes longer than a takeover, so packets wait for it
    send_one(world)
    if world.random.random() < 0.5:
        world.at_step["ready"] = lambda _successor: world.kernel.at(0.0, partial(send_to_all, world))
        world.manager.reload()


def send_to_all(world: "World") -> None:
    for client in world.clients:
        world.send(None, client)


def step_the_clock(world: "World") -> None:
    world.kernel.unix_offset += world.random.choice((-3600.0, -1.0, 1.0, 86_400.0))
    world.is_strict = False  # a handshake that looks old is refused until the clock has passed the last one


# --- Configurations and releases ---


def configure_otherwise(world: "World") -> None:
    world.configured = [client for client in world.clients if client.is_core or world.random.random() < 0.5]
    world.mtu = world.random.choice((1280, 1420))


def release_another(world: "World") -> None:
    """Let the processes that start from now on be of another release, which the state then requires if it says so."""
    if world.release != INCOMPATIBLE:
        world.release = dict(world.random.choice(RELEASES))


CALM: dict[Deed, float] = {send_some: 5, send_later: 5, reload: 1.2, start_beside: 0.6, wait: 1}

FAMILIES: dict[str, dict[Deed, float]] = {
    "crashes": {
        replace_with_a_fault: 3,
        crash: 0.7,
        crash_the_next: 0.7,
        crash_owner_at_store: 0.7,
        kill_owner: 0.5,
        kill_coordinator: 0.5,
    },
    "hangs": {hang_until_the_deadline: 1.0, hang_past_a_deadline: 0.7},
    "first batches": {die_in_the_first_batch: 1.0},
    "stops": {replace_with_a_fault: 3, stop: 0.7, stop_the_next: 0.7, suspend: 0.3},
    "managers": {restart: 0.5, start_twice: 0.7, remove_path: 0.5, fill_folder: 0.5},
    "last words": {end_during_a_takeover: 1.0},
    "ends": {stop_the_unit: 0.5, drain: 0.7},
    "rogues": {rogue: 2.0},
    "resources": {error: 0.6, exhaust_descriptors: 0.6, exhaust_memory: 0.5},
    "sessions": {
        roam: 1.0,
        rekey: 1.0,
        let_sessions_age: 0.5,
        shake_hands_at_the_freeze: 0.7,
        packets_at_the_freeze: 0.7,
    },
    "link": {worsen_the_link: 1.0, step_the_clock: 0.3, roam: 1.0, rekey: 1.0},
    "configuration": {configure_otherwise: 1.5, release_another: 0.7},
}


CALM_DEEDS = frozenset(
    {*CALM, roam, rekey, let_sessions_age, shake_hands_at_the_freeze, packets_at_the_freeze, configure_otherwise}
)
COMERS: tuple[list[Deed], list[float]] = ([send_one, send_some, rekey, roam], [4, 1, 2, 1])


def do_deeds(world: "World") -> None:
    """Do the deeds of a world."""
    weights = dict(CALM)
    for family in world.families:
        weights |= FAMILIES[family]
    deeds = list(weights)
    for _ in range(world.deeds):
        world.do(world.random.choices(deeds, list(weights.values()))[0])
