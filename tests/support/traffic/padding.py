"""The padding of inner packets, as the size of the outer datagrams shows it (paper, section 5.4.6)."""

from oxidize.protocol.constants import DATA_OVERHEAD
from tests.support.traffic.capture import Capture
from tests.support.traffic.namespaces import Namespace
from tests.support.traffic.shared_site import run

MTU = 1_300  # bytes; no multiple of 16, to which packets are padded
_PADDED = {1_281: 1_296, 1_296: 1_296, 1_297: 1_300, 1_299: 1_300, 1_300: 1_300}  # bytes, of an inner packet
_HEADERS = {4: 20 + 8, 6: 40 + 8}  # bytes, of IP and ICMP
_LARGE = 1_000  # bytes: no handshake, and no keepalive


def assert_padded_within_mtu(sender: Namespace, target: str, receiver: Namespace, link: str, port: int) -> None:
    """Ping an address from behind an interface of `MTU`, and fail unless each packet is padded, but not beyond it.

    link, port: the interface on which the outer datagrams arrive, and the UDP port from which they come.
    """
    header = _HEADERS[6 if ":" in target else 4]
    with Capture(receiver, link, port) as capture:
        for size in _PADDED:
            run(sender, "ping", "-n", "-q", "-M", "do", "-c", "1", "-W", "5", "-s", str(size - header), target)
        capture.stop()
    sizes = [len(each) - DATA_OVERHEAD for each in capture.datagrams]
    padded = [size for size in sizes if size > _LARGE]
    assert padded == list(_PADDED.values()), padded
