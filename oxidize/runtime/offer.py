"""The contents of an OFFER: descriptors by name, and the state that comes with them.

The rule: both are an interface between releases, in either direction. A name or a wire key is never renamed, retyped or
reused; a new field has a default; a field or a descriptor that a newer release added is ignored.
"""

import os
from collections.abc import Mapping
from enum import StrEnum
from math import isfinite
from types import MappingProxyType
from typing import Any, NamedTuple, Self

from oxidize.errors import DecodeError
from oxidize.state.records import FORMAT
from oxidize.takeover.host import NamedFd, Offer


class FdName(StrEnum):
    """The name of a descriptor, the same in an OFFER, in LISTEN_FDNAMES and in the service manager's fd store.

    An OFFER may carry each of them.
    """

    UDP = "udp"
    HTTP = "http"
    JOURNAL = "journal"
    ARENA = "arena"
    TUN = "tun"
    NAT = "nat"  # the nftables socket that owns the table
    GUARD = "guard"  # the pipe to a client's cleanup guard
    STDERR = "stderr"  # where the process logs
    UAPI = "uapi"  # the listener of wg


class FdTraits(NamedTuple):
    """The treatment of a descriptor.

    kind: what it is, in an OFFER. is_required: an OFFER without it is refused. from_socket_unit: a socket unit may pass
    it. is_stored: the service manager's fd store keeps it across a crash.
    """

    kind: str
    is_required: bool = False
    from_socket_unit: bool = False
    is_stored: bool = False


FDS: Mapping[FdName, FdTraits] = {
    FdName.UDP: FdTraits("socket", is_required=True, from_socket_unit=True),  # stored as well where no unit has it
    FdName.HTTP: FdTraits("socket", from_socket_unit=True),
    FdName.JOURNAL: FdTraits("memfd", is_required=True, is_stored=True),
    FdName.ARENA: FdTraits("memfd", is_required=True, is_stored=True),
    FdName.TUN: FdTraits("tun", is_stored=True),
    FdName.NAT: FdTraits("nftables", is_stored=True),
    FdName.GUARD: FdTraits("pipe", is_stored=True),  # by a holder
    FdName.STDERR: FdTraits("log"),
    FdName.UAPI: FdTraits("socket", from_socket_unit=True),  # a start after a crash binds another one where none has it
}
FROM_SOCKET_UNIT = tuple(name for name, traits in FDS.items() if traits.from_socket_unit)
STATE = (FdName.JOURNAL, FdName.ARENA)  # one is of no use without the other
STORED = tuple(name for name, traits in FDS.items() if traits.is_stored)

READS_STAGED_MORE = "reads_staged_more"  # in the report of READY: whether the successor reads that kind of record
TAKES_UAPI = "takes_uapi"  # an ability: answers at the listener of wg
READS_TUN_FLAGS = "reads_tun_flags"  # an ability: asks the kernel how a stored TUN device frames packets
HAS_MANAGER = "has_manager"  # in the same report: whether a service manager or a holder follows the successor

DNS_KEYS: Mapping[str, type] = {"interface": str, "record": str, "servers": list, "domains": list}


def named_fd(name: FdName, fd: int, options: dict[str, Any] | None = None) -> NamedFd:
    """Return a descriptor as an OFFER carries it, `options` being what a successor must know to use it."""
    return NamedFd(name.value, fd, FDS[name].kind, options or {})


def descriptors_of(offer: Offer) -> dict[FdName, NamedFd]:
    """Return the descriptors of an offer by name, and close those that only a newer release knows.

    Raises TakeoverError where a required one is missing.
    """
    for name, traits in FDS.items():
        if traits.is_required:
            offer.find(name.value)
    for named in offer.fds:
        if named.name not in FDS:
            os.close(named.fd)
    return {FdName(named.name): named for named in offer.fds if named.name in FDS}


class OfferState(NamedTuple):
    """The state of an OFFER: what a successor must know of its predecessor that is not in the journal.

    interface_digest: `InterfacePart.digest`. installed_dns: the name servers that a client has installed in the
    system, with the keys of `DNS_KEYS`; empty for none. watchdog_secs: the interval of the service manager's watchdog,
    0.0 for none. listen, metrics_listen: the settings of those names. server: a client's, as configured. upstream_dns:
    the name servers that a client asks past its tunnel. stores_tun: whether the predecessor has any TUN device stored,
    however it frames packets. has_host_setup: whether it has set more than its interface. format: of the journal.
    """

    interface_digest: str = ""
    installed_dns: Mapping[str, Any] = MappingProxyType({})
    watchdog_secs: float = 0.0
    listen: tuple[str, int] | None = None
    metrics_listen: tuple[str, int] | None = None
    server: str | None = None
    upstream_dns: tuple[str, ...] = ()
    stores_tun: bool = False
    has_host_setup: bool = False
    format: int = FORMAT

    def encode(self) -> dict[str, Any]:
        """Return the state with the keys and types of the wire."""
        return {
            "format": self.format,
            "interface": self.interface_digest,
            "name_servers": dict(self.installed_dns),
            "watchdog_secs": self.watchdog_secs,
            "listen": list(self.listen or ()),
            "metrics_listen": list(self.metrics_listen or ()),
            "server": self.server,
            "nameservers": list(self.upstream_dns),
            **({"stores_tun": True} if self.stores_tun else {}),
            **({"has_host_setup": True} if self.has_host_setup else {}),
        }

    @classmethod
    def decode(cls, state: Mapping[str, Any]) -> Self:
        """Return the state that another release encoded; raises DecodeError for a field of another type."""
        return cls(
            format=_typed(state, "format", int, FORMAT),
            interface_digest=_typed(state, "interface", str, ""),
            installed_dns=_dns(_typed(state, "name_servers", dict, {})),
            watchdog_secs=_seconds(state, "watchdog_secs"),
            listen=_address(state, "listen"),
            metrics_listen=_address(state, "metrics_listen"),
            server=_typed(state, "server", str, None),
            upstream_dns=_texts(state, "nameservers"),
            stores_tun=_typed(state, "stores_tun", bool, False),
            has_host_setup=_typed(state, "has_host_setup", bool, False),
        )


def _typed(state: Mapping[str, Any], key: str, kind: type, default: Any) -> Any:
    """Return a field of that very type (a boolean is no integer), or its default where it is missing."""
    value = state.get(key, default)
    if value is not default and type(value) is not kind:
        raise _wrong(key, value, kind.__name__)
    return value


def _seconds(state: Mapping[str, Any], key: str) -> float:
    value = state.get(key, 0.0)
    if type(value) not in {int, float} or not isfinite(value) or value < 0:
        raise _wrong(key, value, "a time in seconds")
    return float(value)


def _address(state: Mapping[str, Any], key: str) -> tuple[str, int] | None:
    match state.get(key, []):
        case []:
            return None
        case [str(host), int(port)]:
            return host, port
        case value:
            raise _wrong(key, value, "[host, port], or an empty list")


def _texts(state: Mapping[str, Any], key: str) -> tuple[str, ...]:
    values = state.get(key, [])
    if type(values) is not list or not all(type(value) is str for value in values):
        raise _wrong(key, values, "a list of texts")
    return tuple(values)


def _dns(fields: dict[str, Any]) -> dict[str, Any]:
    return {key: _typed(fields, key, kind, None) for key, kind in DNS_KEYS.items() if key in fields}


def _wrong(key: str, value: Any, expected: str) -> DecodeError:
    remedy = "stop the predecessor and start this release"
    return DecodeError(f"offer.state.{key} is {value!r:.80}; expected {expected}: {remedy}")
