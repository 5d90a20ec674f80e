"""SECURITY.md names every limit of what others can cause, with the value that the source has."""

import ast
import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "SECURITY.md"
UNITS = {"": 1, "s": 1, "ms": 0.001, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
ROW = re.compile(r"^\| `oxidize/([\w/]+)\.py:(\w+)` \| ([\d,.]+)(?: (\w+))? \| [^|]+ \| [^|]+ \|$", re.MULTILINE)

# Where text, bytes, packets or connections of others arrive.
PARTS = ("config", "control", "net", "protocol", "runtime", "state", "takeover")
LIMIT = re.compile(r"[A-Z][A-Z_]*_(MAX|PER_SECOND|BURST)")
# Modules whose numbers are the operator's values, the client's own choices, or a format of the kernel or of WireGuard.
OTHER_MODULES = frozenset(
    {"config/path_keys", "config/schema", "config/values", "protocol/link_policy", "protocol/timers"}
)
OTHER = frozenset(
    {
        ("config/report", "INT_BITS_SHOWN_MAX"),
        ("control/decode", "INTEGER_MAX"),
        ("net/network_watch", "DELAY_SECS_MAX"),
        ("net/network_watch", "MESSAGES_MAX"),
        ("net/resolve", "PORT_MAX"),
        ("net/resolver", "LOOKUP_PAUSE_SECS_MAX"),
        ("net/tun", "INTERFACE_NAME_MAX"),
        ("net/udp", "PORT_MAX"),
        ("net/udp_cmsg", "SEGMENTED_BYTES_MAX"),
        ("net/udp_cmsg", "SEGMENTS_MAX"),
        ("protocol/constants", "INNER_MTU_MAX"),
        ("protocol/constants", "REKEY_TIMEOUT_JITTER_MAX"),
        ("protocol/fair_share", "TURN_SECS_MAX"),
        ("protocol/handshaker", "ROUND_TRIP_SECS_MAX"),
        ("protocol/index_table", "DRAWS_MAX"),
        ("protocol/index_table", "INDEX_MAX"),
        ("protocol/super_packets", "PACKET_BYTES_MAX"),
        ("protocol/noise", "UNIX_SECONDS_MAX"),
        ("runtime/crash_loop", "DELAY_MAX_SECS"),
        ("state/journal", "FILE_BYTES_MAX"),
        ("state/journal", "LIVE_FRACTION_MAX"),
        ("state/session_state", "CLOCK_AHEAD_SECS_MAX"),
        ("takeover/channel", "FDS_PER_MESSAGE_MAX"),
        ("takeover/listener", "PATH_BYTES_MAX"),
        ("takeover/messages", "CONNECT_ATTEMPTS_MAX"),
    }
)


def number(shown: str, unit: str) -> float:
    return float(shown.replace(",", "")) * UNITS[unit]


def rows() -> dict[tuple[str, str], float]:
    """Return the values on the page by module and name."""
    return {(module, name): number(shown, unit) for module, name, shown, unit in ROW.findall(PAGE.read_text())}


@pytest.mark.parametrize(("module", "name"), list(rows()), ids=lambda part: part)
def test_a_limit_on_the_page_has_the_value_of_the_source(module: str, name: str) -> None:
    found = getattr(importlib.import_module(f"oxidize.{module.replace('/', '.')}"), name)
    assert rows()[module, name] == found


def test_no_row_of_the_table_is_overlooked() -> None:
    assert len(rows()) == PAGE.read_text().count("\n| `oxidize/") >= 30


def limits() -> set[tuple[str, str]]:
    """Return the limits that modules of PARTS define."""
    found = set()
    for path in (path for part in PARTS for path in (ROOT / "oxidize" / part).rglob("*.py")):
        for node in ast.parse(path.read_text()).body:
            names = [target.id for target in getattr(node, "targets", []) if isinstance(target, ast.Name)]
            module = str(path.relative_to(ROOT / "oxidize").with_suffix(""))
            found |= {(module, name) for name in names if LIMIT.fullmatch(name)}
    return found


def test_every_limit_of_the_source_is_on_the_page_or_limits_nothing_of_others() -> None:
    missing = {each for each in limits() - set(rows()) - OTHER if each[0] not in OTHER_MODULES}
    assert sorted(f"oxidize/{module}.py:{name}" for module, name in missing) == []


def test_the_lines_of_the_units_on_the_page_are_those_of_the_units() -> None:
    unit = (ROOT / "systemd/oxidize-daemon.service").read_text()
    socket = (ROOT / "systemd/oxidize.socket").read_text()
    assert "ReceiveBuffer=32M\n" in socket
    assert {"MemorySwapMax=0", "LimitCORE=0", "NoNewPrivileges=yes", "User=oxidize"} <= set(unit.splitlines())
    client = (ROOT / "systemd/oxidize-client.service").read_text()
    assert "\nUser=oxidize-client\n" in client
