"""What the operator says of a peer.

The rule: a plain value, which also a process knows that has no peers yet.
"""

from ipaddress import IPv4Network, IPv6Network
from typing import NamedTuple

from oxidize.protocol.constants import NEVER, STAGED_PACKETS_MAX
from oxidize.protocol.endpoint import Endpoint
from oxidize.protocol.link_policy import LinkPolicy
from oxidize.protocol.secret_fields import text_without


class PeerSettings(NamedTuple):
    """What the operator says of a peer; keys are 32 bytes, `persistent_keepalive` seconds (0: off).

    link: how a session is kept up at all times; None for the paper's timers alone. configured_endpoint: the text that
    `endpoint` was read from, "host:port", or "" for none; endpoint is None also where that has a name. enabled: whether
    it may have a session at all; expires_unix: until when, seconds since the epoch. A device has none that may not.
    """

    public_key: bytes
    preshared_key: bytes = bytes(32)
    allowed_ips: tuple[IPv4Network | IPv6Network, ...] = ()
    endpoint: Endpoint | None = None
    persistent_keepalive: float = 0.0
    name: str = ""
    link: LinkPolicy | None = None
    configured_endpoint: str = ""
    enabled: bool = True
    expires_unix: float = NEVER

    def __repr__(self) -> str:
        return text_without(self, "preshared_key")

    def is_active(self, unix: float) -> bool:
        """Return whether the peer may have a session at a time, seconds since the epoch."""
        return self.enabled and unix < self.expires_unix

    @property
    def staged_max(self) -> int:
        """The number of packets that are kept while there is no session."""
        return STAGED_PACKETS_MAX if self.link is None else self.link.buffer_packets
