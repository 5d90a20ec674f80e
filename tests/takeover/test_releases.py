"""Every release in service and the present code replace each other under traffic, and survive each other's deaths."""

import signal
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from oxidize.protocol.constants import BATCH_PACKETS_MAX
from tests.support.traffic.clients import EchoClient, Traffic
from tests.support.traffic.releases import PRESENT, Release
from tests.support.traffic.server import Identity, Lab, Outcome, PeerTable, Server, fault, go_on, kill, stalled_pid
from tests.support.traffic.transport_messages import assert_no_nonce_twice

pytestmark = pytest.mark.handoff

PACKETS_PER_SECOND = 200.0
SITE, SITE_MOVED = "127.0.0.1:9", "127.0.0.1:10"  # where no process answers
EXCHANGES = 3  # from the release in service to the present code and back, each
AFTER_COMMIT = [
    pytest.param("oxidize.takeover.successor:Successor.ready", "after", id="after COMMIT"),
    pytest.param("oxidize.takeover.successor:Successor.taken", "before", id="before TAKEN"),
]


@dataclass(slots=True)
class Bench:
    """A server of some release under traffic, the release in service, and the file that marks a planted fault."""

    lab: Lab
    server: Server
    traffic: Traffic
    golden: Release
    mark: Path

    def reload(self, release: Release) -> None:
        """Replace the server by a process of `release`, by that release's own command; fail unless it serves."""
        before = self.server.status()
        outcome = self.server.reload(release.environ())
        assert outcome.status == 0, f"{outcome}\n{self.server.log_path.read_text()}"
        assert self.lab.wait_ended(before["pid"]) == 0
        status = self.server.status()
        assert status["release"] == release.version
        assert status["generation"] > before["generation"]  # a number of a dead successor is not used again
        self.traffic.wait_for_more()

    def kill_successor(self, release: Release, where: str, when: str) -> Outcome:
        """Begin a reload to `release`, kill the successor at the given step, and return the reload's outcome."""
        reloading = self.server.start_reload(env=release.environ(fault(where, "stall", self.mark, when)))
        kill(stalled_pid(self.mark))
        outcome = self.server.finish_reload(reloading)
        self.mark.unlink()
        self.traffic.wait_for_more()
        return outcome

    def assert_unharmed(self, *, lost_at_most: int = 0) -> None:
        """Fail unless the clients lost nothing more, kept their sessions and saw no nonce twice."""
        assert self.server.status()["sessions"] == len(self.traffic.clients)
        self.traffic.assert_unharmed(lost_at_most=lost_at_most)
        assert_no_nonce_twice(self.traffic.pairs(), at_least=20)


@pytest.fixture
def bench(golden: Release, tmp_path: Path) -> Iterator[Bench]:
    clients = [EchoClient(number) for number in (2, 3)]
    with Lab(tmp_path) as lab:
        site = PeerTable("site", Identity.make().public, ("10.99.0.0/24",), endpoint=SITE)
        server = Server(lab, [*(client.table() for client in clients), site], metrics_listen="127.0.0.1:0")
        server.start(golden.environ(), options=golden.bare_options)
        with Traffic(server, clients, PACKETS_PER_SECOND) as traffic:
            yield Bench(lab, server, traffic, golden, tmp_path / "stalled")


def test_the_present_code_and_a_release_in_service_replace_each_other(bench: Bench) -> None:
    assert bench.golden.version != PRESENT.version
    assert bench.server.status()["release"] == bench.golden.version
    for _ in range(EXCHANGES):
        bench.reload(PRESENT)
        bench.reload(bench.golden)
    bench.assert_unharmed()


def test_an_endpoint_that_was_changed_under_an_older_release_is_used_once_the_present_code_serves(
    bench: Bench,
) -> None:
    """The older release ignores the record of what was configured, and hands it on."""

    def endpoint() -> str:
        return next(str(peer["endpoint"]) for peer in bench.server.status()["peers"] if peer["name"] == "site")

    bench.reload(PRESENT)
    bench.reload(bench.golden)
    assert endpoint() == SITE
    *others, site = bench.server.peers
    bench.server.peers = [*others, replace(site, endpoint=SITE_MOVED)]
    bench.server.write_config()
    bench.reload(PRESENT)
    assert endpoint() == SITE_MOVED
    bench.reload(bench.golden)
    assert endpoint() == SITE_MOVED
    bench.assert_unharmed()


@pytest.mark.parametrize("line", ["enabled = false", "expires = 2001-01-01"])
def test_an_older_release_refuses_a_peer_whose_access_is_limited(bench: Bench, line: str) -> None:
    """It would let the peer in."""
    with bench.server.config_path.open("a") as file:
        file.write(f"{line}\n")  # of the site, the last peer
    bench.reload(PRESENT)
    assert [peer["name"] for peer in bench.server.status()["inactive_peers"]] == ["site"]
    before = bench.server.status()
    outcome = bench.server.reload(bench.golden.environ())
    assert (outcome.status, f"peer.site.{line.partition(' ')[0]}" in outcome.errors) == (2, True), outcome
    after = bench.server.status()
    assert (after["pid"], len(after["takeovers"])) == (before["pid"], len(before["takeovers"]))
    bench.assert_unharmed()


@pytest.mark.parametrize(("where", "when"), AFTER_COMMIT)
def test_a_release_in_service_serves_again_after_a_present_successor_dies(bench: Bench, where: str, when: str) -> None:
    before = bench.server.status()
    assert bench.kill_successor(PRESENT, where, when).status == 1
    after = bench.server.status()
    assert (after["pid"], after["release"]) == (before["pid"], bench.golden.version)
    bench.reload(PRESENT)
    bench.assert_unharmed()


@pytest.mark.parametrize(("where", "when"), AFTER_COMMIT)
def test_the_present_code_serves_again_after_an_older_successor_dies(bench: Bench, where: str, when: str) -> None:
    bench.reload(PRESENT)
    before = bench.server.status()
    assert bench.kill_successor(bench.golden, where, when).status == 1
    after = bench.server.status()
    assert (after["pid"], after["release"]) == (before["pid"], PRESENT.version)
    bench.reload(bench.golden)
    bench.assert_unharmed()


@pytest.mark.parametrize("direction", ["upgrade", "rollback"])
def test_a_successor_of_another_release_inherits_from_a_killed_predecessor(bench: Bench, direction: str) -> None:
    heir = PRESENT
    if direction == "rollback":
        bench.reload(PRESENT)
        heir = bench.golden
    predecessor = bench.server.status()["pid"]
    where, when = "oxidize.takeover.successor:Successor.ready", "before"
    reloading = bench.server.start_reload(env=heir.environ(fault(where, "stall", bench.mark, when)))
    successor = stalled_pid(bench.mark)
    kill(predecessor)
    assert bench.lab.wait_ended(predecessor) == -signal.SIGKILL
    go_on(bench.mark)
    assert bench.server.finish_reload(reloading).status == 0
    status = bench.server.status()
    assert (status["pid"], status["release"]) == (successor, heir.version)
    bench.assert_unharmed(lost_at_most=BATCH_PACKETS_MAX)
