"""Commands of a wg-quick file that translate addresses become the tables of address translation, or say why not."""

import tomllib
from typing import Any

import pytest

from oxidize.provision import conversion, wg_quick
from tests.support.config_files import ALICE, PRIVATE

SNAT = "iptables -t nat -A POSTROUTING -o eth0 -j SNAT --to-source"
DNAT = "iptables -t nat -A PREROUTING -p tcp --dport"
MASQUERADE = "iptables -t nat -A POSTROUTING -o eth0 -j MASQUERADE"


def converted(*commands: str, address: str = "10.8.0.1/24", allowed_ips: str = "10.8.0.2/32") -> tuple[Any, list[str]]:
    """Return the value of `nat`, and the notes about commands."""
    hooks = "".join(f"PostUp = {command}\n" for command in commands)
    text = (
        f"[Interface]\nPrivateKey = {PRIVATE}\nAddress = {address}\nListenPort = 51820\n{hooks}"
        f"[Peer]\nPublicKey = {ALICE}\nAllowedIPs = {allowed_ips}\n"
    )
    found = conversion.to_server(wg_quick.parse(text, "wg0.conf"), "wg0.conf")
    return tomllib.loads(found.toml)["server"].get("nat"), [note for note in found.notes if note.startswith("line")]


@pytest.mark.parametrize(
    ("commands", "expected"),
    [
        ((MASQUERADE,), {"interface": "eth0"}),
        (("iptables -t nat -A POSTROUTING ! -o wg0 -j MASQUERADE",), True),
        (("iptables -t nat -A POSTROUTING -s 10.8.0.0/24 ! -d 10.8.0.0/24 -j MASQUERADE",), True),
        (
            ("iptables -t nat -A POSTROUTING -s 10.8.0.7/25,192.168.1.0/24 -j MASQUERADE",),
            {"sources": ["10.8.0.0/25", "192.168.1.0/24"]},
        ),
        ((MASQUERADE, MASQUERADE.replace("eth0", "eth1")), True),
        ((f"{SNAT} 203.0.113.9",), {"interface": "eth0", "snat": "203.0.113.9"}),
        (("nft add rule ip nat post oifname eth0 snat to 203.0.113.9",), {"interface": "eth0", "snat": "203.0.113.9"}),
        (
            (f"{DNAT} 443 -j DNAT --to-destination 10.8.0.2",),
            {"sources": [], "forward": [{"port": 443, "to": "10.8.0.2"}]},
        ),
        ((f"{DNAT} 443 -j DNAT --to 10.8.0.2:443",), {"sources": [], "forward": [{"port": 443, "to": "10.8.0.2"}]}),
        (
            (MASQUERADE, f"{DNAT} 80,443 -i eth0 -d 203.0.113.9 -j DNAT --to-destination 10.8.0.2:8443"),
            {
                "interface": "eth0",
                "forward": [
                    {"port": port, "to": "10.8.0.2:8443", "interface": "eth0", "address": "203.0.113.9"}
                    for port in (80, 443)
                ],
            },
        ),
        (
            (f"{DNAT} 8000:8010 -i wg0 -j DNAT --to-destination 10.8.0.2:8000-8010",),
            {"sources": [], "forward": [{"port": "8000-8010", "to": "10.8.0.2", "interface": "oxidize0"}]},
        ),
        (
            (f"{DNAT} 22 -j DNAT --to-destination 10.8.0.2", "iptables -t nat -A POSTROUTING -o wg0 -j MASQUERADE"),
            {"sources": [], "forward": [{"port": 22, "to": "10.8.0.2", "masquerade": True}]},
        ),
        (
            ("firewall-cmd --add-forward-port=port=80:proto=tcp:toport=8080:toaddr=10.8.0.2",),
            {"sources": [], "forward": [{"port": 80, "to": "10.8.0.2:8080"}]},
        ),
        (
            ("ip6tables -t nat -A PREROUTING -p tcp --dport 80 -j DNAT --to-destination [fd00::2]:81",),
            {"sources": [], "forward": [{"port": 80, "to": "[fd00::2]:81"}]},
        ),
    ],
)
def test_what_is_translated_keeps_its_extent(commands: tuple[str, ...], expected: Any) -> None:
    nat, notes = converted(*commands)
    if isinstance(expected, dict) and "forward" in expected:
        expected["forward"] = [{"protocol": "tcp", **each} for each in expected["forward"]]
    assert nat == expected
    assert all(" does this" in note for note in notes)
    assert len(notes) == len(commands)


@pytest.mark.parametrize(
    ("commands", "expected", "reason"),
    [
        ((f"{SNAT} 203.0.113.9-203.0.113.12",), None, "snat is one address, without ports"),
        (
            (f"{SNAT} 203.0.113.9", f"{SNAT} 203.0.113.10 -s 10.8.0.9"),
            {"interface": "eth0", "snat": "203.0.113.9"},
            "one address",
        ),
        ((f"{MASQUERADE} -m mark --mark 7",), None, "no such condition"),
        ((f"{MASQUERADE} -d 192.168.1.9",), None, "no destination"),
        ((f"{MASQUERADE} ! -s 192.168.1.9",), None, "no such source"),
        (("iptables -t nat -A POSTROUTING -s $NET -j MASQUERADE",), None, "no such source"),
        (("iptables -t nat -A POSTROUTING ! -o eth1 -j MASQUERADE",), None, "one outgoing interface"),
        (("iptables -t nat -A POSTROUTING -o wg0 -j MASQUERADE",), None, "it translates what enters the tunnel"),
        ((f"{DNAT} 80 -s 192.0.2.1 -j DNAT --to 10.8.0.2",), None, "no such condition"),
        ((f"{DNAT} 80 ! -i eth0 -j DNAT --to 10.8.0.2",), None, "no such condition"),
        ((f"{DNAT} 80 -j DNAT --to 10.8.0.2-10.8.0.9",), None, "one address"),
        ((f"{DNAT} 80:90 -j DNAT --to 10.8.0.2:8080",), None, "keeps its numbers"),
        (("iptables -t nat -A PREROUTING -i eth0 -j DNAT --to 10.8.0.2",), None, "a protocol, tcp or udp, and a port"),
        (("iptables -t nat -A OUTPUT -p tcp --dport 80 -j DNAT --to 10.8.0.2",), None, "no such condition"),
    ],
)
def test_what_the_tables_cannot_say_is_left_to_a_unit(commands: tuple[str, ...], expected: Any, reason: str) -> None:
    nat, notes = converted(*commands)
    assert nat == expected
    (note,) = (note for note in notes if "have a unit run it after oxidize-daemon has started: " in note)
    assert reason in note
    assert note.endswith(commands[-1].replace("wg0", "oxidize0"))


@pytest.mark.parametrize(
    ("address", "allowed_ips", "expected"),
    [
        ("10.8.0.1/24, fd42::1/64", "10.8.0.2/32", {"sources": ["10.8.0.0/24"], "interface": "eth0"}),
        ("10.8.0.1/24", "10.8.0.2/32, 192.168.7.0/24", {"sources": ["0.0.0.0/0"], "interface": "eth0"}),
        ("10.8.0.1/24", "10.8.0.2/32, 0.0.0.0/0", {"interface": "eth0"}),
        ("10.8.0.1/32", "10.8.0.2/32", {"interface": "eth0"}),
    ],
)
def test_a_rule_without_sources_translates_what_peers_send(address: str, allowed_ips: str, expected: Any) -> None:
    assert converted(MASQUERADE, address=address, allowed_ips=allowed_ips)[0] == expected
