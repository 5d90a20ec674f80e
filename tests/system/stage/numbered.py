"""Numbered datagrams: `echo PORT FILE` answers them, `send ADDRESS PORT RATE FILE` sends them and counts the replies.

Rule: each side counts its own datagrams, duplicates and reorderings. SIGTERM ends the sending; the process waits for
datagrams in flight and writes the tally to FILE as one JSON object. While it runs, FILE.progress holds the numbers of
sent requests and of distinct replies, 8 bytes each.
"""

import json
import mmap
import select
import signal
import socket
import struct
import sys
import time
from pathlib import Path

SO_SNDBUFFORCE, SO_RCVBUFFORCE = 32, 33
BUFFER_BYTES = 64 << 20  # a pause of this process, or of the tunnel, must lose nothing here
NUMBER = struct.Struct("<QQ")  # of the request, and of the reply: how many were answered before it
PAYLOAD = bytes(84)  # 100 bytes in all
LINGER_SECS = 3.0  # for replies, where any is missing
LAST_LOOK_SECS = 0.2  # for what comes after the last: a duplicate
BURST_MAX = 256  # after a pause of this process the schedule is made up for in steps, and replies are read in between
TICK_SECS = (
    0.004  # requests go in bursts of some 40: one at a time, this and wireguard-go would take a core for waking up
)
NUMBERS_MAX = 8_000_000  # of requests: more than ten minutes


class Tally:
    """The counts of one side."""

    def __init__(self) -> None:
        self.seen = bytearray(NUMBERS_MAX)
        self.distinct = self.duplicated = self.reordered = 0
        self.last = -1
        self.last_at = 0.0
        self.longest_gap_secs = 0.0

    def add(self, number: int) -> None:
        if self.seen[number]:
            self.duplicated += 1
            return
        self.seen[number] = 1
        self.distinct += 1
        if number < self.last:
            self.reordered += 1
        else:
            self.last = number

    def note_time(self, now: float) -> None:
        if self.last_at:
            self.longest_gap_secs = max(self.longest_gap_secs, now - self.last_at)
        self.last_at = now

    def lost(self, sent: int) -> list[tuple[int, int]]:
        """Return the runs of missing numbers below `sent` as (first, last)."""
        runs: list[tuple[int, int]] = []
        start = self.seen.find(0, 0, sent)
        while start >= 0:
            end = self.seen.find(1, start, sent)
            end = sent if end < 0 else end
            runs.append((start, end - 1))
            start = self.seen.find(0, end, sent)
        return runs

    def as_dict(self) -> dict[str, object]:
        return {
            "distinct": self.distinct,
            "duplicated": self.duplicated,
            "reordered": self.reordered,
            "longest_gap_secs": self.longest_gap_secs,
        }


def make_socket(family: int) -> socket.socket:
    made = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    made.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER_BYTES)
    made.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, BUFFER_BYTES)
    return made


class Ending:
    """Whether SIGTERM has arrived."""

    def __init__(self) -> None:
        self.asked = False
        signal.signal(signal.SIGTERM, self._ask)

    def _ask(self, *_: object) -> None:
        self.asked = True

    def __bool__(self) -> bool:
        return self.asked


def write(path: str, content: dict[str, object]) -> None:
    temporary = Path(path + ".new")
    temporary.write_text(json.dumps(content))
    temporary.rename(path)


def echo(port: int, path: str) -> None:
    tally, ending, unsent = Tally(), Ending(), 0
    socket_ = make_socket(socket.AF_INET)
    socket_.bind(("0.0.0.0", port))
    Path(path + ".progress").touch()
    while not ending:
        select.select([socket_], [], [], 0.1)
        try:
            while True:
                data, sender = socket_.recvfrom(256)
                number, _ = NUMBER.unpack_from(data)
                before = tally.distinct
                tally.add(number)
                try:
                    socket_.sendto(NUMBER.pack(number, before) + data[NUMBER.size :], sender)
                except OSError:
                    unsent += 1  # the interface is gone, or its queue full: the sender misses the reply
        except BlockingIOError:
            pass
    write(path, {**tally.as_dict(), "unsent": unsent})


def send(address: str, port: int, rate: float, path: str) -> None:
    tally, ending, unsent, sent = Tally(), Ending(), 0, 0
    with Path(path + ".progress").open("w+b") as file:
        file.truncate(16)
        progress = mmap.mmap(file.fileno(), 16)
    socket_ = make_socket(socket.AF_INET)
    socket_.connect((address, port))

    def receive() -> None:
        try:
            while True:
                number, _ = NUMBER.unpack_from(socket_.recv(256))
                tally.add(number)
                tally.note_time(time.monotonic())
        except (BlockingIOError, ConnectionRefusedError):
            pass
        progress[:16] = struct.pack("<QQ", sent, tally.distinct)

    started, rest = time.monotonic(), PAYLOAD
    while not ending:
        due = int((time.monotonic() - started) * rate)
        for number in range(sent, min(due, sent + BURST_MAX)):
            try:
                socket_.send(NUMBER.pack(number, 0) + rest)
            except OSError:
                unsent += 1
        sent = max(sent, min(due, sent + BURST_MAX))
        receive()
        time.sleep(TICK_SECS)
    ended = time.monotonic()
    while tally.distinct < sent and time.monotonic() < ended + LINGER_SECS:
        select.select([socket_], [], [], 0.05)
        receive()
    time.sleep(LAST_LOOK_SECS)
    receive()
    write(
        path, {**tally.as_dict(), "sent": sent, "unsent": unsent, "lost": tally.lost(sent), "seconds": ended - started}
    )


if __name__ == "__main__":
    if sys.argv[1] == "echo":
        echo(int(sys.argv[2]), sys.argv[3])
    else:
        send(sys.argv[2], int(sys.argv[3]), float(sys.argv[4]), sys.argv[5])
