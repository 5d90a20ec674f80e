"""Routes, rules and marks of a configuration beside those that wg-quick sets up for the same one.

The oracle is wg-quick(8) on wireguard-go in a namespace with an uplink; it is asked first, and Oxidize in the same
place after `wg-quick down`. Where the two name a table or a rule differently, the kernel's answer to a look-up counts.
"""

import os
import secrets
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import NamedTuple

import pytest

from oxidize.config.values import FWMARK_DEFAULT
from oxidize.hostnet.netlink import ROUTE_PROTOCOL
from oxidize.hostnet.uplink import OVERHEAD, find_uplink
from tests.support.traffic.namespaces import Namespace, join, set_addresses
from tests.support.traffic.oxidize_client import OxidizeClient
from tests.support.traffic.server import WAIT_SECS, Identity, Lab, PeerTable, Server, b64, kill, wait_for

pytestmark = [pytest.mark.root, pytest.mark.needs("wireguard-go", "wg", "wg-quick", "ip", "ss", "nft")]

ADDRESSES = ("10.9.0.1/24", "fd09::1/64")
PORT = 51_820
WG_QUICK_TABLE = 51_820  # its first choice for a default route
TARGETS = ("203.0.113.77", "192.168.7.9", "10.9.0.9", "10.9.1.9", "172.16.5.5", "2001:db8:77::7", "fd09::9", "fd77::7")
DEFAULTS = ("0.0.0.0/0", "::/0")


class Case(NamedTuple):
    """A configuration. peers: the allowed IPs of each. table, mark: as wg-quick has them, empty for none."""

    peers: tuple[tuple[str, ...], ...]
    table: str = ""
    mark: str = ""


CASES: Mapping[str, Case] = {
    "hosts": Case((("10.9.0.2/32", "fd09::2/128"), ("10.9.0.3/32",))),
    "nested": Case((("10.9.0.2/32", "172.16.0.0/12"), ("10.9.1.0/24", "172.16.5.0/24", "fd77::/64"))),
    "mixed masks": Case((("10.9.0.2/32",), ("10.9.0.0/24",))),
    "site, off": Case((("10.9.0.2/32", "172.16.0.0/12", "fd77::/64"),), "off"),
    "site, number": Case((("10.9.0.2/32", "172.16.0.0/12", "fd77::/64"),), "123"),
    "exit node": Case((("10.9.0.2/32", "0.0.0.0/0"), ("10.9.0.3/32",)), "auto"),
    "exit node of both": Case((("10.9.0.2/32", *DEFAULTS), ("10.9.0.3/32", "172.16.0.0/12"))),
    "exit node, mark": Case((("10.9.0.2/32", *DEFAULTS),), "", "0x100"),
    "exit node, small mark": Case((("10.9.0.2/32", *DEFAULTS),), "", "0x20"),
    "exit node, mark off": Case((("10.9.0.2/32", *DEFAULTS),), "auto", "off"),
    "exit node, off": Case((DEFAULTS,), "off"),
    "exit node, off, mark": Case((DEFAULTS,), "off", "0x100000"),
    "exit node, number": Case((("10.9.0.2/32", *DEFAULTS),), "4242", "7"),
    "half routes": Case((("0.0.0.0/1", "128.0.0.0/1"),)),
    "mark alone": Case((("10.9.0.2/32",),), "", "51"),
}


class Seen(NamedTuple):
    """What is set up.

    routes: table and destination of each route into the interface. leads: to which targets packets go through it,
    unmarked and with the tunnel's mark. rules: how many. mark: of the tunnel's socket. others: the main table without
    the interface.
    """

    routes: frozenset[tuple[str, str]]
    leads: Mapping[tuple[str, bool], bool]
    rules: tuple[bool, bool]
    mark: int
    others: str


class Place:
    """A namespace with an uplink, and a neighbour behind it. metric: of the default route."""

    def __init__(self, lab: Lab, metric: int) -> None:
        self.lab = lab
        self.here, router = Namespace(lab.stack), Namespace(lab.stack)
        join(router, "down0", self.here, "up0")
        set_addresses(router, "down0", ["192.0.2.1/30", "2001:db8:1::1/64"])
        set_addresses(self.here, "up0", ["192.0.2.2/30", "2001:db8:1::2/64"])
        self.run("ip", "route", "add", "default", "via", "192.0.2.1", *(("metric", str(metric)) if metric else ()))
        self.run("ip", "-6", "route", "add", "default", "via", "2001:db8:1::1")
        self.bare = self.others("none")

    def run(self, *command: str, env: Mapping[str, str] | None = None) -> str:
        output = self.lab.folder / "output"  # a file: wireguard-go would hold a pipe open
        with self.here.entered(), output.open("w") as out:
            done = subprocess.run(
                command, stdout=out, stderr=subprocess.STDOUT, check=False, timeout=WAIT_SECS, env=env
            )
        text = output.read_text()
        assert done.returncode == 0, f"{' '.join(command)}: {text}"
        return text

    def others(self, interface: str) -> str:
        lines = [line for each in ("-4", "-6") for line in self.run("ip", each, "route").splitlines()]
        return "\n".join(line for line in lines if f"dev {interface}" not in line)

    def see(self, interface: str, mark: int, port: int = PORT) -> Seen:
        """Look at what is set up for an interface. mark: of its socket, at a port."""
        routes = set()
        for version, default in (("-4", "0.0.0.0/0"), ("-6", "::/0")):
            for line in self.run("ip", version, "route", "show", "table", "all", "dev", interface).splitlines():
                words = line.split()
                table = words[words.index("table") + 1] if "table" in words else "main"
                if "kernel" in words or words[0] in {"local", "broadcast", "multicast", "anycast"}:
                    continue
                text = default if words[0] == "default" else words[0]
                full = text if "/" in text else f"{text}/{128 if ':' in text else 32}"
                routes.add(("the policy's" if table == str(mark) else table, full))
        leads = {}
        for target in TARGETS:
            for is_marked in (False, True):
                options = ("mark", str(mark)) if is_marked and mark else ()
                leads[target, is_marked] = f"dev {interface} " in self.run("ip", "route", "get", target, *options)
        kernels = ("lookup local", "lookup main", "lookup default")
        lines4, lines6 = (self.run("ip", each, "rule").splitlines() for each in ("-4", "-6"))
        rules = [
            any(not line.endswith(tuple(f"from all {each}" for each in kernels)) for line in map(str.strip, lines))
            for lines in (lines4, lines6)
        ]
        return Seen(frozenset(routes), leads, (rules[0], rules[1]), self.mark_of(port), self.others(interface))

    def mark_of(self, port: int) -> int:
        """Return the mark of the UDP socket at a port."""
        for line in self.run("ss", "-H", "-u", "-a", "-n", "-e").splitlines():
            if f":{port} " in line:
                found = [word for word in line.split() if word.startswith("fwmark:")]
                return int(found[0].partition(":")[2], 16) if found else 0
        raise AssertionError(f"no socket at {port}")


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    with Lab(tmp_path) as lab:
        yield lab


def by_wg_quick(place: Place, case: Case, keys: Sequence[bytes], policy_mark: int) -> Seen:
    """Return what wg-quick sets up, which is taken down again."""
    name = f"wq{secrets.token_hex(5)}"
    path = place.lab.folder / f"{name}.conf"
    path.touch(mode=0o600)
    lines = ["[Interface]", f"PrivateKey = {b64(Identity.make().private)}", f"Address = {', '.join(ADDRESSES)}"]
    lines += [f"ListenPort = {PORT}", *([f"Table = {case.table}"] if case.table else [])]
    lines += [f"FwMark = {case.mark}"] if case.mark else []
    for key, networks in zip(keys, case.peers, strict=True):
        lines += ["[Peer]", f"PublicKey = {b64(key)}", f"AllowedIPs = {', '.join(networks)}"]
    path.write_text("\n".join(lines) + "\n")
    env = {**os.environ, "WG_QUICK_USERSPACE_IMPLEMENTATION": "wireguard-go", "LOG_LEVEL": "error"}
    place.run("wg-quick", "up", str(path), env=env)
    try:
        return place.see(name, policy_mark)
    finally:
        place.run("wg-quick", "down", str(path), env=env)
        Path(f"/var/run/wireguard/{name}.sock").unlink(missing_ok=True)


def end(server: Server) -> None:
    pid = server.status()["pid"]
    kill(pid, signal.SIGTERM)
    assert server.lab.wait_ended(pid) == 0


def options_of(case: Case) -> dict[str, object]:
    """Return a case as keys of [server] and [client]."""
    options: dict[str, object] = {}
    if case.table:
        options["table"] = int(case.table) if case.table.isdigit() else case.table
    if case.mark:
        options["fwmark"] = case.mark if case.mark == "off" else int(case.mark, 0)
    return options


def policy_marks(case: Case) -> tuple[int, int]:
    """Return the mark that wg-quick has for the rules of a case, and Oxidize's."""
    if case.mark not in {"", "off"}:
        return int(case.mark, 0), int(case.mark, 0)
    return WG_QUICK_TABLE, FWMARK_DEFAULT


@pytest.mark.parametrize("metric", [0, 100], ids=["no metric", "metric 100"])
@pytest.mark.parametrize("name", CASES)
def test_a_server_has_the_routes_rules_and_mark_of_wg_quick(lab: Lab, name: str, metric: int) -> None:
    case, place = CASES[name], Place(lab, metric)
    keys = [Identity.make().public for _ in case.peers]
    theirs_mark, ours_mark = policy_marks(case)
    expected = by_wg_quick(place, case, keys, theirs_mark)
    assert place.others("none") == place.bare
    peers = [PeerTable(f"p{at}", key, case.peers[at]) for at, key in enumerate(keys)]
    interface = f"ox{secrets.token_hex(5)}"
    server = Server(
        lab, peers, listen=f"[::]:{PORT}", network="tun", interface=interface, address=ADDRESSES,
        inside=place.here.entered,
    )  # fmt: skip
    server.write_config(drain_timeout_secs=0, **options_of(case))
    server.start()
    found = place.see(interface, ours_mark)
    assert found.mark == (ours_mark if expected.mark == theirs_mark else expected.mark)
    assert found._replace(mark=0) == expected._replace(mark=0)
    assert found.others == place.bare  # the machine's own routes are as they were
    end(server)
    wait_for("the interface to go", lambda: interface not in place.run("ip", "-o", "link"))
    assert place.others("none") == place.bare
    for version in ("-4", "-6"):
        assert str(ROUTE_PROTOCOL) not in place.run("ip", version, "rule")


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if len(case.peers) == 1])
def test_a_client_has_the_routes_and_rules_of_wg_quick(lab: Lab, name: str) -> None:
    case, place = CASES[name], Place(lab, 0)
    key = Identity.make().public
    theirs_mark, ours_mark = policy_marks(case)
    expected = by_wg_quick(place, case, [key], theirs_mark)
    interface = f"ox{secrets.token_hex(5)}"
    client = OxidizeClient(
        lab, "192.0.2.1:9", key, address=ADDRESSES, allowed_ips=case.peers[0], inside=place.here.entered,
        interface=interface,
    )  # fmt: skip
    client.write_config(**options_of(case))
    client.start()
    with place.here.entered():
        port = client.port
    wait_for("the rules", lambda: not expected.rules[0] or str(ROUTE_PROTOCOL) in place.run("ip", "rule"))
    found = place.see(interface, ours_mark, port)
    # It marks its packets without a default route, too, unless it is told not to: for firewalls.
    assert found.mark == (0 if case.mark == "off" and not expected.rules[0] else ours_mark)
    assert found._replace(mark=0) == expected._replace(mark=0)
    client.stop()
    assert place.others("none") == place.bare


def test_a_reload_moves_the_routes_from_table_to_table(lab: Lab) -> None:
    place = Place(lab, 100)
    keys = [Identity.make().public for _ in range(2)]
    peers = [PeerTable("exit", keys[0], ("10.9.0.2/32", *DEFAULTS)), PeerTable("site", keys[1], ("172.16.0.0/12",))]
    interface = f"ox{secrets.token_hex(5)}"
    server = Server(
        lab, peers, listen=f"[::]:{PORT}", network="tun", interface=interface, address=ADDRESSES,
        inside=place.here.entered,
    )  # fmt: skip
    site = "172.16.0.0/12"
    steps: list[tuple[dict[str, object], int, set[tuple[str, str]], bool]] = [
        ({"table": "off"}, 0, set(), False),
        ({}, FWMARK_DEFAULT, {("main", site), *(("the policy's", each) for each in DEFAULTS)}, True),
        ({"fwmark": 77}, 77, {("main", site), *(("the policy's", each) for each in DEFAULTS)}, True),
        ({"table": 900}, 0, {("900", each) for each in ("10.9.0.2/32", site, *DEFAULTS)}, False),
        ({"table": 901, "fwmark": 5}, 5, {("901", each) for each in ("10.9.0.2/32", site, *DEFAULTS)}, False),
        ({"table": "auto"}, FWMARK_DEFAULT, {("main", site), *(("the policy's", each) for each in DEFAULTS)}, True),
        ({"table": "off", "fwmark": "off"}, 0, set(), False),
    ]
    for number, (options, mark, routes, has_rules) in enumerate(steps):
        server.write_config(drain_timeout_secs=0, **options)
        if number == 0:
            server.start()
        else:
            server.replace()

        def is_so(mark: int = mark, routes: set[tuple[str, str]] = routes, has_rules: bool = has_rules) -> bool:
            found = place.see(interface, mark)
            return (found.mark, set(found.routes), found.rules) == (mark, routes, (has_rules, has_rules))

        wait_for(f"step {number}: {place.see(interface, mark)}", is_so, 5.0)
        assert place.others(interface) == place.bare
        assert server.status()["network_missing"] == []
    end(server)


# --- The MTU ---


@pytest.mark.parametrize(
    ("ways", "endpoints"),
    [
        ({"default": 1460}, []),
        ({"default": 1500}, []),
        ({"default": 9000}, []),
        ({"default": 1460, "198.51.100.0/24": 1400}, ["198.51.100.7:1"]),
        ({"default": 1460, "198.51.100.0/24": 1400}, ["198.51.100.7:1", "203.0.113.7:1"]),
        ({"default": 1460, "198.51.100.0/24": 1400}, ["127.0.0.1:1"]),  # over lo
        ({}, []),
    ],
)
def test_the_mtu_is_computed_as_by_wg_quick(lab: Lab, ways: Mapping[str, int], endpoints: Sequence[str]) -> None:
    place = Place(lab, 0)
    place.run("ip", "link", "set", "up0", "mtu", str(ways.get("default", 1500)))
    if not ways:
        place.run("ip", "route", "del", "default")
        place.run("ip", "-6", "route", "del", "default")
    for network, mtu in ways.items():
        if network != "default":
            place.run("ip", "route", "add", network, "via", "192.0.2.1", "mtu", str(mtu))
    name = f"wq{secrets.token_hex(5)}"
    path = place.lab.folder / f"{name}.conf"
    path.touch(mode=0o600)
    lines = ["[Interface]", f"PrivateKey = {b64(Identity.make().private)}", "Address = 10.9.0.1/32"]
    for number, endpoint in enumerate(endpoints):
        lines += ["[Peer]", f"PublicKey = {b64(Identity.make().public)}", f"AllowedIPs = 10.9.1.{number}/32"]
        lines.append(f"Endpoint = {endpoint}")
    path.write_text("\n".join(lines) + "\n")
    env = {**os.environ, "WG_QUICK_USERSPACE_IMPLEMENTATION": "wireguard-go", "LOG_LEVEL": "error"}
    place.run("wg-quick", "up", str(path), env=env)
    try:
        expected = _mtu_of(place, name)
    finally:
        place.run("wg-quick", "down", str(path), env=env)
        Path(f"/var/run/wireguard/{name}.sock").unlink(missing_ok=True)
    hosts = [ip_address(endpoint.rpartition(":")[0]) for endpoint in endpoints]
    with place.here.entered():
        uplink = find_uplink(hosts)
    # wg-quick assumes Ethernet where there is no way at all.
    assert (uplink.mtu if uplink is not None else 1500) - OVERHEAD == expected


def _mtu_of(place: Place, name: str) -> int:
    words = place.run("ip", "-o", "link", "show", "dev", name).split()
    return int(words[words.index("mtu") + 1])
