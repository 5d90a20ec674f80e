"""The TUN device: inner packets from the kernel and to the kernel.

The rule: a device's flags belong to its open file description, which predecessor and successor share. `adopt` checks
them and changes nothing; only `create` sets them. The interface exists as long as a generation or systemd's fd store
holds the description, and packets that arrive while no process reads wait in its queue.

Source: Linux Documentation/networking/tuntap.rst and linux/if_tun.h. Each read is one packet; with IFF_VNET_HDR a
struct virtio_net_hdr precedes it, in both directions.
"""

import errno
import fcntl
import os
import re
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from oxidize import logs
from oxidize.errors import ConfigError, OxidizeError
from oxidize.protocol.inner_packets import Frame
from oxidize.protocol.rows import ROW_BYTES, PacketRows
from oxidize.protocol.super_packets import VNET_HEADER_SIZE, SuperPacket

# --- linux/if_tun.h ---
TUNSETIFF = 0x4004_54CA
TUNGETIFF = 0x8004_54D2
TUNGETFEATURES = 0x8004_54CF
TUNGETVNETHDRSZ = 0x8004_54D7
IFF_TUN = 0x0001
IFF_NO_PI = 0x1000
IFF_VNET_HDR = 0x4000
_PLAIN = IFF_TUN | IFF_NO_PI
_FRAMING_FLAGS = 0x0003 | IFF_NO_PI | IFF_VNET_HDR  # the flags that say how bytes are framed; 0x3: TUN or TAP

_PLAIN_VNET_HEADER = bytes(VNET_HEADER_SIZE)  # one packet, nothing left for the kernel to do

# --- linux/if.h ---
INTERFACE_NAME_MAX = 15  # bytes: IFNAMSIZ without the final NUL
_INTERFACE_NAME = re.compile(rb"[^\s/:%]{1,15}")  # the kernel's dev_valid_name; "%d" would be a template

_DEVICE = Path("/dev/net/tun")
_IFREQ = struct.Struct("=16sH22x")  # struct ifreq: name, flags
_FEATURES = struct.Struct("=I")
_SIZE = struct.Struct("=i")
_REMEDY = "stop and start the service to create it again"

log = logs.get(__name__)


class TunDevice:
    """One TUN interface's queue of packets: the data path's `Tunnel` with an interface of the kernel.

    Made by `create` or `adopt`; only the loop reads and writes it.
    """

    def __init__(self, descriptor: int, name: str, header_size: int) -> None:
        """Hold a descriptor that is attached to `name`; `header_size` bytes precede each packet (0 or 10)."""
        self.name = name
        self._descriptor = descriptor
        self.header_size = header_size
        self.takes_super_packets = header_size != 0
        self._has_taken_one = False
        self._rows = PacketRows(header_size)

    @classmethod
    def create(cls, name: str, *, vnet_header: bool = True) -> Self:
        """Create the interface `name`, or attach to it if it exists and no process holds it.

        vnet_header: whether a virtio header precedes each packet, where the kernel has it. Raises ConfigError with the
        reason and the remedy.
        """
        encoded = os.fsencode(name)
        if not _INTERFACE_NAME.fullmatch(encoded) or name in (".", ".."):
            limit = f"1 to {INTERFACE_NAME_MAX} bytes without spaces, '/', ':' and '%'"
            raise ConfigError(f"interface {name!r}: is not an interface name; expected {limit}")
        try:
            descriptor = os.open(_DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise ConfigError(f"interface {name}: {_open_problem(error)}") from error
        try:
            vnet_header = vnet_header and _has_vnet_headers(descriptor)
            flags = _PLAIN | (IFF_VNET_HDR if vnet_header else 0)
            fcntl.ioctl(descriptor, TUNSETIFF, _IFREQ.pack(encoded, flags))
        except OSError as error:
            os.close(descriptor)
            raise ConfigError(f"interface {name}: {_attach_problem(error)}") from error
        return cls(descriptor, name, VNET_HEADER_SIZE if vnet_header else 0)

    @classmethod
    def adopt(cls, descriptor: int, framing: Mapping[str, object]) -> Self:
        """Take over a descriptor that was passed with this framing, without changing it.

        Only its name is expected: whether the device has virtio headers, the kernel says. Raises OxidizeError for any
        other descriptor, which the caller then still owns.
        """
        try:
            name, flags = _attachment(descriptor)
        except OSError as error:
            problem = (
                "its interface was removed" if error.errno == errno.EBADFD else "it is not attached to a TUN device"
            )
            raise OxidizeError(f"descriptor {descriptor} passed as TUN device: {problem} ({error.strerror})") from error
        header_size = _vnet_header_size(descriptor) if flags & IFF_VNET_HDR else 0
        if (
            name != framing.get("name")
            or flags & _FRAMING_FLAGS & ~IFF_VNET_HDR != _PLAIN
            or header_size not in (0, VNET_HEADER_SIZE)
        ):
            raise OxidizeError(
                f"descriptor {descriptor} passed as TUN device: is {name!r} with flags {flags & _FRAMING_FLAGS:#06x} "
                f"and headers of {header_size} bytes; expected {framing.get('name')!r} with {_PLAIN:#06x} and none, or "
                f"with {IFF_VNET_HDR:#06x} too and {VNET_HEADER_SIZE} bytes: stop and start the service to create it "
                "again"
            )
        if not header_size:
            log.info("packets are written singly: the interface has no virtio headers", interface=name, remedy=_REMEDY)
        return cls(descriptor, name, header_size)

    @property
    def vnet_header(self) -> bool:
        """Whether a virtio header precedes each packet."""
        return self.header_size != 0

    def framing(self) -> dict[str, object]:
        """Return how this device frames packets, for the OFFER of a takeover and for `adopt`."""
        return {"name": self.name, "vnet_header": self.vnet_header}

    def read_packets(self, limit: int) -> list[memoryview]:
        """Return up to `limit` packets, BATCH_PACKETS_MAX at most; none mean an empty queue.

        Raises OxidizeError if the interface is gone.

        The packets last until the next call.
        """
        rows, descriptor = self._rows, self._descriptor
        sizes: list[int] = []
        try:
            for room in rows.room[:limit]:
                sizes.append(size := os.readv(descriptor, room))
                if size > ROW_BYTES:
                    break
        except BlockingIOError:
            pass
        except OSError as error:
            if not sizes:
                raise OxidizeError(self._gone(error)) from error
        # Packets already read are returned: an error that lasts is raised by the next call.
        return rows.packets(sizes) if sizes else []

    def write_packets(self, packets: Sequence[bytes | bytearray | memoryview]) -> int:
        """Write packets to the kernel in order; return how many it refused."""
        descriptor = self._descriptor
        header = _PLAIN_VNET_HEADER[: self.header_size]
        failures = 0
        for packet in packets:
            try:
                if header:
                    os.writev(descriptor, (header, packet))
                else:
                    os.write(descriptor, packet)
            except OSError:
                failures += 1
        return failures

    def write_frames(self, frames: Sequence[Frame]) -> int:
        """Write packets with their headers to the kernel in order; return how many packets it refused."""
        write, descriptor = os.write, self._descriptor
        failures = 0
        for frame in frames:
            if isinstance(frame, SuperPacket):
                failures += self._write_super_packet(frame)
                continue
            try:
                write(descriptor, frame)
            except OSError:
                failures += 1
        return failures

    def _write_super_packet(self, packet: SuperPacket) -> int:
        """Write a super-packet, or its segments where the kernel takes none; return how many segments it refused."""
        try:
            os.writev(self._descriptor, packet.buffers)
        except OSError as error:
            if self.takes_super_packets and not self._has_taken_one:
                self.takes_super_packets = False
                log.info("packets are written singly: the kernel takes no joined ones", reason=error.strerror)
            return self.write_frames(packet.frames())
        self._has_taken_one = True
        return 0

    def fileno(self) -> int:
        """Return the file descriptor, -1 after `close`."""
        return self._descriptor

    def close(self) -> None:
        """Close this process's hold on the device; idempotent."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def _gone(self, error: OSError) -> str:
        if error.errno == errno.EBADFD:
            return f"interface {self.name}: was removed while in use; restart the service to create it again"
        return f"interface {self.name}: cannot be read ({error.strerror})"


def interface_name_of_fd(descriptor: int) -> str | None:
    """Return the name of the interface that a descriptor is attached to, or None."""
    try:
        return _attachment(descriptor)[0]
    except OSError:
        return None


def _has_vnet_headers(descriptor: int) -> bool:
    """Return whether the kernel has virtio headers for TUN devices, and log where it has none."""
    (features,) = _FEATURES.unpack(fcntl.ioctl(descriptor, TUNGETFEATURES, bytes(_FEATURES.size)))
    if not features & IFF_VNET_HDR:
        log.info("packets are written singly: the kernel has no virtio headers for TUN devices")
    return bool(features & IFF_VNET_HDR)


def _vnet_header_size(descriptor: int) -> int:
    (size,) = _SIZE.unpack(fcntl.ioctl(descriptor, TUNGETVNETHDRSZ, bytes(_SIZE.size)))
    return int(size)


def _attachment(descriptor: int) -> tuple[str, int]:
    raw_name, flags = _IFREQ.unpack(fcntl.ioctl(descriptor, TUNGETIFF, bytes(_IFREQ.size)))
    return os.fsdecode(raw_name.rstrip(b"\0")), flags


def _open_problem(error: OSError) -> str:
    if isinstance(error, PermissionError):
        return f"{_DEVICE} cannot be opened; run as root, or give the unit DeviceAllow={_DEVICE} rw"
    remedy = "load the module tun, or set network = 'userspace'"
    return f"{_DEVICE} cannot be opened ({error.strerror}); {remedy}"


def _attach_problem(error: OSError) -> str:
    if isinstance(error, PermissionError):
        return "creating a TUN device needs CAP_NET_ADMIN; run as root, or set network = 'userspace'"
    if error.errno == errno.EBUSY:
        return "another process holds it; stop that one, replace it with `oxidize reload`, or choose another name"
    if error.errno == errno.EINVAL:
        return "an interface of this name exists and is not a TUN device of this kind; choose another name"
    return f"cannot be created ({error.strerror})"
