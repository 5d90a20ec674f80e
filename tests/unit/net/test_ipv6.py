"""On a kernel without IPv6, what is not asked for is not needed, and what is asked for is named."""

import errno
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from oxidize.errors import ConfigError
from oxidize.net import ipv6
from oxidize.net.resolve import look_up
from oxidize.net.udp import bind_udp
from oxidize.protocol.endpoint import Endpoint

FOUR, SIX = Endpoint(bytes([192, 0, 2, 1]), 51820), Endpoint(bytes(15) + b"\1", 51820)
make_socket: Callable[..., socket.socket] = socket.socket


@pytest.fixture
def no_ipv6(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse_ipv6(family: int = -1, *arguments: Any, **options: Any) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
        return make_socket(family, *arguments, **options)

    monkeypatch.setattr(socket, "socket", refuse_ipv6)


@pytest.mark.usefixtures("no_ipv6")
def test_the_address_for_all_is_that_of_ipv4() -> None:
    with bind_udp("::", 0) as bound:
        assert bound.family == socket.AF_INET
        assert bound.getsockname()[0] == "0.0.0.0"
    assert ipv6.why_only_ipv4() == "this kernel has no IPv6: only IPv4 is served"


@pytest.mark.parametrize(
    ("switches", "is_off"),
    [
        ({"all": "1", "default": "1", "lo": "1", "eth0": "1"}, True),
        ({"all": "0", "default": "1", "lo": "1"}, True),
        ({"all": "1", "default": "1", "lo": "1", "eth0": "0"}, False),
        ({"all": "1", "default": "0", "lo": "1"}, False),
        ({}, False),
    ],
)
def test_ipv6_is_missing_where_it_is_switched_off_on_every_interface_and_the_next(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, switches: dict[str, str], is_off: bool
) -> None:
    for name, value in switches.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "disable_ipv6").write_text(f"{value}\n")
    monkeypatch.setattr(ipv6, "SWITCHES", tmp_path)
    told = "IPv6 is switched off (net.ipv6.conf.*.disable_ipv6 = 1): only IPv4 is served"
    assert ipv6.why_only_ipv4() == (told if is_off else None)
    monkeypatch.setattr(ipv6, "SWITCHES", tmp_path / "missing")
    assert ipv6.why_only_ipv4() is None


@pytest.mark.usefixtures("no_ipv6")
def test_an_ipv6_address_to_listen_at_is_an_error() -> None:
    with pytest.raises(ConfigError, match="listen address ::1 port 0: this kernel has no IPv6; use an address of IPv4"):
        bind_udp("::1", 0)


@pytest.mark.usefixtures("no_ipv6")
def test_ipv6_that_is_asked_for_is_named_line_by_line() -> None:
    asked = [("server.address", "10.0.0.1/24"), ("server.address", "fd00::1/64"), ("server.metrics_listen", "::1")]
    with pytest.raises(ConfigError) as caught:
        ipv6.check_available(iter(asked))
    assert [line.partition(": ")[0] for line in caught.value.problems] == [
        "server.address = fd00::1/64",
        "server.metrics_listen = ::1",
    ]
    ipv6.check_available(iter(asked[:1]))


def test_ipv6_that_is_asked_for_is_no_error_with_ipv6() -> None:
    ipv6.check_available(iter([("server.address", "fd00::1/64")]))
    assert ipv6.usable([SIX, FOUR]) == [SIX, FOUR]


@pytest.mark.usefixtures("no_ipv6")
def test_of_a_name_the_addresses_that_can_be_reached_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ipv6.usable([SIX, FOUR]) == [FOUR]
    with pytest.raises(OSError, match="IPv6 addresses only, and this kernel has no IPv6"):
        ipv6.usable([SIX])
    both = [(0, 0, 0, "", ("2001:db8::1", 7, 0, 0)), (0, 0, 0, "", ("192.0.2.1", 7))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: both)
    assert look_up("name.example:7") == [Endpoint(bytes([192, 0, 2, 1]), 7)]
