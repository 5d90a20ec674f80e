"""Every fuzz target over its seeds and its stored inputs, without the fuzzer: `tests/fuzz`, `make fuzz`.

An input that found a fault is stored as tests/fuzz/inputs/TARGET/WHAT.bin, and fails here without the mend.
"""

import gc
from pathlib import Path

import pytest

from tests.fuzz import HERE, TARGETS, Target, load, stored_inputs
from tests.fuzz.script import Script

each_target = pytest.mark.parametrize("name", TARGETS)
STORED = [pytest.param(name, path, id=f"{name}/{path.stem}") for name in TARGETS for path in stored_inputs(name)]


def run_seeds(target: Target) -> int:
    """Run a target over its seeds; return their number."""
    seeds = list(target.seeds())
    for seed in seeds:
        target.run(seed)
    return len(seeds)


@each_target
def test_a_target_finds_nothing_in_its_seeds(name: str) -> None:
    assert run_seeds(load(name)) > 0


@pytest.mark.parametrize(("name", "path"), STORED)
def test_a_stored_input_finds_nothing(name: str, path: Path) -> None:
    load(name).run(path.read_bytes())


def test_every_stored_input_belongs_to_a_target() -> None:
    folders = {path.name for path in (HERE / "inputs").iterdir()}
    assert folders <= {*TARGETS}
    assert all(path.suffix == ".bin" for folder in folders for path in (HERE / "inputs" / folder).iterdir())


def test_every_target_is_listed() -> None:
    modules = {path.stem for path in HERE.glob("*.py")} - {"__init__", "__main__", "script"}
    assert modules == {*TARGETS}


def test_a_script_answers_zero_when_it_is_exhausted() -> None:
    script = Script(b"\x05\x01")
    assert (script.number(9), script.flag(), bool(script)) == (5, True, False)
    assert (script.number(9, 3), script.flag(), script.take(4), script.text(9)) == (3, False, b"", "")


# --- Planted faults: a target whose checks were lost, or whose seeds no longer reach them, fails here ---


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    ("name", "owner", "attribute"),
    [
        ("datagrams", "oxidize.protocol.device.Device", "_receive_handshake"),
        ("takeover", "oxidize.takeover.predecessor.Predecessor", "_freeze"),
        ("takeover", "oxidize.takeover.successor.Successor", "_collect"),
        ("state", "oxidize.state.session_state.SessionState", "takeovers"),
        ("http", "oxidize.net.http_connection.Connection", "_encode"),
        ("configuration", "oxidize.config.checks", "check_peers"),
        ("wg_quick", "oxidize.provision.hooks", "_rules_of"),
        ("peer_tables", "oxidize.provision.peer_tables", "_peer_blocks"),
    ],
)
def test_a_target_reports_an_exception_of_the_code_under_test(
    monkeypatch: pytest.MonkeyPatch, name: str, owner: str, attribute: str
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ValueError("planted")

    target = load(name)
    monkeypatch.setattr(f"{owner}.{attribute}", broken)
    with pytest.raises(ValueError, match="planted"):
        run_seeds(target)
    gc.collect()  # the run that was cut short leaves its sockets
