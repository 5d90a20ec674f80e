"""Measure the cost per packet of the UDP socket and the TUN device: `python -m benchmarks udp` (the TUN part as root).

Compare rows of one run only: absolute figures drift by a third on a shared machine.
"""

import ctypes
import os
import socket
import statistics
import struct
import time
from collections.abc import Callable
from functools import partial
from ipaddress import ip_interface

from benchmarks.owner import run
from oxidize.hostnet.interface import configure_interface
from oxidize.net.tun import TunDevice
from oxidize.net.udp import UdpSocket, bind_udp
from oxidize.protocol.endpoint import Endpoint
from oxidize.protocol.rows import ReceivedRows

ROUNDS = 200
SIZE = 1452
BATCH = 45
CLONE_NEWNET = 0x4000_0000


def report(name: str, microseconds: list[float]) -> None:
    print(f"{name:44s} {statistics.median(microseconds):7.3f} us/packet")


def timed(action: Callable[[], int]) -> float:
    start = time.perf_counter()
    count = action()
    return (time.perf_counter() - start) * 1e6 / count


def drain(receiver: UdpSocket) -> int:
    count = 0
    rows = ReceivedRows()
    while True:
        batch = receiver.receiver.receive(rows)
        count += len(rows.sizes) + (len(batch.datagrams) if batch is not None else 0)
        if receiver.receiver.is_empty:
            return count


def transmit_all(sender: UdpSocket, endpoint: Endpoint, batch: list[bytes], size: int) -> int:
    """Send the batch in calls of `size` datagrams; return how many were sent."""
    return sum(sender.transmit(endpoint, batch[:size]) for _ in range(len(batch) // size))


def read_all(device: TunDevice, packets: list[bytes]) -> int:
    """Append one batch of packets to `packets`; return how many there are."""
    packets += map(bytes, device.read_packets(64))
    return len(packets)


def write_all(device: TunDevice, packets: list[bytes]) -> int:
    """Return how many packets were written."""
    return len(packets) - device.write_packets(packets)


def bench_udp(host: str) -> None:
    sender, receiver = UdpSocket(bind_udp(host, 0)), UdpSocket(bind_udp(host, 0))
    for wrapped in (sender, receiver):
        wrapped.take_ownership()
    address = socket.inet_pton(socket.AF_INET6 if ":" in host else socket.AF_INET, host)
    endpoint = Endpoint(address, int(receiver.local_address.rpartition(":")[2]), 0, address)
    batch = [bytes(SIZE)] * BATCH
    for name, size in (("batch of 45", BATCH), ("single datagrams", 1)):
        sends, receives = [], []
        for _ in range(ROUNDS):
            sends.append(timed(partial(transmit_all, sender, endpoint, batch, size)))
            receives.append(timed(partial(drain, receiver)))
        report(f"udp {host} {name}: transmit", sends)
        report(f"udp {host} {name}: receive", receives)
    sender.close()
    receiver.close()


def bench_tun() -> None:
    if ctypes.CDLL(None).unshare(CLONE_NEWNET) != 0:
        raise SystemExit("unshare failed")
    for vnet_header in (False, True):
        device = TunDevice.create("ox0", vnet_header=vnet_header)
        start = time.perf_counter()
        configure_interface("ox0", [ip_interface("10.9.0.1/24")], 1420, [])
        print(f"configure_interface: {(time.perf_counter() - start) * 1e3:.1f} ms")
        start = time.perf_counter()
        configure_interface("ox0", [ip_interface("10.9.0.1/24")], 1420, [])
        print(f"configure_interface, nothing to change: {(time.perf_counter() - start) * 1e3:.1f} ms")
        inside = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        reads, writes = [], []
        for _ in range(ROUNDS):
            segments = [(17, 103, struct.pack("=H", 1392))]
            inside.sendmsg([bytes(1392 * BATCH)], segments, 0, ("10.9.0.2", 9))
            packets: list[bytes] = []
            reads.append(timed(partial(read_all, device, packets)))
            echoed = [p[:12] + p[16:20] + p[12:16] + p[20:] for p in packets]
            writes.append(timed(partial(write_all, device, echoed)))
        name = "tun with vnet header" if vnet_header else "tun"
        report(f"{name}: read_packets", reads)
        report(f"{name}: write_packets", writes)
        inside.close()
        device.close()


def main() -> None:
    for each in ("127.0.0.1", "::1"):
        bench_udp(each)
    if os.geteuid() == 0:
        bench_tun()


if __name__ == "__main__":
    run(main)
