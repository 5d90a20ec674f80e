"""One generation's settings, in one form for servers and clients, made from a loaded configuration.

The rules: no name is looked up here, so no start and no reload waits for a resolver or fails because of one. The names
of a server's peers (`runtime.peer_lookups`) and of a client's server (`client.connection`) are looked up while it runs.
And nothing here imports the schema, which a start after a crash does without (`runtime.validated`).
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from oxidize.config.nat import NatSettings
from oxidize.config.paths import Role
from oxidize.config.values import (
    FWMARK_DEFAULT,
    MAIN_TABLE,
    HostPort,
    InterfaceAddress,
    NameServers,
    Network,
    NetworkKind,
    RoutingTable,
)
from oxidize.net.resolve import literal
from oxidize.protocol.constants import NEVER
from oxidize.protocol.link_policy import LinkPolicy
from oxidize.protocol.peer_settings import PeerSettings
from oxidize.protocol.secret_fields import text_without

if TYPE_CHECKING:
    from oxidize.config import ClientConfig, ServerConfig


_TABLES = {"auto": MAIN_TABLE, "off": 0}


class NodeSettings(NamedTuple):
    """The keys that [server] and [client] share, and one role's keys with the values that the other role has.

    public_key: of `private_key`. peers: with the endpoints that are addresses, and with those that are disabled.
    table: the number of the routing table, 0 for none. routes: networks that lead into the tunnel by that table;
    default_routes: those that need rules. server: "host:port" of a client's server, None for a server. fwmark: of all
    sockets whose packets must stay out of the tunnel, 0 for none. name_servers: None to leave the system's unchanged.
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
    table: int = MAIN_TABLE
    fwmark: int = 0
    # --- Of a server ---
    listen: HostPort = ("::", 0)
    nat: NatSettings | None = None
    endpoints_file: Path | None = None
    metrics_peers: int = 1  # more of them have no metrics of their own
    drain_timeout_secs: float = 0.0  # no peer starts handshakes with a client: there is nothing to drain
    # --- Of a client ---
    server: str | None = None
    name_servers: NameServers | None = None
    kill_switch: bool = False

    def __repr__(self) -> str:
        return text_without(self, "private_key")

    @property
    def has_host_setup(self) -> bool:
        """Whether an interface of the kernel needs more of its host: a client's, and any with a default route."""
        return self.network == "tun" and (self.role == "client" or bool(self.default_routes))

    @property
    def policy_table(self) -> int:
        """The number of the table with the default routes that rules lead to, 0 for none."""
        return self.fwmark if self.default_routes else 0

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
            **_routing(config, networks_of(peers)),
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
            **_routing(config, config.allowed_ips),
            server=config.server,
            name_servers=config.name_servers if has_interface and config.name_servers.servers else None,
            kill_switch=config.kill_switch,
        )


def networks_of(peers: Iterable[PeerSettings]) -> tuple[Network, ...]:
    """Return the networks of a server's peers, without those of disabled ones."""
    return tuple(network for peer in peers if peer.enabled for network in peer.allowed_ips)


def routes_in(table: int, networks: Sequence[Network]) -> tuple[Network, ...]:
    """Return those of `networks` whose routes stand in a table, 0 for none: default routes are not for the main one."""
    if not table:
        return ()
    return tuple(network for network in networks if network.prefixlen > 0 or table != MAIN_TABLE)


def tunnel_mark(fwmark: int, table: RoutingTable, networks: Iterable[Network]) -> int:
    """Return the mark of the tunnel's own packets, 0 for none; a default route with rules needs one."""
    needs_mark = table == "auto" and any(network.prefixlen == 0 for network in networks)
    return fwmark or (FWMARK_DEFAULT if needs_mark else 0)


def _routing(config: "ServerConfig | ClientConfig", networks: Sequence[Network]) -> dict[str, Any]:
    """Return the keys that say where packets for `networks` go."""
    table = config.table if isinstance(config.table, int) else _TABLES[config.table]
    defaults = [network for network in networks if network.prefixlen == 0 and config.table == "auto"]
    mark = tunnel_mark(config.fwmark, config.table, networks)
    return {
        "table": table,
        "routes": routes_in(table, networks),
        "default_routes": tuple(defaults),
        "fwmark": mark if config.network == "tun" else 0,
    }


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
