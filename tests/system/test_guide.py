"""Every command of docs/zero-downtime.md, in order, on one machine under traffic, has the effect that the guide shows.

Rule: no command of the guide is left out. Commands that cannot run here unchanged are named in this file.
"""

from itertools import pairwise
from pathlib import Path

import pytest

from oxidize.protocol.constants import REKEY_AFTER_TIME
from tests.support.traffic.site import Client
from tests.system import building
from tests.system.building import Workshop
from tests.system.service import Service
from tests.system.transcript import ASK_STATUS, INTERRUPTED_STATUS, Command, Names, Shell, blocks, commands

pytestmark = [pytest.mark.handoff, pytest.mark.needs(*building.NEEDED_PROGRAMS)]

GUIDE = building.ROOT / "docs/zero-downtime.md"
ENDLESS = ["sudo oxidize watch", "sudo journalctl -u oxidize-daemon -f"]
CLIENTS = 3
# What an operator changes in an editor.
EDITOR = '#!/bin/sh\nsed -i "/^\\[server\\]/a mtu = 1400" "$1"\n'
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


Node.notify_ready = notify_ready  # type: ignore[method-assign]
""",
    ),
)


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packages of a build, downloaded once for all tests."""
    return building.download(tmp_path_factory.mktemp("build"))


@pytest.fixture
def workshop(service: Service, wheels: Path) -> Workshop:
    return Workshop(service.machine, wheels)


def commands_of_the_guide() -> list[Command]:
    found = list(blocks(GUIDE.read_text()))
    assert {kind for kind, _ in found} == {"console"}, "a block of another kind: are these commands that no test runs?"
    return [command for _, block in found for command in commands(block)]


def expected_status(command: Command, following: Command | None) -> set[int]:
    if command.is_endless:
        return {0, INTERRUPTED_STATUS}
    if following is not None and following.text == ASK_STATUS:
        return {int(following.shown[0])}
    return {0}


def test_every_command_of_the_guide_works_under_traffic(service: Service, workshop: Workshop) -> None:
    guide = commands_of_the_guide()
    assert [command.text for command in guide if command.is_endless] == ENDLESS
    others = [Client(service, number, None) for number in range(2, CLIENTS + 1)]  # type: ignore[arg-type]
    service.peers += [client.table() for client in others]
    service.write_config(drain_timeout_secs=3)
    service.start()
    for client in others:
        client.connect(keepalive=1)
    service.machine.wait_for("all sessions", lambda: service.status()["sessions"] == CLIENTS)
    workshop.put_program("editor", EDITOR)
    commits, names = iter(COMMITS), Names()
    shook_hands, traffic = [service.handshake()], service.traffic()
    with Shell(workshop.command("bash"), workshop.interrupt) as shell:
        for command, following in zip(guide, [*guide[1:], None], strict=True):
            if command.text.startswith("git pull"):
                workshop.publish(*next(commits))
            status, printed = shell.run(command, names.translated(command.text))
            assert status in expected_status(command, following), f"{command.text}: {status}\n{printed}"
            names.match(command.shown, printed)
            shook_hands.append(service.handshake())
    traffic.wait_until_caught_up()
    traffic.stop().assert_unharmed()
    assert next(commits, None) is None
    # On a slow machine all this may take longer than the age at which a session is renewed; none is before.
    renewals = [(before, now) for before, now in pairwise(shook_hands) if now != before]
    assert all(now - before >= REKEY_AFTER_TIME for before, now in renewals), renewals
    assert service.machine.show("NRestarts") == "0"
