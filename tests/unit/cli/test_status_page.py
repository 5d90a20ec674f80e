"""The page of `oxidize status`: aligned, never cut, in 80 columns where the values allow it."""

import time
from typing import Any

import pytest

from oxidize.cli.status_page import render

NOW = 1_700_000_000.0


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: NOW)
    monkeypatch.setenv("COLUMNS", "80")


def peer(name: str = "laptop", **more: object) -> dict[str, Any]:
    return {
        "name": name,
        "public_key": "XW8olhtf+8nZ7ro9Tu8rAFWVn7P5WErDVqfzY2NME2M=",
        "endpoint": "198.51.100.117:51820",
        "last_handshake_unix": NOW - 100,
        "received_bytes": 5_000_000_000,
        "sent_bytes": 12,
        **more,
    }


def takeover(**more: object) -> dict[str, Any]:
    entry = {"at_unix": NOW - 5, "result": "success", "generation": 3, "sessions": 2, "blackout_ms": 1.234}
    return {**entry, "way": "taken over", **more}


def status(**more: object) -> dict[str, Any]:
    return {
        "role": "server",
        "state": "healthy",
        "generation": 3,
        "release": "0.1.0",
        "pid": 12345,
        "uptime_secs": 3700.0,
        "listen": "[::]:51820",
        "network": "tun",
        "interface": "oxidize0",
        "public_key": "Z6F649QpsejqJkv1aEggpYMZBEijCkQ1NClLrI5dU1w=",
        "sessions": 1,
        "peers": [peer(), peer("phone", endpoint=None, last_handshake_unix=0.0)],
        "takeovers": [takeover()],
        "drops": {"malformed": 0, "unknown_index": 7},
        "totals": {"shed_datagrams": 40},
        "kernel_drops": 43,
        **more,
    }


def printed(capsys: pytest.CaptureFixture[str], **more: object) -> list[str]:
    render(status(**more))
    return capsys.readouterr().out.splitlines()


def test_the_status_page_in_full(capsys: pytest.CaptureFixture[str]) -> None:
    assert printed(capsys) == [
        "server      healthy, generation 3, release 0.1.0",
        "process     pid 12345, up 1 h 1 min",
        "listening   [::]:51820, interface oxidize0",
        "public key  Z6F649QpsejqJkv1aEggpYMZBEijCkQ1NClLrI5dU1w=",
        "sessions    1 of 2 peers",
        "dropped     7 unknown index, 40 shed, 3 kernel queue",
        "",
        "peer    endpoint              last handshake  received  sent",
        "laptop  198.51.100.117:51820  1 min 40 s ago   4.7 GiB  12 B",
        "phone   -                     never            4.7 GiB  12 B",
        "",
        "takeover  result   generation  sessions  blackout",
        "5 s ago   success           3         2    1.2 ms  taken over",
    ]


def test_a_terminal_shows_of_many_peers_those_with_the_latest_handshakes(capsys: pytest.CaptureFixture[str]) -> None:
    peers = [peer(f"p{number}", last_handshake_unix=float(number)) for number in range(100_000)]
    render(status(peers=peers), 24)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 23  # the last line is the shell's
    assert lines[4] == "sessions    1 of 100000 peers"
    shown = lines[8:19]
    assert [line.split()[0] for line in shown] == [f"p{number}" for number in range(99_999, 99_988, -1)]
    assert lines[19:21] == ["and 99,989 more, with earlier handshakes or none: `oxidize status --all`", ""]
    assert lines[21].startswith("takeover  ")


def test_the_whole_of_a_large_status_goes_to_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    peers = [peer(f"p{number}") for number in range(1_000)]
    assert [line.split()[0] for line in printed(capsys, peers=peers)[8:1_008]] == [each["name"] for each in peers]


@pytest.mark.parametrize("lines_max", [1, 24])
def test_a_few_peers_are_all_shown(capsys: pytest.CaptureFixture[str], lines_max: int) -> None:
    render(status(peers=[peer() for _ in range(50)]), lines_max)
    assert capsys.readouterr().out.count("laptop") == 50


def test_nat_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert printed(capsys, nat=True)[2] == "listening   [::]:51820, interface oxidize0, nat"


def rules(**more: object) -> dict[str, Any]:
    return {"sources": ["10.0.0.0/24", "fd00::/64"], "interface": None, "snat": [], "forward": [], **more}


def port_forward(**more: object) -> dict[str, Any]:
    values = {"protocol": "tcp", "port": 443, "to": "10.0.0.2:8443", "interface": None, "address": []}
    return {**values, "masquerade": False, **more}


def test_what_is_translated_and_forwarded_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(capsys, nat=True, nat_rules=rules())
    assert lines[2:5] == [
        "listening   [::]:51820, interface oxidize0, nat",
        "translated  10.0.0.0/24, masqueraded",
        "translated  fd00::/64, masqueraded",
    ]
    many = [port_forward(port=f"80{number:02}-80{number:02}") for number in range(9)]
    first = port_forward(protocol="both", interface="eth0", address=["203.0.113.9"], masquerade=True)
    five = ["10.0.0.0/24", "10.0.1.0/24", "10.0.2.0/24", "10.0.3.0/24", "10.0.4.0/24"]
    shown = rules(sources=five, interface="eth0", snat=["203.0.113.9"], forward=[first, *many])
    lines = printed(capsys, nat=True, nat_rules=shown)
    assert lines[3:6] == [
        "translated  10.0.0.0/24, 10.0.1.0/24, 10.0.2.0/24 and 2 more by eth0, to 203.0.113.9",
        "forwarded   tcp and udp 443 by eth0 at 203.0.113.9, to 10.0.0.2:8443, masqueraded",
        "forwarded   tcp 8000-8000, to 10.0.0.2:8443",
    ]
    assert lines[9:11] == ["forwarded   and 5 more: `oxidize status --json`", f"public key  {status()['public_key']}"]


def test_port_forwards_alone_translate_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(capsys, nat=True, nat_rules=rules(sources=[], forward=[port_forward()]))
    assert lines[3:5] == ["forwarded   tcp 443, to 10.0.0.2:8443", f"public key  {status()['public_key']}"]


def test_usual_values_fit_into_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    widest = peer("a-name-of-16-cha", endpoint="[2001:db8::1234]:51820", last_handshake_unix=NOW - 86_399 * 9)
    lines = printed(
        capsys, peers=[widest], takeovers=[takeover(at_unix=NOW - 86_399 * 9, way="restored from the store")]
    )
    assert max(map(len, lines)) <= 80


def test_long_values_are_neither_cut_nor_wrapped(capsys: pytest.CaptureFixture[str]) -> None:
    name, endpoint = "n" * 64, "[2001:db8:1111:2222:3333:4444:5555:6666]:51820"
    reason = "failed while preparing: " + "why " * 40
    lines = printed(capsys, peers=[peer(name, endpoint=endpoint)], takeovers=[takeover(reason=reason)])
    assert any(line.startswith(f"{name}  {endpoint}  ") for line in lines)
    assert lines[-1].endswith(reason.strip())


def test_a_failure_shows_its_reason_on_one_line_and_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    entry = takeover(result="failure", reason="no [red]key[/red]:\n [Errno 13] /x]", blackout_ms=None)
    del entry["sessions"]
    line = printed(capsys, takeovers=[entry])[-1]
    assert line == "5 s ago   failure           3         -         -  no [red]key[/red]: [Errno 13] /x]"


def test_only_the_last_takeovers_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(capsys, takeovers=[takeover(generation=number) for number in range(2, 18)])
    assert [line.split()[4] for line in lines[-5:]] == ["13", "14", "15", "16", "17"]


def test_without_peers_and_takeovers_there_are_no_tables(capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(
        capsys, peers=[], takeovers=[], sessions=0, drops={}, totals={}, kernel_drops=0, network="userspace"
    )
    assert lines[2:] == [
        "listening   [::]:51820, userspace network",
        "public key  Z6F649QpsejqJkv1aEggpYMZBEijCkQ1NClLrI5dU1w=",
        "sessions    0 of 0 peers",
        "dropped     nothing",
    ]


# --- A client's connection ---


def connection(**more: object) -> dict[str, Any]:
    return {
        "state": "connected",
        "server": "vpn.example:51820",
        "outage_secs": None,
        "retries": 0,
        "round_trip_ms": 12.34,
        "waiting_packets": 0,
        **more,
    }


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({}, "connected to vpn.example:51820, round trip 12.3 ms"),
        ({"round_trip_ms": 0.0}, "connected to vpn.example:51820"),
        ({"state": "connecting", "round_trip_ms": 0.0}, "connecting to vpn.example:51820"),
        (
            {"state": "reconnecting", "outage_secs": 61.5, "retries": 1, "waiting_packets": 1},
            "reconnecting to vpn.example:51820, for 1 min 1 s, 1 retry, 1 packet waiting",
        ),
        (
            {"state": "reconnecting", "outage_secs": 0.0, "retries": 7, "waiting_packets": 1000},
            "reconnecting to vpn.example:51820, for 0 s, 7 retries, 1000 packets waiting",
        ),
    ],
)
def test_a_client_shows_its_connection(
    capsys: pytest.CaptureFixture[str], more: dict[str, object], expected: str
) -> None:
    assert f"connection  {expected}" in printed(capsys, role="client", connection=connection(**more))


@pytest.mark.parametrize("absent", [{}, {"connection": None}])
def test_a_server_or_an_older_client_shows_none(capsys: pytest.CaptureFixture[str], absent: dict[str, object]) -> None:
    assert not any(line.startswith("connection") for line in printed(capsys, **absent))


def test_peers_that_may_not_connect_are_named_by_their_reason(capsys: pytest.CaptureFixture[str]) -> None:
    peers = [{"name": f"p{number}", "public_key": "k", "reason": "disabled"} for number in range(11)]
    render(status(inactive_peers=[*peers[:2], {**peers[0], "name": "old", "reason": "expired"}]))
    assert "inactive    2 disabled: p0, p1; 1 expired: old\n" in capsys.readouterr().out
    render(status(inactive_peers=peers))
    shown = capsys.readouterr().out
    assert "11 disabled: p0, p1" in shown
    assert "p9, ...\n" in shown
