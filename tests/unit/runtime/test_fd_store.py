"""The TUN device in the service manager's store: never missing, whichever message is the last of its process."""

import contextlib
import os
import socket
from collections.abc import Iterator

import pytest

from oxidize.net.tun import TunDevice
from oxidize.net.userspace import UserspaceNetwork
from oxidize.runtime import fd_store
from oxidize.runtime.fd_store import PARKED, settle_tunnel, spare_older_release, store_tunnel
from tests.support.service_manager import Manager

MESSAGES = 4  # of the replacement of a TUN device
INTERFACE = "new0"


class Devices:
    """Files in place of TUN devices, with the names of their interfaces. is_character_device: as a TUN device is."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, is_character_device: bool) -> None:
        self._is_character_device = is_character_device
        self._names: dict[int, str] = {}  # by position: the offset of the open file, which its copies share
        self.fds: list[int] = []
        monkeypatch.setattr(fd_store, "interface_name_of_fd", self.name_of)

    def make(self, name: str) -> TunDevice:
        fd = os.open("/dev/zero", os.O_RDONLY) if self._is_character_device else os.memfd_create(name)
        os.set_inheritable(fd, False)
        self.fds.append(fd)
        return TunDevice(fd, name, 0)

    def name_of(self, fd: int) -> str | None:
        """Return the name of the device of which `fd` is a copy, None for any other file."""
        for device in self.fds:
            if same_open_file(fd, device):
                return self._names.setdefault(device, "old0" if device == self.fds[0] else INTERFACE)
        return None


def same_open_file(one: int, other: int) -> bool:
    """Return whether two descriptors share one open file: its flags change for both."""
    flags = os.get_blocking(one)
    os.set_blocking(one, not flags)
    is_same = os.get_blocking(other) is not flags
    os.set_blocking(one, flags)
    return is_same


@pytest.fixture(params=[True, False], ids=["a stored one is stored again", "a stored one is dropped"])
def devices(manager: Manager, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Devices]:
    """Both kinds of manager: the holder cannot tell whether two TUN devices are the same, systemd can (kcmp(2))."""
    devices = Devices(monkeypatch, is_character_device=request.param)
    yield devices
    for fd in devices.fds:
        os.close(fd)


def close_all(passed: dict[str, list[int]]) -> None:
    for fds in passed.values():
        for fd in fds:
            os.close(fd)


@pytest.mark.parametrize("processed", range(MESSAGES + 1))
def test_a_device_in_use_is_in_the_store_after_each_message(manager: Manager, devices: Devices, processed: int) -> None:
    """A thaw stores the device again that its predecessor has stored, and may have lost to its successor."""
    used = devices.make("used0")
    store_tunnel(used)
    manager.process(MESSAGES)
    store_tunnel(used)
    assert manager.process(processed) == MESSAGES
    passed = manager.passed()
    settle_tunnel(passed, "old0")
    (kept,) = passed["tun"]
    assert same_open_file(kept, used.fileno())
    assert PARKED not in passed
    close_all(passed)


@pytest.mark.parametrize("processed", range(MESSAGES + 1))
def test_a_new_device_is_in_the_store_from_the_first_message_on(
    manager: Manager, devices: Devices, processed: int
) -> None:
    old, new = devices.make("old0"), devices.make(INTERFACE)
    store_tunnel(old)
    manager.process(MESSAGES)
    store_tunnel(new)
    manager.process(processed)
    passed = manager.passed()
    must_store = settle_tunnel(passed, INTERFACE)
    (kept,) = passed["tun"]
    assert same_open_file(kept, (new if processed else old).fileno())
    assert must_store is (0 < processed < MESSAGES)
    close_all(passed)


@pytest.mark.parametrize("processed", range(1, MESSAGES))
def test_the_next_start_puts_the_store_right(manager: Manager, devices: Devices, processed: int) -> None:
    old, new = devices.make("old0"), devices.make(INTERFACE)
    store_tunnel(old)
    manager.process(MESSAGES)
    store_tunnel(new)
    manager.process(processed)
    for interrupted in (0, 1, 2, 3, MESSAGES):  # it may be killed as well
        passed = manager.passed()
        assert settle_tunnel(passed, INTERFACE)
        (kept,) = passed["tun"]
        store_tunnel(TunDevice(kept, INTERFACE, 0))
        manager.process(interrupted)
        close_all(passed)
    assert manager.store.names == ("tun",)
    assert same_open_file(manager.store.entries[0][1], new.fileno())


def test_a_store_with_one_device_is_left_alone(manager: Manager, devices: Devices) -> None:
    store_tunnel(devices.make("old0"))
    manager.process(MESSAGES)
    passed = manager.passed()
    assert not settle_tunnel(passed, INTERFACE)  # another interface's is the caller's to judge
    assert not settle_tunnel({}, INTERFACE)
    close_all(passed)


def test_a_tunnel_without_an_interface_leaves_none_in_the_store(manager: Manager, devices: Devices) -> None:
    store_tunnel(devices.make("old0"))
    manager.process(2)
    store_tunnel(UserspaceNetwork([]))
    manager.process(MESSAGES)
    assert manager.store.names == ()


def test_a_parked_file_that_holds_no_device_is_closed(manager: Manager) -> None:
    with contextlib.ExitStack() as stack:
        inner, outer = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        stack.enter_context(inner)
        stack.enter_context(outer)
        passed = {PARKED: [os.dup(outer.fileno()), os.memfd_create("no socket")]}
        assert settle_tunnel(passed, INTERFACE)
        assert passed == {"tun": []}


@pytest.mark.parametrize("header_size", [0, 10])
def test_an_older_release_finds_no_device_that_it_cannot_use(
    manager: Manager, devices: Devices, header_size: int
) -> None:
    made = devices.make(INTERFACE)
    tunnel = TunDevice(made.fileno(), INTERFACE, header_size)
    store_tunnel(tunnel)
    assert spare_older_release(tunnel) is (header_size > 0)
    manager.process(MESSAGES + 1)
    assert ("tun" in [name for name, _ in manager.store.entries]) is (header_size == 0)
    store_tunnel(tunnel)  # as the next owner of this release does
    manager.process(MESSAGES)
    assert "tun" in [name for name, _ in manager.store.entries]
