"""What a generation keeps in the service manager's fd store, beside its state.

The rule: the store holds what this process uses and nothing older, for the next start takes whatever it finds there. At
no moment does it hold less: a process that is killed between two messages leaves its TUN device, with the packets in
its queue, to the next one.

No message replaces a descriptor: a name is removed as a whole, and an open file that is stored already is not stored
again under another name (sd_pid_notify_with_fds(3)). So while the TUN device is replaced, a socket is stored as well
that has the device in its queue (SCM_RIGHTS, unix(7)); it is another open file. Releases before 0.2.0 close it unread.
"""

import array
import contextlib
import os
import socket
from collections.abc import Callable

from oxidize.hostnet.nat import Nat
from oxidize.net.data_path import Tunnel
from oxidize.net.tun import TunDevice, interface_name_of_fd
from oxidize.runtime.offer import STATE, FdName
from oxidize.service_manager import notify
from oxidize.state.session_state import SessionState

PARKED = "tun-parked"  # the name of that socket

Pause = Callable[[float], object]


def store_tunnel(tunnel: Tunnel) -> None:
    """Store a TUN device instead of the one that is no longer used; raises as `notify.store_fd`."""
    if not isinstance(tunnel, TunDevice):
        notify.forget_fds(FdName.TUN, PARKED)
        return
    inner, outer = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with inner, outer:
        socket.send_fds(inner, [FdName.TUN.encode()], [tunnel.fileno()])
        notify.store_fd(PARKED, outer.fileno())
    notify.forget_fds(FdName.TUN)
    notify.store_fd(FdName.TUN, tunnel.fileno())
    notify.forget_fds(PARKED)


def spare_older_release(tunnel: Tunnel) -> bool:
    """Take a TUN device with virtio headers out of the store, and return whether it was one.

    Releases before 0.2.0 expect a stored device without, and a start of theirs would fail for as long as it is stored.
    """
    is_unknown = isinstance(tunnel, TunDevice) and tunnel.vnet_header
    if is_unknown:
        notify.forget_fds(FdName.TUN, PARKED)
    return is_unknown


def store_state(state: SessionState) -> None:
    """Store a state instead of the one before, of another private key; raises as `notify.store_fd`.

    A process that is killed between the messages costs the sessions that were made since, and no other state is used.
    """
    notify.forget_fds(*STATE)
    for name, fd in state.fds.items():
        notify.store_fd(name, fd)


def settle_tunnel(passed: dict[str, list[int]], interface: str) -> bool:
    """Leave at most one TUN device in `passed`, of this interface if there is one; the others are closed.

    Return whether `store_tunnel` must put the store right: a process was killed there.
    """
    parked, found = passed.pop(PARKED, []), passed.get(FdName.TUN, [])
    if not parked and len(found) <= 1:
        return False
    # A parked one is in use; one that is stored beside it may be of the interface before.
    devices = [device for container in parked for device in _unpack(container)] + found
    devices.sort(key=lambda fd: interface_name_of_fd(fd) != interface)
    passed[FdName.TUN] = devices[:1]
    for fd in devices[1:]:
        os.close(fd)
    return True


def _unpack(container: int) -> list[int]:
    """Return the device in a parked socket, where it stays, for this process too may be killed; closes the socket."""
    devices = array.array("i")
    try:
        parked = socket.socket(fileno=container)
    except OSError:  # it is none
        os.close(container)
        return []
    with parked, contextlib.suppress(OSError):
        flags = socket.MSG_PEEK | socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
        # Not `socket.recv_fds`, which ignores the flags.
        _, ancillary, _, _ = parked.recvmsg(len(FdName.TUN), socket.CMSG_LEN(devices.itemsize), flags)
        for level, kind, payload in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                devices.frombytes(payload)
    return list(devices)


def store_again(tunnel: Tunnel, nat: Nat) -> None:
    """Store what a successor that is dead may have replaced or removed; the store cannot be asked what it holds.

    A process that is killed between the two messages about the address translation costs no packet: its table goes, and
    the next start makes the same one before a packet needs it.
    """
    store_tunnel(tunnel)
    notify.forget_fds(FdName.NAT)
    if (descriptor := nat.fileno()) is not None:
        notify.store_fd(FdName.NAT, descriptor)


def check_nat(nat: Nat) -> None:
    """Raise ConfigError for what would prevent `apply_nat`; a table that the store may hold does not."""
    nat.check(may_be_freed=notify.is_managed())


def apply_nat(nat: Nat, pause: Pause | None = None) -> None:
    """Bring the nftables table to what the settings say, and store the socket that owns it; raises OxidizeError.

    pause: as of `notify.barrier`.
    """
    if nat.enabled and nat.is_new:
        # A release in between that does not know the table has left its copy in the store, and so the table exists.
        notify.forget_fds(FdName.NAT)
        if notify.is_managed():
            notify.barrier(pause)
    nat.apply()
    descriptor = nat.fileno()
    if descriptor is None:
        notify.forget_fds(FdName.NAT)
    elif nat.is_new:
        notify.store_fd(FdName.NAT, descriptor)
