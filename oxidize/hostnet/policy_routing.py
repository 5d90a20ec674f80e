"""Default routes into the tunnel, by rules that exempt the tunnel's own datagrams.

The rule: reconcile, never reset, as in `interface`. A default route in the main table would send the tunnel's own
datagrams into the tunnel. So the route stands in a table of its own, and rules decide which packets use that table. For
each version of IP that needs a default route, in this order:

- IPv4 only, `udp nop`: no effect, but without such a rule the kernel ignores the ports of received packets.
- from the client's UDP port, sent by this machine: table main. The kernel's reverse path check makes the same look-up
  for a reply, with ports and without a mark, so a strict rp_filter accepts replies and no sysctl or firewall changes.
- all packets: table main without its default route. Directly connected networks stay reachable.
- packets without the client's mark: the tunnel's table. The sockets of the client carry the mark.

A client owns the rules and routes with `ROUTE_PROTOCOL`, unless a route in their table leads into the interface of
another client, which then owns them. Sources: rtnetlink(7), ip-rule(8), linux/fib_rules.h, wg-quick(8) for the idea.
"""

import errno
import socket
import sys
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from oxidize.errors import OxidizeError
from oxidize.hostnet import netlink
from oxidize.hostnet.netlink import FAMILIES, ROUTE_PROTOCOL, RT_TABLE_MAIN, Reconciler, remedy
from oxidize.hostnet.part import Steps
from oxidize.hostnet.rtnetlink import RtnetlinkError, RtnetlinkSocket

# Before the kernel's own rules (32766), and before rules that get the first free number below those.
RULE_PRIORITY = 30_000

# --- linux/fib_rules.h, linux/in.h ---
_FIB_RULE_INVERT = 0x2
_ACTION_NOP = 3
_IPPROTO_UDP = 17
_UNSET = 0xFFFF_FFFF  # of FRA_SUPPRESS_PREFIXLEN
_FRA_IIFNAME, _FRA_PRIORITY, _FRA_FWMARK, _FRA_SUPPRESS_PREFIXLEN, _FRA_TABLE = 3, 6, 10, 14, 15
_FRA_PROTOCOL, _FRA_IP_PROTO, _FRA_SPORT_RANGE = 21, 22, 23

_REMEDIES = {
    errno.EACCES: "IPv6 is switched off on the interface: set net.ipv6.conf.*.disable_ipv6 to 0, or remove ::/0",
    errno.EAFNOSUPPORT: "the kernel lacks this family, or its policy routing: remove its default route",
    errno.EOPNOTSUPP: "the kernel has no policy routing (CONFIG_IP_MULTIPLE_TABLES): remove the default routes",
}
_NO_SUCH_FAMILY = frozenset({errno.EAFNOSUPPORT, errno.EOPNOTSUPP})


@dataclass(frozen=True, slots=True)
class Policy:
    """The wanted policy. fwmark: the sockets' mark and the table's number. versions: of IP, with a default route."""

    fwmark: int
    versions: frozenset[int]


@dataclass(frozen=True, slots=True, order=True)
class Rule:
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
        target = f"lookup {'main' if self.table == RT_TABLE_MAIN else self.table}"
        words.append("nop" if self.is_nop else target)
        words += [f"suppress_prefixlength {self.suppress_prefixlen}"] if self.suppress_prefixlen != _UNSET else []
        return " ".join(words)


@dataclass(frozen=True, slots=True)
class _Route:
    table: int
    index: int  # of the interface, 0 for none
    protocol: int
    prefix_length: int


def rules_wanted(policy: Policy, version: int, port: int) -> list[Rule]:
    """Return the rules for one version of IP, in order. port: that of the client's UDP socket."""
    # Without "iif lo" the second rule would exempt forwarded datagrams that happen to have this port; with it alone the
    # kernel (fib_rule_requires_fldissect) ignores ports. IPv6 has no rp_filter.
    dissect = [Rule(RULE_PRIORITY, 0, ip_proto=_IPPROTO_UDP, is_nop=True)] if version == 4 else []
    return [
        *dissect,
        Rule(RULE_PRIORITY + 1, RT_TABLE_MAIN, iifname="lo", ip_proto=_IPPROTO_UDP, sport_range=f"{port}:{port}"),
        Rule(RULE_PRIORITY + 2, RT_TABLE_MAIN, suppress_prefixlen=0),
        Rule(RULE_PRIORITY + 3, policy.fwmark, fwmark=policy.fwmark, is_inverted=True),
    ]


def check_policy(policy: Policy, interfaces: Collection[str]) -> None:
    """Raise OxidizeError if another program has the table, the mark or all traffic already; change nothing.

    interfaces: the client's own, of this configuration and of the one before it; they need not exist.
    """
    with netlink.connect() as connected:
        indexes = _indexes(connected, interfaces)
        for version in sorted(policy.versions):
            family = _Family(connected, version)
            family.refuse_others(policy, indexes)


def apply_policy(policy: Policy, interface: str, port: int, replaced: Collection[str] = ()) -> list[str]:
    """Bring rules and default routes to the wanted policy; return the changes made, a line each.

    interface: the tunnel's, which is up. port: that of the client's UDP socket. replaced: the client's interfaces
    before this one. Raises OxidizeError as `check_policy` does, and for what the kernel refused.
    """
    with netlink.connect() as connected:
        indexes = _indexes(connected, [interface])
        if not indexes:
            raise OxidizeError(f"interface {interface}: {remedy(errno.ENODEV, _REMEDIES)}")
        (index,) = indexes
        own = indexes | _indexes(connected, replaced)
        changes = []
        for version in FAMILIES:
            family = _Family(connected, version, is_wanted=version in policy.versions)
            if version in policy.versions:
                family.refuse_others(policy, own)
                family.apply(policy, index, own, port)
            elif family.is_there and not family.owned_by_others(own):
                family.remove(own)
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
        try:
            with RtnetlinkSocket() as kernel:
                index = kernel.link(self._interface).index
                for version in sorted(self._policy.versions):
                    yield 0.0
                    missing += self._missing(kernel, index, version)
        except RtnetlinkError as error:
            raise OxidizeError(f"policy routing: {remedy(error.code, _REMEDIES)}") from error
        if missing and repair:
            yield 0.0
            return apply_policy(self._policy, self._interface, self._port)
        return missing

    def _missing(self, kernel: RtnetlinkSocket, index: int, version: int) -> list[str]:
        family = FAMILIES[version]
        present = {_rule_of(*each) for found in kernel.rules(family) for each in found}
        lines = [
            f"IPv{version} rule {rule}"
            for rule in rules_wanted(self._policy, version, self._port)
            if rule not in present
        ]
        routes = [key for found in kernel.routes(family, self._policy.fwmark, index) for key, _ in found]
        if not any(prefix_length == 0 for prefix_length, _ in routes):
            lines.append(f"IPv{version} default route {self._policy.fwmark}")
        return lines


def remove_policy(interfaces: Collection[str] = (), indexes: Collection[int] = ()) -> list[str]:
    """Remove a client's rules and default routes; return the changes made, a line each.

    interfaces, indexes: the client's, by name or number; they need not exist. Rules that another client uses are left
    alone, even if it adopts them at this very moment.
    """
    with netlink.connect() as connected:
        own = frozenset(indexes) | _indexes(connected, interfaces)
        changes = []
        for version in FAMILIES:
            family = _Family(connected, version)
            if not family.owned_by_others(own):
                family.remove(own)
                family.restore_for_others(own)
            changes += family.changes
        return changes


def _indexes(connected: Any, interfaces: Iterable[str]) -> frozenset[int]:
    return frozenset(index for name in interfaces for index in connected.link_lookup(ifname=name))


class _Family(Reconciler):
    """The rules and default routes of one version of IP, as read when this object is made.

    is_wanted: whether rules are wanted. If not, and there are none, a machine's thousands of routes are not read.
    """

    def __init__(self, connected: Any, version: int, *, is_wanted: bool = True) -> None:
        super().__init__(connected, "policy routing", _REMEDIES)
        self._version = version
        self._ip = f"IPv{version}"
        self._family = FAMILIES[version]
        # Rules before routes: a client adds routes first, so one whose rules are seen here has its routes seen too.
        self._managed, self._others = self._read_rules()
        self._tables = {rule.table for rule in self._managed} - {0, RT_TABLE_MAIN}
        self.is_there = bool(self._managed)
        self._routes = self._read_routes() if self.is_there or is_wanted else []
        self._removed: list[Rule] = []

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
            found = f"interface {_name(route.index)} has a route in table {route.table}"
            if route.protocol == ROUTE_PROTOCOL:
                self._refuse(f"{found}, by another client", "end that client, or remove the default route here")
            self._refuse(f"{found}, by another program", "choose another fwmark for one of the two")

    def apply(self, policy: Policy, index: int, own: Collection[int], port: int) -> None:
        wanted = rules_wanted(policy, self._version, port)
        present = {(route.table, route.index) for route in self._routes if route.prefix_length == 0}
        if (policy.fwmark, index) not in present:
            # Replaces one through an interface that is going, so that there is a default route at any time.
            request = partial(self._route, "replace", policy.fwmark, index)
            self._change(f"{self._ip} default route +{policy.fwmark}", request)
            # A process that removes a dead client's rules now looks for this route afterwards: restore_for_others.
            self._managed, _ = self._read_rules()
        for rule in wanted:
            if rule not in self._managed:
                self._change(f"{self._ip} rule +{rule}", partial(self._rule, "add", rule), done=errno.EEXIST)
        self._remove_rules(set(self._managed) - set(wanted))
        self._remove_routes(own, keep=(policy.fwmark, index))

    def remove(self, own: Collection[int]) -> None:
        self._remove_rules(self._managed)
        self._remove_routes(own, keep=(0, 0))

    def restore_for_others(self, own: Collection[int]) -> None:
        """Put back removed rules that another client has found in place, and needs, since they were read.

        A client that adds its route later finds them gone, and adds them itself.
        """
        used = {route.table for route in _routes_of_others(self._read_routes(), self._tables, own)}
        for rule in sorted(self._removed):
            if rule.table in used or (used and not rule.sport_range and rule.table in {0, RT_TABLE_MAIN}):
                self._change(f"{self._ip} rule +{rule}", partial(self._rule, "add", rule), done=errno.EEXIST)

    def _remove_rules(self, stale: Collection[Rule]) -> None:
        # First the rule that leads into the tunnel: without the others it would send too much there.
        for rule in sorted(stale, reverse=True):
            self._change(f"{self._ip} rule -{rule}", partial(self._rule, "del", rule), done=errno.ENOENT)
            self._removed.append(rule)

    def _remove_routes(self, own: Collection[int], keep: tuple[int, int]) -> None:
        for route in self._read_routes():
            key = (route.table, route.index)
            is_managed = route.protocol == ROUTE_PROTOCOL and route.index in own and route.table != RT_TABLE_MAIN
            if is_managed and key != keep and route.prefix_length == 0:
                request = partial(self._route, "del", *key)
                self._change(f"{self._ip} default route -{route.table}", request, done=errno.ESRCH)

    def _read_rules(self) -> tuple[list[Rule], list[Rule]]:
        """Return the rules with `ROUTE_PROTOCOL`, and all others."""
        managed: list[Rule] = []
        others: list[Rule] = []
        read = partial(self._netlink.get_rules, family=self._family)
        messages = self._request("rules", lambda: list(read()), done=_NO_SUCH_FAMILY)
        for message in messages or []:
            rule = _rule_from(message)
            (managed if message.get_attr("FRA_PROTOCOL") == ROUTE_PROTOCOL else others).append(rule)
        return managed, others

    def _read_routes(self) -> list[_Route]:
        """Return all routes except those of the kernel's own tables."""
        found = []
        read = partial(self._netlink.get_routes, family=self._family)
        messages = self._request("routes", lambda: list(read()), done=_NO_SUCH_FAMILY)
        for message in messages or []:
            table = message.get_attr("RTA_TABLE") or message["table"]
            if not 253 <= table <= 255:
                index = message.get_attr("RTA_OIF") or 0
                found.append(_Route(table, index, message["proto"], message["dst_len"]))
        return found

    def _route(self, command: str, table: int, index: int) -> None:
        any_host = "0.0.0.0/0" if self._version == 4 else "::/0"
        key = {"dst": any_host, "oif": index, "family": self._family, "table": table}
        self._netlink.route(command, proto=ROUTE_PROTOCOL, **key)

    def _rule(self, command: str, rule: Rule) -> None:
        options: dict[str, object] = {"priority": rule.priority, "protocol": ROUTE_PROTOCOL}
        options |= {"action": "nop"} if rule.is_nop else {"table": rule.table}
        if rule.fwmark:
            options["fwmark"] = rule.fwmark
        if rule.is_inverted:
            options["flags"] = _FIB_RULE_INVERT
        if rule.suppress_prefixlen != _UNSET:
            options["suppress_prefixlen"] = rule.suppress_prefixlen
        for key in ("iifname", "ip_proto", "sport_range"):
            if value := getattr(rule, key):
                options[key] = value
        self._netlink.rule(command, family=self._family, **options)

    def _refuse(self, found: str, remedy: str) -> None:
        raise OxidizeError(f"policy routing for {self._ip}: {found}: expected only this client's; {remedy}")


def _routes_of_others(routes: Iterable[_Route], tables: Collection[int], own: Collection[int]) -> list[_Route]:
    """Return the routes through other interfaces in `tables`, and in any table default routes of other clients."""
    return [
        route
        for route in routes
        if route.index not in own
        and (route.table in tables or (route.protocol == ROUTE_PROTOCOL and route.prefix_length == 0))
    ]


def _rule_from(message: Any) -> Rule:
    suppress = message.get_attr("FRA_SUPPRESS_PREFIXLEN")
    return Rule(
        priority=message.get_attr("FRA_PRIORITY") or 0,
        table=message.get_attr("FRA_TABLE") or message["table"],
        fwmark=message.get_attr("FRA_FWMARK") or 0,
        is_inverted=bool(message["flags"] & _FIB_RULE_INVERT),
        suppress_prefixlen=_UNSET if suppress is None else suppress,
        iifname=message.get_attr("FRA_IIFNAME") or "",
        ip_proto=message.get_attr("FRA_IP_PROTO") or 0,
        sport_range=message.get_attr("FRA_SPORT_RANGE") or "",
        is_nop=message["action"] == _ACTION_NOP,
    )


def _rule_of(header: bytes, attributes: Mapping[int, bytes]) -> Rule | None:
    """Return a rule of a dump, None for one without `ROUTE_PROTOCOL`."""
    table, action, flags = header[4], header[7], int.from_bytes(header[8:12], sys.byteorder)

    def number(kind: int, otherwise: int = 0) -> int:
        return int.from_bytes(attributes[kind], sys.byteorder) if kind in attributes else otherwise

    if number(_FRA_PROTOCOL) != ROUTE_PROTOCOL:
        return None
    ports = attributes.get(_FRA_SPORT_RANGE, b"")
    first, last = (int.from_bytes(each, sys.byteorder) for each in (ports[:2], ports[2:4]))
    return Rule(
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


def _name(index: int) -> str:
    try:
        return socket.if_indextoname(index)
    except OSError:
        return str(index)
