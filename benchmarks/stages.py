"""Measure each stage of one packet's way, in this process: `bench_profile` starts it with the interpreter of a tree.

Rule: what is measured is the server's own data path, with real sockets, a TUN device and an arena. One pass through it
is recorded: which stage was called with what, and inside of which other one. Each stage is then repeated alone, with
the same arguments and from the same counters; what it costs itself is its time less that of the stages inside of it. A
stage that this revision of the source does not have is left out, so its time is in what called it.

A time is the lower quartile of many, by a clock that counts waiting, too: nothing here waits, and the quartile leaves
out the times in which another process had the processor, or had emptied its caches.
"""

import gc
import importlib
import json
import os
import resource
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from ipaddress import ip_address, ip_network
from operator import attrgetter
from types import SimpleNamespace
from typing import Any

from oxidize.clock import boot_time
from oxidize.net.data_path import DataPath
from oxidize.net.event_loop import READABLE, Loop
from oxidize.net.tun import TunDevice
from oxidize.net.udp import UdpSocket
from oxidize.protocol.device import Device
from oxidize.protocol.endpoint import Endpoint
from oxidize.protocol.noise import LocalIdentity
from oxidize.state.arena import Arena

PeerSettings = importlib.import_module("oxidize.protocol.device").PeerSettings  # defined elsewhere, by revision
IPPROTO_UDP, UDP_SEGMENT = 17, 103
DISCARD_PORT = 9  # RFC 863
SMALLEST_BUFFER = 1  # the kernel makes it as large as it must be: one or two datagrams
HANDSHAKE_SECS = 0.003  # between two: so that the server does not take them for a flood
INTERFACE = "oxidize"
MTU = 1420
WARM_PASSES = 50
PASSES = 400
PASSES_AFTER_PAUSE = 40
PASS_SECS_MAX = 1.0  # for the passes of one stage
STORED_PASSES = 3  # in which the counters that a pass changes are found

Nested = dict[str, list["Call"]]


@dataclass(frozen=True)
class Order:
    """What is measured. packets: of each client, in the order in which they are sent, one list for each of them.

    host: the server's outer address; inner: its own inside, with the length of the prefix; addresses: of the clients.
    joined: whether the packets of the one client reach the server as one batch of GRO. pause_secs: before each pass.
    """

    inbound: bool
    host: str
    inner: str
    addresses: list[str]
    packets: list[list[str]]
    joined: bool = False
    pause_secs: float = 0.0


@dataclass
class Stage:
    """A part of the way. targets: dotted names, from the rig or, after a colon, from a module."""

    name: str
    targets: tuple[str, ...]


RECEIVING = (
    Stage("recvmsg, FIONREAD (kernel)", ("receiver._socket.recvmsg_into", "fcntl:ioctl")),
    Stage("slots, endpoints of datagrams", ("receiver.receive",)),
    Stage("headers and nonces", ("path._rows.read_headers",)),
    Stage("grouping by session", ("oxidize.protocol.row_receiver:_by_receiver",)),
    Stage("decryption", ("openers",)),
    Stage(
        "replay window",
        tuple(f"oxidize.protocol.row_receiver:{name}" for name in ("mark", "mark_run", "is_fresh")),
    ),
    Stage("endpoint, timers, schedule", ("device._receiver._note",)),
    Stage("sessions, the rest of opening", ("device._receiver.receive",)),
    Stage("inner checks, route", ("device._inner.unwrap_rows",)),
    Stage("totals", ("device._count_received",)),
    Stage("write to TUN (kernel)", ("os:write", "os:writev")),
    Stage("write to TUN (Python)", ("path.tunnel.write_frames",)),
    Stage("look for what is queued", ("path.flush",)),
)
SENDING = (
    Stage("read from TUN (kernel)", ("os:read", "os:readv")),
    Stage("read from TUN (Python)", ("path.tunnel.read_packets",)),
    Stage("route", ("device._sender._find",)),
    Stage("headers and nonces", ("device._sender._rows.set_headers",)),
    Stage("encryption", ("sealers",)),
    Stage("timers, schedule", ("device._sender._note",)),
    Stage("grouping, padding, the rest", ("device._sender.send",)),
    Stage("sendmsg (kernel)", ("udp._sendmsg",)),
    Stage("runs of one size, paths", ("udp.transmit",)),
    Stage("look for what is queued", ("path.flush",)),
)
TAKES_INPUT = frozenset({"recvmsg_into", "read", "readv"})


@dataclass
class Call:
    """One call of a stage in the recorded pass.

    inside: the stage that made it, "" for none. number: how many calls that were inside of none came before it.
    """

    function: Callable[..., object]
    arguments: tuple[Any, ...] = ()
    inside: str = ""
    number: int = 0
    takes_input: bool = False


@dataclass
class Recorder:
    """Records the calls of stages while entered."""

    calls: Nested = field(default_factory=dict)
    _outermost: list[Call] = field(default_factory=list)
    _open: list[tuple[str, Call]] = field(default_factory=list)

    def wrap(self, stage: str, name: str, function: Callable[..., object]) -> Callable[..., object]:
        """Return a function that records its calls as those of a stage."""

        def recorded(*arguments: Any, **options: Any) -> object:
            to_repeat = partial(function, **options) if options else function
            call = Call(to_repeat, arguments, self._open[-1][0] if self._open else "", len(self._outermost))
            self.calls.setdefault(stage, []).append(call)
            self._open.append((stage, call))
            if name in TAKES_INPUT:
                for _, each in self._open:
                    each.takes_input = True
            try:
                return to_repeat(*arguments)
            finally:
                self._open.pop()
                if not self._open:
                    self._outermost.append(call)

        return recorded

    def repeat_until(self, call: Call) -> None:
        """Repeat what came before a call: buffers are used again within a pass."""
        for each in self._outermost[: call.number]:
            each.function(*each.arguments)

    @contextmanager
    def replacing(self, rig: object, stages: Sequence[Stage]) -> Iterator[None]:
        """Have the stages of a rig recorded; those that this source does not have are left out."""
        with ExitStack() as stack:
            for stage in stages:
                for target in stage.targets:
                    with suppress(AttributeError, ModuleNotFoundError):
                        self._replace(rig, stage.name, target, stack)
            yield

    def _replace(self, rig: object, stage: str, target: str, stack: ExitStack) -> None:
        module, colon, name = target.rpartition(":")
        if target in ("openers", "sealers"):
            self._replace_ciphers(rig, stage, target.removesuffix("s"), stack)
            return
        owner_name, _, name = name.rpartition(".")
        owner: Any = importlib.import_module(module) if colon else attrgetter(owner_name)(rig)
        if isinstance(owner, socket.socket):  # has no attributes of its own
            holder_name, _, held = owner_name.rpartition(".")
            holder = attrgetter(holder_name)(rig)
            whole = SimpleNamespace(**{each: getattr(owner, each) for each in ("fileno", "recvmsg", name)})
            setattr(holder, held, whole)
            stack.callback(setattr, holder, held, owner)
            owner = whole
        original = getattr(owner, name)
        own = name in vars(owner)
        setattr(owner, name, self.wrap(stage, name, original))
        stack.callback(*((setattr, owner, name, original) if own else (delattr, owner, name)))

    def _replace_ciphers(self, rig: object, stage: str, attribute: str, stack: ExitStack) -> None:
        for peer in attrgetter("device.peers")(rig).values():
            keypair = peer.current
            cipher = getattr(keypair, attribute)
            methods = ("encrypt", "encrypt_into", "decrypt", "decrypt_into")
            recorded = {name: self.wrap(stage, name, getattr(cipher, name)) for name in methods}
            setattr(keypair, attribute, SimpleNamespace(**recorded))
            stack.callback(setattr, keypair, attribute, cipher)


class Client:
    """One peer of the server, with a socket of its own, which is always full once there is a session."""

    def __init__(self, rig: "Rig", key: bytes) -> None:
        self.device = Device(
            key,
            [
                PeerSettings(
                    rig.device.identity.public_key,
                    allowed_ips=(ip_network("0.0.0.0/0"), ip_network("::/0")),
                    endpoint=rig.endpoint,
                )
            ],
            Arena.create(16),
            os.urandom,
            time.time,
            lambda _: None,
            mtu=MTU,
        )
        family = socket.AF_INET6 if len(rig.endpoint.address) == 16 else socket.AF_INET
        self.socket = socket.socket(family, socket.SOCK_DGRAM)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALLEST_BUFFER)
        self.socket.connect((str(rig.endpoint.host), rig.endpoint.port))
        self._endpoint = rig.endpoint

    def seal(self, packets: Sequence[bytes]) -> list[bytes]:
        """Return what the client sends for these packets."""
        self.device.send_packets(packets, boot_time())
        return [bytes(datagram) for transmit in self.device.take_transmits() for datagram in transmit.datagrams]

    def connect(self, packet: bytes, loop: Loop) -> None:
        """Make a session, with a first packet."""
        for datagram in self.seal([packet]):
            self.socket.send(datagram)
        loop.run_once(1.0)
        self.device.receive_datagrams([self.socket.recv(2048)], self._endpoint, boot_time())
        for datagram in self.seal([]):
            self.socket.send(datagram)
        loop.run_once(1.0)


class Rig:
    """A server's data path in this process, and clients with a session each; in a network namespace of its own."""

    def __init__(self, order: Order) -> None:
        self._order = order
        keys = [os.urandom(32) for _ in order.addresses]
        peers = [
            PeerSettings(LocalIdentity(key).public_key, allowed_ips=(ip_network(address),))
            for key, address in zip(keys, order.addresses, strict=True)
        ]
        self.arena = Arena.create(8 * len(peers))
        self.device = Device(os.urandom(32), peers, self.arena, os.urandom, time.time, lambda _: None, mtu=MTU)
        bound = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        bound.bind(("::", 0))
        self.udp = UdpSocket(bound)
        self.udp.take_ownership()
        self.receiver = self.udp.receiver
        self.endpoint = Endpoint(ip_address(order.host).packed, bound.getsockname()[1])
        self.tunnel = TunDevice.create(INTERFACE)
        _ip("address", "add", order.inner, "dev", INTERFACE)
        _ip("link", "set", INTERFACE, "mtu", str(MTU), "txqueuelen", "2000", "up")
        inner = order.inner.partition("/")[0]
        family = socket.AF_INET6 if ":" in inner else socket.AF_INET
        self._sink, self._outgoing = (socket.socket(family, socket.SOCK_DGRAM) for _ in range(2))
        self._sink.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALLEST_BUFFER)
        self._sink.bind((inner, DISCARD_PORT))
        self.path = DataPath(self.device, self.udp, self.tunnel, self.arena.counters, boot_time)
        self.loop = Loop()
        self.loop.register(self.udp.fileno(), READABLE, self.path.from_udp)
        self.loop.register(self.tunnel.fileno(), READABLE, self.path.from_tunnel)
        self.loop.add_timed(self.path)
        self._clients = [Client(self, key) for key in keys]
        self.count = sum(map(len, order.packets))
        packets = [[bytes.fromhex(packet) for packet in each] for each in order.packets]
        for client, (first, *_) in zip(self._clients, packets, strict=True):
            client.connect(first, self.loop)
            time.sleep(HANDSHAKE_SECS)
        self._sends = list(self._inbound(packets) if order.inbound else self._outbound(packets))
        self._changed: dict[int, int] = {}

    def _inbound(self, packets: Sequence[list[bytes]]) -> Iterator[Callable[[], object]]:
        sealed = [client.seal(each) for client, each in zip(self._clients, packets, strict=True)]
        if self._order.joined:
            segments = [(IPPROTO_UDP, UDP_SEGMENT, len(sealed[0][0]).to_bytes(2, sys.byteorder))]
            yield partial(self._clients[0].socket.sendmsg, sealed[0], segments)
            return
        for number in range(max(map(len, sealed))):
            for client, messages in zip(self._clients, sealed, strict=True):
                if number < len(messages):
                    yield partial(client.socket.send, messages[number])

    def _outbound(self, packets: Sequence[list[bytes]]) -> Iterator[Callable[[], object]]:
        """Send payloads of the same sizes through the kernel, which makes the packets."""
        header = 28 if "." in self._order.inner else 48
        for number in range(max(map(len, packets))):
            for address, each in zip(self._order.addresses, packets, strict=True):
                if number < len(each):
                    payload = bytes(len(each[number]) - header)
                    yield partial(self._outgoing.sendto, payload, (address, DISCARD_PORT))

    def find_changed(self) -> None:
        """Note the counters that a pass changes, and their values before one."""
        words = self.arena.counters
        before = words.tolist()
        for _ in range(STORED_PASSES):
            self.fill()
            self.run()
            self._changed |= {n: old for n, (old, new) in enumerate(zip(before, words, strict=True)) if old != new}
            self.restore()

    def restore(self) -> None:
        """Give the counters their values before a pass."""
        words = self.arena.counters
        for number, value in self._changed.items():
            words[number] = value

    def fill(self) -> None:
        """Bring the packets of a pass to where the server finds them; what was there is lost."""
        self._drain()
        for send in self._sends:
            send()

    def _drain(self) -> None:
        with suppress(BlockingIOError):
            while True:
                self._recv()
        with suppress(BlockingIOError):
            while True:
                os.read(self.tunnel.fileno(), 65_550)

    def _recv(self) -> None:
        with socket.socket(fileno=os.dup(self.udp.fileno())) as again:
            while True:
                again.recv(65_536, socket.MSG_DONTWAIT)

    def run(self) -> None:
        """Carry the packets of a pass."""
        self.loop.run_once(0.0)

    def run_without_work(self) -> Callable[[], None]:
        """Return a turn of a loop whose one event does nothing: it has the same deadlines."""
        loop = Loop()
        read, write = os.pipe()
        os.write(write, b"0")
        loop.register(read, READABLE, _do_nothing)
        loop.add_timed(self.path)
        return lambda: loop.run_once(0.0)


def _do_nothing() -> None:
    """Take the place of the data path."""


def _ip(*arguments: str) -> None:
    subprocess.run(("ip", *arguments), check=True)


def measure(rig: Rig, order: Order, calls: Sequence[Call]) -> float:
    """Return the time of some calls in a row, nanoseconds."""
    clock = time.perf_counter_ns
    pairs = [(call.function, call.arguments) for call in calls]
    takes_input = any(call.takes_input for call in calls)
    times = []
    ends = time.monotonic() + PASS_SECS_MAX
    for _ in range(PASSES_AFTER_PAUSE if order.pause_secs else PASSES):
        if takes_input:
            rig.fill()
        rig.restore()
        if order.pause_secs:
            time.sleep(order.pause_secs)
        began = clock()
        for function, arguments in pairs:
            try:  # noqa: SIM105  # costs nothing
                function(*arguments)
            except BlockingIOError:
                pass
        times.append(clock() - began)
        if time.monotonic() > ends and not order.pause_secs:
            break
    began = clock()
    for function, arguments in pairs:  # noqa: B007  # what the loop itself costs
        pass
    loop_ns = clock() - began
    return statistics.quantiles(times, n=4)[0] - loop_ns


def profile(order: Order) -> dict[str, float]:
    """Return the cost of each stage and of the whole, microseconds a packet."""
    rig = Rig(order)
    rig.find_changed()
    gc.collect()
    gc.freeze()  # as a server does
    for _ in range(WARM_PASSES):
        rig.fill()
        rig.restore()
        rig.run()
    recorder = Recorder()
    stages = RECEIVING if order.inbound else SENDING
    rig.fill()
    rig.restore()
    with recorder.replacing(rig, stages):
        rig.run()
    costs = {"wake-up, deadlines, dispatch": measure(rig, order, [Call(rig.run_without_work())])}
    times = {}
    for name, calls in recorder.calls.items():
        rig.fill()
        recorder.repeat_until(calls[0])
        times[name] = measure(rig, order, calls)
    for stage in stages:
        if stage.name in times:
            inside = [name for name, calls in recorder.calls.items() if calls[0].inside == stage.name]
            costs[stage.name] = times[stage.name] - sum(times[name] for name in inside)
    costs["whole"] = measure(rig, order, [Call(rig.run, takes_input=True)])
    return {name: cost / 1e3 / rig.count for name, cost in costs.items()}


def main() -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    print(json.dumps(profile(Order(**json.loads(sys.stdin.read())))))


if __name__ == "__main__":
    main()
