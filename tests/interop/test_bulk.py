"""Bulk through a server and a client of this release, whatever of the kernel's offloads each of them lacks.

A server routes between a client and a host behind it, with and without address translation. The client is 192.0.2.2
outside, 10.9.0.2 and fd09::2 inside, the server 192.0.2.1, 10.9.0.1 and fd09::1; the host behind the server is
198.51.100.2 and 2001:db8:ffff::2, the server's address there ends with 1. (RFC 5737, RFC 3849, RFC 4193.)
"""

import hashlib
import json
import os
import random
import secrets
import socket
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.traffic.namespaces import Namespace, join, set_addresses
from tests.support.traffic.oxidize_client import OxidizeClient
from tests.support.traffic.releases import PRESENT, Release
from tests.support.traffic.server import FAULTS, WAIT_SECS, Lab, PeerTable, Server

pytestmark = [pytest.mark.handoff, pytest.mark.root]

PORT = 51820
BYTES = 4 << 20  # in each direction: some 50 full batches
CHUNK_BYTES = 1 << 16
INNER = {4: ("10.9.0.1", "10.9.0.2"), 6: ("fd09::1", "fd09::2")}
UPLINK = {4: "198.51.100.1", 6: "2001:db8:ffff::1"}
BEYOND = {4: "198.51.100.2", 6: "2001:db8:ffff::2"}

UNKNOWN_OPTION = 9_999
NO_VNET = {"oxidize.net.tun:IFF_VNET_HDR": 0}
NO_SUPER_PACKETS = {"oxidize.protocol.super_packets:_GSO_TCPV4": 99, "oxidize.protocol.super_packets:_GSO_TCPV6": 99}
NO_GRO = {"oxidize.net.udp:UDP_GRO": UNKNOWN_OPTION}
NO_GSO = {"oxidize.net.udp:UDP_SEGMENT": UNKNOWN_OPTION}
LACKS = {
    "nothing": {},
    "virtio headers": NO_VNET,
    "super-packets": NO_SUPER_PACKETS,
    "GRO": NO_GRO,
    "GSO": NO_GSO,
    "everything": NO_VNET | NO_GRO | NO_GSO,
}
SAID = {
    "virtio headers": "packets are written singly: the kernel has no virtio headers for TUN devices",
    "super-packets": "packets are written singly: the kernel takes no joined ones",
    "GRO": "datagrams are received singly: the kernel does not join them",
    "GSO": "datagrams are sent singly: the kernel does not segment",
}
CASES = [*((lack, "nothing") for lack in LACKS), *(("nothing", lack) for lack in LACKS if lack != "nothing")]
CASES.append(("everything", "everything"))


def lacking(lack: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(FAULTS), "TEST_LACKS": json.dumps(LACKS[lack])}


@dataclass
class Net:
    """A server and a client that are not started, in namespaces of their own, and a host behind the server."""

    lab: Lab
    server_side: Namespace
    client_side: Namespace
    beyond: Namespace
    server: Server
    client: OxidizeClient

    def start(self, server_env: Mapping[str, str] | None = None, client_env: Mapping[str, str] | None = None) -> None:
        self.server.start(server_env)
        self.client.start(client_env)

    def packets_written(self, side: Namespace, interface: str) -> int:
        """Return how many writes the kernel has taken at a tunnel's interface."""
        with side.entered():
            lines = Path("/proc/net/dev").read_text().splitlines()
        (fields,) = (line.split(":")[1].split() for line in lines if line.strip().startswith(f"{interface}:"))
        return int(fields[1])

    def assert_no_checksum_was_wrong(self) -> None:
        for side in (self.server_side, self.client_side, self.beyond):
            with side.entered():
                lines = Path("/proc/thread-self/net/snmp").read_text().splitlines()
            names, values = [line.split() for line in lines if line.startswith("Tcp:")]
            assert dict(zip(names, values, strict=True))["InCsumErrors"] == "0"


@pytest.fixture
def net(tmp_path: Path) -> Iterator[Net]:
    with Lab(tmp_path) as lab:
        server_side, client_side, beyond = (Namespace(lab.stack) for _ in range(3))
        join(server_side, "clients0", client_side, "outer0")
        join(server_side, "uplink0", beyond, "lan0")
        set_addresses(server_side, "clients0", ["192.0.2.1/24"])
        set_addresses(client_side, "outer0", ["192.0.2.2/24"])
        set_addresses(server_side, "uplink0", [f"{UPLINK[4]}/24", f"{UPLINK[6]}/64"])
        set_addresses(beyond, "lan0", [f"{BEYOND[4]}/24", f"{BEYOND[6]}/64"])
        with server_side.entered():
            for name in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
                Path("/proc/sys/net", name).write_text("1")
        server = Server(
            lab,
            [],
            listen=f"0.0.0.0:{PORT}",
            network="tun",
            interface=f"ox{secrets.token_hex(5)}",
            address=[f"{INNER[4][0]}/24", f"{INNER[6][0]}/64"],
            inside=server_side.entered,
        )
        client = OxidizeClient(
            lab,
            f"192.0.2.1:{PORT}",
            server.identity.public,
            address=[f"{INNER[4][1]}/24", f"{INNER[6][1]}/64"],
            allowed_ips=["10.9.0.0/24", "fd09::/64", f"{BEYOND[4]}/32", f"{BEYOND[6]}/128"],
            inside=client_side.entered,
            interface=f"ox{secrets.token_hex(5)}",
        )
        server.peers = [PeerTable("client", client.identity.public, (f"{INNER[4][1]}/32", f"{INNER[6][1]}/128"))]
        server.write_config(nat=True)
        yield Net(lab, server_side, client_side, beyond, server, client)


def carry(sender: Namespace, receiver: Namespace, address: str, count: int = BYTES) -> None:
    """Send bytes by TCP as fast as it goes; fail unless the same bytes arrive."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with receiver.entered():
        listener = socket.create_server((address, 0), family=family)
    with sender.entered():
        sending = socket.socket(family)
    sent, received = hashlib.sha256(), hashlib.sha256()
    errors: list[OSError] = []

    def send() -> None:
        stream = random.Random(1)
        try:
            with sending:
                sending.connect(listener.getsockname())
                for _ in range(0, count, CHUNK_BYTES):
                    chunk = stream.randbytes(CHUNK_BYTES)
                    sent.update(chunk)
                    sending.sendall(chunk)
        except OSError as error:
            errors.append(error)

    sending.settimeout(WAIT_SECS)
    listener.settimeout(WAIT_SECS)
    thread = threading.Thread(target=send)
    thread.start()
    with listener:
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(WAIT_SECS)
            while data := connection.recv(CHUNK_BYTES):
                received.update(data)
    thread.join()
    assert errors == []
    assert received.digest() == sent.digest()


def carry_all(net: Net) -> None:
    """Carry bytes in both directions, to the server itself and to the host behind it."""
    for version, (server, client) in INNER.items():
        carry(net.client_side, net.server_side, server)
        carry(net.server_side, net.client_side, client)
        carry(net.client_side, net.beyond, BEYOND[version])


@pytest.mark.parametrize(("server_lacks", "client_lacks"), CASES)
def test_bulk_is_carried_whatever_a_side_lacks(server_lacks: str, client_lacks: str, net: Net) -> None:
    net.start(lacking(server_lacks), lacking(client_lacks))
    carry_all(net)
    net.assert_no_checksum_was_wrong()
    for lacks, side, end, log in (
        (server_lacks, net.server_side, net.server, net.server.log_path.read_text()),
        (client_lacks, net.client_side, net.client, net.client.log),
    ):
        status = end.status()
        packets, written = status["totals"]["received_packets"], net.packets_written(side, status["interface"])
        if lacks in {"virtio headers", "super-packets", "everything"}:
            assert written >= packets
        elif {server_lacks, client_lacks} == {"nothing"}:
            assert written < packets / 3
        for lack, said in SAID.items():
            expected = lack == lacks or (lacks == "everything" and lack != "super-packets")
            assert log.count(said) == expected, log


def test_the_sender_behind_the_server_is_not_translated_without_nat(net: Net) -> None:
    net.server.write_config(nat=False)
    with net.beyond.entered():
        os.system(f"ip route add 10.9.0.0/24 via {UPLINK[4]}; ip -6 route add fd09::/64 via {UPLINK[6]}")
    net.start()
    for version in (4, 6):
        carry(net.client_side, net.beyond, BEYOND[version])
        carry(net.beyond, net.client_side, INNER[version][1])
    net.assert_no_checksum_was_wrong()


def test_releases_hand_each_other_a_device_with_virtio_headers_and_one_without(net: Net, golden: Release) -> None:
    for first, other, has_headers in ((golden, PRESENT, False), (PRESENT, golden, True)):
        net.server.start(first.environ(), options=first.bare_options)
        net.client.start()
        for release in (first, other, first, other):
            if net.server.status()["release"] != release.version:
                before = net.server.status()
                assert net.server.reload(release.environ()).status == 0, net.server.log_path.read_text()
                assert net.lab.wait_ended(before["pid"]) == 0
            assert net.server.status()["release"] == release.version
            written, packets = (count(net) for count in (writes, received))
            carry(net.client_side, net.server_side, INNER[4][0])
            carry(net.server_side, net.client_side, INNER[4][1])
            is_joined = writes(net) - written < (received(net) - packets) / 2
            assert is_joined == (has_headers and release is PRESENT)
        net.assert_no_checksum_was_wrong()
        net.client.stop()
        net.server.stop()


def writes(net: Net) -> int:
    return net.packets_written(net.server_side, net.server.status()["interface"])


def received(net: Net) -> int:
    return int(net.server.status()["totals"]["received_packets"])
