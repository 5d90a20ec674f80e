"""Invented answers to the query "vitals"."""

from typing import Any

from oxidize.deploy.vitals import Takeover, Vitals

NOON = 1_700_000_000.0


def answer(second: float = 0.0, **more: Any) -> dict[str, Any]:
    """Return an answer `second` seconds after the first one, at 100 packets/s of 1024 bytes each way."""
    totals = {
        "received_packets": 100,
        "sent_packets": 100,
        "received_packet_bytes": 102_400,
        "sent_packet_bytes": 51_200,
    }
    return {
        "at_boot_secs": 1000.0 + second,
        "state": "healthy",
        "generation": 3,
        "release": "0.1.0",
        "release_folder": "",
        "pid": 4242,
        "uptime_secs": 60.0 + second,
        "sessions": 20,
        "peers_configured": 25,
        "totals": {name: int(total * (second + 1)) for name, total in totals.items()},
        "drops": {"malformed": 7, "no_route": 2},
        "kernel_drops": 1,
        "takeovers": [],
        "metrics_listen": None,
        **more,
    }


def vitals(second: float = 0.0, **more: Any) -> Vitals:
    return Vitals.of(answer(second, **more))


def taken(generation: int, second: float = 0.0, **more: Any) -> dict[str, Any]:
    """Return a takeover as in a server's history."""
    entry = {"at_unix": NOON + second, "result": "success", "way": "taken over", "generation": generation}
    return {**entry, "release": "0.1.0", "sessions": 20, "blackout_ms": 0.74, **more}


def failed(generation: int, second: float = 0.0, reason: str = "it does\n not start") -> dict[str, Any]:
    return {"at_unix": NOON + second, "result": "failure", "generation": generation, "reason": reason}


def parsed(entry: dict[str, Any]) -> Takeover:
    """Return an entry of a server's history as its vitals have it."""
    return vitals(takeovers=[entry]).takeovers[0]
