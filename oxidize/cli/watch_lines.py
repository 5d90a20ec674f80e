"""What `oxidize watch` prints without a terminal: a line for each poll, as text or as JSON.

The rule: an event - a takeover, a lost answer, an answer again - has a separate line, printed before the numbers of the
same poll.
"""

import json
from collections.abc import Iterator
from typing import Any

from oxidize.cli.watch_history import Sample
from oxidize.deploy.vitals import Takeover, Vitals
from oxidize.terminal.units import byte_count, clock, short_duration
from oxidize.text import counted, release_name


def text_lines(sample: Sample) -> Iterator[str]:
    """Yield a sample as lines for people."""
    for takeover in sample.takeovers:
        yield f"{clock(takeover.at_unix)}  {takeover_text(takeover)}"
    if sample.is_loss:
        yield f"{clock(sample.at_unix)}  {loss_text(sample)}"
    if sample.vitals is not None:
        if sample.is_return:
            yield f"{clock(sample.at_unix)}  answers again, {short_duration(sample.away_secs)} after the last answer"
        yield f"{clock(sample.at_unix)}  {_numbers(sample, sample.vitals)}"


def json_lines(sample: Sample) -> Iterator[str]:
    """Yield a sample as JSON objects; times are seconds, `_unix` since the epoch, rates are per second."""
    for takeover in sample.takeovers:
        yield _object("takeover", takeover.at_unix, _takeover_fields(takeover))
    if sample.is_loss:
        yield _object("lost", sample.at_unix, {"reason": sample.reason})
    if (vitals := sample.vitals) is not None:
        if sample.is_return:
            yield _object("back", sample.at_unix, {"away_secs": sample.away_secs})
        flow = sample.flow
        yield _object(
            "sample",
            sample.at_unix,
            {
                "state": vitals.state,
                "generation": vitals.generation,
                "release": release_name(vitals.release, vitals.release_folder),
                "pid": vitals.pid,
                "uptime_secs": vitals.uptime_secs,
                "sessions": vitals.sessions,
                "peers": vitals.peers,
                "received_packets_rate": flow and flow.received,
                "sent_packets_rate": flow and flow.sent,
                "received_bytes_rate": flow and flow.received_bytes,
                "sent_bytes_rate": flow and flow.sent_bytes,
                "drops_rate": sample.drops_rate,
            },
        )


def _object(kind: str, at_unix: float, fields: dict[str, Any]) -> str:
    return json.dumps({"type": kind, "at_unix": at_unix, **fields})


def _takeover_fields(takeover: Takeover) -> dict[str, Any]:
    return {
        "result": "success" if takeover.succeeded else "failure",
        "way" if takeover.succeeded else "reason": takeover.what,
        "generation": takeover.generation,
        "release": takeover.release,
        "sessions": takeover.sessions,
        "blackout_ms": takeover.blackout_ms,
    }


def _numbers(sample: Sample, vitals: Vitals) -> str:
    flow = sample.flow
    state = "" if vitals.state == "healthy" else f"{vitals.state}, "
    parts = [f"{state}generation {vitals.generation}", f"pid {vitals.pid}", counted(vitals.sessions, "session")]
    if flow is not None:
        parts += [
            f"received {rate_text(flow.received):>7} packets/s {byte_count(flow.received_bytes):>10}/s",
            f"sent {rate_text(flow.sent):>7} packets/s {byte_count(flow.sent_bytes):>10}/s",
            f"dropped {rate_text(sample.drops_rate or 0.0)}/s",
        ]
    return "  ".join(parts)


def takeover_text(takeover: Takeover) -> str:
    """Return a takeover as one line."""
    if not takeover.succeeded:
        return f"takeover FAILED, generation {takeover.generation} still serves: {takeover.what}"
    parts = [f"{takeover.what}: generation {takeover.generations}"]
    parts += [f"release {takeover.release}"] if takeover.release is not None else []
    parts += [counted(takeover.sessions, "session")] if takeover.sessions is not None else []
    parts += [f"blackout {takeover.blackout_ms:.1f} ms"] if takeover.blackout_ms is not None else []
    return ", ".join(parts)


def loss_text(sample: Sample) -> str:
    """Return a line for a lost answer, with the reason if it is known."""
    return f"no answer: {sample.reason}" if sample.reason else "no answer: no process listens"


def rate_text(number: float) -> str:
    """Return a rate of packets, to the tenth below ten."""
    return f"{number:.1f}" if 0 < number < 10 else f"{number:,.0f}"
