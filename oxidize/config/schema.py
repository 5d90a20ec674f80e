"""The tables of a configuration file, as pydantic models: every key, its default, and the text of what is expected.

The rule: this file is the reference of all keys. A field's description completes the sentence "expected ..."; its
example stands in the remedy where there is no default. Models hold values as they are after parsing, so defaults are
written as in the file and parsed like any other value.
"""

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    field_validator,
)

from oxidize.config import values
from oxidize.config.model import HostAddress, HostPort, InterfaceAddress, Network, NetworkKind, PublicEndpoint, Role
from oxidize.config.report import Report, show
from oxidize.config.values import InvalidValueError
from oxidize.protocol.constants import INNER_MTU_MAX

MTU_MIN = 576  # RFC 791: what every IPv4 host accepts
MTU_IPV6_MIN = 1280  # RFC 8200 section 5
MTU_DEFAULT = 1420  # an Ethernet frame less IPv6, UDP and WireGuard's own 32 bytes
KEEPALIVE_SECS_MAX = 65_535  # as wg(8)
CLIENT_INTERFACE = "oxidize1"
FWMARK_DEFAULT = 0x6F78  # "ox"; wg-quick(8) begins at 0xca6c
FWMARK_MIN = 256  # it is the number of a routing table too, and the kernel's own are below
FWMARK_MAX = 0xFFFF_FFFF
DRAIN_TIMEOUT_SECS_MAX = 3600.0
RECONNECT_DELAY_MS_MIN = 25  # servers ignore what comes sooner than 20 ms after the last initiation
RECONNECT_DELAY_MS_MAX = 3_600_000
RECONNECT_ATTEMPTS_MAX = 1_000_000_000
RECONNECT_BUFFER_MAX = 10_000  # packets; with a usual MTU they are what one record of the state may hold
SUGGESTION_CUTOFF = 0.6  # how alike a mistyped key must be to be taken for the known one

# Of the units, each its own: systemd removes it when the unit stops.
SYSTEM_RUNTIME_DIRECTORIES = {"server": "/run/oxidize", "client": "/run/oxidize-client"}
USER_SOCKET_NAMES = {"server": "takeover.sock", "client": "client-takeover.sock"}

TableT = TypeVar("TableT", bound="Table")


def default_takeover_socket(role: Role = "server", environ: Mapping[str, str] = os.environ) -> Path:
    """Return the path of the takeover socket where none is configured: in the user's runtime directory unless root."""
    own = environ.get("XDG_RUNTIME_DIR", "")
    if own and os.geteuid() != 0:
        return Path(own) / "oxidize" / USER_SOCKET_NAMES[role]
    return Path(SYSTEM_RUNTIME_DIRECTORIES[role]) / "takeover.sock"


def _one_or_many(value: object) -> tuple[object, ...]:
    if value == []:
        raise InvalidValueError("one or more addresses in CIDR notation")
    return tuple(value) if isinstance(value, list) else (value,)


def _many(value: object) -> tuple[object, ...]:
    if not isinstance(value, list):
        raise InvalidValueError("a list of networks in CIDR notation", 'write it as a list, such as ["10.0.0.2/32"]')
    return tuple(value)


def _listen_or_off(value: object) -> HostPort | None:
    if value is False or value == "":
        return None
    try:
        return values.listen_address(value)
    except InvalidValueError as error:
        raise InvalidValueError(f'{error.expected}, or "" for none', error.remedy) from None


def _one_or_many_names(value: object) -> tuple[object, ...]:
    return tuple(value) if isinstance(value, list) else (value,)


def _path_or_off(value: object) -> str | None:
    return value if value is None or value == "" else values.file_path(value)


_PublicKey = Annotated[bytes, PlainValidator(values.public_key)]
_FilePath = Annotated[str, PlainValidator(values.file_path)]
_Addresses = Annotated[
    tuple[Annotated[InterfaceAddress, PlainValidator(values.interface_address)], ...],
    BeforeValidator(_one_or_many),
]
_Networks = Annotated[
    tuple[Annotated[Network, PlainValidator(values.network)], ...],
    BeforeValidator(_many),
]
_NameServers = Annotated[
    tuple[Annotated[HostAddress | str, PlainValidator(values.name_server)], ...],
    BeforeValidator(_one_or_many_names),
]

_KEEPALIVE = f"a whole number of seconds from 0 (off) to {KEEPALIVE_SECS_MAX}"
_RECONNECT_DELAY = f"a whole number of milliseconds from {RECONNECT_DELAY_MS_MIN} to {RECONNECT_DELAY_MS_MAX}"


class Table(BaseModel):
    """What all tables have in common: nothing is converted, nothing unknown is accepted."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, validate_default=True)

    @field_validator("*", mode="wrap")
    @classmethod
    def _keep(cls, value: Any, handler: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
        """Note every valid field, so that those of a table with a mistake elsewhere can still be compared."""
        parsed = handler(value)
        if info.context is not None and info.field_name is not None:
            info.context[info.field_name] = parsed
        return parsed


class InterfaceTable(Table):
    """What [server] and [client] have in common."""

    address: _Addresses = Field(description="one or more addresses in CIDR notation", examples=["10.0.0.1/24"])
    mtu: int = Field(
        MTU_DEFAULT,
        ge=MTU_MIN,
        le=INNER_MTU_MAX,
        description=f"a whole number from {MTU_MIN} to {INNER_MTU_MAX}",
    )
    private_key_file: _FilePath | None = Field(None, description="the path of a file")
    takeover_socket: _FilePath | None = Field(None, description="the path of a Unix socket")
    network: NetworkKind = Field("tun", description='"tun" or "userspace"')


class ServerTable(InterfaceTable):
    """The table [server]."""

    listen: Annotated[HostPort, PlainValidator(values.listen_address)] = Field(
        default="[::]:51820", validate_default=True, description='"address:port"'
    )
    interface: Annotated[str, PlainValidator(values.interface_name)] = Field("oxidize0", description="a name")
    metrics_listen: Annotated[HostPort | None, PlainValidator(_listen_or_off)] = Field(
        default="127.0.0.1:9090", validate_default=True, description='"address:port", or "" for none'
    )
    endpoints_file: Annotated[str | None, PlainValidator(_path_or_off)] = Field(
        None, description='the path of a file, or "" for none'
    )
    nat: bool = Field(default=False, description="true or false")
    public_endpoint: Annotated[PublicEndpoint, PlainValidator(values.public_endpoint)] | None = Field(
        None, description='"host" or "host:port"'
    )
    drain_timeout_secs: float = Field(
        30.0,
        ge=0.0,
        le=DRAIN_TIMEOUT_SECS_MAX,
        allow_inf_nan=False,
        description=f"a number of seconds from 0 to {DRAIN_TIMEOUT_SECS_MAX:.0f}",
    )


class ClientTable(InterfaceTable):
    """The table [client]."""

    server: Annotated[str, PlainValidator(values.endpoint)] = Field(
        description='"host:port" of the server', examples=["vpn.example.org:51820"]
    )
    server_public_key: _PublicKey = Field(
        description="the server's public key in base64", examples=["(what `oxidize pubkey` prints on the server)"]
    )
    preshared_key_file: _FilePath | None = Field(None, description="the path of a file")
    allowed_ips: _Networks = Field(
        description="the networks that are behind the server, as a list", examples=[["10.0.0.0/24"]]
    )
    persistent_keepalive: int = Field(25, ge=0, le=KEEPALIVE_SECS_MAX, description=_KEEPALIVE)
    reconnect_delay_ms: int = Field(
        50, ge=RECONNECT_DELAY_MS_MIN, le=RECONNECT_DELAY_MS_MAX, description=_RECONNECT_DELAY
    )
    max_reconnect_delay_ms: int = Field(
        5000, ge=RECONNECT_DELAY_MS_MIN, le=RECONNECT_DELAY_MS_MAX, description=_RECONNECT_DELAY
    )
    max_reconnect_attempts: int = Field(
        0,
        ge=0,
        le=RECONNECT_ATTEMPTS_MAX,
        description=f"a whole number from 0 (any number of attempts) to {RECONNECT_ATTEMPTS_MAX}",
    )
    reconnect_buffer_size: int = Field(
        1000,
        ge=1,
        le=RECONNECT_BUFFER_MAX,
        description=f"a whole number of packets from 1 to {RECONNECT_BUFFER_MAX}",
    )
    resend_unanswered: bool = Field(True, description="true or false")
    dns: _NameServers = Field(
        default=[],
        validate_default=True,
        description="a list of name servers' addresses and of domains to search in",
    )
    fwmark: int = Field(
        FWMARK_DEFAULT,
        ge=FWMARK_MIN,
        le=FWMARK_MAX,
        description=f"a whole number from {FWMARK_MIN} to {FWMARK_MAX}, which no firewall or other tunnel uses",
    )
    interface: Annotated[str, PlainValidator(values.interface_name)] = Field(CLIENT_INTERFACE, description="a name")
    metrics_listen: Annotated[HostPort | None, PlainValidator(_listen_or_off)] = Field(
        default="", validate_default=True, description='"address:port", or "" for none'
    )


class PeerTable(Table):
    """One table [[peer]]."""

    name: Annotated[str, PlainValidator(values.peer_name)] = Field(description="a name", examples=["alice"])
    public_key: _PublicKey = Field(
        description="the peer's public key in base64", examples=["(what `oxidize pubkey` prints at the peer)"]
    )
    preshared_key_file: _FilePath | None = Field(None, description="the path of a file")
    allowed_ips: _Networks = Field(description="the networks of the peer, as a list", examples=[["10.0.0.2/32"]])
    endpoint: Annotated[str, PlainValidator(values.endpoint)] | None = Field(None, description='"host:port"')
    persistent_keepalive: int = Field(0, ge=0, le=KEEPALIVE_SECS_MAX, description=_KEEPALIVE)


@dataclass(frozen=True, slots=True)
class Checked(Generic[TableT]):
    """A table after validation: `table` is None when anything in it is wrong; `valid` has the fields that are right."""

    prefix: str
    table: TableT | None
    valid: Mapping[str, Any]
    given: Mapping[str, object]


def check_table(model: type[TableT], given: Mapping[str, object], prefix: str, report: Report) -> Checked[TableT]:
    """Validate one table and report every mistake in it under names that begin with `prefix`."""
    valid: dict[str, Any] = {}
    try:
        return Checked(prefix, model.model_validate(given, context=valid), valid, given)
    except ValidationError as error:
        for detail in error.errors(include_url=False):
            _report_detail(model, prefix, detail["type"], detail["loc"], detail["input"], detail.get("ctx", {}), report)
    return Checked(prefix, None, valid, given)


def _report_detail(
    model: type[Table],
    prefix: str,
    kind: str,
    location: tuple[int | str, ...],
    value: object,
    context: Mapping[str, Any],
    report: Report,
) -> None:
    name = str(location[0])
    key = f"{prefix}.{name}"
    if kind == "extra_forbidden":
        unknown_key(prefix, name, value, list(model.model_fields), report)
        return
    field = model.model_fields[name]
    if kind == "missing":
        report.missing(key, str(field.description), f"add {_example(name, field.examples)}")
        return
    cause = context.get("error")
    expected = cause.expected if isinstance(cause, InvalidValueError) else str(field.description)
    if isinstance(cause, InvalidValueError) and cause.remedy is not None:
        remedy = cause.remedy
    elif field.is_required():
        remedy = f"write for example {_example(name, field.examples)}"
    elif field.default is None:
        remedy = "correct it, or remove the line"
    else:
        remedy = f"remove the line for the default {show(name, field.default)}"
    report.wrong(key, value, expected, remedy)


def unknown_key(table: str, name: str, value: object, known: list[str], report: Report) -> None:
    """Report a key that does not exist in `table` ("": the file itself), with the one that was probably meant."""
    spelled = {candidate.replace("_", ""): candidate for candidate in known}
    close = difflib.get_close_matches(name.lower().replace("_", "").replace("-", ""), spelled, 1, SUGGESTION_CUTOFF)
    place = f"a key of {table}" if table else "a table of this file"
    remedy = f"did you mean {spelled[close[0]]}?" if close else "remove it"
    key = f"{table}.{name}" if table else name
    report.wrong(key, value, f"{place} ({', '.join(sorted(known))})", remedy, name=name)


def _example(name: str, examples: list[Any] | None) -> str:
    example = examples[0] if examples else "..."
    return f"{name} = {show(name, example)}"
