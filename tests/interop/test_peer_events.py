"""The log names a client that connects, and that is at another address since."""

import time
from pathlib import Path

import pytest

from oxidize.runtime.peer_events import FIRST_SECS
from tests.support.traffic.server import Lab, wait_for
from tests.support.traffic.site import Site

pytestmark = [pytest.mark.root, pytest.mark.needs("wireguard-go", "wg")]


def test_the_log_says_who_connects_and_who_moves_and_nothing_again_after_a_reload(tmp_path: Path) -> None:
    with Lab(tmp_path) as lab:
        site = Site(lab)
        client, server = site.add_client(), site.server
        server.start()
        client.connect(keepalive=1)
        port = client.wireguard.listen_port()
        connected = f"a peer has connected peer=client-1 endpoint={client.outer4}:{port}"
        wait_for("the line of a peer that connects", lambda: connected in server.log_path.read_text())
        with site.namespace.entered():
            server.replace()
        time.sleep(2 * FIRST_SECS)  # a move before the first look is no event
        client.connect(ipv6=True, keepalive=1)
        moved = f"a peer has moved peer=client-1 endpoint=[{client.outer6}]:{port}"
        wait_for("the line of a peer that moves", lambda: moved in server.log_path.read_text())
        assert server.log_path.read_text().count("a peer has connected") == 1
