"""Commands of packet filters are read as rules; a condition that is not understood stays one."""

import pytest

from oxidize.provision.firewall_rules import Rule, Value, read_rules
from oxidize.provision.shell_line import read_commands

IN, OUT = Value("wg0"), Value("eth0")


def rules(line: str) -> list[Rule] | None:
    (command,) = read_commands(line)
    return read_rules(command.words)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            "iptables -t nat -A POSTROUTING -s 10.0.0.0/24 -o eth0 -j MASQUERADE",
            Rule(4, "add", "nat", "POSTROUTING", "MASQUERADE", outgoing=OUT, source=Value("10.0.0.0/24")),
        ),
        (
            "/usr/sbin/ip6tables --table=nat --insert POSTROUTING 1 --out-interface=eth0 --jump MASQUERADE -w",
            Rule(6, "add", "nat", "POSTROUTING", "MASQUERADE", outgoing=OUT),
        ),
        (
            "iptables-nft -I FORWARD -i wg0 ! -o wg0 -j REJECT --reject-with icmp-port-unreachable",
            Rule(4, "add", chain="FORWARD", target="REJECT", incoming=IN, outgoing=Value("wg0", negated=True)),
        ),
        (
            "iptables -I FORWARD -i ! wg0 -j DROP",
            Rule(4, "add", chain="FORWARD", target="DROP", incoming=Value("wg0", negated=True)),
        ),
        ("iptables -P FORWARD DROP", Rule(4, "policy", chain="FORWARD", target="DROP")),
        ("iptables -F", Rule(4, "chain")),
        (
            "iptables -A FORWARD -o $X -m conntrack ! --ctstate NEW -j ACCEPT",
            Rule(
                4,
                "add",
                chain="FORWARD",
                target="ACCEPT",
                outgoing=Value(None),
                conditions=("-m", "conntrack", "!", "--ctstate", "NEW"),
            ),
        ),
        (
            "iptables -t nat -A PREROUTING -i eth0 -p tcp -m tcp --dport 443 --comment x -j DNAT --to 10.0.0.2:1",
            Rule(
                4,
                "add",
                "nat",
                "PREROUTING",
                "DNAT",
                incoming=OUT,
                protocol=Value("tcp"),
                port=Value("443"),
                to=Value("10.0.0.2:1"),
            ),
        ),
        (
            "nft add rule ip nat postrouting oifname eth0 ip saddr 10.0.0.0/24 counter masquerade",
            Rule(4, "add", "nat", "POSTROUTING", "MASQUERADE", outgoing=OUT, source=Value("10.0.0.0/24")),
        ),
        (
            "nft 'insert rule inet filter forward iif != \"wg0\" tcp dport 22 ct state new drop'",
            Rule(
                0,
                "add",
                chain="FORWARD",
                target="DROP",
                incoming=Value("wg0", negated=True),
                protocol=Value("tcp"),
                port=Value("22"),
                conditions=("ct", "state", "new"),
            ),
        ),
        (
            "nft add rule nat prerouting iif eth0 udp dport 53 dnat to 10.0.0.2:5353",
            Rule(
                4,
                "add",
                "nat",
                "PREROUTING",
                "DNAT",
                incoming=OUT,
                protocol=Value("udp"),
                port=Value("53"),
                to=Value("10.0.0.2:5353"),
            ),
        ),
        (
            "ufw route insert 1 deny in on wg0 out on eth0",
            Rule(0, "add", chain="FORWARD", target="DROP", incoming=IN, outgoing=OUT),
        ),
        ("ufw delete allow 51820/udp", Rule(0, "delete", chain="INPUT", target="ACCEPT", port=Value("51820"))),
        (
            "firewall-cmd --permanent --add-port=51820/udp",
            Rule(0, "add", chain="INPUT", target="ACCEPT", protocol=Value("udp"), port=Value("51820")),
        ),
        ("firewall-cmd --remove-masquerade", Rule(4, "delete", "nat", "POSTROUTING", "MASQUERADE")),
        (
            "firewall-cmd --direct --add-rule ipv6 filter FORWARD 0 -i wg0 -j ACCEPT",
            Rule(6, "add", chain="FORWARD", target="ACCEPT", incoming=IN),
        ),
        (
            "firewall-cmd --add-forward-port=port=80:proto=tcp:toport=8080:toaddr=10.0.0.2",
            Rule(
                4,
                "add",
                "nat",
                "PREROUTING",
                "DNAT",
                protocol=Value("tcp"),
                port=Value("80"),
                to=Value("10.0.0.2:8080"),
            ),
        ),
    ],
)
def test_a_rule_is_read(line: str, expected: Rule) -> None:
    assert rules(line) == [expected]


def test_tables_and_chains_of_nft_are_read_as_no_rule() -> None:
    assert rules("nft add table ip x") == []
    chain = "add chain ip x post { type nat hook postrouting priority 100; }"
    found = rules(f"nft '{chain}; add rule ip x post masquerade'")
    assert found == [Rule(4, "add", "nat", "post", "MASQUERADE")]


@pytest.mark.parametrize(
    "line",
    [
        "reboot",
        "nft -f /etc/x.nft",
        "nft add rule ip nat post oif $X drop",
        "ufw enable",
        "firewall-cmd --reload",
    ],
)
def test_a_command_that_is_no_rule_is_left(line: str) -> None:
    assert rules(line) is None
