"""One generation's settings, in one form for servers and clients, made from a loaded configuration.

The rules: no name is looked up here, so no start and no reload waits for a resolver or fails because of one. The names
of a server's peers (`runtime.peer_lookups`) and of a client's server (`client.connection`) are looked up while it runs.
And nothing here imports the schema, which a start after a crash does without (`runtime.validated`).
"""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from oxidize.config.nat import NatSettings
from oxidize.config.paths import Role
from oxidize.config.values import HostPort, InterfaceAddress, NameServers, Network, NetworkKind
from oxidize.net.resolve import literal
from oxidize.protocol.constants import NEVER
from oxidize.protocol.link_policy import LinkPolicy
from oxidize.protocol.peer_settings import PeerSettings
from oxidize.protocol.secret_fields import text_without

if TYPE_CHECKING:
    from oxidize.config import ClientConfig, ServerConfig


class NodeSettings(NamedTuple):
    """The keys that [server] and [client] share, and one role's keys with the values that the other role has.

    public_key: of `private_key`. peers: with the endpoints that are addresses, and with those that are disabled.
    routes: networks that lead into the tunnel by the main table; default_routes: those of a client, which need rules.
    server: "host:port" of a client's server, None for a server. fwmark: of all sockets whose packets must stay out of
    the tunnel, 0 for none. name_servers: None to leave the system's unchanged.
    """

    role: Role
    addresses: tuple[InterfaceAddress, ...]
    private_key: bytes
    public_key: bytes
    mtu: int
    network: NetworkKind
    takeover_socket: Path
    interface: str
    metrics_listen: HostPort | None
    peers: tuple[PeerSettings, ...]
    routes: tuple[Network, ...]
    default_routes: tuple[Network, ...] = ()
    # --- Of a server ---
    listen: HostPort = ("::", 0)
    nat: NatSettings | None = None
    endpoints_file: Path | None = None
    metrics_peers: int = 1  # more of them have no metrics of their own
    drain_timeout_secs: float = 0.0  # no peer starts handshakes with a client: there is nothing to drain
    # --- Of a client ---
    server: str | None = None
    fwmark: int = 0
    name_servers: NameServers | None = None
    kill_switch: bool = False

    def __repr__(self) -> str:
        return text_without(self, "private_key")

    @property
    def has_host_setup(self) -> bool:
        """Whether these are a client's, with an interface of the kernel, which needs more of its host than that."""
        return self.role == "client" and self.network == "tun"

    @classmethod
    def of(cls, config: "ServerConfig | ClientConfig") -> "NodeSettings":
        """Return the settings of the configuration of either role."""
        from oxidize.config import ServerConfig  # noqa: PLC0415  # the rule; the caller has it

        return cls.of_server(config) if isinstance(config, ServerConfig) else cls.of_client(config)

    @classmethod
    def of_server(cls, config: "ServerConfig") -> "NodeSettings":
        """Return the settings of a server."""
        peers = _peers(config)
        return cls(
            role="server",
            **_shared(config),
            peers=peers,
            routes=server_routes(peers),
            listen=config.listen,
            nat=config.nat.settings(config.addresses) if config.nat is not None else None,
            metrics_peers=config.metrics_peers,
            endpoints_file=config.endpoints_file,
            drain_timeout_secs=config.drain_timeout_secs,
        )

    @classmethod
    def of_client(cls, config: "ClientConfig") -> "NodeSettings":
        """Return the settings of a client."""
        peer = PeerSettings(
            public_key=config.server_public_key,
            preshared_key=config.preshared_key,
            allowed_ips=config.allowed_ips,
            endpoint=literal(config.server),
            configured_endpoint=config.server,
            persistent_keepalive=float(config.persistent_keepalive),
            name="server",
            link=LinkPolicy(
                retry_secs=config.reconnect_delay_ms / 1000,
                retry_secs_max=config.max_reconnect_delay_ms / 1000,
                retries_max=config.max_reconnect_attempts,
                buffer_packets=config.reconnect_buffer_size,
                resend=config.resend_unanswered,
            ),
        )
        has_interface = config.network == "tun"
        return cls(
            role="client",
            **_shared(config),
            peers=(peer,),
            routes=tuple(network for network in config.allowed_ips if network.prefixlen > 0),
            default_routes=tuple(network for network in config.allowed_ips if network.prefixlen == 0),
            server=config.server,
            fwmark=config.fwmark if has_interface else 0,
            name_servers=config.name_servers if has_interface and config.name_servers.servers else None,
            kill_switch=config.kill_switch,
        )


def server_routes(peers: Iterable[PeerSettings]) -> tuple[Network, ...]:
    """Return the networks that lead into a server's tunnel: of no disabled peer, and without default routes."""
    return tuple(network for peer in peers if peer.enabled for network in peer.allowed_ips if network.prefixlen > 0)


def _shared(config: "ServerConfig | ClientConfig") -> dict[str, Any]:
    """Return the keys that both roles have, as they are configured."""
    return {
        "addresses": config.addresses,
        "private_key": config.private_key,
        "public_key": config.public_key,
        "mtu": config.mtu,
        "network": config.network,
        "takeover_socket": config.takeover_socket,
        "interface": config.interface,
        "metrics_listen": config.metrics_listen,
    }


def _peers(config: "ServerConfig") -> tuple[PeerSettings, ...]:
    """Return a server's peers; of the enabled ones that list the same network the last has it, as with wg(8)."""
    owners = {network: peer.public_key for peer in config.peers if peer.enabled for network in peer.allowed_ips}
    return tuple(
        PeerSettings(
            public_key=peer.public_key,
            preshared_key=peer.preshared_key,
            allowed_ips=tuple(
                network for network in peer.allowed_ips if not peer.enabled or owners[network] == peer.public_key
            ),
            endpoint=literal(peer.endpoint) if peer.endpoint is not None else None,
            configured_endpoint=peer.endpoint or "",
            persistent_keepalive=float(peer.persistent_keepalive),
            name=peer.name,
            enabled=peer.enabled,
            expires_unix=NEVER if peer.expires is None else peer.expires,
        )
        for peer in config.peers
    )
