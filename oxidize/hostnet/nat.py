"""`nat`: the nftables table that translates addresses and forwards ports for the tunnel (`nat_rules`), and its life.

The rule: no nftables table but the server's own is touched. It belongs to a netlink socket that is handed over like the
other descriptors, and ends with the last holder of that socket. Its chains stay while their rules are replaced, in one
batch, so every packet finds either the old rules or the new ones.

Source: docs/adr/0005, Linux Documentation/networking/ip-sysctl.rst.
"""

import errno
from collections.abc import Iterable, Sequence
from pathlib import Path

from oxidize.config.nat import PROTOCOLS, NatSettings
from oxidize.config.values import HostAddress, InterfaceAddress, Network
from oxidize.errors import ConfigError
from oxidize.hostnet import nftables as nft
from oxidize.hostnet.nat_rules import MODULES, is_table_of, table_messages, table_name
from oxidize.hostnet.nftables import Message, NftError, NftSocket, Table
from oxidize.hostnet.part import Steps

SYSCTLS = Path("/proc/sys")
FORWARDING = {4: "net.ipv4.ip_forward", 6: "net.ipv6.conf.all.forwarding"}

Address = InterfaceAddress | HostAddress | Network


def check_forwarding(addresses: Iterable[Address]) -> None:
    """Raise ConfigError, with the remedy, unless the kernel forwards the families of `addresses`."""
    problems = [
        f"server.nat: the sysctl {name} is {found!r}: expected 1, as IPv{version} is in use; run "
        f"`sysctl -w {name}=1`, and for the next boot put {name} = 1 into a file in /etc/sysctl.d "
        f"(`make install` installs 60-oxidize.conf, which has it)"
        for version, name, found in not_forwarded(addresses)
    ]
    if problems:
        raise ConfigError(*problems)


def not_forwarded(addresses: Iterable[Address]) -> list[tuple[int, str, str]]:
    """Return version, sysctl and its value for each family of `addresses` that the kernel does not forward."""
    found: list[tuple[int, str, str]] = []
    for version in sorted({address.version for address in addresses}):
        name = FORWARDING[version]
        try:
            value = SYSCTLS.joinpath(*name.split(".")).read_text().strip()
        except OSError as error:
            value = error.strerror or "cannot be read"
        if value not in {"1", "2"}:
            found.append((version, name, value))
    return found


class Nat:
    """The table that one generation wants, or none, and the socket that owns it (`hostnet.part.Part`).

    wanted: None for no table. udp_port: the tunnel's own, which is not forwarded. passed: the socket from a predecessor
    or from the store, which this object closes. is_new: whether none was passed.
    """

    def __init__(
        self,
        interface: str,
        addresses: Iterable[InterfaceAddress],
        wanted: NatSettings | None,
        udp_port: int,
        *,
        passed: int | None,
    ) -> None:
        self.name = "address translation"
        self.enabled = wanted is not None
        self.is_new = passed is None
        self._interface = interface
        self._addresses = tuple(addresses)
        self._wanted = wanted
        self._udp_port = udp_port
        self._messages: list[Message] = []
        self._name = table_name(interface)
        self._socket = NftSocket.adopt(passed) if passed is not None else None
        if self._socket is None and self.enabled:
            self._socket = NftSocket.create()

    def compare(self, *, repair: bool) -> Steps[list[str]]:
        """Compare the kernel's tables with the wanted one, and the sysctls of forwarding with 1; see `hostnet.part`.

        The content of a table that is there needs no look: no other socket may change it.
        """
        if not self.enabled or self._socket is None:
            return []
        yield 0.0
        try:
            is_there = any((each.name, each.owner) == (self._name, self._socket.port) for each in self._socket.tables())
        except NftError as error:
            raise self._problem(error) from error
        if not is_there and repair:
            self.apply()
        self._check_forwarding()
        return [] if is_there else [f"nftables table inet {self._name}"]

    def check(self, *, may_be_freed: bool = False) -> None:
        """Raise ConfigError if `apply` would fail; change nothing.

        may_be_freed: accept a table of this name that belongs to another socket, which may be gone before `apply`.
        """
        if not self.enabled or self._socket is None:
            return
        self._check_forwarding()
        try:
            tables = self._socket.tables()
            if not (may_be_freed and self._foreign_owner(tables)):
                self._socket.check(self._changes(tables, self._socket.port))
        except NftError as error:
            raise self._problem(error) from error

    def apply(self) -> None:
        """Make the tables of the socket match the settings; raises ConfigError, and then nothing has changed."""
        if self._socket is None:
            return
        try:
            changes = self._changes(self._socket.tables(), self._socket.port)
            if changes:
                self._socket.commit(changes)
        except NftError as error:
            raise self._problem(error) from error
        if not self.enabled:
            self.close()

    def fileno(self) -> int | None:
        """Return the descriptor to hand over, or None."""
        return self._socket.fileno() if self._socket is not None else None

    def close(self) -> None:
        """Close this process's hold on the table; idempotent."""
        held, self._socket = self._socket, None
        if held is not None:
            held.close()

    def _changes(self, tables: Sequence[Table], port: int) -> list[Message]:
        """Return the batch that leads from `tables` to the wanted one; raises ConfigError for a foreign table."""
        owned = {table.name for table in tables if table.owner == port}
        stale = [nft.delete_table(name) for name in sorted(owned - ({self._name} if self.enabled else set()))]
        if self._wanted is None:
            return stale
        self._check_ports(self._wanted)
        if self._name not in owned and (owner := self._foreign_owner(tables)) is not None:
            raise self._taken(owner)
        wanted = self._table(self._wanted, exclusive=self._name not in owned)
        is_done = self._name in owned and self._socket is not None and is_table_of(self._socket, self._name, wanted)
        return stale if is_done else [*stale, *wanted]

    def _table(self, wanted: NatSettings, *, exclusive: bool) -> list[Message]:
        """Return the batch for the table, made once: a check does the work while a predecessor serves."""
        if not self._messages:
            self._messages = table_messages(self._interface, self._addresses, wanted, exclusive=exclusive)
        return [nft.new_table(self._name, exclusive=exclusive), *self._messages[1:]]

    def _check_forwarding(self) -> None:
        """Raise ConfigError unless the kernel forwards all families in use."""
        wanted = self._wanted
        forwarded = [each.target.address for each in wanted.forwards] if wanted is not None else []
        check_forwarding([*self._addresses, *forwarded])

    def _check_ports(self, wanted: NatSettings) -> None:
        """Raise ConfigError if the tunnel's own packets would be forwarded, at whatever port its socket is."""
        own = self._udp_port
        for number, each in enumerate(wanted.forwards, start=1):
            is_own = "udp" in PROTOCOLS[each.protocol] and each.ports.first <= own <= each.ports.last
            if is_own and each.interface != self._interface:
                raise ConfigError(
                    f"server.nat.forward[{number}].port = {each.ports}: expected no UDP port {own}, which is the "
                    "tunnel's own; forward another port, or only TCP"
                )

    def _foreign_owner(self, tables: Sequence[Table]) -> int | None:
        """Return the owner of a foreign table of this name, 0 if it has none; None if there is no foreign one."""
        owners = [table.owner for table in tables if table.name == self._name]
        return next((owner for owner in owners if self._socket is None or owner != self._socket.port), None)

    def _taken(self, owner: int) -> ConfigError:
        if owner:
            problem = f"belongs to another process (netlink port {owner}): end that one, or choose another interface"
        else:
            problem = f"exists and has no owner: remove it with `nft delete table inet {self._name}`"
        return ConfigError(f"server.nat: the nftables table inet {self._name} {problem}")

    def _problem(self, error: NftError) -> ConfigError:
        remedies = {
            errno.EPERM: "this needs CAP_NET_ADMIN: run as root, or remove nat",
            errno.EINVAL: "expected Linux 5.12 or later, in which a socket can own a table; remove nat",
            errno.ENOENT: f"expected the kernel modules {', '.join(MODULES)}: install them",
            errno.EOPNOTSUPP: "expected a kernel with nf_tables for the family inet: install its modules",
        }
        remedy = remedies.get(error.code, "the kernel refuses the table")
        return ConfigError(f"server.nat: nftables table inet {self._name}: {error}: {remedy}")
