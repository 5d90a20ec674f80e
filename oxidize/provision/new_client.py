"""What a new client gets: its key, its addresses, and what it is told of the server.

The rule: every wish is checked as the configuration checks its values, and all that is wrong is said at once, before
anything is made.
"""

import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from oxidize.config import Network, ServerConfig, values
from oxidize.config.values import PORT_MAX, HostAddress, InvalidValueError, PublicEndpoint
from oxidize.errors import ConfigError
from oxidize.protocol.constants import KEY_SIZE
from oxidize.protocol.crypto import generate_private_key, public_key
from oxidize.provision import endpoint
from oxidize.provision.addresses import free_addresses, tunnel_networks
from oxidize.provision.client_files import ClientSetup

_T = TypeVar("_T")

DEFAULT_ROUTES = "0.0.0.0/0, ::/0"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What the operator wants a new client to be, as written on the command line; None where it is left to us."""

    name: str
    endpoint: str | None
    allowed_ips: str | None
    is_full: bool
    dns: str | None
    keepalive: int
    public_key: str | None
    with_preshared_key: bool


@dataclass(frozen=True, slots=True)
class NewClient:
    """A client that is to be, and what the operator should know about it."""

    setup: ClientSetup
    warnings: tuple[str, ...]


def set_up(wishes: Wishes, server: ServerConfig, port: int) -> NewClient:
    """Return a new client of this server, which listens at `port`; raises ConfigError with all that is wrong."""
    problems: list[str] = []

    def checked(option: str, given: str, parse: Callable[[str], _T]) -> _T | None:
        try:
            return parse(given)
        except InvalidValueError as error:
            problems.append(f"{option} {given}: expected {error.expected}{f'; {error.remedy}' if error.remedy else ''}")
            return None

    checked("NAME", wishes.name, values.peer_name)
    if any(peer.name == wishes.name for peer in server.peers):
        problems.append(
            f"NAME {wishes.name}: expected a name that no peer has; take another one, "
            f"or `oxidize peer remove {wishes.name}` first"
        )
    if wishes.is_full and wishes.allowed_ips is not None:
        problems.append("--full and --allowed-ips: expected one of them; leave out the other")
    routes = DEFAULT_ROUTES if wishes.is_full else wishes.allowed_ips
    allowed_ips = tunnel_networks(server.addresses) if routes is None else checked("--allowed-ips", routes, _networks)
    dns = checked("--dns", wishes.dns, _name_servers) if wishes.dns is not None else ()
    theirs = checked("--public-key", wishes.public_key, values.public_key) if wishes.public_key is not None else None
    told = checked("--endpoint", wishes.endpoint, _public_endpoint) if wishes.endpoint is not None else None
    holder = next((peer.name for peer in server.peers if peer.public_key == theirs), None)
    if holder is not None:
        problems.append(
            f"--public-key {wishes.public_key}: expected a key that no peer has, but {holder} has it; "
            f"`oxidize peer remove {holder}` first"
        )
    where, warnings = _endpoint(told or server.public_endpoint, port)
    if where is None and told is None and wishes.endpoint is None:
        problems.append("--endpoint is missing: expected HOST or HOST:PORT: no address of this machine can be guessed")
    if problems or where is None or allowed_ips is None or dns is None:
        raise ConfigError(problems)
    private = generate_private_key(secrets.token_bytes) if theirs is None else None
    setup = ClientSetup(
        name=wishes.name,
        addresses=free_addresses(server.addresses, [net for peer in server.peers for net in peer.allowed_ips]),
        private_key=private,
        public_key=public_key(private) if private is not None else theirs or b"",
        preshared_key=secrets.token_bytes(KEY_SIZE) if wishes.with_preshared_key else None,
        server_public_key=server.public_key,
        endpoint=where,
        allowed_ips=allowed_ips,
        dns=dns,
        persistent_keepalive=wishes.keepalive,
        mtu=server.mtu,
    )
    return NewClient(setup, (*warnings, *_route_warnings(setup, server)))


def _route_warnings(setup: ClientSetup, server: ServerConfig) -> Iterator[str]:
    """Yield a warning where all of a client's traffic comes here and goes no further."""
    defaults = [str(network) for network in setup.allowed_ips if network.prefixlen == 0]
    if not defaults or server.nat:
        return
    remedy = "write nat = true under [server], and reload"
    if server.network == "userspace":
        remedy = 'write network = "tun" and nat = true under [server], and restart'
    yield (
        f"{setup.name} sends {' and '.join(defaults)} here, and without nat = true it reaches nothing beyond this "
        f"server, unless rules of your own translate its addresses; {remedy}"
    )


def _endpoint(told: PublicEndpoint | None, port: int) -> tuple[str | None, tuple[str, ...]]:
    """Return what clients are told, and a warning where that is a guess."""
    if told is not None:
        return endpoint.written(told, port), ()
    guess = endpoint.guess()
    if guess is None:
        return None, ()
    where = endpoint.written((str(guess.address), None), port)
    private = "" if guess.is_public else ", and private: no client elsewhere can reach it"
    remedy = "say --endpoint HOST, or set public_endpoint under [server]"
    return where, (f"the endpoint {where} is a guess, this machine's own address{private}; {remedy}",)


def _networks(given: str) -> tuple[Network, ...]:
    return tuple(values.network(word.strip()) for word in given.split(","))


def _name_servers(given: str) -> tuple[HostAddress | str, ...]:
    found = tuple(values.name_server(word.strip()) for word in given.split(","))
    if all(isinstance(entry, str) for entry in found):
        raise InvalidValueError("the address of one name server or more beside the domains, such as 10.9.0.1")
    return found


def _public_endpoint(given: str) -> PublicEndpoint:
    """Parse an endpoint as the configuration does, with a word of its own for a port that cannot be."""
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
