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

from oxidize.errors import ConfigError, OxidizeError
from oxidize.protocol.rows import ROW_BYTES, PacketRows

# --- linux/if_tun.h ---
TUNSETIFF = 0x4004_54CA
TUNGETIFF = 0x8004_54D2
IFF_TUN = 0x0001
IFF_NO_PI = 0x1000
IFF_VNET_HDR = 0x4000
_FRAMING_FLAGS = 0x0003 | IFF_NO_PI | IFF_VNET_HDR  # the flags that say how bytes are framed; 0x3: TUN or TAP

# --- linux/virtio_net.h: flags, gso_type, hdr_len, gso_size, csum_start, csum_offset ---
VNET_HEADER_SIZE = 10
_PLAIN_VNET_HEADER = bytes(VNET_HEADER_SIZE)  # one packet, nothing left for the kernel to do

# --- linux/if.h ---
INTERFACE_NAME_MAX = 15  # bytes: IFNAMSIZ without the final NUL
_INTERFACE_NAME = re.compile(rb"[^\s/:%]{1,15}")  # the kernel's dev_valid_name; "%d" would be a template

_DEVICE = Path("/dev/net/tun")
_IFREQ = struct.Struct("=16sH22x")  # struct ifreq: name, flags


class TunDevice:
    """One TUN interface's queue of packets: the data path's `Tunnel` with an interface of the kernel.

    Made by `create` or `adopt`; only the loop reads and writes it.
    """

    def __init__(self, descriptor: int, name: str, header_size: int) -> None:
        """Hold a descriptor that is attached to `name`; `header_size` bytes precede each packet (0 or 10)."""
        self.name = name
        self._descriptor = descriptor
        self._header_size = header_size
        self._rows = PacketRows(header_size)

    @classmethod
    def create(cls, name: str, *, vnet_header: bool = False) -> Self:
        """Create the interface `name`, or attach to it if it exists and no process holds it.

        Raises ConfigError with the reason and the remedy.
        """
        encoded = os.fsencode(name)
        if not _INTERFACE_NAME.fullmatch(encoded) or name in (".", ".."):
            limit = f"1 to {INTERFACE_NAME_MAX} bytes without spaces, '/', ':' and '%'"
            raise ConfigError(f"interface {name!r}: is not an interface name; expected {limit}")
        try:
            descriptor = os.open(_DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise ConfigError(f"interface {name}: {_open_problem(error)}") from error
        flags = IFF_TUN | IFF_NO_PI | (IFF_VNET_HDR if vnet_header else 0)
        try:
            fcntl.ioctl(descriptor, TUNSETIFF, _IFREQ.pack(encoded, flags))
        except OSError as error:
            os.close(descriptor)
            raise ConfigError(f"interface {name}: {_attach_problem(error)}") from error
        return cls(descriptor, name, VNET_HEADER_SIZE if vnet_header else 0)

    @classmethod
    def adopt(cls, descriptor: int, framing: Mapping[str, object]) -> Self:
        """Take over a descriptor that was passed with this framing, without changing it.

        Raises OxidizeError for any other descriptor, which the caller then still owns.
        """
        try:
            name, flags = _attachment(descriptor)
        except OSError as error:
            problem = (
                "its interface was removed" if error.errno == errno.EBADFD else "it is not attached to a TUN device"
            )
            raise OxidizeError(f"descriptor {descriptor} passed as TUN device: {problem} ({error.strerror})") from error
        vnet_header = bool(flags & IFF_VNET_HDR)
        expected = IFF_TUN | IFF_NO_PI | (IFF_VNET_HDR if framing.get("vnet_header", False) else 0)
        if name != framing.get("name") or flags & _FRAMING_FLAGS != expected:
            raise OxidizeError(
                f"descriptor {descriptor} passed as TUN device: is {name!r} with flags {flags & _FRAMING_FLAGS:#06x}; "
                f"expected {framing.get('name')!r} with {expected:#06x}: stop and start the service to create it again"
            )
        return cls(descriptor, name, VNET_HEADER_SIZE if vnet_header else 0)

    @property
    def vnet_header(self) -> bool:
        """Whether a virtio header precedes each packet."""
        return self._header_size != 0

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
        header = _PLAIN_VNET_HEADER[: self._header_size]
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
