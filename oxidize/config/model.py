"""What a loaded configuration is: frozen values, parsed and checked, with the keys read in.

The rule: whoever holds one of these need not check it again, and printing it shows no secret.
"""

from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from pathlib import Path
from typing import Literal

InterfaceAddress = IPv4Interface | IPv6Interface
Network = IPv4Network | IPv6Network
NetworkKind = Literal["tun", "userspace"]
Role = Literal["server", "client"]
HostAddress = IPv4Address | IPv6Address
HostPort = tuple[str, int]
PublicEndpoint = tuple[str, int | None]  # a host, an IPv6 address without brackets, and a port if one was given


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerConfig:
    """One peer.

    public_key, preshared_key: 32 bytes; without a pre-shared key these are zeros, as in the paper, section 5.2.
    endpoint: "host:port" as text, host being an address or a name; None where only the peer knows where it is.
    persistent_keepalive: seconds, 0 for off.
    """

    name: str
    public_key: bytes
    preshared_key: bytes = field(repr=False)
    allowed_ips: tuple[Network, ...]
    endpoint: str | None
    persistent_keepalive: int


@dataclass(frozen=True, slots=True)
class NameServers:
    """Whom to ask for names while the tunnel of `interface` is up, nobody in particular where `servers` is empty.

    domains: completed with, one after the other, where a name is not found as it stands.
    """

    interface: str
    servers: tuple[HostAddress, ...]
    domains: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """The configuration of `oxidize server`.

    source: the file it came from. listen: literal address and port, used where no socket was passed. metrics_listen:
    the same for HTTP, None for off. private_key, public_key: 32 bytes. endpoints_file: where the peers' endpoints are
    remembered for a start without state, None for nowhere. nat: whether the networks of `addresses` are masqueraded
    where they lead elsewhere. public_endpoint: where clients are told to find us. warnings: what is legal but hardly
    meant.
    """

    source: Path
    listen: HostPort
    interface: str
    addresses: tuple[InterfaceAddress, ...]
    mtu: int
    private_key: bytes = field(repr=False)
    public_key: bytes
    metrics_listen: HostPort | None
    drain_timeout_secs: float
    endpoints_file: Path | None
    takeover_socket: Path
    network: NetworkKind
    nat: bool
    public_endpoint: PublicEndpoint | None
    peers: tuple[PeerConfig, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientConfig:
    """The configuration of `oxidize client`: as a server with one peer, which it always knows where to find.

    server: "host:port" as text. reconnect_delay_ms, max_reconnect_delay_ms: before the first retry, and before any.
    max_reconnect_attempts: how many before it gives up, 0 for never. reconnect_buffer_size: packets kept meanwhile.
    resend_unanswered: whether packets that went into a dead session are sent again. fwmark: of this client's sockets,
    and the number of the table with its default routes. The other fields are as in ServerConfig and PeerConfig.
    """

    source: Path
    server: str
    server_public_key: bytes
    interface: str
    addresses: tuple[InterfaceAddress, ...]
    mtu: int
    private_key: bytes = field(repr=False)
    public_key: bytes
    preshared_key: bytes = field(repr=False)
    allowed_ips: tuple[Network, ...]
    persistent_keepalive: int
    reconnect_delay_ms: int
    max_reconnect_delay_ms: int
    max_reconnect_attempts: int
    reconnect_buffer_size: int
    resend_unanswered: bool
    name_servers: NameServers
    fwmark: int
    metrics_listen: HostPort | None
    takeover_socket: Path
    network: NetworkKind
    warnings: tuple[str, ...]

    @property
    def peers(self) -> tuple[PeerConfig, ...]:
        """The server as this client's only peer."""
        server = PeerConfig(
            name="server",
            public_key=self.server_public_key,
            preshared_key=self.preshared_key,
            allowed_ips=self.allowed_ips,
            endpoint=self.server,
            persistent_keepalive=self.persistent_keepalive,
        )
        return (server,)
