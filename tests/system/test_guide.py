"""Every command of the documents for operators, in its order, on machines with a booted systemd.

Rule: no command of a document is left out. Commands that cannot run here unchanged are named in this file.
"""

import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import pytest

from oxidize.protocol.constants import REKEY_AFTER_TIME
from tests.support.traffic.namespaces import Namespace, join, set_addresses
from tests.support.traffic.server import Lab
from tests.support.traffic.site import Client
from tests.system import building
from tests.system.building import Workshop
from tests.system.machine import Machine
from tests.system.service import CONFIG, OXIDIZE, Service
from tests.system.traffic import BESIDE_DEPLOYMENTS
from tests.system.transcript import ASK_STATUS, INTERRUPTED_STATUS, Command, Names, Shell, blocks, commands

pytestmark = [pytest.mark.handoff, pytest.mark.needs(*building.NEEDED_PROGRAMS)]

DOCUMENTS = building.ROOT / "docs"
CLIENTS = 3
# What an operator changes in an editor: each call makes the next of these changes.
EDITOR = """#!/bin/sh
if ! grep -q '^public_endpoint' "$1" && test -e /srv/server.toml; then cp /srv/server.toml "$1"
elif ! grep -q '^mtu' "$1"; then sed -i '/^\\[server\\]\\|^\\[client\\]/a mtu = 1400' "$1"
else sed -i '/^\\[server\\]/a nat = true' "$1"
fi
"""
# The laptop of the client's document has no ssh to a real server: this one prints what the command printed there.
SSH = "#!/bin/sh\ncat /srv/printed-by-the-server\n"
# What others have committed since the last `git pull`, one after the other.
COMMITS = (
    ("README.md", "\nA better release.\n"),
    (
        "oxidize/runtime/node.py",
        """
_notify_ready = Node.notify_ready


def notify_ready(self: Node) -> None:
    _notify_ready(self)
    log.error("what this release does is wrong")


Node.notify_ready = notify_ready
""",
    ),
)


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packages of a build, downloaded once for all tests."""
    return building.download(tmp_path_factory.mktemp("build"))


@pytest.fixture
def workshop(service: Service, wheels: Path) -> Workshop:
    workshop = Workshop(service.machine, wheels)
    workshop.put_program("editor", EDITOR)
    return workshop


@dataclass
class Document:
    """A document of `docs/`: its commands in console blocks, and its other blocks by their kind."""

    name: str
    commands: list[Command] = field(default_factory=list)
    others: dict[str, list[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for kind, block in blocks((DOCUMENTS / self.name).read_text()):
            if kind == "console":
                self.commands += commands(block)
            else:
                self.others.setdefault(kind, []).append(block)

    def run(self, workshop: Workshop, before_each: Callable[[Command], None], after_each: Callable[[], None]) -> None:
        """Run every command, and compare its exit status and its output with what the document shows."""
        names = Names()
        with Shell(workshop.command("bash"), workshop.interrupt) as shell:
            for command, following in zip(self.commands, [*self.commands[1:], None], strict=True):
                before_each(command)
                status, printed = shell.run(command, names.translated(command.text))
                assert status in _expected_status(command, following), f"{command.text}: {status}\n{printed}"
                names.match(command.shown, printed)
                after_each()


def _expected_status(command: Command, following: Command | None) -> set[int]:
    if command.is_endless:
        return {0, INTERRUPTED_STATUS}
    if following is not None and following.text == ASK_STATUS:
        return {int(following.shown[0])}
    return {0}


def test_every_command_of_the_guide_to_deployments_under_traffic(service: Service, workshop: Workshop) -> None:
    guide = Document("zero-downtime.md")
    assert guide.others == {}, "a block of another kind: are these commands that no test runs?"
    endless = [command.text for command in guide.commands if command.is_endless]
    assert endless == ["sudo oxidize watch", "sudo journalctl -u oxidize-daemon -f"]
    others = [Client(service, number, None) for number in range(2, CLIENTS + 1)]
    service.peers += [client.table() for client in others]
    service.write_config(drain_timeout_secs=3)
    service.start()
    for client in others:
        client.connect(keepalive=1)
    service.machine.wait_for("all sessions", lambda: service.status()["sessions"] == CLIENTS)
    commits = iter(COMMITS)
    shook_hands, traffic = [service.handshake()], service.traffic(BESIDE_DEPLOYMENTS)

    def publish(command: Command) -> None:
        if command.text.startswith("git pull"):
            workshop.publish(*next(commits))

    guide.run(workshop, publish, lambda: shook_hands.append(service.handshake()))
    traffic.wait_until_caught_up()
    traffic.stop().assert_unharmed()
    assert next(commits, None) is None
    # On a slow machine all this may take longer than the age at which a session is renewed; none is before.
    renewals = [(before, now) for before, now in pairwise(shook_hands) if now != before]
    assert all(now - before >= REKEY_AFTER_TIME for before, now in renewals), renewals
    assert service.machine.show("NRestarts") == "0"


@pytest.mark.needs("nft", "ss")
def test_every_command_for_operating_a_server(service: Service, workshop: Workshop) -> None:
    document = Document("operations.md")
    configuration, translation = document.others.pop("toml")
    assert document.others == {}, "a block of another kind: are these commands that no test runs?"
    assert all(not command.is_endless for command in document.commands)
    assert "nat" in tomllib.loads(configuration + translation)["server"]
    machine = service.machine
    machine.run("rm", f"/{CONFIG}", "/etc/oxidize/server.key")  # `make install` puts an example there
    (machine.root / "srv/server.toml").write_text(configuration)
    document.run(workshop, lambda command: None, lambda: None)
    assert machine.try_run("ls", "/opt/oxidize").status != 0, "make uninstall left something"


@dataclass
class Laptop:
    """A booted machine beside the server's, with an operator and a checkout, and a name for the server."""

    machine: Machine
    workshop: Workshop


@pytest.fixture
def laptop(service: Service, seed: Path, wheels: Path, tmp_path: Path) -> Laptop:
    folder = tmp_path / "laptop"
    folder.mkdir()
    lab = Lab(folder)  # files of its own; its processes end with those of the server's lab
    service.lab.stack.callback(lab.stack.close)
    namespace = Namespace(lab.stack)
    join(service.namespace, "laptop0", namespace, "outer0")
    set_addresses(service.namespace, "laptop0", ["198.51.100.1/24"])
    set_addresses(namespace, "outer0", ["198.51.100.2/24"])
    machine = Machine(lab, namespace, seed)
    with (machine.root / "etc/hosts").open("a") as hosts:
        hosts.write("198.51.100.1 vpn.example.org\n")
    workshop = Workshop(machine, wheels)
    workshop.put_program("editor", EDITOR)
    workshop.put_program("ssh", SSH)
    return Laptop(machine, workshop)


@pytest.mark.needs("ping")
def test_every_command_for_a_client(service: Service, laptop: Laptop) -> None:
    document = Document("client.md")
    assert document.others == {}, "a block of another kind: are these commands that no test runs?"
    service.write_config(public_endpoint="vpn.example.org")
    service.start()
    (asked,) = (command.text for command in document.commands if command.text.startswith("ssh "))
    on_server = asked.removeprefix("ssh root@vpn.example.org oxidize ").removesuffix(" | sudo sh")
    printed = service.machine.run(OXIDIZE, *on_server.split())
    (laptop.machine.root / "srv/printed-by-the-server").write_text(printed)
    document.run(laptop.workshop, lambda command: None, lambda: None)
    (found,) = (peer for peer in service.status()["peers"] if peer["name"] == "laptop")
    assert found["has_session"]
