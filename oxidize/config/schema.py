"""The tables of a configuration file: every key, its default, its limits and its meaning.

The rule: a key is written here once. A field's description completes the sentence "expected ..." of an error, its
example stands in the remedy where there is no default, and the string below it is its meaning, in Markdown, for
docs/configuration.md (scripts/configuration_reference.py). Fields hold values after parsing, so a key that names a key
file holds that file's key; defaults are written as in the file and parsed like any other value.
"""

from functools import cached_property
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, Field, PlainValidator, ValidationInfo

from oxidize.config import expiry, keys, path_keys, values
from oxidize.config.nat_schema import NatTable
from oxidize.config.paths import CLIENT_INTERFACE
from oxidize.config.validation import Table, check_table, fields_by_key, table_of
from oxidize.config.values import (
    FWMARK_DEFAULT,
    FWMARK_MAX,
    TABLE_MAX,
    HostAddress,
    HostPort,
    InterfaceAddress,
    InvalidValueError,
    NameServers,
    Network,
    NetworkKind,
    PublicEndpoint,
    RoutingTable,
)
from oxidize.protocol.constants import INNER_MTU_MAX, PEERS_MAX

MTU_MIN = 576  # RFC 791: what every IPv4 host accepts
MTU_IPV6_MIN = 1280  # RFC 8200 section 5
MTU_DEFAULT = 1420  # an Ethernet frame less IPv6, UDP and WireGuard's own 32 bytes
KEEPALIVE_SECS_MAX = 65_535  # as wg(8)
DRAIN_TIMEOUT_SECS_MAX = 3600.0
RECONNECT_DELAY_MS_MIN = 25  # servers ignore what comes sooner than 20 ms after the last initiation
RECONNECT_DELAY_MS_MAX = 3_600_000
RECONNECT_ATTEMPTS_MAX = 1_000_000_000
METRICS_PEERS_DEFAULT = 1000  # of each a kilobyte in each scrape, and six time series to store
RECONNECT_BUFFER_MAX = 10_000  # packets; with a usual MTU one record of the state can hold them

_PublicKey = Annotated[bytes, PlainValidator(values.public_key)]
_PresharedKey = Annotated[bytes, PlainValidator(keys.preshared_key)]
_InterfaceName = Annotated[str, PlainValidator(values.interface_name)]
_ListenOrOff = Annotated[HostPort | None, PlainValidator(values.listen_address_or_none)]
_Addresses = Annotated[
    tuple[Annotated[InterfaceAddress, PlainValidator(values.interface_address)], ...],
    BeforeValidator(values.one_or_more_addresses),
]
_Networks = Annotated[
    tuple[Annotated[Network, PlainValidator(values.network)], ...],
    BeforeValidator(values.list_of_networks),
]
_NameServers = Annotated[
    tuple[Annotated[HostAddress | str, PlainValidator(values.name_server)], ...],
    BeforeValidator(values.one_or_many),
]

_Fwmark = Annotated[int, PlainValidator(values.fwmark)]

_FWMARK = f'"off", or a whole number from 0 to {FWMARK_MAX}, which no firewall or other tunnel uses'
_KEEPALIVE = f"a whole number of seconds from 0 (off) to {KEEPALIVE_SECS_MAX}"
_RECONNECT_DELAY = f"a whole number of milliseconds from {RECONNECT_DELAY_MS_MIN} to {RECONNECT_DELAY_MS_MAX}"


class NodeTable(Table):
    """What [server] and [client] have in common."""

    addresses: _Addresses = Field(
        alias="address", description="one or more addresses in CIDR notation", examples=["10.0.0.1/24"]
    )
    """The addresses of this machine inside the tunnel, one or a list, each with the prefix length of its network. Each
    address is listed once."""
    private_key: Annotated[bytes, PlainValidator(keys.private_key)] = Field(
        default=None, validate_default=True, alias="private_key_file", repr=False, description="the path of a file"
    )
    """The file with this machine's private key, as `oxidize genkey` writes it: a regular file that only its owner can
    read (mode 0600 or 0400). The owner is root or the user of the process; root itself also reads key files of the
    services' users, and of the owner or the group of the configuration file. Without this key the systemd credential
    `private_key` is used; one of the two is required. Under systemd 252 use the file: credentials reach `ExecStart=`
    alone, and a reload starts the next process."""
    mtu: int = Field(
        MTU_DEFAULT, ge=MTU_MIN, le=INNER_MTU_MAX, description=f"a whole number from {MTU_MIN} to {INNER_MTU_MAX}"
    )
    """The size in bytes of the largest packet inside the tunnel. With an IPv6 address at least 1280. It is the same on
    both sides. The default fits into Ethernet's 1500 bytes; `oxidize check` warns where the way out takes less, and
    names the value that wg-quick would compute."""
    network: NetworkKind = Field("tun", description='"tun" or "userspace"')
    """`"tun"`: a network interface of the kernel, which needs `CAP_NET_ADMIN`. `"userspace"`: no root and no interface;
    the process itself answers ping and UDP echo (port 7) on its tunnel addresses, forwards nothing and routes nothing
    of this machine."""
    takeover_socket: Annotated[Path, PlainValidator(path_keys.takeover_socket)] = Field(
        default=None, validate_default=True, description="the path of a Unix socket"
    )
    """The Unix socket where a successor finds its predecessor, at most 107 bytes. Without this key it is
    `/run/oxidize/takeover.sock` for a server and `/run/oxidize-client/takeover.sock` for a client; for a user other
    than root `takeover.sock` and `client-takeover.sock` in `$XDG_RUNTIME_DIR/oxidize`."""
    table: Annotated[RoutingTable, PlainValidator(values.routing_table)] = Field(
        default="auto", validate_default=True, description=f'"auto", "off", or a whole number from 1 to {TABLE_MAX}'
    )
    """The routing table for the networks of `allowed_ips`, as `Table` of wg-quick(8). `"auto"`: the main table, except
    for default routes (`0.0.0.0/0`, `::/0`), which stand in a table of their own, with rules that let the tunnel's own
    packets and directly connected networks past it. A number: that table, default routes included, and no rules.
    `"off"`: no routes and no rules; other programs set them."""
    fwmark: _Fwmark
    interface: _InterfaceName
    metrics_listen: _ListenOrOff

    @cached_property
    def public_key(self) -> bytes:
        """The public key of `private_key`."""
        return keys.public_key(self.private_key)


def _nat(value: object, info: ValidationInfo) -> NatTable | None:
    """Return what is translated, None for nothing or where a problem is reported; raises InvalidValueError."""
    if value is False:
        return None
    given = {} if value is True else value
    if not isinstance(given, dict):
        raise InvalidValueError("true or false, or a table [server.nat]")
    outer = table_of(info)
    prefix, report = f"{outer.prefix}.nat", outer.source.report
    strays = given.keys() & fields_by_key(ServerTable).keys() - fields_by_key(NatTable).keys()
    for name in sorted(strays):
        expected = f"a key of [{prefix}], and this is one of [{outer.prefix}]"
        report.wrong(f"{prefix}.{name}", given[name], expected, f"move the line above [{prefix}]")
    own = {name: each for name, each in given.items() if name not in strays}
    return check_table(NatTable, own, prefix, outer.source).table


class ServerTable(NodeTable):
    """The table [server]."""

    listen: Annotated[HostPort, PlainValidator(values.listen_address)] = Field(
        default="[::]:51820", validate_default=True, description='"address:port"'
    )
    """The UDP address to listen at, used where no socket is passed by systemd or by a running server. `[::]` includes
    IPv4, port 0 lets the kernel choose. The address is literal, not a name."""
    interface: _InterfaceName = Field("oxidize0", description="a name")
    """The name of the network interface: 1 to 15 letters, digits and `_ = + . -`, not beginning with `-`."""
    fwmark: _Fwmark = Field(default="off", validate_default=True, description=_FWMARK)
    """The mark of the tunnel's own packets, for rules and firewalls. Where a peer's `allowed_ips` have a default route
    and `table` is `"auto"`, it is the number of that route's table, too; without this key it is 0x6f78 then."""
    nat: Annotated[NatTable | None, PlainValidator(_nat)] = Field(
        default=False, validate_default=True, description="true or false, or a table [server.nat]"
    )
    """Whether packets from the networks of `address` to hosts beyond the server leave with the server's own address
    (masquerading), for which it makes an nftables table of its own. It needs `network = "tun"`, and forwarding to be
    enabled for the address families in use: `net.ipv4.ip_forward` and `net.ipv6.conf.all.forwarding`. A table
    [`[server.nat]`](#servernat) instead, below all other keys of `[server]`, says more closely what is translated, and
    forwards ports."""
    public_endpoint: Annotated[PublicEndpoint, PlainValidator(values.public_endpoint)] | None = Field(
        None, description='"host" or "host:port"'
    )
    """The name or address, and the port if it differs, that `oxidize peer add` tells clients. Without this key the
    command guesses, and says so."""
    metrics_listen: _ListenOrOff = Field(
        default="127.0.0.1:9090", validate_default=True, description='"address:port", or "" for none'
    )
    """The TCP address of `/health` and `/metrics`, used where no socket is passed."""
    metrics_peers: Annotated[int, PlainValidator(values.number_of_peers)] = Field(
        default=METRICS_PEERS_DEFAULT,
        validate_default=True,
        description=f"true, false, or a whole number from 0 to {PEERS_MAX}",
    )
    """The number of peers up to which `/metrics` has metrics of each peer, with its name and public key: about a
    kilobyte for each. With more peers there are none of any, which `oxidize_peers_left_out` says. `true`: whatever
    their number; `false`: never."""
    endpoints_file: Annotated[Path | None, PlainValidator(path_keys.endpoints_file)] = Field(
        default=None, validate_default=True, description='the path of a file, or "" for none'
    )
    """The file that keeps the addresses and ports of the peers, so that a server that lost its sessions can start new
    ones at once. Without this key it is `endpoints.json` in systemd's state directory (`/var/lib/oxidize/server`), and
    none where systemd gives none."""
    drain_timeout_secs: float = Field(
        30.0,
        ge=0.0,
        le=DRAIN_TIMEOUT_SECS_MAX,
        allow_inf_nan=False,
        description=f"a number of seconds from 0 to {DRAIN_TIMEOUT_SECS_MAX:.0f}",
    )
    """The longest time for which existing sessions are served after SIGTERM. Three seconds without a packet end it
    earlier."""


class ClientTable(NodeTable):
    """The table [client]."""

    server: Annotated[str, PlainValidator(values.endpoint)] = Field(
        description='"host:port" of the server', examples=["vpn.example.org:51820"]
    )
    """The address or name of the server, and its UDP port."""
    server_public_key: _PublicKey = Field(
        description="the server's public key in base64", examples=["(what `oxidize pubkey` prints on the server)"]
    )
    """The public key of the server's private key, as `oxidize pubkey` prints it on the server."""
    preshared_key: _PresharedKey = Field(
        default=None, validate_default=True, alias="preshared_key_file", repr=False, description="the path of a file"
    )
    """The file with a second key that only this client and the server have, if the server has one for this client.
    Owner and mode as for `private_key_file`. A reload with another key applies to the next handshake."""
    allowed_ips: _Networks = Field(
        description="the networks that are behind the server, as a list", examples=[["10.0.0.0/24"]]
    )
    """The networks that are reached through the server. `0.0.0.0/0` and `::/0` send all traffic through it, except
    traffic to the server itself and to networks that this machine is connected to directly; they need
    `network = "tun"`. Each network is listed once."""
    persistent_keepalive: int = Field(25, ge=0, le=KEEPALIVE_SECS_MAX, description=_KEEPALIVE)
    """The interval between keepalives, which keep the mapping of a NAT or firewall on the way."""
    reconnect_delay_ms: int = Field(
        50, ge=RECONNECT_DELAY_MS_MIN, le=RECONNECT_DELAY_MS_MAX, description=_RECONNECT_DELAY
    )
    """The delay before the first attempt to reconnect. It doubles with each attempt, up to `max_reconnect_delay_ms`."""
    max_reconnect_delay_ms: int = Field(
        5000, ge=RECONNECT_DELAY_MS_MIN, le=RECONNECT_DELAY_MS_MAX, description=_RECONNECT_DELAY
    )
    """The longest delay between two attempts to reconnect, at least `reconnect_delay_ms`."""
    max_reconnect_attempts: int = Field(
        0,
        ge=0,
        le=RECONNECT_ATTEMPTS_MAX,
        description=f"a whole number from 0 (any number of attempts) to {RECONNECT_ATTEMPTS_MAX}",
    )
    """The number of unanswered attempts after which the client gives up and exits with status 3. With the default
    delays 5 attempts take a second or two, 20 a minute."""
    reconnect_buffer_size: int = Field(
        1000, ge=1, le=RECONNECT_BUFFER_MAX, description=f"a whole number of packets from 1 to {RECONNECT_BUFFER_MAX}"
    )
    """The number of packets that are kept during an outage and sent in order when the server is back; the oldest are
    dropped first."""
    resend_unanswered: bool = Field(default=True, description="true or false")
    """Whether packets of the last second before an outage are sent again, except those sent 0.3 s or more before the
    server was last heard. Some of them, mostly those sent before it was last heard, arrive twice: TCP and ping tolerate
    that, some uses of UDP do not."""
    dns: _NameServers = Field(
        default=[], validate_default=True, description="a list of name servers' addresses and of domains to search in"
    )
    """The name servers to use while the client runs, at least one, and search domains; an empty list leaves the
    system's settings unchanged. It needs systemd-resolved or `resolvconf`, root, and `network = "tun"`. All names are
    resolved by these servers."""
    fwmark: _Fwmark = Field(default=FWMARK_DEFAULT, validate_default=True, description=_FWMARK)
    """The mark of the tunnel's own packets. Where `allowed_ips` has a default route and `table` is `"auto"`, it is the
    number of that route's table, too; 0 and `"off"` mean the default then, which is 0x6f78."""
    kill_switch: bool = Field(default=False, description="true or false")
    """Whether nothing leaves this machine past the tunnel: only the tunnel's own packets, traffic to networks that the
    machine is connected to directly (of private addresses), and what a link needs (DHCP, IPv6's neighbour discovery).
    It holds from the client's start to its stop, also while no client runs after a crash, and needs a default route in
    `allowed_ips`. [All traffic through the tunnel](client.md#all-traffic-through-the-tunnel) says what ends it."""
    interface: _InterfaceName = Field(CLIENT_INTERFACE, description="a name")
    """The name of the network interface: 1 to 15 letters, digits and `_ = + . -`, not beginning with `-`."""
    metrics_listen: _ListenOrOff = Field(
        default="", validate_default=True, description='"address:port", or "" for none'
    )
    """The TCP address of `/health` and `/metrics`."""

    @property
    def name_servers(self) -> NameServers:
        """The entries of `dns`, sorted into addresses and domains."""
        servers = tuple(entry for entry in self.dns if not isinstance(entry, str))
        return NameServers(self.interface, servers, tuple(entry for entry in self.dns if isinstance(entry, str)))


class PeerTable(Table):
    """One table [[peer]]."""

    name: Annotated[str, PlainValidator(values.peer_name)] = Field(description="a name", examples=["alice"])
    """The name of the peer in status, logs and metrics: 1 to 64 letters, digits and `_ . @ -`, beginning with a letter
    or a digit, and at most 128 bytes. Letters and digits are those of any script. No two peers have the same name."""
    public_key: _PublicKey = Field(
        description="the peer's public key in base64", examples=["(what `oxidize pubkey` prints at the peer)"]
    )
    """The public key of the peer's private key, as `oxidize pubkey` or `wg pubkey` prints it. No two peers have the
    same key, and no peer has the server's."""
    preshared_key: _PresharedKey = Field(
        default=None, validate_default=True, alias="preshared_key_file", repr=False, description="the path of a file"
    )
    """The file with a second key that only the server and this peer have, as `oxidize genpsk` writes it. Owner and mode
    as for `private_key_file`. A reload with another key, or without one, applies to the next handshake: a session that
    exists continues until then, two minutes at most under traffic."""
    allowed_ips: _Networks = Field(description="the networks of the peer, as a list", examples=[["10.0.0.2/32"]])
    """The addresses and networks of this peer inside the tunnel: packets from other sources are dropped, and packets
    to them go to this peer. Networks of two peers may nest: an address belongs to the peer with the longest prefix that
    contains it. Of two peers that list the same network the last has it, and `oxidize check` warns."""
    endpoint: Annotated[str, PlainValidator(values.endpoint)] | None = Field(None, description='"host:port"')
    """The address or name of the peer, and its UDP port, where that is known. Without this key it is where the peer's
    packets come from. A name is looked up while the server runs, for as long as it takes, and again when the peer stops
    answering; nothing waits for it. A reload uses a changed endpoint at once."""
    persistent_keepalive: int = Field(0, ge=0, le=KEEPALIVE_SECS_MAX, description=_KEEPALIVE)
    """The interval between keepalives to this peer, which keep the mapping of a NAT or firewall on the way."""
    enabled: bool = Field(default=True, description="true or false")
    """Whether the peer may use the server. A disabled one stays in the file with its key and its addresses, which
    `oxidize peer add` gives to no other peer, but has no session, no route and no handshake. `oxidize peer disable` and
    `peer enable` set it."""
    expires: Annotated[float, PlainValidator(expiry.unix_time)] | None = Field(
        None, description="a date, or a date with a time"
    )
    """When the access of the peer ends, while the server runs as well: `2030-12-31` is the last day of it,
    `2030-12-31T18:00:00+01:00` the moment. Without an offset it is of the machine's time zone. From then on the peer
    has no session and no handshake; it stays in the file, and a later date and a reload let it in again. The machine's
    clock decides: where that is set back, so is the end."""
