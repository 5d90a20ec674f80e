"""What `oxidize import` makes of a wg-quick file is what the unmodified wg and wg-quick make of it.

Hooks are taken out of a file before wg-quick has it: some of the cases restart services.
"""

import re
import secrets
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from socket import AF_INET, AF_INET6
from typing import NamedTuple

import pytest
from pyroute2 import IPRoute

from oxidize import config
from oxidize.config.values import format_key
from tests.support.import_cases import CASES, FOLDER, role_of, run_import
from tests.support.traffic.namespaces import Namespace
from tests.support.traffic.server import WAIT_SECS, Lab
from tests.support.traffic.wireguard_go import WireguardGo

pytestmark = [pytest.mark.root, pytest.mark.needs("wireguard-go", "wg", "wg-quick")]

# Cases that one accepts and the other does not, and why.
WG_ALONE = {
    "small-mtu": "the kernel takes IPv6 from the interface in silence",
    "key-of-a-command": "a command is not run for a key",
    "utf16-without-mark": "bash drops each NUL, and so half of every character that is not ASCII",
    "preshared-key-unreadable": "a hook names a file that is not there, and hooks are not run here",
}
OXIDIZE_ALONE = {
    "bom": "a mark that no editor shows",
    "trailing-comma": "it can mean one thing only",
}
BY_HOOKS = {"dn42", "many-hooks", "key-of-cat", "preshared-key-of-a-hook"}  # what their hooks set is not in what wg has
_HOOK = re.compile(rb"^[ \t]*(?:Pre|Post)(?:Up|Down)[ \t]*=.*$|^[ \t]*DNS[ \t]*=.*$", re.MULTILINE | re.IGNORECASE)
_INTERFACE = re.compile(rb"^[ \t]*(?:Address|MTU|FwMark|Table)[ \t]*=.*$", re.MULTILINE | re.IGNORECASE)
NONE = "(none)"
RTPROT_KERNEL = 2  # linux/rtnetlink.h
_HOSTS = (b"vpn.example.net", b"site.invalid")  # names that no resolver knows here


class Peer(NamedTuple):
    """A peer as `wg show dump` prints it."""

    public_key: str
    preshared_key: str
    endpoint: str
    allowed_ips: frozenset[str]
    keepalive: str


class Tunnel:
    """A namespace with one wireguard-go, for one file after the other."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.namespace = Namespace(lab.stack)
        self.wireguard = WireguardGo(lab, self.namespace, [])


def run(namespace: Namespace, *command: str) -> subprocess.CompletedProcess[str]:
    with namespace.entered():
        return subprocess.run(command, capture_output=True, check=False, text=True, timeout=WAIT_SECS, errors="replace")


@pytest.fixture(scope="module")
def namespace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Namespace]:
    with Lab(tmp_path_factory.mktemp("quick")) as lab:
        yield Namespace(lab.stack)


@pytest.fixture(scope="module")
def tunnel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tunnel]:
    with Lab(tmp_path_factory.mktemp("import")) as lab:
        yield Tunnel(lab)


def content_of(name: str) -> bytes:
    content = (FOLDER / f"{name}.conf").read_bytes()
    for host in _HOSTS:
        content = content.replace(host, b"198.51.100.99")
    return content


def loaded(path: Path) -> config.ServerConfig | config.ClientConfig:
    return config.load_server(path) if path.stem == "server" else config.load_client(path)


def peers_of(found: config.ServerConfig | config.ClientConfig) -> set[Peer]:
    """Return the peers of a configuration that are in use."""
    if isinstance(found, config.ClientConfig):
        given = [(found.server_public_key, found.preshared_key, found.server, found.allowed_ips)]
        return {_peer(*each, found.persistent_keepalive) for each in given}
    return {
        _peer(each.public_key, each.preshared_key, each.endpoint, each.allowed_ips, each.persistent_keepalive)
        for each in found.peers
        if each.enabled
    }


def _peer(
    public_key: bytes, preshared_key: bytes, endpoint: str | None, allowed_ips: Iterable[object], keepalive: int
) -> Peer:
    preshared = format_key(preshared_key) if any(preshared_key) else NONE
    return Peer(
        format_key(public_key), preshared, endpoint or NONE, frozenset(map(str, allowed_ips)), str(keepalive or "off")
    )


def dumped(text: str) -> tuple[list[str], set[Peer]]:
    """Return the interface's fields and the peers of `wg show dump`."""
    first, *rest = (line.split("\t") for line in text.splitlines())
    return first, {
        Peer(key, preshared, endpoint, frozenset(ips.split(",")) - {NONE}, keepalive)
        for key, preshared, endpoint, ips, _, _, _, keepalive in rest
    }


@pytest.mark.parametrize("name", CASES)
def test_a_file_has_the_same_peers_as_with_wg(tunnel: Tunnel, tmp_path: Path, name: str) -> None:
    content = content_of(name)
    result, path = run_import(content, role_of(name), tmp_path)
    file = tmp_path / "ox.conf"
    file.write_bytes(content)
    bare = tmp_path / "bare"
    strip = subprocess.run(["wg-quick", "strip", str(file)], capture_output=True, check=False, timeout=WAIT_SECS)
    bare.write_bytes(strip.stdout)
    done = run(tunnel.namespace, "wg", "setconf", tunnel.wireguard.name, str(bare))
    accepts = strip.returncode == 0 and done.returncode == 0
    assert accepts == ((result.exit_code == 0 or name in WG_ALONE) and name not in OXIDIZE_ALONE), (done.stderr, result)
    if name in WG_ALONE:
        assert result.exit_code == 2
    elif accepts and name not in BY_HOOKS:
        found = loaded(path)
        (private_key, _, port, _), peers = dumped(tunnel.wireguard.wg("show", tunnel.wireguard.name, "dump"))
        assert format_key(found.private_key) == private_key
        assert peers_of(found) == peers
        if isinstance(found, config.ServerConfig) and re.search(rb"port\s*=\s*[1-9]", content, re.IGNORECASE):
            assert str(found.listen[1]) == port


def interfaces() -> list[str]:
    """Return a case for each different interface that wg-quick accepts."""
    imported = {case for case in CASES if (FOLDER / f"{case}.expected").read_text("utf-8").startswith("exit 0\n")}
    cases = sorted(imported - {*OXIDIZE_ALONE} - BY_HOOKS, reverse=True)
    return sorted({tuple(_INTERFACE.findall(content_of(name))): name for name in cases}.values())


@pytest.mark.parametrize("name", interfaces())
def test_a_file_sets_the_same_interface_as_with_wg_quick(namespace: Namespace, tmp_path: Path, name: str) -> None:
    _, path = run_import(content_of(name), role_of(name), tmp_path)
    found = loaded(path)
    interface = f"ox{secrets.token_hex(5)}"
    file = tmp_path / f"{interface}.conf"
    file.write_bytes(_HOOK.sub(b"", content_of(name)))
    try:
        up = run(namespace, "wg-quick", "up", str(file))
        assert up.returncode == 0, up.stderr
        with namespace.entered(), IPRoute() as netlink:
            (link,) = netlink.get_links(ifname=interface)
            addresses = {
                f"{each.get_attr('IFA_LOCAL') or each.get_attr('IFA_ADDRESS')}/{each['prefixlen']}"
                for each in netlink.get_addr(index=link["index"])
            }
            routes = netlink.get_routes(family=AF_INET) + netlink.get_routes(family=AF_INET6)
        tables = {
            each.get_attr("RTA_TABLE")
            for each in routes
            if each.get_attr("RTA_OIF") == link["index"] and each["proto"] != RTPROT_KERNEL
        }
        mark = run(namespace, "wg", "show", interface, "fwmark").stdout.strip()
        own = {str(address) for address in found.addresses}
        assert {address for address in addresses if not address.startswith("fe80")} == own
        assert link.get_attr("IFLA_MTU") == found.mtu
        if found.table != "auto":
            assert tables == ({found.table} if found.table != "off" else set())
        if re.search(rb"^FwMark", content_of(name), re.MULTILINE):
            assert mark == (hex(found.fwmark) if found.fwmark else "off")
    finally:
        run(namespace, "wg-quick", "down", str(file))
