"""Debian's unmodified wg looks at a server and at a client, and finds what `oxidize status` says."""

import os
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from oxidize.runtime.uapi_socket import FIRST_PAUSE_SECS
from tests.support.traffic.namespaces import Namespace
from tests.support.traffic.oxidize_client import OxidizeClient
from tests.support.traffic.ping import ping
from tests.support.traffic.releases import Release
from tests.support.traffic.server import WAIT_SECS, Identity, Lab, Outcome, Server, b64, kill, wait_for
from tests.support.traffic.shared_site import SharedSite
from tests.support.traffic.site import PORT, Client, Site
from tests.support.traffic.wireguard_go import CONTROL

pytestmark = [pytest.mark.root, pytest.mark.needs("wireguard-go", "wg", "ping")]

KEEPALIVE_SECS = 21
PRESHARED = bytes([9]) * 32
RELOADS = 3
NOT_SUPPORTED = "Operation not supported"


def wg(*arguments: str) -> Outcome:
    done = subprocess.run(["/usr/bin/wg", *arguments], capture_output=True, check=False, text=True, timeout=WAIT_SECS)
    return Outcome(done.returncode, done.stdout, done.stderr)


def show(*arguments: str) -> list[str]:
    """Return the lines of a look that must succeed."""
    outcome = wg(*arguments)
    assert outcome.status == 0, outcome
    return outcome.output.splitlines()


def is_shown(interface: str) -> bool:
    return interface in " ".join(show("show", "interfaces")).split()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedSite]:
    """A server with two clients that have a session, the second one with a pre-shared key, and a peer never heard."""
    with Lab(tmp_path_factory.mktemp("wg")) as lab:
        made = SharedSite(lab, clients=2)
        first, second = made.clients
        second.preshared_key = PRESHARED
        made.join_all()
        made.configure(
            first.table(keepalive=KEEPALIVE_SECS),
            second.table(),
            replace(first.table(), name="silent", public_key=Identity.make().public, allowed_ips=("10.9.0.77/32",)),
        )
        for client in made.clients:
            ping(lab, client.namespace, Site.SERVER4, 2)
            wait_until_arrived(client)
        yield made


def wait_until_arrived(client: Client) -> None:
    """Wait until a client has counted all that the server has sent to it."""
    sent = client.peer_status()["sent_bytes"]
    wait_for("all that was sent", lambda: client.wireguard.transfer()[0] == sent)


def wait_for_look(interface: str, *, is_there: bool) -> None:
    """Wait until wg shows an interface, or does not."""
    wait_for(f"{interface} shown: {is_there}", lambda: is_shown(interface) == is_there)


def interface_of(server: Server) -> str:
    return str(server.status()["interface"])


def dump_of(interface: str) -> tuple[list[str], list[list[str]]]:
    """Return the fields of an interface and of its peers, as exporters read them from `wg show all dump`."""
    lines = [line.split("\t") for line in show("show", "all", "dump")]
    own = [fields[1:] for fields in lines if fields[0] == interface]
    assert [len(fields) for fields in own] == [4] + [8] * (len(own) - 1)
    return own[0], own[1:]


# --- What is shown ---


def test_the_dump_that_exporters_parse_says_what_the_status_says(site: SharedSite) -> None:
    server, status = site.server, site.server.status()
    own, peers = dump_of(status["interface"])
    assert own == [b64(server.identity.private), status["public_key"], str(PORT), "off"]
    preshared = {client.table().name: client.preshared_key for client in site.clients}
    expected = [
        [
            peer["public_key"],
            b64(key) if (key := preshared.get(peer["name"])) is not None else "(none)",
            peer["endpoint"] or "(none)",
            ",".join(peer["allowed_ips"]),
            str(int(peer["last_handshake_unix"])),
            str(peer["received_bytes"]),
            str(peer["sent_bytes"]),
            str(int(peer["persistent_keepalive_secs"])) if peer["persistent_keepalive_secs"] else "off",
        ]
        for peer in status["peers"]
    ]
    assert sorted(peers) == sorted(expected)
    assert all(int(fields[4]) and int(fields[5]) and int(fields[6]) for fields in peers if fields[2] != "(none)")


@pytest.mark.parametrize(
    ("what", "field"),
    [("latest-handshakes", 4), ("endpoints", 2), ("preshared-keys", 1), ("persistent-keepalive", 7)],
)
def test_each_look_at_one_thing_says_what_the_dump_says(site: SharedSite, what: str, field: int) -> None:
    interface = interface_of(site.server)
    _, peers = dump_of(interface)
    shown = [line.split("\t") for line in show("show", interface, what)]
    assert sorted(shown) == sorted([fields[0], fields[field]] for fields in peers)


def test_both_ends_have_counted_the_same(site: SharedSite) -> None:
    shown = {line.split("\t")[0]: line.split("\t")[1:] for line in show("show", interface_of(site.server), "transfer")}
    for client in site.clients:
        received, sent = map(int, shown[b64(client.wireguard.identity.public)])
        assert (sent, received) == client.wireguard.transfer()
    allowed = show("show", interface_of(site.server), "allowed-ips")
    assert any(line.endswith("\t10.9.0.2/32 fd09::2/128") for line in allowed)


def test_the_page_for_people_hides_the_private_key(site: SharedSite) -> None:
    shown = "\n".join(show("show", interface_of(site.server)))
    assert f"  public key: {b64(site.server.identity.public)}\n  private key: (hidden)\n" in shown
    assert f"listening port: {PORT}" in shown
    assert "latest handshake: " in shown
    assert b64(site.server.identity.private) not in shown


def test_what_showconf_prints_configures_another_wireguard(site: SharedSite, tmp_path: Path) -> None:
    file = tmp_path / "shown.conf"
    file.touch(mode=0o600)
    file.write_text("\n".join(show("showconf", interface_of(site.server))) + "\n")
    copy = site.clients[0].wireguard
    before = show("showconf", copy.name)
    try:
        copy.wg("set", copy.name, "listen-port", "0")
        copy.wg("setconf", copy.name, str(file))
        assert sorted(show("showconf", copy.name)) == sorted(file.read_text().splitlines())
    finally:
        file.write_text("\n".join(before) + "\n")
        copy.wg("setconf", copy.name, str(file))


# --- What is refused ---


def test_nothing_can_be_changed_and_the_log_has_the_command_to_use(site: SharedSite, tmp_path: Path) -> None:
    interface, secret = interface_of(site.server), tmp_path / "secret"
    secret.touch(mode=0o600)
    secret.write_text(b64(Identity.make().private))
    conf = tmp_path / "new.conf"
    conf.touch(mode=0o600)
    peers = "".join(
        f"[Peer]\nPublicKey = {b64(Identity.make().public)}\nAllowedIPs = 10.8.{n // 256}.{n % 256}/32\n"
        for n in range(5000)
    )
    conf.write_text(f"[Interface]\nPrivateKey = {secret.read_text()}\n{peers}")
    before = show("showconf", interface)
    for arguments in (
        ("set", interface, "private-key", str(secret)),
        ("set", interface, "peer", b64(site.clients[0].wireguard.identity.public), "remove"),
        ("setconf", interface, str(conf)),
        ("addconf", interface, str(conf)),
    ):
        refused = wg(*arguments)
        assert refused.status == 1
        assert NOT_SUPPORTED in refused.errors, refused
    assert show("showconf", interface) == before
    log = site.server.log_path.read_text()
    assert log.count("wg can change nothing here") == 1
    assert "edit server.toml, then `oxidize reload`" in log
    assert secret.read_text() not in log


# --- Replacements ---


def test_a_look_is_answered_at_every_moment_of_a_reload(site: SharedSite) -> None:
    interface = interface_of(site.server)
    path = CONTROL / f"{interface}.sock"
    inode, looks = path.stat().st_ino, 0
    for number in range(RELOADS):
        reload = site.server.start_reload(f"reload{number}")
        while not (site.lab.folder / f"reload{number}.out").read_text():
            (own, *_) = show("show", interface, "dump")
            assert own.split("\t")[1] == b64(site.server.identity.public)
            looks += 1
        assert site.server.finish_reload(reload, f"reload{number}").status == 0
    assert looks > RELOADS
    assert path.stat().st_ino == inode


def test_a_crash_leaves_a_path_that_the_next_start_takes_and_a_stop_removes_it(tmp_path: Path) -> None:
    with Lab(tmp_path) as lab:
        server = Site(lab).server
        pid = server.start()
        interface = interface_of(server)
        path = CONTROL / f"{interface}.sock"
        wait_for("the socket", path.exists)
        kill(pid)
        lab.wait_ended(pid)
        assert path.exists()
        server.start()
        wait_for("an answer", lambda: is_shown(interface))
        end(server)
        assert not path.exists()


def test_two_servers_with_one_name_leave_the_first_ones_socket_to_it(tmp_path: Path) -> None:
    with Lab(tmp_path) as lab:
        for folder in ("one", "two"):
            (tmp_path / folder).mkdir()
        first = Site(_inside(lab, tmp_path / "one")).server
        other = Site(_inside(lab, tmp_path / "two")).server
        first.start()
        interface = interface_of(first)
        wait_for("the first one", lambda: is_shown(interface))
        other.write_config(interface=interface)
        other.start()
        wait_for("the problem of the other", lambda: other.status()["wg_problem"])
        assert "another process listens" in other.status()["wg_problem"]
        assert "`wg show` does not find it" in other.command("status").output
        (own, *_) = show("show", interface, "dump")
        assert own.split("\t")[1] == b64(first.identity.public)
        end(first)
        wait_for("the other one", lambda: is_shown(interface), WAIT_SECS + 2 * FIRST_PAUSE_SECS)
        (own, *_) = show("show", interface, "dump")
        assert own.split("\t")[1] == b64(other.identity.public)
        assert other.status()["wg_problem"] is None
        end(other)
        assert not (CONTROL / f"{interface}.sock").exists()


def end(server: Server) -> None:
    """End a server without sessions, which has nothing to drain."""
    pid = server.status()["pid"]
    kill(pid, signal.SIGTERM)
    assert server.lab.wait_ended(pid) == 0


def _inside(lab: Lab, folder: Path) -> Lab:
    """Return a laboratory that ends with another one, and has a folder of its own."""
    inner = Lab(folder)
    inner.stack = lab.stack
    return inner


def test_an_older_release_leaves_no_look_waiting_and_the_present_one_is_shown_again(
    golden: Release, tmp_path: Path
) -> None:
    with Lab(tmp_path) as lab:
        server = Site(lab).server
        server.start(golden.environ(), options=golden.bare_options)
        interface = interface_of(server)
        assert not is_shown(interface)
        for release, shown in ((None, True), (golden, False), (None, True)):
            before = server.status()["pid"]
            outcome = server.reload(release.environ() if release is not None else None)
            assert outcome.status == 0, outcome
            assert lab.wait_ended(before) == 0
            wait_for_look(interface, is_there=shown)
        end(server)


# --- A client ---


def test_a_client_is_shown_as_a_server_is(site: SharedSite, tmp_path: Path) -> None:
    """The client's own namespace has no part in it: wg finds the path."""
    with Lab(tmp_path) as lab:
        namespace = Namespace(lab.stack)
        identity = Identity.make()
        client = OxidizeClient(
            lab,
            "192.0.2.1:9",
            site.server.identity.public,
            address=["10.9.0.200/32"],
            allowed_ips=["10.9.0.0/24"],
            inside=namespace.entered,
            identity=identity,
            interface=f"ox{os.urandom(4).hex()}",
            persistent_keepalive=KEEPALIVE_SECS,
            metrics_listen="",
        )
        pid = client.spawn()
        name = str(client._options["interface"])
        wait_for("the client", lambda: is_shown(name))
        own, ((key, _, endpoint, allowed, *_, keepalive),) = dump_of(name)
        assert own[:2] == [b64(identity.private), b64(identity.public)]
        assert (key, endpoint, allowed, keepalive) == (
            b64(site.server.identity.public), "192.0.2.1:9", "10.9.0.0/24", str(KEEPALIVE_SECS)
        )  # fmt: skip
        assert NOT_SUPPORTED in wg("set", name, "listen-port", "3").errors
        assert "edit client.toml, then `oxidize reload --client`" in client.log
        kill(pid, signal.SIGTERM)
        wait_for("the path to be removed", lambda: not (CONTROL / f"{name}.sock").exists())
