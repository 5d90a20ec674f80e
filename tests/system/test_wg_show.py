"""`wg show` on an installed service: by a socket that systemd makes, where the service itself may not write."""

import pytest

from tests.support.traffic.server import b64
from tests.system.machine import DAEMON, UNITS
from tests.system.service import Service
from tests.system.traffic import BESIDE_DEPLOYMENTS

pytestmark = pytest.mark.handoff

INTERFACE = "oxidize0"
SOCKET = f"/run/wireguard/{INTERFACE}.sock"
WG_UNIT = "oxidize-wg.socket"
LOOKS = 5  # of wg in each part
OTHER_NAME = f"[Socket]\nListenStream=\nListenStream=/run/wireguard/{INTERFACE}x.sock\n"


def assert_shown(service: Service) -> None:
    """Fail unless wg shows the service and its client, as often as it is asked."""
    key = b64(service.client.wireguard.identity.public)
    for _ in range(LOOKS):
        shown = service.machine.run("wg", "show", INTERFACE, "dump").splitlines()
        assert shown[0].split("\t")[1] == b64(service.identity.public)
        assert [line.split("\t")[0] for line in shown[1:]] == [key]


def test_wg_shows_the_service_through_reload_restart_and_crash_and_starts_none(service: Service) -> None:
    machine = service.machine
    service.start()
    handshake, traffic = service.handshake(), service.traffic(BESIDE_DEPLOYMENTS)
    assert_shown(service)
    assert machine.run("stat", "-c", "%a %U", "/run/wireguard", SOCKET).split() == ["700", "root", "600", "root"]
    assert machine.try_run("setpriv", "--reuid=oxidize", "--clear-groups", "wg", "show", INTERFACE).status != 0
    assert service.status()["wg_problem"] is None

    pid = machine.main_pid()
    for step in (("reload", DAEMON), ("restart", DAEMON), ("reload", DAEMON)):
        machine.systemctl(*step)
        pid = service.wait_for_main_process(other_than=pid)
        assert_shown(service)
    machine.kill(pid)
    pid = service.wait_for_main_process(other_than=pid)
    assert_shown(service)

    # As after a takeover from an older release, which was passed no such socket: a restart passes it.
    machine.systemctl("stop", WG_UNIT)
    assert INTERFACE not in machine.run("wg", "show", "interfaces")
    assert machine.show("ActiveState") == "active"
    machine.systemctl("restart", DAEMON)
    service.wait_for_main_process(other_than=pid)
    assert_shown(service)

    traffic.wait_until_caught_up(forgiven=64)
    traffic.stop().assert_unharmed(crashes=1)
    assert service.handshake() == handshake

    # A stopped service is not started by a look, and there is nothing to look at.
    machine.systemctl("stop", *UNITS)
    assert INTERFACE not in machine.run("wg", "show", "interfaces")
    assert machine.show("ActiveState") == "inactive"
    assert machine.try_run("stat", SOCKET).status != 0


def test_a_socket_of_another_name_is_told_and_leaves_no_look_waiting(service: Service) -> None:
    machine = service.machine
    folder = machine.root / f"etc/systemd/system/{WG_UNIT}.d"
    folder.mkdir()
    (folder / "name.conf").write_text(OTHER_NAME)
    machine.systemctl("daemon-reload")
    service.start()
    looked = machine.try_run("wg", "show", f"{INTERFACE}x", seconds=20)
    assert (looked.status, looked.errors) == (1, "Unable to access interface: No such device\n")
    assert f"listens at /run/wireguard/{INTERFACE}x.sock: expected" in str(service.status()["wg_problem"])
    (folder / "name.conf").unlink()
    machine.systemctl("daemon-reload")
    machine.systemctl("restart", DAEMON)
    assert_shown(service)
