"""Bugs that the simulation has to find: each is a change of one function of the product.

The rule: a plant that no longer applies is an error, so that the table follows the code. `within` is the number of
worlds after which it must have been found; `families` and `kind` draw worlds in which it can show.
"""

import contextlib
import importlib
import inspect
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tests.support.sim.kernel import Violation
from tests.support.sim.world import Plan, World


@dataclass(frozen=True)
class Plant:
    """A bug: in `function` of `module` the text `old` becomes `new`, or each of the texts does."""

    module: str
    function: str
    changes: tuple[tuple[str, str], ...]
    within: int = 500
    families: tuple[str, ...] | None = None
    kind: str = ""


def _plant(module: str, function: str, old: str, new: str, **options: Any) -> Plant:
    return Plant(f"oxidize.{module}", function, ((old, new),), **options)


PLANTED: dict[str, Plant] = {
    "a frozen predecessor keeps its timers": _plant(
        "runtime.node", "Node.give_up_ownership", "(*self._timed, self._drain)", "(*self._timed[1:], self._drain)"
    ),
    "the offer names the predecessor's own generation": _plant(
        "runtime.handover", "Handover.offer", "Offer(node.session_state.generation", "Offer(node.generation",
        families=("crashes",),
    ),
    "the tail that came with COMMIT is not applied": _plant(
        "runtime.succession", "Succession._own", "node.device.restore(state.sync(), boot_time())", "state.sync()",
        families=("sessions",),
    ),
    "the predecessor's counters are not looked at after owning": _plant(
        "runtime.succession", "Succession._announce", "for _ in node.device.prepare_in_slices():", "for _ in ():",
        families=("sessions",), within=1_000,
    ),
    "compaction drops the last key of each step": _plant(
        "state.journal", "Journal._copy", "        try:\n            chunks",
        "        if self._pending and copied:\n            del places[-1], copied[-1]\n"
        "        try:\n            chunks",
        families=("crashes",), within=1_000,
    ),
    "socket options are set before COMMIT": _plant(
        "runtime.succession", "Succession._restore", "nat = adopt_nat(",
        "udp.take_ownership()\n        nat = adopt_nat(",
    ),
    "the successor reads before COMMIT": _plant(
        "runtime.succession", "Succession.run", "            commit = self.successor.ready(",
        "            node.udp.receive()\n            commit = self.successor.ready(",
    ),
    "what the replay window refused is delivered": _plant(
        "protocol.keypair", "Keypair._mark",
        "if mark(words, slot, counter):", "if mark(words, slot, counter) or True:", families=("link",),
    ),
    "the send counter moves after sealing": Plant(
        "oxidize.protocol.keypair", "Keypair.seal",
        (("        self._words[word] = first + len(packets)\n", ""),
         ("        return messages", "        self._words[word] = first + len(packets)\n        return messages")),
        families=("crashes",), within=2_000,
    ),
    "the writer's lock is not taken": _plant(
        "state.journal", "Journal.become_writer", "writer_lock.take(self.fd)", "pass",
        families=("crashes", "stops", "managers"), kind="holder", within=2_000,
    ),
    "staged packets stay in the records": _plant(
        "protocol.staging", "Staging.retire", "self._table.record(PeerStaged(peer.public_key, ()))", "pass",
        families=("crashes", "sessions"), within=2_000,
    ),
    "the journal's end is stored before the bytes": _plant(
        "state.journal", "Journal.append",
        "        self._write(region.end, data)\n        self._store(END + region.number, end)",
        "        self._store(END + region.number, end)\n        self._write(region.end, data)",
        families=("crashes",), within=1_000,
    ),
    "a released slot is zeroed at once": _plant(
        "state.arena", "Arena.release", "self._used[slot // SLOT_WORDS] = 0",
        "self._used[slot // SLOT_WORDS] = 0\n            self.counters[slot : slot + SLOT_WORDS] = _ZERO_SLOT",
        families=("crashes", "sessions"), within=2_000,
    ),
    "HELLO is not held while the predecessor lives": _plant(
        "runtime.succession", "Succession._take", "held=True", "held=False", families=("stops",), within=2_000,
    ),
    "the predecessor reads on after COMMIT": _plant(
        "runtime.node", "Node.give_up_ownership", "self._loop.pause(self.udp.fileno())", "pass"
    ),
    "a thaw does not read what the successor recorded": _plant(
        "runtime.handover", "Handover.thaw", "node.device.restore(changes, boot_time())", "pass",
        families=("first batches",), within=500,
    ),
    "a freeze records nothing": _plant("runtime.node", "Node.give_up_ownership", "self.device.freeze()", "pass",
        families=("sessions",), within=1_000,
    ),
    "unknown peers are forgotten at TAKEN": _plant(
        "runtime.succession", "Succession._take", "        return handover",
        "        list(node.device.forget_unknown_peers())\n        return handover",
        families=("hangs", "configuration"), kind="none", within=1_000,
    ),
    "a successor reads before it asks whether the predecessor is dead": _plant(
        "takeover.successor", "Successor._observe",
        "        gone = channel.peer.is_dead()  # before the channel is emptied: "
        "what is read is then all that it ever sent\n        batch = channel.receive_all()\n",
        "        batch = channel.receive_all()\n        gone = channel.peer.is_dead()\n",
        families=("last words",), within=500,
    ),
    "a successor that cannot be told WITHDRAWN lives": _plant(
        "takeover.predecessor", "Predecessor._send_withdrawn",
        "            self._successor.peer.kill()", "            pass",
        families=("last words",), within=500,
    ),
    "segments are joined over a gap": _plant(
        "protocol.super_packets", "_Headers._runs",
        "sequences[row] == (sequences[row - 1] + payload) % (1 << 32)", "sequences[row] != sequences[row - 1]",
        families=("link",),
    ),
    "the last segment's push is lost": _plant(
        "protocol.super_packets", "_Headers.joined", "self._flags[end - 1]", "self._flags[start]",
    ),
    "a super-packet has the payloads of the first rows": _plant(
        "protocol.super_packets", "_Headers.joined", "[self._first + start : self._first + end]", "[: end - start]",
    ),
    "the shorter last segment is written before its run": _plant(
        "protocol.inner_packets", "InnerPackets._unwrap_runs", "frames += [rows.frame(", "frames[:0] = [rows.frame(",
    ),
    "SIGKILL is not sent": _plant(
        "takeover.predecessor", "Predecessor._carry_out", "self._successor.peer.kill()", "True", families=("rogues",),
    ),
}  # fmt: skip


@contextlib.contextmanager
def planted(plant: Plant) -> Iterator[None]:
    """Change the function for the time of the context."""
    module = importlib.import_module(plant.module)
    class_name, _, name = plant.function.partition(".")
    owner = getattr(module, class_name)
    real = getattr(owner, name)
    source = inspect.getsource(real)
    for old, new in plant.changes:
        if old not in source:
            raise LookupError(f"{plant.module}.{plant.function} has no {old!r}: adapt the plant")
        source = source.replace(old, new, 1)
    names: dict[str, Any] = {}
    exec(
        compile(textwrap.dedent(source), f"<planted in {plant.function}>", "exec"),
        vars(sys.modules[plant.module]),
        names,
    )
    setattr(owner, name, names[name])
    try:
        yield
    finally:
        setattr(owner, name, real)


def worlds_until_found(plant: Plant, first_seed: int = 0) -> tuple[int, str] | None:
    """Return after how many worlds a planted bug is found, and what was said; None where it is not."""
    plan = Plan(families=plant.families, kind=plant.kind)
    with planted(plant):
        for number in range(plant.within):
            try:
                World(first_seed + number, plan).live()
            except Violation as broken:
                return number + 1, str(broken)
    return None
