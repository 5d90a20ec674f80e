"""What a node runs with, whether it is a server or a client: one value made from either configuration.

Names of endpoints are resolved here, once per generation, so that nothing behind this waits for a resolver.
"""

import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from oxidize.config import ClientConfig, InterfaceAddress, Network, PeerConfig, ServerConfig
from oxidize.errors import ConfigError
from oxidize.protocol.endpoint import Endpoint
from oxidize.protocol.peer import PeerSettings

_MAPPED_PREFIX = bytes(10) + b"\xff\xff"  # RFC 4291, section 2.5.5.2


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSettings:
    """One generation's settings; see `config.ServerConfig` for the meaning of each.

    listen: where to bind if no socket is passed. routes: networks that lead into the tunnel.
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
    metrics_listen: tuple[str, int] | None
    drain_timeout_secs: float
    takeover_socket: Path
    peers: tuple[PeerSettings, ...]

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
            metrics_listen=config.metrics_listen,
            drain_timeout_secs=config.drain_timeout_secs,
            takeover_socket=config.takeover_socket,
            peers=_resolve_all(config.peers, config.source),
        )

    @classmethod
    def of_client(cls, config: ClientConfig) -> "NodeSettings":
        """Make settings of a client's configuration; raises ConfigError if the server's name cannot be resolved."""
        return cls(
            role="client",
            private_key=config.private_key,
            public_key=config.public_key,
            listen=("::", 0),
            interface=config.interface,
            addresses=config.addresses,
            routes=_routes(config.peers),
            mtu=config.mtu,
            network=config.network,
            metrics_listen=config.metrics_listen,
            drain_timeout_secs=0.0,  # nobody starts handshakes with a client: there is nothing to drain
            takeover_socket=config.takeover_socket,
            peers=_resolve_all(config.peers, config.source),
        )


def _routes(peers: tuple[PeerConfig, ...]) -> tuple[Network, ...]:
    return tuple(network for peer in peers for network in peer.allowed_ips)


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
        settings.append(
            PeerSettings(
                public_key=peer.public_key,
                preshared_key=peer.preshared_key,
                allowed_ips=peer.allowed_ips,
                endpoint=endpoint,
                persistent_keepalive=float(peer.persistent_keepalive),
                name=peer.name,
            )
        )
    if problems:
        raise ConfigError(problems)
    return tuple(settings)


def resolve(text: str) -> Endpoint:
    """Return the endpoint that "host:port" or "[address]:port" names; raises OSError if the name does not resolve."""
    host, _, port = text.rpartition(":")
    found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_DGRAM)
    family, _, _, _, address = found[0]
    packed = socket.inet_pton(family, str(address[0]).partition("%")[0])
    if packed.startswith(_MAPPED_PREFIX):
        packed = packed[len(_MAPPED_PREFIX) :]
    scope = int(address[3]) if len(address) == 4 else 0
    return Endpoint(packed, int(address[1]), scope)
