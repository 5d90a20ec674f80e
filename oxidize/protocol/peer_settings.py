"""What the operator says of a peer.

The rule: a plain value, which also a process knows that has no peers yet.
"""

from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network

from oxidize.protocol.constants import STAGED_PACKETS_MAX
from oxidize.protocol.endpoint import Endpoint
from oxidize.protocol.link_policy import LinkPolicy


@dataclass(frozen=True, slots=True)
class PeerSettings:
    """What the operator says of a peer; keys are 32 bytes, `persistent_keepalive` seconds (0: off).

    link: how a session is kept up at all times; None for the paper's timers alone. configured_endpoint: the text that
    `endpoint` was read from, "host:port", or "" for none; endpoint is None also where that has a name.
    """

    public_key: bytes
    preshared_key: bytes = field(default=bytes(32), repr=False)
    allowed_ips: tuple[IPv4Network | IPv6Network, ...] = ()
    endpoint: Endpoint | None = None
    persistent_keepalive: float = 0.0
    name: str = ""
    link: LinkPolicy | None = None
    configured_endpoint: str = ""

    @property
    def staged_max(self) -> int:
        """The number of packets that are kept while there is no session."""
        return STAGED_PACKETS_MAX if self.link is None else self.link.buffer_packets
