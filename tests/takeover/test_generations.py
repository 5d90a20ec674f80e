"""Two hundred generations of one server under traffic: no loss, no reused nonce, and no resource that grows."""

from pathlib import Path

import pytest

from oxidize.protocol.constants import REKEY_AFTER_TIME
from oxidize.protocol.counters import Total
from tests.support.traffic.clients import EchoClient, Traffic, clock
from tests.support.traffic.server import Footprint, Lab, Server, is_gone
from tests.support.traffic.transport_messages import assert_no_nonce_twice

pytestmark = pytest.mark.handoff

GENERATIONS = 200
PACKETS_PER_SECOND = 100.0


def test_two_hundred_generations_lose_nothing_and_grow_by_nothing(tmp_path: Path) -> None:
    clients = [EchoClient(number) for number in range(2, 7)]
    with Lab(tmp_path) as lab:
        server = Server(lab, [client.table() for client in clients], metrics_listen="127.0.0.1:0")
        pids = [server.start()]
        footprints: list[Footprint] = []
        with Traffic(server, clients, PACKETS_PER_SECOND) as traffic:
            started = clock()
            for _ in range(GENERATIONS):
                pids.append(server.replace(here=True)["pid"])
                traffic.wait_for_more(len(clients))
                footprints.append(Footprint.of(pids[-1]))
            traffic.stop()
            assert_no_nonce_twice(traffic.pairs(), at_least=GENERATIONS * len(clients))
            assert (traffic.lost, [client.duplicated for client in clients]) == (0, [0] * len(clients))
            status = server.status()
            received = sum(len(client.datagrams) for client in clients)

        # Nothing that the server sent escaped the clients' eyes: its own count says so.
        assert received == status["totals"][Total.SENT_DATAGRAMS.name.lower()]
        assert status["generation"] == GENERATIONS + 1
        assert status["sessions"] == len(clients)
        assert status["totals"]["takeovers_succeeded"] == GENERATIONS
        assert status["totals"]["errors_logged"] == 0
        # All of it takes longer than a key is used: each client renews its own.
        rekeys = int((clock() - started) / REKEY_AFTER_TIME) + 1
        assert all(client.handshakes <= 1 + rekeys for client in clients)
        footprints[-1].assert_no_larger_than(footprints[0])
        assert all(is_gone(pid) for pid in pids[:-1])
        assert server.processes() == {pids[-1]}
