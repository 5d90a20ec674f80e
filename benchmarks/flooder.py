"""Send one kind of useless datagram to a server from many addresses of the loopback: `bench_flood` starts it.

It reads its order from its standard input and prints a line when it is ready; it sends from the moment that another
line comes, and prints how many datagrams the kernel has taken.
"""

import json
import random
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from oxidize.protocol.constants import COOKIE_REPLY_SIZE
from oxidize.protocol.cookie import CookieJar
from oxidize.protocol.messages import CookieReply, Initiation, Response

MESSAGES = 2000  # different ones, sent again and again
COOKIE_ROUNDS = 60
COOKIE_ROUND_SECS = 0.05
COOKIE_TRIGGERS = 300  # initiations in each round: enough to put a server under load
COOKIES_PER_ROUND = 250
PAUSE_SECS = 0.0005
_RANDOM = random.Random(1)


@dataclass(frozen=True)
class Order:
    """What to send. public_key: the server's, in hexadecimal. recorded: genuine data messages, in hexadecimal."""

    kind: str
    per_second: int
    addresses: int
    seconds: float
    port: int
    public_key: str
    recorded: list[str]


def initiation() -> bytes:
    rand = _RANDOM.randbytes
    return Initiation(_RANDOM.getrandbits(32), rand(32), rand(48), rand(28)).encode()


def response() -> bytes:
    rand = _RANDOM.randbytes
    return Response(_RANDOM.getrandbits(32), _RANDOM.getrandbits(32), rand(32), rand(16)).encode()


def unknown_index(size: int) -> bytes:
    return b"\4\0\0\0" + _RANDOM.randbytes(12 + 16 + size)


def messages_of(order: Order) -> list[bytes]:
    """Return messages of one kind."""
    rand, jar = _RANDOM.randbytes, CookieJar(bytes.fromhex(order.public_key))
    if order.kind == "recorded":
        return [bytes.fromhex(message) for message in order.recorded]
    known = bytes.fromhex(order.recorded[-1])[:8]
    make: dict[str, Callable[[int], bytes]] = {
        "short": lambda _: rand(1),
        "wrong-mac1": lambda _: initiation() + rand(32),
        "wrong-mac2": lambda _: jar.stamp(initiation(), 0.0)[:-16] + rand(16),
        "unknown": lambda _: unknown_index(64),
        "unknown-large": lambda _: unknown_index(1408),
        "wrong-tag": lambda number: known + (10_000_000 + number).to_bytes(8, "little") + rand(16 + 1408),
        "response": lambda _: jar.stamp(response(), 0.0),
        "mac1": lambda _: jar.stamp(initiation(), 0.0),
    }
    return [make[order.kind](number) for number in range(MESSAGES)]


def with_cookies(order: Order, sockets: list[socket.socket]) -> list[tuple[socket.socket, bytes]]:
    """Let each address fetch a cookie while a flood puts the server under load; return what to send.

    Raises RuntimeError where fewer than half of the addresses got one.
    """
    key = bytes.fromhex(order.public_key)
    jars = {each: CookieJar(key) for each in sockets}
    triggers = [CookieJar(key).stamp(initiation(), 0.0) for _ in range(COOKIE_TRIGGERS)]
    waiting = dict.fromkeys(sockets)
    for _ in range(COOKIE_ROUNDS):
        for trigger in triggers:
            with suppress(OSError):
                sockets[0].send(trigger)
        for each in list(waiting)[:COOKIES_PER_ROUND]:
            with suppress(OSError):
                each.send(jars[each].stamp(initiation(), time.monotonic()))
        time.sleep(COOKIE_ROUND_SECS)
        for each in list(waiting):
            with suppress(OSError):
                while (reply := each.recv(2000)) and each in waiting:
                    if len(reply) == COOKIE_REPLY_SIZE and jars[each].consume_reply(
                        CookieReply.decode(reply), time.monotonic()
                    ):
                        del waiting[each]
        if not waiting:
            break
    now = time.monotonic()
    proven = [each for each in sockets if each not in waiting]
    if 2 * len(proven) < len(sockets):
        raise RuntimeError(f"{len(proven)} of {len(sockets)} addresses got a cookie; expected half of them at least")
    return [(each, jars[each].stamp(initiation(), now)) for _ in range(8) for each in proven]


def open_sockets(order: Order) -> list[socket.socket]:
    sockets = []
    for number in range(order.addresses):
        each = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        each.bind((f"127.{2 + number // 250}.{number % 250}.{1 + number % 200}", 0))
        each.connect(("127.0.0.1", order.port))
        each.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sockets.append(each)
    return sockets


def main() -> None:
    order = Order(**json.loads(sys.stdin.readline()))
    sockets = open_sockets(order)
    if order.kind == "cookie":
        pairs = with_cookies(order, sockets)
    else:
        pairs = [(sockets[number % len(sockets)], message) for number, message in enumerate(messages_of(order))]
    print("ready", flush=True)
    sys.stdin.readline()
    began, sent, taken = time.monotonic(), 0, 0
    while (elapsed := time.monotonic() - began) < order.seconds:
        due = int(elapsed * order.per_second)
        while sent < due:
            sender, message = pairs[sent % len(pairs)]
            with suppress(OSError):
                sender.send(message)
                taken += 1
            sent += 1
        time.sleep(PAUSE_SECS)
    print(taken, flush=True)


if __name__ == "__main__":
    main()
