"""Default routes into the tunnel, by rules that exempt the tunnel's own datagrams.

The rule: reconcile, never reset, as in `interface`. A default route in the main table would send the tunnel's own
datagrams into the tunnel. So the route stands in a table of its own, and rules decide which packets use that table. For
each version of IP that needs a default route, in this order:

- IPv4 only, `udp nop`: no effect, but without such a rule the kernel ignores the ports of received packets.
- from the tunnel's UDP port, sent by this machine: table main. The kernel's reverse path check makes the same look-up
  for a reply, with ports and without a mark, so a strict rp_filter accepts replies and no sysctl or firewall changes.
- all packets: table main without its default route. Directly connected networks stay reachable.
- packets without the tunnel's mark: the tunnel's table. The tunnel's sockets carry the mark.

A client, or a server with a peer that has a default route, owns the rules and routes with `ROUTE_PROTOCOL`, unless a
route in their table leads into the interface of another one, which then owns them.

Sources: rtnetlink(7), ip-rule(8), linux/fib_rules.h, wg-quick(8) for the idea.
"""

import errno
import socket
import struct
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

from oxidize.config.values import KERNELS_TABLES, MAIN_TABLE
from oxidize.errors import OxidizeError
from oxidize.hostnet.netlink import FAMILIES, ROUTE_PROTOCOL, remedy
from oxidize.hostnet.part import Steps, run
from oxidize.hostnet.rtnetlink import (
    Key,
    Request,
    Route,
    RtnetlinkError,
    RtnetlinkSocket,
    change_route,
    change_rule,
    read_all,
    replace_route,
)

# Before the kernel's own rules (32766), and before rules that get the first free number below those.
RULE_PRIORITY = 30_000

# --- linux/fib_rules.h, linux/in.h ---
_FIB_RULE_INVERT = 0x2
_ACTION_TO_TABLE, _ACTION_NOP = 1, 3
_IPPROTO_UDP = 17
_UNSET = 0xFFFF_FFFF  # of FRA_SUPPRESS_PREFIXLEN
_FRA_IIFNAME, _FRA_PRIORITY, _FRA_FWMARK, _FRA_SUPPRESS_PREFIXLEN, _FRA_TABLE = 3, 6, 10, 14, 15
_FRA_PROTOCOL, _FRA_IP_PROTO, _FRA_SPORT_RANGE = 21, 22, 23

_REMEDIES = {
    errno.EACCES: "IPv6 is switched off on the interface: set net.ipv6.conf.*.disable_ipv6 to 0, or remove ::/0",
    errno.EINTR: "rules and routes change faster than they can be read: end the program that changes them",
    errno.EAFNOSUPPORT: "the kernel lacks this family, or its policy routing: remove its default route",
    errno.EOPNOTSUPP: "the kernel has no policy routing (CONFIG_IP_MULTIPLE_TABLES): remove the default routes",
}
_ANY_HOST: dict[int, Key] = {4: (0, bytes(4)), 6: (0, bytes(16))}


class Policy(NamedTuple):
    """The wanted policy. fwmark: the sockets' mark and the table's number. versions: of IP, with a default route.

    spared: the number of a table whose default routes are the interface's own, without rules; 0 for none.
    """

    fwmark: int
    versions: frozenset[int]
    spared: int = 0


class Rule(NamedTuple):
    """One rule of the policy database, with the fields that are set here."""

    priority: int
    table: int
    fwmark: int = 0
    is_inverted: bool = False
    suppress_prefixlen: int = _UNSET
    iifname: str = ""
    ip_proto: int = 0
    sport_range: str = ""
    is_nop: bool = False

    def __str__(self) -> str:
        """Return the rule in the notation of ip-rule(8)."""
        words = [f"{self.priority}:"]
        words += ["not"] if self.is_inverted else []
        words += [f"fwmark {self.fwmark:#x}"] if self.fwmark else []
        words += [f"iif {self.iifname}"] if self.iifname else []
        words += ["udp"] if self.ip_proto == _IPPROTO_UDP else []
        words += [f"sport {self.sport_range.partition(':')[0]}"] if self.sport_range else []
        target = f"lookup {'main' if self.table == MAIN_TABLE else self.table}"
        words.append("nop" if self.is_nop else target)
        words += [f"suppress_prefixlength {self.suppress_prefixlen}"] if self.suppress_prefixlen != _UNSET else []
        return " ".join(words)


def rules_wanted(policy: Policy, version: int, port: int) -> list[Rule]:
    """Return the rules for one version of IP, in order. port: that of the client's UDP socket."""
    # Without "iif lo" the second rule would exempt forwarded datagrams that happen to have this port; with it alone the
    # kernel (fib_rule_requires_fldissect) ignores ports. IPv6 has no rp_filter.
    dissect = [Rule(RULE_PRIORITY, 0, ip_proto=_IPPROTO_UDP, is_nop=True)] if version == 4 else []
    return [
        *dissect,
        Rule(RULE_PRIORITY + 1, MAIN_TABLE, iifname="lo", ip_proto=_IPPROTO_UDP, sport_range=f"{port}:{port}"),
        Rule(RULE_PRIORITY + 2, MAIN_TABLE, suppress_prefixlen=0),
        Rule(RULE_PRIORITY + 3, policy.fwmark, fwmark=policy.fwmark, is_inverted=True),
    ]


def check_policy(policy: Policy, interfaces: Collection[str]) -> None:
    """Raise OxidizeError if another program has the table, the mark or all traffic already; change nothing.

    interfaces: the client's own, of this configuration and of the one before it; they need not exist.
    """

    def check() -> Steps[None]:
        with _connected() as kernel:
            indexes = _indexes(kernel, interfaces)
            for version in sorted(policy.versions):
                family = _Family(kernel, version)
                yield from family.read(policy)
                family.refuse_others(policy, indexes)

    run(check())


def apply_policy(policy: Policy, interface: str, port: int, replaced: Collection[str] = ()) -> Steps[list[str]]:
    """Bring rules and default routes to the wanted policy; return the changes made, a line each.

    interface: the tunnel's, which is up. port: that of the client's UDP socket. replaced: the client's interfaces
    before this one. Raises OxidizeError as `check_policy` does, and for what the kernel refused.
    """
    with _connected() as kernel:
        indexes = _indexes(kernel, [interface])
        if not indexes:
            raise OxidizeError(f"interface {interface}: {remedy(errno.ENODEV, _REMEDIES)}")
        (index,) = indexes
        own = indexes | _indexes(kernel, replaced)
        changes = []
        for version in FAMILIES:
            family = _Family(kernel, version)
            if version in policy.versions:
                yield from family.read(policy)
                family.refuse_others(policy, own)
                yield from family.apply(policy, index, own, port)
            else:
                yield from family.read()
                if not family.owned_by_others(own):
                    yield from family.remove(own, policy.spared)
            changes += family.changes
        return changes


class PolicyPart:
    """A client's rules and default routes, compared with the kernel's (`hostnet.part.Part`).

    Parameters as of `apply_policy`, which puts right what is missing.
    """

    name = "policy routing"

    def __init__(self, policy: Policy, interface: str, port: int) -> None:
        self._policy = policy
        self._interface = interface
        self._port = port

    def compare(self, *, repair: bool) -> Steps[list[str]]:
        """Look for the rules and the default route of each wanted version of IP; see `Part`."""
        missing: list[str] = []
        with _connected() as kernel:
            index = kernel.link(self._interface).number
            for version in sorted(self._policy.versions):
                yield 0.0
                missing += yield from self._missing(kernel, index, version)
        if missing and repair:
            yield 0.0
            return (yield from apply_policy(self._policy, self._interface, self._port))
        return missing

    def _missing(self, kernel: RtnetlinkSocket, index: int, version: int) -> Steps[list[str]]:
        family = FAMILIES[version]
        present = [_rule_of(*each) for each in (yield from read_all(partial(kernel.rules, family)))]
        lines = [
            f"IPv{version} rule {rule}"
            for rule in rules_wanted(self._policy, version, self._port)
            if (rule, ROUTE_PROTOCOL) not in present
        ]
        routes = yield from read_all(partial(kernel.routes_of, family, table=self._policy.fwmark, index=index))
        if not any(route.key == _ANY_HOST[version] for route in routes):
            lines.append(f"IPv{version} default route {self._policy.fwmark}")
        return lines


def remove_policy(interfaces: Collection[str] = (), indexes: Collection[int] = (), spared: int = 0) -> Steps[list[str]]:
    """Remove a client's rules and default routes; return the changes made, a line each.

    interfaces, indexes: the client's, by name or number; they need not exist. spared: as of `Policy`. Rules that
    another client uses are left alone, even if it adopts them at this very moment.
    """
    with _connected() as kernel:
        own = frozenset(indexes) | _indexes(kernel, interfaces)
        changes = []
        for version in FAMILIES:
            family = _Family(kernel, version)
            yield from family.read()
            if not family.owned_by_others(own):
                yield from family.remove(own, spared)
                yield from family.restore_for_others(own)
            changes += family.changes
        return changes


@contextmanager
def _connected() -> Iterator[RtnetlinkSocket]:
    with RtnetlinkSocket() as kernel:
        try:
            yield kernel
        except RtnetlinkError as error:
            raise OxidizeError(f"policy routing: {remedy(error.code, _REMEDIES)}") from error


def _indexes(kernel: RtnetlinkSocket, interfaces: Iterable[str]) -> frozenset[int]:
    found = set()
    for name in interfaces:
        try:
            found.add(kernel.link(name).number)
        except RtnetlinkError as error:
            if error.code != errno.ENODEV:
                raise
    return frozenset(found)


class _Family:
    """The rules and default routes of one version of IP, as `read` found them. changes: those made, a line each."""

    def __init__(self, kernel: RtnetlinkSocket, version: int) -> None:
        self.changes: list[str] = []
        self._kernel = kernel
        self._version = version
        self._ip = f"IPv{version}"
        self._family = FAMILIES[version]
        self._managed: list[Rule] = []
        self._others: list[Rule] = []
        self._tables: set[int] = set()  # of the managed rules
        self._routes: set[Route] = set()
        self._removed: list[Rule] = []

    def read(self, wanted: Policy | None = None) -> Steps[None]:
        """Ask the kernel for the rules, and the routes in their tables and that of the wanted policy."""
        # Rules before routes: a client adds routes first, so one whose rules are seen here has its routes seen too.
        yield from self._read_rules()
        self._tables = {rule.table for rule in self._managed} - {0, MAIN_TABLE}
        if self._managed or wanted is not None:
            self._routes = yield from self._read_routes(set() if wanted is None else {wanted.fwmark})

    def owned_by_others(self, own: Collection[int]) -> bool:
        """Return whether the rules with `ROUTE_PROTOCOL` serve an interface that is not in `own`."""
        return bool(_routes_of_others(self._routes, self._tables, own))

    def refuse_others(self, policy: Policy, own: Collection[int]) -> None:
        """Raise OxidizeError if another program or client has all traffic of this family, the table or the mark."""
        for rule in self._others:
            if policy.fwmark in (rule.table, rule.fwmark):
                self._refuse(f"another program has the rule `{rule}`", "choose another fwmark for one of the two")
            if rule.is_inverted and rule.fwmark:
                self._refuse(
                    f"another program sends all packets into a tunnel of its own by the rule `{rule}`",
                    f"end that tunnel (wg-quick down), or remove {self._ip}'s default route from allowed_ips",
                )
        for route in _routes_of_others(self._routes, self._tables | {policy.fwmark}, own):
            found = f"interface {_name(route.link)} has a route in table {route.table}"
            if route.protocol == ROUTE_PROTOCOL:
                self._refuse(f"{found}, by another tunnel of Oxidize", "end that one, or remove the default route here")
            self._refuse(f"{found}, by another program", "choose another fwmark for one of the two")

    def apply(self, policy: Policy, index: int, own: Collection[int], port: int) -> Steps[None]:
        wanted = rules_wanted(policy, self._version, port)
        present = {(route.table, route.link) for route in self._routes if not route.key[0]}
        if (policy.fwmark, index) not in present:
            # Replaces one through an interface that is going, so that there is a default route at any time.
            request = replace_route(index, _ANY_HOST[self._version], policy.fwmark, ROUTE_PROTOCOL)
            yield from self._change(f"{self._ip} default route +{policy.fwmark}", request)
            # A process that removes a dead client's rules now looks for this route afterwards: restore_for_others.
            yield from self._read_rules()
        for rule in wanted:
            if rule not in self._managed:
                yield from self._add_rule(rule)
        yield from self._remove_rules(set(self._managed) - set(wanted))
        yield from self._remove_routes(own, keep=(policy.fwmark, index))

    def remove(self, own: Collection[int], spared: int = 0) -> Steps[None]:
        yield from self._remove_rules(self._managed)
        yield from self._remove_routes(own, spared=spared)

    def restore_for_others(self, own: Collection[int]) -> Steps[None]:
        """Put back removed rules that another client has found in place, and needs, since they were read.

        A client that adds its route later finds them gone, and adds them itself.
        """
        routes = yield from self._read_routes()
        used = {route.table for route in _routes_of_others(routes, self._tables, own)}
        for rule in sorted(self._removed):
            if rule.table in used or (used and not rule.sport_range and rule.table in {0, MAIN_TABLE}):
                yield from self._add_rule(rule)

    def _add_rule(self, rule: Rule) -> Steps[None]:
        request = _rule_request(self._family, rule, add=True)
        yield from self._change(f"{self._ip} rule +{rule}", request, done=errno.EEXIST)

    def _remove_rules(self, stale: Collection[Rule]) -> Steps[None]:
        # First the rule that leads into the tunnel: without the others it would send too much there.
        for rule in sorted(stale, reverse=True):
            request = _rule_request(self._family, rule, add=False)
            yield from self._change(f"{self._ip} rule -{rule}", request, done=errno.ENOENT)
            self._removed.append(rule)

    def _remove_routes(self, own: Collection[int], keep: tuple[int, int] = (0, 0), spared: int = 0) -> Steps[None]:
        for route in (yield from self._read_routes()):
            is_managed = route.protocol == ROUTE_PROTOCOL and route.link in own and route.table != spared
            if is_managed and (route.table, route.link) != keep and not route.key[0]:
                request = change_route(route.link, route.key, route.table, ROUTE_PROTOCOL, add=False)
                yield from self._change(f"{self._ip} default route -{route.table}", request, done=errno.ESRCH)

    def _change(self, description: str, request: Request, *, done: int = 0) -> Steps[None]:
        """Make a change and note it. done: the error which means that there was nothing left to do."""
        (code,) = self._kernel.change([request])
        if code not in {0, done}:
            raise OxidizeError(f"policy routing, {description}: {remedy(code, _REMEDIES)}")
        self.changes.append(description)
        yield 0.0

    def _read_rules(self) -> Steps[None]:
        """Read the rules with `ROUTE_PROTOCOL`, and all others."""
        found = [_rule_of(*each) for each in (yield from read_all(partial(self._kernel.rules, self._family)))]
        self._managed = [rule for rule, protocol in found if protocol == ROUTE_PROTOCOL]
        self._others = [rule for rule, protocol in found if protocol != ROUTE_PROTOCOL]

    def _read_routes(self, tables: Collection[int] = ()) -> Steps[set[Route]]:
        """Return all routes with `ROUTE_PROTOCOL`, and those of tables, without the kernel's own tables."""
        dumps = [partial(self._kernel.routes_of, self._family, protocol=ROUTE_PROTOCOL)]
        for table in self._tables.union(tables):
            dumps.append(partial(self._kernel.routes_of, self._family, table=table))
        found = set()
        for dump in dumps:
            found.update((yield from read_all(dump)))
        return {route for route in found if route.table not in KERNELS_TABLES}

    def _refuse(self, found: str, remedy: str) -> None:
        raise OxidizeError(f"policy routing for {self._ip}: {found}: expected only this tunnel's; {remedy}")


def _routes_of_others(routes: Iterable[Route], tables: Collection[int], own: Collection[int]) -> list[Route]:
    """Return the routes through other interfaces in `tables`, and in any table default routes of other clients."""
    return [
        route
        for route in routes
        if route.link not in own and (route.table in tables or (route.protocol == ROUTE_PROTOCOL and not route.key[0]))
    ]


def _rule_request(family: int, rule: Rule, *, add: bool) -> Request:
    def number(value: int) -> bytes:
        return struct.pack("=I", value)

    attributes = [(_FRA_PRIORITY, number(rule.priority)), (_FRA_PROTOCOL, bytes([ROUTE_PROTOCOL]))]
    attributes += [] if rule.is_nop else [(_FRA_TABLE, number(rule.table))]
    attributes += [(_FRA_FWMARK, number(rule.fwmark))] if rule.fwmark else []
    attributes += [(_FRA_IIFNAME, rule.iifname.encode() + b"\0")] if rule.iifname else []
    attributes += [(_FRA_IP_PROTO, bytes([rule.ip_proto]))] if rule.ip_proto else []
    if rule.sport_range:
        attributes.append((_FRA_SPORT_RANGE, struct.pack("=HH", *map(int, rule.sport_range.split(":")))))
    if rule.suppress_prefixlen != _UNSET:
        attributes.append((_FRA_SUPPRESS_PREFIXLEN, number(rule.suppress_prefixlen)))
    action = _ACTION_NOP if rule.is_nop else _ACTION_TO_TABLE
    return change_rule(family, action, _FIB_RULE_INVERT if rule.is_inverted else 0, attributes, add=add)


def _rule_of(header: bytes, attributes: Mapping[int, bytes]) -> tuple[Rule, int]:
    """Return a rule of a dump, and its protocol number."""
    table, action, flags = header[4], header[7], int.from_bytes(header[8:12], sys.byteorder)

    def number(kind: int, otherwise: int = 0) -> int:
        return int.from_bytes(attributes[kind], sys.byteorder) if kind in attributes else otherwise

    ports = attributes.get(_FRA_SPORT_RANGE, b"")
    first, last = (int.from_bytes(each, sys.byteorder) for each in (ports[:2], ports[2:4]))
    rule = Rule(
        priority=number(_FRA_PRIORITY),
        table=number(_FRA_TABLE, table),
        fwmark=number(_FRA_FWMARK),
        is_inverted=bool(flags & _FIB_RULE_INVERT),
        suppress_prefixlen=number(_FRA_SUPPRESS_PREFIXLEN, _UNSET),
        iifname=attributes.get(_FRA_IIFNAME, b"").rstrip(b"\0").decode("utf-8", "replace"),
        ip_proto=number(_FRA_IP_PROTO),
        sport_range=f"{first}:{last}" if ports else "",
        is_nop=action == _ACTION_NOP,
    )
    return rule, number(_FRA_PROTOCOL)


def _name(index: int) -> str:
    try:
        return socket.if_indextoname(index)
    except OSError:
        return str(index)
