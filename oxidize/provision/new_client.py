"""What a new client gets: its key, its addresses, and what it is told of the server.

The rule: every wish is checked as the configuration checks its values, and all that is wrong is said at once, before
anything is made.
"""

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TypeVar

from oxidize.config import Network, ServerConfig, values
from oxidize.config.model import PublicEndpoint
from oxidize.config.values import InvalidValueError
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
            # What is given for a key may be a private one by mistake: it is not shown.
            shown = "" if option == "--public-key" else f" {given}"
            problems.append(f"{option}{shown}: expected {error.expected}{f'; {error.remedy}' if error.remedy else ''}")
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
    dns = checked("--dns", wishes.dns, _addresses) if wishes.dns is not None else ()
    theirs = checked("--public-key", wishes.public_key, values.public_key) if wishes.public_key is not None else None
    told = checked("--endpoint", wishes.endpoint, values.public_endpoint) if wishes.endpoint is not None else None
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
    if any(peer.public_key == setup.public_key for peer in server.peers):
        raise ConfigError(["--public-key: expected a key that no peer has; remove that peer first"])
    return NewClient(setup, warnings)


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


def _addresses(given: str) -> tuple[IPv4Address | IPv6Address, ...]:
    try:
        return tuple(ip_address(word.strip()) for word in given.split(","))
    except ValueError:
        raise InvalidValueError("addresses, separated by commas, such as 10.9.0.1,fd09::1") from None
