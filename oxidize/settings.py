"""What a node runs with, whether it is a server or a client: one value made from either configuration.

The names of a server's peers are resolved here, once per generation, so that nothing behind this waits for a resolver.
A client's server is looked up while it runs (`connection`): there may be no network yet.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from oxidize.config import ClientConfig, InterfaceAddress, NameServers, Network, PeerConfig, ServerConfig
from oxidize.errors import ConfigError
from oxidize.net.resolve import literal, look_up
from oxidize.protocol.endpoint import Endpoint
from oxidize.protocol.link import LinkPolicy
from oxidize.protocol.peer import PeerSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSettings:
    """One generation's settings; see `config.ServerConfig` for the meaning of each.

    listen: where to bind if no socket is passed. server: "host:port" of a client's server, None for a server. routes:
    networks that lead into the tunnel by the main table; default_routes: those of a client, which need rules. fwmark:
    of all sockets whose packets must stay out of the tunnel, 0 for none. name_servers: None to leave the system's
    alone.
    """

    role: Literal["server", "client"]
    private_key: bytes = field(repr=False)
    public_key: bytes
    listen: tuple[str, int]
    interface: str
    addresses: tuple[InterfaceAddress, ...]
    routes: tuple[Network, ...]
    mtu: int
    network: Literal["tun", "userspace"]
    nat: bool
    metrics_listen: tuple[str, int] | None
    drain_timeout_secs: float
    takeover_socket: Path
    peers: tuple[PeerSettings, ...]
    server: str | None = None
    endpoints_file: Path | None = None
    default_routes: tuple[Network, ...] = ()
    fwmark: int = 0
    name_servers: NameServers | None = None

    @classmethod
    def of_server(cls, config: ServerConfig) -> "NodeSettings":
        """Make settings of a server's configuration; raises ConfigError for endpoints that cannot be resolved."""
        return cls(
            role="server",
            private_key=config.private_key,
            public_key=config.public_key,
            listen=config.listen,
            interface=config.interface,
            addresses=config.addresses,
            routes=_routes(config.peers),
            mtu=config.mtu,
            network=config.network,
            nat=config.nat,
            metrics_listen=config.metrics_listen,
            drain_timeout_secs=config.drain_timeout_secs,
            takeover_socket=config.takeover_socket,
            peers=_resolve_all(config.peers, config.source),
            endpoints_file=config.endpoints_file,
        )

    @classmethod
    def of_client(cls, config: ClientConfig) -> "NodeSettings":
        """Make settings of a client's configuration."""
        (peer,) = config.peers
        link = LinkPolicy(
            retry_secs=config.reconnect_delay_ms / 1000,
            retry_secs_max=config.max_reconnect_delay_ms / 1000,
            retries_max=config.max_reconnect_attempts,
            buffer_packets=config.reconnect_buffer_size,
            resend=config.resend_unanswered,
        )
        has_interface = config.network == "tun"
        return cls(
            role="client",
            private_key=config.private_key,
            public_key=config.public_key,
            listen=("::", 0),
            interface=config.interface,
            addresses=config.addresses,
            routes=tuple(network for network in config.allowed_ips if network.prefixlen > 0),
            mtu=config.mtu,
            network=config.network,
            nat=False,
            metrics_listen=config.metrics_listen,
            drain_timeout_secs=0.0,  # nobody starts handshakes with a client: there is nothing to drain
            takeover_socket=config.takeover_socket,
            peers=(_peer_settings(peer, literal(config.server), link),),
            server=config.server,
            default_routes=tuple(network for network in config.allowed_ips if network.prefixlen == 0),
            fwmark=config.fwmark if has_interface else 0,
            name_servers=config.name_servers if has_interface and config.name_servers.servers else None,
        )


def _routes(peers: tuple[PeerConfig, ...]) -> tuple[Network, ...]:
    return tuple(network for peer in peers for network in peer.allowed_ips)


def _peer_settings(peer: PeerConfig, endpoint: Endpoint | None, link: LinkPolicy | None = None) -> PeerSettings:
    return PeerSettings(
        public_key=peer.public_key,
        preshared_key=peer.preshared_key,
        allowed_ips=peer.allowed_ips,
        endpoint=endpoint,
        persistent_keepalive=float(peer.persistent_keepalive),
        name=peer.name,
        link=link,
    )


def _resolve_all(peers: tuple[PeerConfig, ...], source: Path) -> tuple[PeerSettings, ...]:
    problems: list[str] = []
    settings = []
    for peer in peers:
        endpoint = None
        if peer.endpoint is not None:
            try:
                endpoint = resolve(peer.endpoint)
            except OSError as error:
                problems.append(
                    f"{source}: endpoint of {peer.name} = {peer.endpoint!r}: expected a name that resolves, "
                    f"but: {error}; check the name and the resolver, or write the address"
                )
        settings.append(_peer_settings(peer, endpoint))
    if problems:
        raise ConfigError(problems)
    return tuple(settings)


def resolve(text: str) -> Endpoint:
    """Return the endpoint that "host:port" or "[address]:port" names; raises OSError if the name does not resolve."""
    return look_up(text)[0]
