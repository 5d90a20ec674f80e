"""Real servers whose peers have names that no resolver answers: they start, reload and serve all the same."""

from pathlib import Path

from tests.support.traffic.clients import EchoClient, Traffic
from tests.support.traffic.server import Identity, Lab, PeerTable, Server

NAMES = 20
NAME = "site{}.oxidize-test.invalid:51820"  # RFC 6761, section 6.4: no name server has it
SITES = [f"site{number}" for number in range(1, NAMES + 1)]


def tables() -> list[PeerTable]:
    """Return peers with dead names."""
    return [
        PeerTable(name, Identity.make().public, (f"10.99.0.{number}/32",), endpoint=NAME.format(number))
        for number, name in enumerate(SITES, start=1)
    ]


def waiting(server: Server) -> list[str]:
    return [peer["name"] for peer in server.status()["peers"] if peer["waits_for_name"]]


def test_dead_names_stop_neither_a_start_nor_a_reload_nor_the_other_peers(tmp_path: Path, client: EchoClient) -> None:
    with Lab(tmp_path) as lab:
        server = Server(lab, [client.table(), *tables()])
        server.start()
        client.connect(server)
        assert waiting(server) == SITES
        with Traffic(server, [client], packets_per_second=200) as traffic:
            traffic.wait_for_more()
            done = server.reload()
            traffic.wait_for_more()
            traffic.stop()
            traffic.assert_unharmed()
        assert done.status == 0, done
        assert waiting(server) == SITES
        assert f"site1 for {NAME.format(1)}: " in server.command("status").output
        assert server.command("peer", "list").status == 0
