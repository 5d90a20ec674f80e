"""The configuration of a new client: its key, its addresses, and the values of the server.

The rule: options are checked as the configuration checks its values, and all mistakes are reported at once, before a
key is generated.
"""

import secrets
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address, ip_interface
from typing import TYPE_CHECKING, TypeVar

from oxidize.config import InterfaceAddress, Network, ServerConfig, expiry, values
from oxidize.config.key_files import NO_PRESHARED_KEY
from oxidize.config.report import without_keys, without_secrets
from oxidize.config.values import PORT_MAX, HostAddress, InvalidValueError, PublicEndpoint, format_key
from oxidize.errors import ConfigError
from oxidize.protocol.constants import KEY_SIZE
from oxidize.protocol.crypto import generate_private_key, public_key
from oxidize.provision import server_endpoint
from oxidize.provision.addresses import chosen_addresses, tunnel_networks
from oxidize.provision.client_files import ClientSetup

if TYPE_CHECKING:
    from oxidize.config.schema import PeerTable

_T = TypeVar("_T")

DEFAULT_ROUTES = "0.0.0.0/0, ::/0"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientOptions:
    """The options of a new client as written on the command line; None for the default."""

    name: str
    address: str | None = None
    expires: str | None = None
    endpoint: str | None
    allowed_ips: str | None
    is_full: bool
    dns: str | None
    keepalive: int
    public_key: str | None
    with_preshared_key: bool


def new_client(
    options: ClientOptions, server: ServerConfig, port: int, renewed: "PeerTable | None" = None
) -> tuple[ClientSetup, tuple[str, ...]]:
    """Return a new client of a server that listens at `port`, and warnings; raises ConfigError with every mistake.

    renewed: the peer that gets a new key; its name and its addresses stay.
    """
    problems: list[str] = []

    def checked(option: str, given: str, parse: Callable[[str], _T]) -> _T | None:
        try:
            return parse(given)
        except InvalidValueError as error:
            shown = given if option == "--public-key" else without_keys(given)
            problems.append(f"{option} {shown}: expected {error.expected}{f'; {error.remedy}' if error.remedy else ''}")
            return None

    checked("NAME", options.name, values.peer_name)
    if renewed is None and any(peer.name == options.name for peer in server.peers):
        problems.append(
            f"NAME {options.name}: expected a name that no peer has; take another one, "
            f"or `oxidize peer remove {options.name}` first"
        )
    if options.is_full and options.allowed_ips is not None:
        problems.append("--full and --allowed-ips: expected one of them; leave out the other")
    routes = DEFAULT_ROUTES if options.is_full else options.allowed_ips
    allowed_ips = tunnel_networks(server.addresses) if routes is None else checked("--allowed-ips", routes, _networks)
    dns = checked("--dns", options.dns, _name_servers) if options.dns is not None else ()
    theirs = checked("--public-key", options.public_key, values.public_key) if options.public_key is not None else None
    given = checked("--endpoint", options.endpoint, _public_endpoint) if options.endpoint is not None else None
    secret_keys = {format_key(server.private_key)} | {
        format_key(peer.preshared_key) for peer in server.peers if peer.preshared_key != NO_PRESHARED_KEY
    }
    problems += _problems_of_key(options.public_key, server, secret_keys)
    chosen = checked("--address", options.address, _addresses) if options.address is not None else ()
    if options.expires is not None:
        checked("--expires", options.expires, _future)
    where, warnings = _endpoint(given or server.public_endpoint, port)
    if where is None and given is None and options.endpoint is None:
        problems.append("--endpoint is missing: expected HOST or HOST:PORT: no address of this machine can be guessed")
    if problems or where is None or allowed_ips is None or dns is None or chosen is None:
        raise ConfigError(*without_secrets(problems, secret_keys))
    private = generate_private_key(secrets.token_bytes) if theirs is None else None
    owners = {network: peer.name for peer in server.peers for network in peer.allowed_ips}
    if renewed is not None:
        addresses = own_addresses(server.addresses, renewed)
    else:
        addresses = chosen_addresses(server.addresses, owners, chosen)
    setup = ClientSetup(
        name=options.name,
        addresses=addresses,
        private_key=private,
        public_key=public_key(private) if private is not None else theirs or b"",
        preshared_key=secrets.token_bytes(KEY_SIZE) if options.with_preshared_key else None,
        server_public_key=server.public_key,
        endpoint=where,
        allowed_ips=allowed_ips,
        dns=dns,
        persistent_keepalive=options.keepalive,
        mtu=server.mtu,
    )
    around = _surroundings(setup, owners) if chosen else ()
    return setup, (*warnings, *around, *_route_warnings(setup, server))


def _problems_of_key(given: str | None, server: ServerConfig, secret_keys: Collection[str]) -> Iterator[str]:
    """Yield why a client cannot have this public key."""
    owner = next((peer.name for peer in server.peers if format_key(peer.public_key) == given), None)
    if owner is not None:
        yield (
            f"--public-key {given}: expected a key that no peer has, but {owner} has it; "
            f"`oxidize peer remove {owner}` first"
        )
    if given in secret_keys:
        yield (
            "--public-key: expected a public key, but this is the key in one of the server's key files, which is "
            "secret; run `oxidize pubkey` with the client's private key, and no longer use this key"
        )


def own_addresses(own: Sequence[InterfaceAddress], peer: "PeerTable") -> tuple[InterfaceAddress, ...]:
    """Return the addresses that a peer has itself: its networks of one address; raises ConfigError if it has none."""
    lengths = {network: network.prefixlen for network in tunnel_networks(own)}
    found = []
    for network in peer.allowed_ips:
        if network.num_addresses == 1:
            address = network.network_address
            length = next((each for around, each in lengths.items() if address in around), network.prefixlen)
            found.append(ip_interface(f"{address}/{length}"))
    if not found:
        raise ConfigError(f"{peer.name}: expected an address of its own in allowed_ips, such as 10.9.0.7/32; add one")
    return tuple(found)


def differences(options: ClientOptions, peer: "PeerTable") -> list[str]:
    """Return in what a peer differs from what the options say of it; what only its client knows is not compared.

    Raises ConfigError for options that cannot be read.
    """
    found, own = [], {network.network_address for network in peer.allowed_ips if network.num_addresses == 1}
    try:
        missing = [each for each in _addresses(options.address) if each not in own] if options.address else []
        expires = expiry.unix_time(options.expires) if options.expires is not None else None
    except InvalidValueError as error:
        raise ConfigError(f"NAME {options.name}: expected {error.expected}") from error
    if missing:
        found.append(f"it has not the address {missing[0]}")
    if options.public_key is not None and options.public_key != format_key(peer.public_key):
        found.append("it has another public key")
    if options.with_preshared_key != (peer.preshared_key != NO_PRESHARED_KEY):
        found.append(f"it has {'no' if options.with_preshared_key else 'a'} pre-shared key")
    if expires != peer.expires:
        found.append("its access has another end (expires)")
    return found


def _surroundings(setup: ClientSetup, owners: Mapping[Network, str]) -> Iterator[str]:
    """Yield a warning for each address that lies within the network of another peer."""
    for address in setup.addresses:
        inside = [network for network in owners if network.prefixlen > 0 and address.ip in network]
        if inside:
            closest = max(inside, key=lambda network: network.prefixlen)
            yield (
                f"{address.ip} lies within {closest} of {owners[closest]}: packets to it go to {setup.name} from now "
                "on, for its prefix is longer"
            )


def _route_warnings(setup: ClientSetup, server: ServerConfig) -> Iterator[str]:
    """Yield a warning if all of a client's traffic is routed to a server that does not translate its addresses."""
    defaults = [str(network) for network in setup.allowed_ips if network.prefixlen == 0]
    if not defaults:
        return
    if server.nat is not None:
        sources = server.nat.settings(server.addresses).sources
        left_out = [str(each.ip) for each in setup.addresses if not any(each.ip in network for network in sources)]
        if left_out:
            yield (
                f"{setup.name} routes {' and '.join(defaults)} to this server, which does not translate "
                f"{' and '.join(left_out)}; add that to sources under [server.nat], and reload"
            )
        return
    remedy = "write nat = true under [server], and reload"
    if server.network == "userspace":
        remedy = 'write network = "tun" and nat = true under [server], and restart'
    yield (
        f"{setup.name} routes {' and '.join(defaults)} to this server, and without nat = true it reaches nothing "
        f"beyond it, unless other rules translate its addresses; {remedy}"
    )


def _endpoint(given: PublicEndpoint | None, port: int) -> tuple[str | None, tuple[str, ...]]:
    """Return the endpoint for the client, and a warning if it is a guess."""
    if given is not None:
        return server_endpoint.format_endpoint(given, port), ()
    guess = server_endpoint.guess()
    if guess is None:
        return None, ()
    where = server_endpoint.format_endpoint((str(guess), None), port)
    private = "" if guess.is_global else ", and private: no client elsewhere can reach it"
    remedy = "use --endpoint HOST, or set public_endpoint under [server]"
    return where, (f"the endpoint {where} is a guess, this machine's own address{private}; {remedy}",)


def _addresses(given: str) -> tuple[HostAddress, ...]:
    expected = "one or more addresses without a prefix, separated by commas, such as 10.9.0.7"
    try:
        found = tuple(ip_address(word.strip()) for word in given.split(","))
    except ValueError:
        raise InvalidValueError(expected) from None
    if len(set(found)) < len(found) or "%" in given:
        raise InvalidValueError(f"{expected}, each once, and without a zone")
    return found


def _future(given: str) -> float:
    unix = expiry.unix_time(given)
    if unix <= time.time():
        raise InvalidValueError("a date or a moment to come")
    return unix


def _networks(given: str) -> tuple[Network, ...]:
    return tuple(values.network(word.strip()) for word in given.split(","))


def _name_servers(given: str) -> tuple[HostAddress | str, ...]:
    found = tuple(values.name_server(word.strip()) for word in given.split(","))
    if all(isinstance(entry, str) for entry in found):
        raise InvalidValueError("the address of at least one name server, not only domains, such as 10.9.0.1")
    return found


def _public_endpoint(given: str) -> PublicEndpoint:
    """Parse an endpoint as the configuration does, with a separate error for a port that is out of range."""
    try:
        return values.public_endpoint(given)
    except InvalidValueError:
        host, _, port = given.rpartition(":")
        is_host = host.startswith("[") or ":" not in host
        if is_host and port.isascii() and port.isdigit() and not _is_port(port):
            values.public_endpoint(host)
            raise InvalidValueError(f"a port from 1 to {PORT_MAX}, and {port} is out of that range") from None
        raise


def _is_port(digits: str) -> bool:
    digits = digits.lstrip("0")
    return 0 < len(digits) <= len(str(PORT_MAX)) and int(digits) <= PORT_MAX
