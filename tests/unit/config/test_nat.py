"""`nat` and the tables [server.nat] and [[server.nat.forward]]: what they mean, and every mistake by its key."""

from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path

import pytest

from oxidize.config.nat import (
    DESTINATIONS_MAX,
    FORWARDS_MAX,
    SOURCES_MAX,
    NatSettings,
    PortForward,
    Ports,
    Target,
    default_sources,
)
from oxidize.settings import NodeSettings
from tests.support.config_files import BOB, SERVER, load, peer, problem, problems

FORWARD = '[[server.nat.forward]]\nprotocol = "tcp"\nport = 443\nto = "10.0.0.2:8443"\n'
PLAIN = NatSettings((ip_network("10.0.0.0/24"),), None, (), ())


def settings(folder: Path, text: str) -> NatSettings:
    found = NodeSettings.of(load(folder, text)).nat
    assert found is not None
    return found


def forward(**values: str) -> str:
    """Return a table, with values as TOML; "" leaves a key out."""
    given = {"protocol": '"tcp"', "port": "443", "to": '"10.0.0.2"', **values}
    return "[[server.nat.forward]]\n" + "".join(f"{key} = {value}\n" for key, value in given.items() if value)


# --- What is meant ---


def test_nat_is_off_unless_asked_for(folder: Path) -> None:
    assert load(folder, SERVER + peer()).nat is None
    assert load(folder, SERVER + "nat = false\n" + peer()).nat is None


def test_true_and_an_empty_table_are_the_same(folder: Path) -> None:
    for text in (SERVER + "nat = true\n", SERVER + "[server.nat]\n", SERVER + "nat = {}\n"):
        config = load(folder, text + peer())
        assert config.warnings == ()
        assert NodeSettings.of(config).nat == PLAIN


def test_every_key_of_the_tables_is_taken(folder: Path) -> None:
    text = f"""{SERVER}
        [server.nat]
        sources = ["10.0.0.0/25", "fd00::/64"]
        interface = "eth0"
        snat = ["203.0.113.9", "2001:db8::9"]
        {FORWARD}
        [[server.nat.forward]]
        protocol = "both"
        port = "8000-8010"
        to = "fd00::2"
        interface = "eth1"
        address = ["2001:db8::9", "2001:db8:1::/64"]
        masquerade = true
        """
    assert settings(folder, text + peer(ips='"10.0.0.2/32", "fd00::2/128"')) == NatSettings(
        (ip_network("10.0.0.0/25"), ip_network("fd00::/64")),
        "eth0",
        (ip_address("203.0.113.9"), ip_address("2001:db8::9")),
        (
            PortForward("tcp", Ports(443, 443), Target(ip_address("10.0.0.2"), 8443), None, (), False),
            PortForward(
                "both",
                Ports(8000, 8010),
                Target(ip_address("fd00::2"), None),
                "eth1",
                (ip_network("2001:db8::9"), ip_network("2001:db8:1::/64")),
                True,
            ),
        ),
    )


def test_one_value_stands_for_a_list_of_one(folder: Path) -> None:
    text = SERVER + '[server.nat]\nsnat = "203.0.113.9"\n' + forward(address='"203.0.113.9"') + peer()
    found = settings(folder, text)
    assert (found.snat, found.forwards[0].destinations) == ((ip_address("203.0.113.9"),), (ip_network("203.0.113.9"),))


@pytest.mark.parametrize(
    ("addresses", "sources"),
    [
        (["10.0.0.1/24"], ["10.0.0.0/24"]),
        (["10.0.0.1/24", "10.0.0.9/24", "fd00::1/64"], ["10.0.0.0/24", "fd00::/64"]),
        (["10.0.0.1/32"], ["0.0.0.0/0"]),
        (["10.0.0.1/32", "10.0.1.1/24"], ["10.0.0.1/32", "10.0.1.0/24"]),
        (["10.0.0.1/24", "fd00::1/128"], ["10.0.0.0/24", "::/0"]),
        (["10.0.0.1/32", "10.0.0.2/32", "fd00::1/128"], ["0.0.0.0/0", "::/0"]),
        ([], []),
    ],
)
def test_without_sources_the_networks_of_the_addresses_or_what_the_tunnel_brings(
    addresses: list[str], sources: list[str]
) -> None:
    assert default_sources(map(ip_interface, addresses)) == tuple(map(ip_network, sources))


def test_an_empty_list_of_sources_translates_nothing(folder: Path) -> None:
    assert settings(folder, SERVER + "[server.nat]\nsources = []\n" + FORWARD + peer()).sources == ()


@pytest.mark.parametrize(
    ("given", "ports"), [("1", "1"), ("65535", "65535"), ('"443"', "443"), ('"80-80"', "80"), ('"1-65535"', "1-65535")]
)
def test_ports(folder: Path, given: str, ports: str) -> None:
    text = SERVER + "[server.nat]\n" + forward(port=given) + peer()
    assert str(settings(folder, text).forwards[0].ports) == ports


@pytest.mark.parametrize(
    ("given", "address", "port"),
    [
        ("10.0.0.2", "10.0.0.2", None),
        ("10.0.0.2:1", "10.0.0.2", 1),
        ("fd00::2", "fd00::2", None),
        ("[fd00::2]", "fd00::2", None),
        ("[fd00::2]:65535", "fd00::2", 65535),
        ("2001:db8:0:0:0:0:0:443", "2001:db8::443", None),
        ("[fd00::2:443]", "fd00::2:443", None),
    ],
)
def test_targets(folder: Path, given: str, address: str, port: int | None) -> None:
    text = SERVER + "[server.nat]\n" + forward(to=f'"{given}"') + peer(ips='"0.0.0.0/1", "::/0"')
    target = settings(folder, text).forwards[0].target
    assert target == Target(ip_address(address), port)
    assert str(target) == (f"[{address}]:{port}" if ":" in address and port else given if port else address)


def test_the_keys_of_a_status_are_those_of_the_configuration(folder: Path) -> None:
    text = SERVER + '[server.nat]\ninterface = "eth0"\n' + FORWARD + peer()
    assert settings(folder, text).describe() == {
        "sources": ["10.0.0.0/24"],
        "interface": "eth0",
        "snat": [],
        "forward": [
            {
                "protocol": "tcp",
                "port": 443,
                "to": "10.0.0.2:8443",
                "interface": None,
                "address": [],
                "masquerade": False,
            }
        ],
    }


# --- Mistakes ---

MISTAKES = [
    ("nat = 1\n", "server.nat = 1: expected true or false, or a table [server.nat]"),
    ('nat = "yes"\n', 'server.nat = "yes": expected true or false'),
    ("[[server.nat]]\n", "server.nat = [{…}]: expected true or false"),
    ("[server.nat]\nsource = []\n", "server.nat.source = []: expected a key of server.nat ("),
    ("[server.nat]\nsource = []\n", "did you mean sources?"),
    ("[server.nat]\nmtu = 1400\n", "mtu = 1400: expected a key of [server.nat], and this is one of [server]"),
    ("[server.nat]\nmtu = 1400\n", "move the line above [server.nat]"),
    ('[server.nat]\nsources = "10.0.0.0/24"\n', "server.nat.sources = "),
    ('[server.nat]\nsources = ["10.0.0.5/24"]\n', 'write "10.0.0.0/24" for the network'),
    ('[server.nat]\nsources = ["10.0.0.2", "10.0.0.2/32"]\n', "expected every network once; remove one"),
    (f"[server.nat]\nsources = {['10.0.0.0/24'] * (SOURCES_MAX + 1)}\n", f"expected at most {SOURCES_MAX} networks"),
    ('[server.nat]\ninterface = "eth 0"\n', 'server.nat.interface = "eth 0": expected 1 to 15 of'),
    ('[server.nat]\ninterface = "oxidize0"\n', "expected another interface than the tunnel's"),
    ('[server.nat]\nsnat = "gateway"\n', 'server.nat.snat = "gateway": expected an address'),
    ('[server.nat]\nsnat = "127.0.0.1"\n', "expected an address that other machines can send to"),
    ('[server.nat]\nsnat = "fe80::1"\n', "expected an address that other machines can send to"),
    ('[server.nat]\nsnat = "203.0.113.9-203.0.113.12"\n', "server.nat.snat"),
    ('[server.nat]\nsnat = ["203.0.113.9", "203.0.113.8"]\n', "expected one address of IPv4"),
    ('[server.nat]\nsnat = "2001:db8::9"\n', "sources have no network of IPv6"),
    ('[server.nat]\nsources = []\nsnat = "203.0.113.9"\n', "sources have no network of IPv4"),
    ("[server.nat.forward]\nport = 1\n", "server.nat.forward = {…}: expected tables [[server.nat.forward]]"),
    ("[server.nat]\nforward = [1]\n", "server.nat.forward = [1]: expected tables [[server.nat.forward]]; write"),
    (forward(protocol=""), "server.nat.forward[1].protocol is missing: expected"),
    (forward(port=""), "server.nat.forward[1].port is missing: expected"),
    (forward(to=""), 'server.nat.forward[1].to is missing: expected "address:port"'),
    (forward(protocol='"icmp"'), 'server.nat.forward[1].protocol = "icmp": expected "tcp", "udp" or "both"'),
    (forward(port="0"), "server.nat.forward[1].port = 0: expected a port from 1 to 65535"),
    (forward(port="65536"), "port = 65536: expected a port from 1 to 65535"),
    (forward(port="true"), "port = true: expected a port from 1 to 65535"),
    (forward(port="4.5"), "port = 4.5: expected a port from 1 to 65535"),
    (forward(port='"8010-8000"'), 'port = "8010-8000": expected a port from 1 to 65535'),
    (forward(port='"8000:8010"'), 'write "8000-8010"'),
    (forward(port='"80,443"'), "write a table [[server.nat.forward]] for each"),
    (forward(port='"https"'), 'port = "https": expected a port from 1'),
    (forward(to='"laptop:443"'), 'to = "laptop:443": expected "address:port"'),
    (forward(to='"10.0.0.2:0"'), 'to = "10.0.0.2:0": expected "address:port"'),
    (forward(to='"10.0.0.256:1"'), 'to = "10.0.0.256:1": expected "address:port"'),
    (forward(to='"fd00::2:443"'), 'write "[fd00::2]:443", or "[fd00::2:443]" if it has no port'),
    (forward(to='"10.0.0.2:443-445"'), 'write "10.0.0.2": a range of ports keeps them'),
    (forward(to='"127.0.0.1:80"'), "expected an address that other machines can send to"),
    (forward(to='"10.0.0.2:80"', port='"80-81"'), 'expected an address without a port, as a range of ports keeps them'),
    (forward(address='"2001:db8::1"'), 'forward[1].address = "2001:db8::1/128": expected an address of IPv4'),
    (forward(address='"example.org"'), "server.nat.forward[1].address"),
    (forward(address=str(["203.0.113.9"] * (DESTINATIONS_MAX + 1))), f"expected at most {DESTINATIONS_MAX} addresses"),
    (forward(masquerade='"yes"'), 'server.nat.forward[1].masquerade = "yes": expected true or false'),
    (forward(name='"web"'), 'server.nat.forward[1].name = "web": expected a key of server.nat.forward[1] ('),
    (forward(protocol='"udp"', port="51820"), "expected no UDP port 51820, which is the tunnel's own (listen)"),
    (forward(protocol='"both"', port='"1-65535"'), 'port = "1-65535": expected no UDP port 51820'),
    (forward() + forward(to='"10.0.0.3"'), "forward[2].port = 443: expected ports that server.nat.forward[1]"),
    (forward(port='"440-450"') + forward(), "server.nat.forward[2].port"),
    (forward(port='"440-450"') + forward(port='"445-460"'), "server.nat.forward[2].port"),
    (forward() + forward(protocol='"both"'), "server.nat.forward[2].port"),
    (forward() + forward(interface='"eth0"'), "server.nat.forward[2].port"),
    (forward(address='"0.0.0.0/0"') + forward(), "server.nat.forward[2].port"),
    (forward(address='"203.0.113.0/24"') + forward(address='"203.0.113.9"'), "server.nat.forward[2].port"),
]  # fmt: skip


@pytest.mark.parametrize(("table", "expected"), MISTAKES)
def test_a_mistake_is_told_by_its_key(folder: Path, table: str, expected: str) -> None:
    line = problem(folder, SERVER + table + peer(ips='"10.0.0.0/24", "fd00::/64"'))
    assert expected in line
    assert "; " in line


def test_all_mistakes_are_told_at_once(folder: Path) -> None:
    text = '[server]\naddress = "x"\nprivate_key_file = "server.key"\n[server.nat]\nsnat = 1\n'
    found = problems(folder, text + forward(port="0", to='""') + forward(protocol='"x"') + peer())
    assert sorted(line.split(" = ")[0].removeprefix("oxidize.toml: ") for line in found) == [
        "server.address",
        "server.nat.forward[1].port",
        "server.nat.forward[1].to",
        "server.nat.forward[2].protocol",
        "server.nat.snat",
    ]


def test_the_number_of_port_forwards_is_limited(folder: Path) -> None:
    tables = "".join(forward(port=str(port)) for port in range(1, FORWARDS_MAX + 1))
    assert len(settings(folder, SERVER + tables + peer()).forwards) == FORWARDS_MAX
    line = problem(folder, SERVER + tables + forward(port="1000") + peer())
    assert f"expected at most {FORWARDS_MAX} tables; forward ranges of ports" in line


def test_nat_needs_the_kernels_network(folder: Path) -> None:
    userspace = 'network = "userspace"\n'
    for table, shown in (("nat = true\n", "true"), ("[server.nat]\n", "{…}")):
        line = problem(folder, SERVER + userspace + table + peer())
        assert f'server.nat = {shown}: expected false, as network = "userspace" hands no packet to the kernel' in line
    assert load(folder, SERVER + userspace + "nat = false\n" + peer()).nat is None


@pytest.mark.parametrize(
    "tables",
    [
        forward(protocol='"udp"', port="51820", interface='"oxidize0"'),
        forward(protocol='"tcp"', port="51820"),
        forward() + forward(protocol='"udp"'),
        forward() + forward(port="444"),
        forward() + forward(to='"fd00::2"'),
        forward(interface='"eth0"') + forward(interface='"eth1"') + forward(),
        forward(address='"203.0.113.9"') + forward(address='"203.0.113.10"') + forward(),
        forward() + forward(port='"400-500"'),
        forward() + forward(address='"0.0.0.0/0"'),
    ],
)
def test_what_is_no_mistake(folder: Path, tables: str) -> None:
    config = load(folder, SERVER + tables + peer(ips='"10.0.0.0/24", "fd00::/64"'))
    assert config.warnings == ()


# --- Warnings ---


@pytest.mark.parametrize(
    ("table", "ips", "expected"),
    [
        ("nat = true\n", '"10.0.0.2/32"', []),
        ("nat = true\n", '"10.0.0.2/32", "192.168.7.0/24"', []),
        ("nat = true\n", '"10.9.0.2/32"', ["server.nat: translates only", "(10.0.0.0/24)", "peer.alice"]),
        ("nat = true\n", '"192.168.7.0/24"', ["server.nat: translates only"]),
        ("nat = true\n", '"0.0.0.0/1"', []),
        ('[server.nat]\nsources = ["10.9.0.0/24"]\n', '"10.9.0.2/32"', []),
        ('[server.nat]\nsources = ["10.9.0.0/24"]\n', '"10.9.1.2/32"', ["server.nat.sources: 10.9.0.0/24: no peer"]),
        ('[server.nat]\nsources = ["10.9.0.2"]\n', '"10.9.0.0/24"', []),
        ('[server.nat]\nsources = ["0.0.0.0/0"]\n', '"10.9.0.2/32"', []),
        (forward(), '"10.0.0.0/24"', []),
        (forward(), '"10.0.0.3/32"', ["server.nat.forward[1].to: no peer's allowed_ips have 10.0.0.2"]),
        (forward(interface='"oxidize0"', to='"192.168.9.9"'), '"10.0.0.3/32"', []),
    ],
)
def test_what_reaches_no_peer_is_a_warning(folder: Path, table: str, ips: str, expected: list[str]) -> None:
    warnings = load(folder, SERVER + table + peer(ips=ips)).warnings
    assert len(warnings) == bool(expected)
    for part in expected:
        assert part in warnings[0]


def test_a_server_whose_address_is_a_host_translates_all_peers(folder: Path) -> None:
    config = load(folder, SERVER.replace("10.0.0.1/24", "10.0.0.1/32") + "nat = true\n" + peer())
    assert config.warnings == ()
    found = NodeSettings.of(config).nat
    assert found is not None
    assert found.sources == (ip_network("0.0.0.0/0"),)


def test_only_the_first_of_many_peers_are_named_in_a_warning(folder: Path) -> None:
    keys = [BOB[:-6] + f"{number:04}A=" for number in range(5)]
    peers = "".join(peer(f"p{number}", key, f'"10.7.0.{number}/32"') for number, key in enumerate(keys))
    (warning,) = load(folder, SERVER + "nat = true\n" + peers).warnings
    assert "allowed_ips of peer.p0, peer.p1, peer.p2 and 2 more peers are not in them" in warning


@pytest.mark.parametrize("table", ["[server.nat]\n", forward(), "nat = false\n", "nat.snat = []\n"])
def test_a_value_and_a_table_at_once_are_told_as_that(folder: Path, table: str) -> None:
    line = problem(folder, SERVER + "nat = true\n" + table + peer())
    assert "(at line " in line
    assert "expected every key and table once" in line
    assert "nat = true, or [server.nat]; remove one of the two" in line
