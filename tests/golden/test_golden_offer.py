"""The OFFER as every release sends it, and as a later release may send it: how this release decodes it.

The files are captured once, when a release is cut (`capture_offer.py`), and never again: a test that fails here found
that this release cannot take over from one that is in service, or the other way round.
"""

from pathlib import Path

import pytest

from oxidize.runtime.offer import FdName, OfferState, named_fd
from oxidize.takeover.host import NamedFd
from oxidize.takeover.messages import FdEntry, OfferMessage, decode, encode

HERE = Path(__file__).parent

SERVER_0_1_0 = OfferState(
    interface_digest="696973b32b6204982dd0160a92656692de573b599c48a7400540bbc930242209",
    listen=("127.0.0.1", 51877),
    metrics_listen=("127.0.0.1", 9877),
)
CLIENT_0_1_0 = OfferState(
    interface_digest="aae1c6e6e25d511a723a0cc8c819cc44ad75fb5aedd64fa1b85b6fa876ef4d28",
    installed_dns={
        "interface": "golden-c",
        "record": "tun.golden-c.3",
        "servers": ["10.78.0.1"],
        "domains": ["example.org"],
    },
    listen=("::", 0),
    server="127.0.0.1:51878",
    upstream_dns=("10.255.255.53",),
)
SERVER_FDS_0_1_0 = [
    named_fd(FdName.UDP, 0, {"family": "inet", "gro": True}),
    named_fd(FdName.JOURNAL, 0),
    named_fd(FdName.ARENA, 0),
    named_fd(FdName.HTTP, 0),
    named_fd(FdName.TUN, 0, {"name": "golden-s", "vnet_header": False}),
    named_fd(FdName.NAT, 0),
    named_fd(FdName.STDERR, 0),
]
CLIENT_FDS_0_1_0 = [
    named_fd(FdName.UDP, 0, {"family": "inet6", "gro": True}),
    named_fd(FdName.JOURNAL, 0),
    named_fd(FdName.ARENA, 0),
    named_fd(FdName.TUN, 0, {"name": "golden-c", "vnet_header": False}),
    named_fd(FdName.GUARD, 0),
    named_fd(FdName.STDERR, 0),
]
OFFERS = [
    pytest.param("offer-server-0.1.0.bin", SERVER_FDS_0_1_0, SERVER_0_1_0, id="server of 0.1.0"),
    pytest.param("offer-client-0.1.0.bin", CLIENT_FDS_0_1_0, CLIENT_0_1_0, id="client of 0.1.0"),
]


def load(name: str) -> OfferMessage:
    message = decode((HERE / name).read_bytes())
    assert isinstance(message, OfferMessage)
    return message


def entries(fds: list[NamedFd]) -> tuple[FdEntry, ...]:
    return tuple(FdEntry(each.name, each.kind, dict(each.options)) for each in fds)


@pytest.mark.parametrize(("name", "fds", "state"), OFFERS)
def test_an_offer_of_a_release_is_decoded_in_full(name: str, fds: list[NamedFd], state: OfferState) -> None:
    message = load(name)
    assert (message.generation, message.release) == (1, "0.1.0")
    assert message.fds == entries(fds)
    assert OfferState.decode(message.state) == state


@pytest.mark.parametrize(("name", "fds", "state"), OFFERS)
def test_this_release_encodes_the_same_offer_to_the_same_bytes(
    name: str, fds: list[NamedFd], state: OfferState
) -> None:
    assert encode(OfferMessage(1, "0.1.0", entries(fds), state.encode())) == (HERE / name).read_bytes()


def test_fields_of_a_later_release_are_ignored() -> None:
    later = load("offer-client-0.1.0.bin").state | {"cluster": {"name": "eu-1"}, "format": 2}
    later["name_servers"] = {**later["name_servers"], "over_tls": True}
    assert OfferState.decode(later).encode() == CLIENT_0_1_0.encode() | {"format": 2}
