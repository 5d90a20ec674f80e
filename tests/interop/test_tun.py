"""The TUN device and its interface on the real kernel, each test in a child with its own network namespace."""

import ctypes
import fcntl
import functools
import gc
import os
import select
import socket
import struct
import sys
import traceback
from collections.abc import Callable, Sequence
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path

import pytest
from pyroute2 import IPRoute

from oxidize.errors import ConfigError, OxidizeError
from oxidize.hostnet.interface import TRANSMIT_QUEUE_PACKETS, configure_interface
from oxidize.hostnet.netlink import ROUTE_PROTOCOL
from oxidize.net import tun as tun_module
from oxidize.net.tun import TunDevice

TUNSETVNETHDRSZ = 0x4004_54D8
CLONE_NEWNET = 0x4000_0000
IFA_F_NODAD = 0x02
IFA_F_TENTATIVE = 0x40
WAIT_MS = 5_000

ADDRESSES = [ip_interface("10.9.0.1/24"), ip_interface("fd00:9::1/64")]
MTU = 1420


def in_own_namespace(test: Callable[[], None]) -> Callable[[], None]:
    """Run a test in a child with its own network namespace, so that this process keeps its own."""

    @pytest.mark.root
    @functools.wraps(test)
    def run() -> None:
        read_end, write_end = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(read_end)
            report = _report(test)
            os.write(write_end, report.encode()[:60_000])
            os._exit(0)
        os.close(write_end)
        with os.fdopen(read_end) as pipe:
            report = pipe.read()
        _, status = os.waitpid(child, 0)
        assert status == 0, f"the child ended with status {status}"
        assert report == "passed", report

    return run


def _report(test: Callable[[], None]) -> str:
    unraisable: list[str] = []
    sys.unraisablehook = lambda args: unraisable.append(f"{args.exc_value!r} in {args.object!r}")
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "unshare")
        test()
        gc.collect()  # pytest's own look for what was left open does not reach into this child
    except BaseException:  # noqa: BLE001 - the parent fails the test with it
        return traceback.format_exc()
    return "\n".join(unraisable) or "passed"


def udp4_packet(source: str, destination: str, port: int, payload: bytes) -> bytes:
    """Return an IPv4 packet with a UDP datagram in it; its UDP checksum is off (RFC 768)."""
    addresses = ip_address(source).packed + ip_address(destination).packed
    header = struct.pack(">BBHHHBBH", 0x45, 0, 28 + len(payload), 0, 0, 64, 17, 0) + addresses
    checksum = 0xFFFF - int.from_bytes(header, "big") % 0xFFFF
    header = header[:10] + checksum.to_bytes(2, "big") + header[12:]
    return header + struct.pack(">HHHH", 4000, port, 8 + len(payload), 0) + payload


def payloads(packets: Sequence[bytes | memoryview], port: int) -> list[bytes]:
    """Return the payloads of the IPv4 UDP packets to this port (the kernel sends packets of its own, too)."""
    return [bytes(p[28:]) for p in packets if p[0] == 0x45 and p[9] == 17 and p[22:24] == port.to_bytes(2, "big")]


def read_until(device: TunDevice, port: int, count: int, limit: int = 64) -> list[bytes]:
    poll = select.poll()
    poll.register(device.fileno(), select.POLLIN)
    found: list[bytes] = []
    while len(found) < count:
        assert poll.poll(WAIT_MS), f"{len(found)} of {count} packets came"
        found += payloads(device.read_packets(limit), port)
    return found


def sysctl(name: str, value: int) -> None:
    Path("/proc/sys/net", name).write_text(str(value))


# --- The device ---


def check_packets_both_ways(vnet_header: bool) -> None:
    device = TunDevice.create("ox0", vnet_header=vnet_header)
    configure_interface("ox0", ADDRESSES, MTU, [])
    assert device.vnet_header is vnet_header
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as inside:
        inside.bind(("10.9.0.1", 7000))
        inside.settimeout(WAIT_MS / 1000)
        sent = [i.to_bytes(2, "big") * (1 + 13 * i) for i in range(50)]
        for payload in sent:
            inside.sendto(payload, ("10.9.0.2", 7001))
        assert read_until(device, 7001, len(sent)) == sent

        packets: list[bytes | memoryview] = [udp4_packet("10.9.0.2", "10.9.0.1", 7000, payload) for payload in sent]
        packets[3] = memoryview(packets[3])
        assert device.write_packets(packets) == 0
        assert [inside.recvfrom(2000) for _ in sent] == [(payload, ("10.9.0.2", 4000)) for payload in sent]
    device.close()
    device.close()
    assert device.fileno() == -1


@in_own_namespace
def test_packets_pass_a_tun_device_in_both_directions() -> None:
    check_packets_both_ways(vnet_header=False)


@in_own_namespace
def test_packets_with_a_virtio_header_pass_a_tun_device_in_both_directions() -> None:
    check_packets_both_ways(vnet_header=True)


@in_own_namespace
def test_a_read_stops_at_its_limit_or_at_an_empty_queue() -> None:
    device = TunDevice.create("ox0")
    assert device.read_packets(64) == []
    configure_interface("ox0", ADDRESSES[:1], MTU, [])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as inside:
        for number in range(10):
            inside.sendto(bytes([number]), ("10.9.0.2", 7001))
    found: list[bytes] = []
    while batch := device.read_packets(4):
        assert len(batch) <= 4
        found += payloads(batch, 7001)
    assert found == [bytes([number]) for number in range(10)]
    device.close()


@in_own_namespace
def test_packets_longer_than_a_row_are_read_between_others() -> None:
    for vnet_header in (False, True):
        device = TunDevice.create("ox0", vnet_header=vnet_header)
        configure_interface("ox0", ADDRESSES[:1], 65_535, [])
        sent = [bytes([number]) * size for number, size in enumerate((9, 2_000, 2_100, 5, 60_000, 1, 1, 3_000))]
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as inside:
            for payload in sent:
                inside.sendto(payload, ("10.9.0.2", 7001))
        assert read_until(device, 7001, len(sent)) == sent
        device.close()


@in_own_namespace
def test_refused_packets_are_counted_and_other_packets_delivered() -> None:
    device = TunDevice.create("ox0")
    configure_interface("ox0", ADDRESSES, MTU, [])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as inside:
        inside.bind(("10.9.0.1", 7000))
        inside.settimeout(WAIT_MS / 1000)
        good = udp4_packet("10.9.0.2", "10.9.0.1", 7000, b"good")
        assert device.write_packets([b"", good, bytes(40), good]) == 2
        assert [inside.recv(100), inside.recv(100)] == [b"good", b"good"]
    device.close()


@in_own_namespace
def test_a_removed_interface_is_an_error_and_not_silence() -> None:
    device = TunDevice.create("ox0")
    with IPRoute() as netlink:
        netlink.link("del", index=socket.if_nametoindex("ox0"))
    with pytest.raises(OxidizeError, match=r"ox0: was removed"):
        device.read_packets(64)
    with pytest.raises(OxidizeError, match="its interface was removed"):
        TunDevice.adopt(device.fileno(), device.framing())
    device.close()


@in_own_namespace
def test_a_successor_adopts_the_device_with_its_queued_packets() -> None:
    for vnet_header in (False, True):
        predecessor = TunDevice.create("ox0", vnet_header=vnet_header)
        configure_interface("ox0", ADDRESSES, MTU, [])
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as inside:
            inside.sendto(b"waiting", ("10.9.0.2", 7001))
        before = fcntl.ioctl(predecessor.fileno(), tun_module.TUNGETIFF, bytes(40))
        successor = TunDevice.adopt(os.dup(predecessor.fileno()), predecessor.framing())
        predecessor.close()
        assert successor.framing() == {"name": "ox0", "vnet_header": vnet_header}
        assert read_until(successor, 7001, 1) == [b"waiting"]
        assert fcntl.ioctl(successor.fileno(), tun_module.TUNGETIFF, bytes(40)) == before
        assert configure_interface("ox0", ADDRESSES, MTU, []) == []
        successor.close()


@in_own_namespace
def test_a_descriptor_that_is_no_tun_device_is_not_adopted() -> None:
    device = TunDevice.create("ox0")
    for framing in ({"name": "ox1", "vnet_header": False}, {}):
        with pytest.raises(OxidizeError, match="expected"):
            TunDevice.adopt(device.fileno(), framing)
    assert device.read_packets(1) == []  # still open, still the caller's
    device.close()
    null = os.open("/dev/null", os.O_RDWR)
    with pytest.raises(OxidizeError, match="not attached to a TUN device"):
        TunDevice.adopt(null, {"name": "ox0"})
    os.close(null)


@in_own_namespace
def test_how_a_device_frames_packets_is_read_from_the_kernel() -> None:
    for vnet_header in (False, True):
        device = TunDevice.create("ox0", vnet_header=vnet_header)
        for believed in ({"vnet_header": True}, {"vnet_header": False}, {}):
            adopted = TunDevice.adopt(os.dup(device.fileno()), {"name": "ox0", **believed})
            assert (adopted.vnet_header, adopted.takes_super_packets) == (vnet_header, vnet_header)
            adopted.close()
        device.close()
    device = TunDevice.create("ox0")
    fcntl.ioctl(device.fileno(), TUNSETVNETHDRSZ, struct.pack("=i", 12))
    with pytest.raises(OxidizeError, match=r"headers of 12 bytes; expected 'ox0' with 0x1001 and none, or .* 10 bytes"):
        TunDevice.adopt(device.fileno(), {"name": "ox0"})
    device.close()


@in_own_namespace
def test_a_device_that_cannot_be_made_says_why() -> None:
    held = TunDevice.create("ox0")
    with pytest.raises(ConfigError, match=r"ox0: another process holds it.*oxidize reload"):
        TunDevice.create("ox0")
    held.close()
    with pytest.raises(ConfigError, match="not a TUN device of this kind"):
        TunDevice.create("lo")
    os.setresuid(65_534, 65_534, 65_534)
    with pytest.raises(ConfigError, match=r"needs CAP_NET_ADMIN|cannot be opened; run as root"):
        TunDevice.create("ox1")


@pytest.mark.parametrize("name", ["", "a-name-that-is-too-long", "a b", "a/b", "ox%d", "..", "ä" * 8])
def test_invalid_interface_names_are_refused_before_a_device_is_opened(name: str) -> None:
    with pytest.raises(ConfigError, match="expected 1 to 15 bytes"):
        TunDevice.create(name)


def test_a_missing_device_node_is_an_error_with_a_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tun_module, "_DEVICE", tmp_path / "tun")
    with pytest.raises(ConfigError, match=r"load the module tun, or set network = 'userspace'"):
        TunDevice.create("ox0")


# --- The interface ---


def state_of(name: str) -> dict[str, object]:
    """Return the kernel's view of the interface, without link-local addresses."""
    with IPRoute() as netlink:
        index = socket.if_nametoindex(name)
        (link,) = netlink.link("get", index=index)
        addresses = {f"{a.get('address')}/{a['prefixlen']}" for a in netlink.get_addr(index=index)}
        routes = {
            f"{r.get('dst') or 'default'}/{r['dst_len']}"
            for r in netlink.get_routes(oif=index)
            if r["proto"] == ROUTE_PROTOCOL
        }
    return {
        "mtu": link.get("mtu"),
        "queue": link.get("txqlen"),
        "segments": link.get("gso_max_segs"),
        "up": bool(link["flags"] & 1),
        "addresses": {a for a in addresses if not a.startswith("fe80:")},
        "routes": routes,
    }


@in_own_namespace
def test_configuring_an_interface_twice_changes_nothing_the_second_time() -> None:
    device = TunDevice.create("ox0")
    routes = [
        ip_network(text)
        for text in ("10.9.0.7/32", "10.9.0.0/24", "fd00:9::/96", "10.50.0.0/16", "fd77::/48", "0.0.0.0/0", "::/0")
    ]
    changes = configure_interface("ox0", ADDRESSES, MTU, routes, 45)
    assert changes == [
        "mtu 1420",
        f"txqlen {TRANSMIT_QUEUE_PACKETS}",
        "gso_max_segs 45",
        "state up",
        "address +10.9.0.1/24",
        "address +fd00:9::1/64",
        "route +0.0.0.0/0",
        "route +10.50.0.0/16",
        "route +::/0",
        "route +fd77::/48",
    ]
    state = state_of("ox0")
    assert state == {
        "mtu": MTU,
        "queue": TRANSMIT_QUEUE_PACKETS,
        "segments": 45,
        "up": True,
        "addresses": {"10.9.0.1/24", "fd00:9::1/64"},
        "routes": {"10.50.0.0/16", "fd77::/48", "default/0"},
    }
    assert configure_interface("ox0", ADDRESSES, MTU, routes, 45) == []
    assert state_of("ox0") == state
    with IPRoute() as netlink:
        flags = {a.get("address"): a.get("flags") for a in netlink.get_addr(index=socket.if_nametoindex("ox0"))}
    assert flags["fd00:9::1"] & IFA_F_NODAD
    assert not flags["fd00:9::1"] & IFA_F_TENTATIVE
    device.close()


@in_own_namespace
def test_a_new_configuration_changes_only_what_differs() -> None:
    device = TunDevice.create("ox0")
    configure_interface("ox0", ADDRESSES, MTU, [ip_network("10.50.0.0/16"), ip_network("10.60.0.0/16")])
    changes = configure_interface(
        "ox0",
        [ip_interface("10.9.0.1/24"), ip_interface("fd00:9::1/56"), ip_interface("10.8.0.1/24")],
        1380,
        [ip_network("10.60.0.0/16"), ip_network("10.70.0.0/16")],
    )
    assert changes == [
        "mtu 1380",
        "address -fd00:9::1/64",
        "address +10.8.0.1/24",
        "address +fd00:9::1/56",
        "route -10.50.0.0/16",
        "route +10.70.0.0/16",
    ]
    assert state_of("ox0")["addresses"] == {"10.9.0.1/24", "fd00:9::1/56", "10.8.0.1/24"}
    assert state_of("ox0")["routes"] == {"10.60.0.0/16", "10.70.0.0/16"}
    configure_interface("ox0", [], 1380, [])
    assert state_of("ox0")["addresses"] == set()
    assert state_of("ox0")["routes"] == set()
    device.close()


@in_own_namespace
def test_secondary_addresses_outlive_their_primary() -> None:
    sysctl("ipv4/conf/all/promote_secondaries", 0)
    sysctl("ipv4/conf/default/promote_secondaries", 0)
    device = TunDevice.create("ox0")
    all_three = [ip_interface(f"10.9.0.{host}/24") for host in (1, 2, 3)]
    routes = [ip_network("10.50.0.0/16")]
    configure_interface("ox0", all_three, MTU, routes)
    configure_interface("ox0", all_three[1:2], MTU, routes)
    assert state_of("ox0")["addresses"] == {"10.9.0.2/24"}
    assert state_of("ox0")["routes"] == {"10.50.0.0/16"}
    assert configure_interface("ox0", all_three[1:2], MTU, routes) == []
    device.close()


@in_own_namespace
def test_addresses_and_routes_of_other_programs_are_kept() -> None:
    device = TunDevice.create("ox0")
    other = TunDevice.create("other0")
    configure_interface("other0", [ip_interface("10.7.0.1/24")], MTU, [ip_network("10.71.0.0/16")])
    configure_interface("ox0", ADDRESSES, MTU, [ip_network("10.50.0.0/16")])
    with IPRoute() as netlink:
        index = socket.if_nametoindex("ox0")
        netlink.route("add", dst="10.55.0.0/16", oif=index, proto="static")
        netlink.route("add", dst="10.56.0.0/16", oif=index, proto="static")
        before = state_of("other0")
        changes = configure_interface("ox0", ADDRESSES, MTU, [ip_network("10.55.0.0/16")])
        assert changes == ["route -10.50.0.0/16"]
        kept = {r.get("dst") for r in netlink.get_routes(oif=index, family=socket.AF_INET)}
        assert {"10.55.0.0", "10.56.0.0"} <= kept
        link_local = [a.get("address") for a in netlink.get_addr(index=index, family=socket.AF_INET6)]
        assert any(address.startswith("fe80:") for address in link_local)
    assert state_of("other0") == before
    for made in (device, other):
        made.close()


@in_own_namespace
def test_a_setting_that_the_kernel_refuses_is_an_error_with_a_remedy() -> None:
    device, other = TunDevice.create("ox0"), TunDevice.create("other0")
    with pytest.raises(OxidizeError, match="interface nope0: the interface is not there"):
        configure_interface("nope0", ADDRESSES, MTU, [])
    with pytest.raises(OxidizeError, match=r"ox0, mtu 70000: .*1280"):
        configure_interface("ox0", ADDRESSES, 70_000, [])
    configure_interface("other0", [], MTU, [ip_network("10.50.0.0/16")])
    with pytest.raises(OxidizeError, match=r"ox0, route \+10.50.0.0/16: another interface has it"):
        configure_interface("ox0", ADDRESSES, MTU, [ip_network("10.50.0.0/16")])
    sysctl("ipv6/conf/ox0/disable_ipv6", 1)
    with pytest.raises(OxidizeError, match=r"ox0, address \+fd00:9::1/64: .*disable_ipv6"):
        configure_interface("ox0", ADDRESSES, MTU, [])
    for made in (device, other):
        made.close()
    os.setresuid(65_534, 65_534, 65_534)
    with pytest.raises(OxidizeError, match="CAP_NET_ADMIN"):
        configure_interface("lo", [ip_interface("10.1.0.1/32")], 65_536, [])
