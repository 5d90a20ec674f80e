"""A journal and an arena that are damaged, restored, owned and used for twelve minutes of a device's time.

The golden files of release 0.1.0 are changed as bytes or as records. Checked: a state is refused with a SnapshotError
before a device has any of it, or it is used without an error; and a state that was used can be read again.

Allowed exceptions: SnapshotError, from opening and restoring alone.
"""

import os
import random
import struct
from collections.abc import Iterable
from functools import cache
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import msgpack

from oxidize.errors import SnapshotError
from oxidize.protocol.device import Device
from oxidize.protocol.endpoint import Endpoint
from oxidize.protocol.peer_settings import PeerSettings
from oxidize.state import memory_file
from oxidize.state.journal import END, HEADER_BYTES, WORD_BYTES
from oxidize.state.session_state import SessionState
from oxidize.state.stream import scan
from tests.fuzz.script import Script

GOLDEN = Path(__file__).parents[1] / "golden"
BOOT_ID = "6f1f2c1e-0000-4000-8000-0123456789ab"  # as tests/golden has it
PRIVATE_KEY, PUBLIC_KEY = b"\x40" * 32, bytes(range(200, 232))
PEERS = (b"A" * 32, b"B" * 32)
NOW = 1200.0
EPOCH = 1_700_000_000.0
DEPTH_MAX = 12


@cache
def _golden() -> tuple[bytes, bytes, list[dict[str, Any]]]:
    journal = (GOLDEN / "journal-0.1.0.bin").read_bytes()
    fd = _file(journal, len(journal))
    try:
        records = [record for _, _, record in scan(fd, HEADER_BYTES, len(journal))]
    finally:
        os.close(fd)
    return journal, (GOLDEN / "arena-0.1.0.bin").read_bytes(), records


def _file(content: bytes, size: int) -> int:
    fd = memory_file.create("fuzz", max(size, len(content)))
    os.pwrite(fd, content, 0)
    return fd


def _changed(script: Script, value: Any, depth: int = 0) -> Any:
    """Return a value with a part of it changed, in a way that msgpack can carry."""
    operation = script.number(9)
    if isinstance(value, dict) and value and depth < DEPTH_MAX:
        copy, key = dict(value), script.pick(list(value))
        if operation == 0:
            del copy[key]
        elif operation == 1:
            copy[script.text(6)] = 1
        else:
            copy[key] = _changed(script, value[key], depth + 1)
        return copy
    match operation:
        case 2:
            return script.some(40)
        case 3:
            return None
        case 4:
            return struct.unpack("<d", script.take(8).ljust(8, b"\0"))[0]
        case 5:
            return script.number((1 << 64) - 1)
        case 6:
            return [value]
        case 7:
            return script.text(5)
        case 8 if isinstance(value, bytes):
            return script.broken(value)
        case 9 if type(value) is int:
            return max(0, value + (script.number(140) - 70) * 64)
    return value


def _journal_of(script: Script) -> bytes:
    journal, _, records = _golden()
    mode = script.number(2)
    if mode == 0:
        return journal
    if mode == 1:
        changed = bytearray(journal)
        for _ in range(script.number(4, 1)):
            changed[script.pick((0, HEADER_BYTES)) + script.number(len(journal) - HEADER_BYTES - 1)] = script.number(
                255
            )
        return bytes(changed)
    records = list(records)
    for _ in range(script.number(5, 1)):
        at, operation = script.number(len(records) - 1), script.number(6)
        if operation < 4:
            records[at] = _changed(script, records[at])
        elif operation == 4:
            records.append(_changed(script, records[at]))
        elif operation == 5:
            records.insert(at, script.pick(records))
        elif len(records) > 1:
            del records[at]
    body = b"".join(msgpack.packb(record, unicode_errors="surrogatepass") for record in records)
    header = bytearray(journal[:HEADER_BYTES])
    struct.pack_into("<Q", header, END * WORD_BYTES, HEADER_BYTES + len(body))
    return bytes(header) + body


def _arena_of(script: Script) -> bytes:
    changed = bytearray(_golden()[1])
    for _ in range(script.number(4)):
        changed[script.number(len(changed) - 1)] = script.number(255)
    return bytes(changed)


def _opened(journal_fd: int, arena_fd: int) -> SessionState:
    return SessionState.open(journal_fd, arena_fd, boot_id=BOOT_ID, public_key=PUBLIC_KEY, now=NOW)


def _settings() -> list[PeerSettings]:
    endpoint = Endpoint(b"\xc0\0\2\x05", 40000)
    networks = [(ip_network(f"10.0.0.{number + 2}/32"),) for number in range(len(PEERS))]
    return [PeerSettings(key, allowed_ips=each, endpoint=endpoint) for key, each in zip(PEERS, networks, strict=True)]


def _use(state: SessionState, device: Device) -> None:
    """Own the state, and let time pass with some traffic."""
    state.become_writer()
    state.begin_generation("fuzz", state.generation + 1)
    device.own()
    list(device.forget_unknown_peers())
    for at in (NOW, NOW + 10, NOW + 80, NOW + 280, NOW + 700):
        packets = [b"\x45\0\0\x14" + bytes(12) + bytes([10, 0, 0, host]) for host in (2, 3)]
        device.send_packets(packets, at)
        index = (0xA0B0C0D0).to_bytes(4, "little")
        device.receive_datagrams([b"\4\0\0\0" + index + bytes(24)], Endpoint(b"\1\1\1\1", 9), at)
        for _ in range(20):
            due = device.next_deadline()
            if due is None or due > at:
                break
            device.handle_timeout(at)
        device.take_transmits()
        device.live_sessions(at)
    state.maintain(purge=True)
    device.freeze()
    state.takeovers()


def run(data: bytes) -> None:
    script = Script(data)
    journal, arena = _journal_of(script), _arena_of(script)
    region = struct.unpack_from("<Q", _golden()[0], 2 * WORD_BYTES)[0]
    files = _file(journal, HEADER_BYTES + 2 * region), _file(arena, len(_golden()[1]))
    try:
        state = _opened(*files)
    except SnapshotError:
        return
    randomness = random.Random(1)
    try:
        device = Device(PRIVATE_KEY, _settings(), state.arena, randomness.randbytes, lambda: EPOCH, state.record)
        try:
            device.restore(state.changes(), NOW)
            device.prepare()
            device.restore(state.sync(), NOW)
        except SnapshotError:
            return
        if state.generation < (1 << 63) - 1:
            _use(state, device)
            again = _opened(os.dup(state.fds["journal"]), os.dup(state.fds["arena"]))
            again.close()
    finally:
        state.close()


def seeds() -> Iterable[bytes]:
    yield b""
    for record in range(18):
        for operation in (0, 4, 5, 6):
            for change in (2, 3, 5, 8, 9):
                yield bytes([2, 0, record, operation, 2, record % 7, change, 40, 1, 2, 3, 255, 255, 255, 255, 255, 0])
    for at in range(0, 300, 20):
        yield bytes([1, 1, 1, at & 255, at >> 8, 7, 0, at & 255, at >> 8, 3, 2, at & 255, 0, 9])
