"""`oxidize init`: the first configuration of a server, guessed, shown, and written once it is approved.

The rule: nothing is overwritten, nothing is written without a yes, and each guess is said to be one. The command ends
with what to type next.
"""

import os
import secrets
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from ipaddress import ip_network
from pathlib import Path

import click

from oxidize import config
from oxidize.cli.common import SERVER_CONFIG
from oxidize.cli.lines import echo, fail, print_line
from oxidize.config import InterfaceAddress, Network, values
from oxidize.config.key_files import KEY_FILE_BYTES_MAX
from oxidize.config.values import InvalidValueError, format_key
from oxidize.errors import ConfigError, OxidizeError
from oxidize.protocol.crypto import generate_private_key
from oxidize.provision import config_file, server_endpoint
from oxidize.provision.config_file import NewFile, Owner
from oxidize.provision.first_configuration import first_addresses, guess_networks, server_toml

IPV6_ADDRESSES = Path("/proc/net/if_inet6")  # proc(5): absent without IPv6, empty where it is switched off
START = "systemctl enable --now oxidize.socket oxidize-http.socket oxidize-daemon"


@click.command(short_help="Make the first configuration of a server.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, readable=False),
    metavar="FILE",
    default=SERVER_CONFIG,
    show_default=True,
    help="File to write; the key is written beside it.",
)
@click.option("--endpoint", metavar="HOST[:PORT]", help="Address of the server for its clients.  [default: guessed]")
@click.option(
    "--address", metavar="ADDRESSES", help="The server's own in the tunnel, such as 10.9.0.1/24.  [default: guessed]"
)
@click.option("--yes", "is_approved", is_flag=True, help="Write without a question.")
def init(output: Path, endpoint: str | None, address: str | None, is_approved: bool) -> None:
    """Make the first configuration of a server: its key, its network, its endpoint; nothing is overwritten.

    What is guessed is shown, and written when it is approved. ADDRESSES are separated by commas.
    """
    _check_absent(output)
    where, addresses, remarks = _values(endpoint, address)
    interface = None if output.stem == "server" else _interface_of(output)
    key_path = output.with_name(f"{output.stem}.key")
    key, is_new = _key_at(key_path)
    from oxidize.cli.mtu_check import fitting_mtu, narrow_uplink  # noqa: PLC0415  # as in `check`

    uplink = narrow_uplink()
    mtu = fitting_mtu(uplink, addresses) if uplink is not None else None
    if uplink is not None:
        remarks.append(f"guessed: mtu {mtu}, as by wg-quick: {uplink.interface} takes packets of {uplink.mtu} bytes")
    toml = server_toml(addresses, key_path.name, where, interface, mtu)
    echo(f"{output}:\n")
    echo("".join(f"  {line}\n" for line in toml.splitlines()))
    echo(f"{key_path}: {'a new private key' if is_new else 'the private key that is there'}")
    if interface is not None:
        remarks.append(
            "a second tunnel of this machine needs a listen, a takeover_socket and a metrics_listen of its own"
        )
    for remark in remarks:
        echo(remark)
    _approve(is_approved)
    _check_absent(output)  # once more: the answer may have taken a while
    owner = config_file.service_owner("server")
    mode, group = (0o640, Owner(0, owner.gid)) if owner is not None else (0o600, None)
    files = [NewFile(key_path.name, key, 0o600, owner, is_key=True), NewFile(output.name, toml, mode, group)]
    # A key that is there is never overwritten; `force` lets it be used.
    for path in config_file.install(output.parent, files, config.load_server, force=not is_new):
        print_line(f"wrote {path}")
    _print_next(output)


def _check_absent(output: Path) -> None:
    if os.path.lexists(output):
        raise ConfigError(
            f"{output} exists, and nothing is overwritten: edit it, name another file (-o), or move it away, such as "
            "the one that `make install` has put there"
        )


def _values(endpoint: str | None, address: str | None) -> tuple[str, list[InterfaceAddress], list[str]]:
    """Return endpoint and addresses, and a remark for each that is guessed; raises ConfigError with every mistake."""
    problems, remarks = [], []
    where: str | None = endpoint
    addresses: list[InterfaceAddress] = []
    if endpoint is None:
        guess = server_endpoint.guess()
        if guess is None:
            problems.append("--endpoint is missing: expected HOST or HOST:PORT: no address of this machine is found")
        else:
            where = str(guess)
            private = "" if guess.is_global else ", and private: no client elsewhere can reach it"
            remarks.append(f"guessed: the endpoint {guess}, this machine's own address{private} (--endpoint)")
    if address is None:
        networks = guess_networks(used_networks(), secrets.token_bytes if _has_ipv6() else None)
        addresses = first_addresses(networks)
        if not addresses:
            problems.append("--address is missing: expected one, such as 10.9.0.1/24: no free network is found")
        elif networks:
            shown = " and ".join(map(str, networks))
            remarks.append(f"guessed: {shown}, which this machine and usual homes do not use (--address)")
    for each in address.split(",") if address is not None else ():
        with _noting(problems, f"--address {each.strip()}"):
            addresses.append(values.interface_address(each.strip()))
    if endpoint is not None:
        with _noting(problems, f"--endpoint {endpoint}"):
            values.public_endpoint(endpoint)
    if problems or where is None:
        raise ConfigError(*problems)
    return where, addresses, remarks


@contextmanager
def _noting(problems: list[str], given: str) -> Iterator[None]:
    try:
        yield
    except InvalidValueError as error:
        problems.append(f"{given}: expected {error.expected}; {error.remedy or 'correct it'}")


def used_networks() -> set[Network]:
    """Return the networks of this machine's addresses and of its routes, in all tables; none that cannot be read."""
    from oxidize.hostnet.rtnetlink import RtnetlinkSocket  # noqa: PLC0415  # slow, and rarely needed

    found: set[Network] = set()
    with suppress(OSError, OxidizeError), RtnetlinkSocket() as kernel:
        for family in (socket.AF_INET, socket.AF_INET6):
            for routes in kernel.routes_of(family):
                found.update(ip_network((route.key[1], route.key[0]), strict=False) for route in routes)
    return found


def _has_ipv6() -> bool:
    with suppress(OSError):
        return bool(IPV6_ADDRESSES.read_text())
    return False


def _interface_of(output: Path) -> str | None:
    with suppress(InvalidValueError):
        return values.interface_name(output.stem)
    return None


def _key_at(path: Path) -> tuple[str, bool]:
    """Return the content of a key file, of a new key if there is no file, and whether it is new."""
    try:
        with path.open("rb") as file:
            return file.read(KEY_FILE_BYTES_MAX).decode("latin-1"), False
    except FileNotFoundError:
        return f"{format_key(generate_private_key(secrets.token_bytes))}\n", True
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}: expected no file, or a private key; name another (-o)") from error


def _approve(is_approved: bool) -> None:
    """Ask whether to write; exit if the answer is no, or where no one can be asked."""
    if is_approved:
        return
    if not sys.stdin.isatty():
        fail(2, "nothing is written: standard input is not a terminal, so no one can be asked; use --yes")
    if not click.confirm("Write these files?", default=True, err=True):
        fail(1, "nothing is written")


def _print_next(output: Path) -> None:
    for line in _next_steps(output):
        echo(line)


def _next_steps(output: Path) -> Iterator[str]:
    yield "Next:"
    if output == SERVER_CONFIG:
        yield f"  {START}"
        yield "  oxidize peer add phone"
    else:
        yield f"  {'' if os.geteuid() == 0 else 'sudo '}oxidize server -c {output}"
        yield f"  oxidize peer add phone -c {output}"
