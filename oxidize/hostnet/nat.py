"""`nat = true`: packets from the tunnel's networks to elsewhere are masqueraded, and TCP's MSS fits the tunnel.

The rule: no nftables table but the server's own is touched. It belongs to a netlink socket that is handed over like the
other descriptors, and ends with the last holder of that socket. Its chains stay while their rules are replaced, in one
batch, so every packet finds either the old rules or the new ones.

Only the networks of `address` are masqueraded. A peer's allowed IPs outside of them are a site's network, which is
routed with its own addresses. Source: docs/adr/0005, Linux Documentation/networking/ip-sysctl.rst.
"""

import errno
from collections.abc import Iterable, Sequence
from pathlib import Path

from oxidize.config import InterfaceAddress
from oxidize.errors import ConfigError
from oxidize.hostnet import nft_expressions as expr
from oxidize.hostnet import nftables as nft
from oxidize.hostnet.nftables import Message, NftError, NftSocket, Table
from oxidize.hostnet.part import Steps

SYSCTLS = Path("/proc/sys")
FORWARDING = {4: "net.ipv4.ip_forward", 6: "net.ipv6.conf.all.forwarding"}

FORWARD, POSTROUTING = "forward", "postrouting"
_PRIORITY_MANGLE, _PRIORITY_SRCNAT = -150, 100  # linux/netfilter_ipv4.h

_TCP = 6
_TCP_FLAGS_OFFSET = 13  # RFC 9293, section 3.1
_SYN, _RST = 0x02, 0x04


def table_name(interface: str) -> str:
    """Return the name of the table, which two servers of one machine do not share."""
    return f"oxidize-{interface}"


def check_forwarding(addresses: Iterable[InterfaceAddress]) -> None:
    """Raise ConfigError, with the remedy, unless the kernel forwards the families of `addresses`."""
    problems = [
        f"server.nat = true: the sysctl {name} is {found!r}: expected 1, as address has IPv{version}; run "
        f"`sysctl -w {name}=1`, and for the next boot put {name} = 1 into a file in /etc/sysctl.d "
        f"(`make install` installs 60-oxidize.conf, which has it)"
        for version, name, found in not_forwarded(addresses)
    ]
    if problems:
        raise ConfigError(*problems)


def not_forwarded(addresses: Iterable[InterfaceAddress]) -> list[tuple[int, str, str]]:
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

    passed: the socket from a predecessor or from the store, which this object closes. is_new: whether none was passed.
    """

    def __init__(
        self, interface: str, addresses: Iterable[InterfaceAddress], *, enabled: bool, passed: int | None
    ) -> None:
        self.name = "address translation"
        self.enabled = enabled
        self.is_new = passed is None
        self._interface = interface
        self._addresses = tuple(addresses)
        self._name = table_name(interface)
        self._socket = NftSocket.adopt(passed) if passed is not None else None
        if self._socket is None and enabled:
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
        check_forwarding(self._addresses)
        return [] if is_there else [f"nftables table inet {self._name}"]

    def check(self, *, may_be_freed: bool = False) -> None:
        """Raise ConfigError if `apply` would fail; change nothing.

        may_be_freed: accept a table of this name that belongs to another socket, which may be gone before `apply`.
        """
        if not self.enabled or self._socket is None:
            return
        check_forwarding(self._addresses)
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
        if not self.enabled:
            return stale
        if self._name not in owned and (owner := self._foreign_owner(tables)) is not None:
            raise self._taken(owner)
        return [*stale, *table_messages(self._interface, self._addresses, exclusive=self._name not in owned)]

    def _foreign_owner(self, tables: Sequence[Table]) -> int | None:
        """Return the owner of a foreign table of this name, 0 if it has none; None if there is no foreign one."""
        owners = [table.owner for table in tables if table.name == self._name]
        return next((owner for owner in owners if self._socket is None or owner != self._socket.port), None)

    def _taken(self, owner: int) -> ConfigError:
        if owner:
            problem = f"belongs to another process (netlink port {owner}): end that one, or choose another interface"
        else:
            problem = f"exists and has no owner: remove it with `nft delete table inet {self._name}`"
        return ConfigError(f"server.nat = true: the nftables table inet {self._name} {problem}")

    def _problem(self, error: NftError) -> ConfigError:
        remedies = {
            errno.EPERM: "this needs CAP_NET_ADMIN: run as root, or remove nat",
            errno.EINVAL: "expected Linux 5.12 or later, in which a socket can own a table; remove nat",
            errno.ENOENT: "expected the kernel modules nft_chain_nat, nft_masq, nft_rt and nft_exthdr: install them",
            errno.EOPNOTSUPP: "expected a kernel with nf_tables for the family inet: install its modules",
        }
        remedy = remedies.get(error.code, "the kernel refuses the table")
        return ConfigError(f"server.nat = true: nftables table inet {self._name}: {error}: {remedy}")


def table_messages(interface: str, addresses: Iterable[InterfaceAddress], *, exclusive: bool) -> list[Message]:
    """Return the batch that makes the table, or that replaces the rules of the existing one."""
    name = table_name(interface)
    syn = expr.meta_is(expr.NFT_META_L4PROTO, _TCP) + expr.payload_is(
        expr.NFT_PAYLOAD_TRANSPORT_HEADER, _TCP_FLAGS_OFFSET, bytes([_SYN]), bytes([_SYN | _RST])
    )
    messages = [
        nft.new_table(name, exclusive=exclusive),
        nft.new_chain(name, FORWARD, "filter", nft.NF_INET_FORWARD, _PRIORITY_MANGLE),
        nft.new_chain(name, POSTROUTING, "nat", nft.NF_INET_POST_ROUTING, _PRIORITY_SRCNAT),
        nft.delete_rules(name),
    ]
    for key in (expr.NFT_META_IIFNAME, expr.NFT_META_OIFNAME):
        messages.append(nft.new_rule(name, FORWARD, expr.interface_is(key, interface), syn, expr.clamp_mss()))
    # Packets from this machine to itself pass here too, by lo, and must keep their address.
    elsewhere = [expr.interface_is(expr.NFT_META_OIFNAME, each, negate=True) for each in (interface, "lo")]
    for network in sorted({address.network for address in addresses}, key=str):
        messages.append(nft.new_rule(name, POSTROUTING, *elsewhere, expr.comes_from(network), expr.masquerade()))
    return messages
