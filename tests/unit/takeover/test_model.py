"""The model of the takeover against the code: its states, its messages, and a small search with spin."""

import re

import pytest

from oxidize.takeover.machine import PredecessorState, SuccessorState
from oxidize.takeover.messages import _TYPES
from tests.support.model_checker import MODEL, PLANTS, SCENARIOS, check

TEXT = MODEL.read_text()
README = (MODEL.parent / "README.md").read_text()

# States of the machines under another name in the model, which has both sides of a process in one variable.
RENAMED = {"S_RESTORING": "RESTORING", "S_FAILED": "FAILED", "OWN_SYNC": "OWNING"}
# Steps of the host within one state of a machine, and starts without a predecessor.
STEPS = {
    "IDLE",
    "PREPARED",
    "SEND_OFFER",
    "SEND_WITHDRAWN",
    "FORGET_OFFER",
    "FROZEN",
    "SEND_COMMIT",
    "SEND_KILL",
    "RELEASE",
}
STEPS |= {
    "OWN_LOCK",
    "OWN_BEGIN",
    "OWN_SERVE",
    "OWN_BIND",
    "OWN_TAKE",
    "THAW_SYNC",
    "THAW_LOCK",
    "THAW_SERVE",
    "THAW_BIND",
}
STEPS |= {"COLD_OPEN", "COLD_LOCK", "COLD_READ", "COLD_BEGIN", "COLD_SERVE", "COLD_BIND"}
STEPS |= {"EMPTIED"}  # of a planted fault
# A start without a listener is COLD_OPEN; queries and descriptors beyond the first message are not in the model.
NOT_IN_THE_MODEL = {"ABSENT"}
MESSAGES_NOT_IN_THE_MODEL = {"more_fds", "query", "reply"}


def states_of_the_model() -> set[str]:
    part = TEXT[TEXT.index("/* --- The states of a process") : TEXT.index("byte live[")]
    return set(re.findall(r"^#define (\w+) \d+", part, re.MULTILINE))


def test_the_states_of_the_model_are_those_of_the_machines() -> None:
    machines = {state.name for state in (*PredecessorState, *SuccessorState)}
    assert {RENAMED.get(name, name) for name in states_of_the_model() - STEPS} == machines - NOT_IN_THE_MODEL


def test_the_messages_of_the_model_are_those_of_the_protocol() -> None:
    (names,) = re.findall(r"^mtype = \{ (.*) \};", TEXT, re.MULTILINE)
    assert {name.lower() for name in names.split(", ")} == set(_TYPES) - MESSAGES_NOT_IN_THE_MODEL


def test_every_planted_fault_of_the_model_is_searched_for_and_explained() -> None:
    assert set(re.findall(r"PLANT_(\w+)", TEXT)) == set(PLANTS)
    assert {name for name in PLANTS if f"`{name}`" not in README} == set()


def test_every_property_of_the_model_is_explained() -> None:
    properties = set(re.findall(r"require\((\w+),", TEXT)) - {"name"}
    assert properties == set(re.findall(r"^\| `(\w+)` \|", README, re.MULTILINE))


def test_every_scenario_uses_definitions_of_the_model() -> None:
    used = {flag.partition("=")[0] for flags in (*SCENARIOS.values(), *PLANTS.values()) for flag in flags}
    assert used <= set(re.findall(r"^#(?:ifn?def|if|elif) (\w+)", TEXT, re.MULTILINE))


@pytest.mark.needs("spin", "gcc")
def test_a_reload_in_which_a_process_fails_keeps_every_property() -> None:
    outcome = check(("COORDINATED", "FAULTS=1"))
    assert (outcome.violated, outcome.is_complete) == ("", True)
    assert outcome.states > 1_000


@pytest.mark.needs("spin", "gcc")
@pytest.mark.parametrize(
    ("plant", "violated"),
    [("THAW_WITHOUT_TAIL", "all_restored"), ("KILLS_AFTER_GO", "sockets_held")],
)
def test_a_planted_fault_is_found(plant: str, violated: str) -> None:
    assert check((f"PLANT_{plant}", *PLANTS[plant])).violated == violated
