"""The output of `oxidize peer add` and `oxidize import`, used by the unmodified tools that it is made for."""

import json
import subprocess
from pathlib import Path

import pytest

from oxidize import config
from tests.support.traffic.namespaces import set_addresses
from tests.support.traffic.ping import Ping, ping
from tests.support.traffic.server import OXIDIZE, WAIT_SECS, Outcome, b64, wait_for
from tests.support.traffic.site import PORT, Client, Site
from tests.support.traffic.wireguard_go import INNER_MTU

pytestmark = [pytest.mark.root, pytest.mark.needs("wireguard-go", "wg", "wg-quick", "ping")]


def stripped(path: Path) -> str:
    """Return the part of a file that wg-quick passes to wg."""
    done = subprocess.run(["wg-quick", "strip", str(path)], capture_output=True, check=False, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def set_up(client: Client, file: Path, addresses: list[str]) -> None:
    """Configure a client's wireguard-go from a file alone, as `wg-quick up` does."""
    name = client.wireguard.name
    bare = file.with_suffix(".stripped")
    bare.write_text(stripped(file))
    client.wireguard.wg("setconf", name, str(bare))
    set_addresses(client.namespace, name, addresses, INNER_MTU)


def value(text: str, name: str) -> str:
    (line,) = (line for line in text.splitlines() if line.startswith(f"{name} = "))
    return line.partition(" = ")[2]


def newcomer(site: Site) -> Client:
    """Return a client that is no peer of the server."""
    client = Client(site, len(site.clients) + 1, None)
    site.clients.append(client)
    return client


def sessions(site: Site) -> dict[str, bool]:
    listed = site.server.command("peer", "list", "--json")
    assert listed.status == 0, listed
    return {row["name"]: row["has_session"] for row in json.loads(listed.output)}


@pytest.mark.parametrize("more", [(), ("--preshared-key",)], ids=["", "preshared key"])
def test_a_client_added_to_a_running_server_can_ping_at_once(site: Site, tmp_path: Path, more: tuple[str, ...]) -> None:
    old = site.add_client()
    site.server.start()
    old.connect()
    ping(site.lab, old.namespace, Site.SERVER4, 2)
    steady = Ping(site.lab, old.namespace, Site.SERVER4, "steady")
    steady.wait_for_replies(5)
    handshake = old.wireguard.latest_handshake()

    client = newcomer(site)
    added: Outcome = site.server.command(
        *("peer", "add", "laptop", "--format", "conf", "--endpoint", client.server4, *more)
    )
    assert added.status == 0, added
    assert "reloaded: generation 2" in added.errors
    file = tmp_path / "laptop.conf"
    file.write_text(added.output)
    file.chmod(0o600)
    assert value(added.output, "Address") == "10.9.0.3/24, fd09::3/64"
    assert value(added.output, "Endpoint") == f"{client.server4}:{PORT}"
    set_up(client, file, value(added.output, "Address").split(", "))
    for target in (Site.SERVER4, Site.SERVER6):
        ping(site.lab, client.namespace, target, 2)
    assert sessions(site) == {"client-1": True, "laptop": True}
    assert client.wireguard.endpoint() == f"{client.server4}:{PORT}"
    assert value(added.output, "PrivateKey") not in "".join(
        path.read_text(errors="replace") for path in tmp_path.iterdir() if path.is_file() and path.stem != "laptop"
    )

    removed = site.server.command("peer", "remove", "laptop")
    assert removed.status == 0, removed
    assert "its session has ended\n" in removed.errors
    assert "not moved" not in removed.errors
    assert sessions(site) == {"client-1": True}
    steady.wait_for_replies(5)
    result = steady.stop()
    assert (result.lost, result.duplicated, result.errors) == ((), (), ())
    assert old.wireguard.latest_handshake() == handshake


def test_a_client_can_be_added_by_its_public_key(site: Site, tmp_path: Path) -> None:
    site.server.start()
    client = newcomer(site)
    own = b64(client.wireguard.identity.public)
    added = site.server.command(
        *("peer", "add", "laptop", "--public-key", own, "--format", "conf", "--endpoint", f"[{client.server6}]")
    )
    assert added.status == 0, added
    assert "\nPrivateKey" not in added.output
    file = tmp_path / "laptop.conf"
    file.write_text(
        added.output.replace("[Interface]", f"[Interface]\nPrivateKey = {b64(client.wireguard.identity.private)}")
    )
    set_up(client, file, value(added.output, "Address").split(", "))
    ping(site.lab, client.namespace, Site.SERVER6, 2)


def test_a_server_of_wg_quick_serves_its_clients_after_the_import(site: Site, tmp_path: Path) -> None:
    clients = [newcomer(site), newcomer(site)]
    clients[1].preshared_key = bytes(range(32))
    lines = ["[Interface]", f"PrivateKey = {b64(site.server.identity.private)}", f"ListenPort = {PORT}"]
    lines += [f"Address = {Site.SERVER4}/24", f"Address = {Site.SERVER6}/64"]
    for client in clients:
        lines += ["", f"# laptop {client.number}", "[Peer]", f"PublicKey = {b64(client.wireguard.identity.public)}"]
        lines.append(f"AllowedIPs = {client.inner4}, {client.inner6}")
        if client.preshared_key is not None:
            lines.append(f"PresharedKey = {b64(client.preshared_key)}")
    file = tmp_path / "wg0.conf"
    file.write_text("\n".join([*lines, ""]))
    file.chmod(0o600)
    stripped(file)  # wg-quick's own word that it is one
    folder = tmp_path / "imported"
    folder.mkdir()
    target = folder / "server.toml"
    command = [*OXIDIZE, "import", str(file), "-o", str(target)]
    done = subprocess.run(command, capture_output=True, check=False, text=True)
    assert done.returncode == 0, done.stderr
    assert [peer.name for peer in config.load_server(target).peers] == ["laptop-1", "laptop-2"]
    text = target.read_text().replace(
        "[server]", f'[server]\ntakeover_socket = "{site.server.takeover_socket}"\ninterface = "ox-imported"', 1
    )
    target.write_text(text)
    site.server.config_path = target
    site.server.start()
    for client in clients:
        client.connect()
        for address in (Site.SERVER4, Site.SERVER6):
            ping(site.lab, client.namespace, address, 2)


def test_the_printed_commands_set_up_an_oxidize_client(site: Site, tmp_path: Path) -> None:
    site.server.start()
    client = newcomer(site)
    client.wireguard.stop()  # its place is ours
    added = site.server.command(
        *("peer", "add", "laptop", "--preshared-key", "--format", "script", "--endpoint", client.server4)
    )
    assert added.status == 0, added
    folder = tmp_path / "laptop"
    script = added.output.replace("/etc/oxidize", str(folder))
    subprocess.run(["sh"], input=script, text=True, check=True, timeout=WAIT_SECS)
    config_path = folder / "client.toml"
    config_path.write_text(config_path.read_text() + 'takeover_socket = "takeover.sock"\n')
    with client.namespace.entered():
        site.lab.spawn((*OXIDIZE, "client", "--no-holder", "-c", str(config_path)), "laptop")
    wait_for("our client to listen", (folder / "takeover.sock").exists)
    for target in (Site.SERVER4, Site.SERVER6):
        ping(site.lab, client.namespace, target, 2)
    assert sessions(site) == {"laptop": True}
