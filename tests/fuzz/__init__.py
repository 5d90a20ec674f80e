"""Fuzzing: harnesses that take any bytes, their seeds, and inputs that found something once.

A target is a module with `run(data)`, which raises for a fault and for nothing else, and `seeds()`. `python -m
tests.fuzz` (`make fuzz`) drives them with atheris, which needs no part in a replay: tests/properties/
test_fuzz_targets.py runs every harness over its seeds and stored inputs.
"""

from collections.abc import Callable, Iterable
from importlib import import_module
from pathlib import Path
from typing import Protocol, cast

HERE = Path(__file__).parent

# The targets, and the packages, in addition to oxidize, whose coverage guides the search.
TARGETS = {
    "datagrams": (),
    "takeover": (),
    "state": (),
    "http": ("h11",),
    "configuration": (),
    "wg_quick": (),
    "peer_tables": (),
}


class Target(Protocol):
    """A module of this package that is a target."""

    run: Callable[[bytes], None]
    seeds: Callable[[], Iterable[bytes]]


def load(name: str) -> Target:
    """Return the target of that name, a key of TARGETS."""
    return cast(Target, import_module(f"tests.fuzz.{name}"))


def stored_inputs(name: str) -> list[Path]:
    """Return the inputs that are kept for a target."""
    return sorted((HERE / "inputs" / name).glob("*.bin"))
