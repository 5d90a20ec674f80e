"""A private key that was changed in its file: a reload takes it up and says so, and a deployment is refused."""

import pytest

from tests.support.traffic.ping import ping
from tests.support.traffic.server import Identity, b64
from tests.support.traffic.site import Site
from tests.system.machine import DAEMON
from tests.system.service import OXIDIZE, Service

pytestmark = pytest.mark.handoff

CHANGED = "the private key has changed"


def send_one(service: Service) -> None:
    """Send a request, whether or not an answer comes."""
    with service.client.namespace.entered():
        service.lab.wait_ended(service.lab.spawn(("/usr/bin/ping", "-c", "1", "-W", "1", Site.SERVER4), "unanswered"))


def drops(service: Service, reason: str) -> int:
    return int(service.status()["drops"][reason])


def test_a_changed_private_key_stops_a_deployment_is_taken_up_by_a_reload_and_survives_a_crash(
    service: Service,
) -> None:
    machine, wireguard = service.machine, service.client.wireguard
    service.start()
    before, service.identity = service.identity, Identity.make()
    service.put_key()
    checked = machine.try_run(OXIDIZE, "check")
    assert checked.status == 0
    for text in (f"{CHANGED}: a reload ends all sessions", b64(before.public), b64(service.identity.public)):
        assert text in checked.errors
    ping(service.lab, service.client.namespace, Site.SERVER4, 2)

    # A deployment is no reason to end sessions, so it asks first.
    service.add_release("good")
    pid, current = machine.main_pid(), service.current()
    refused = machine.try_run(OXIDIZE, "deploy", "--release=good", "--settle=3", seconds=60)
    assert refused.status == 1
    assert f"it would keep 0 of 1 session (1 {CHANGED}); --force continues anyway" in refused.errors
    assert (service.wait_for_main_process(), service.current()) == (pid, current)
    assert service.status()["public_key"] == b64(before.public)
    ping(service.lab, service.client.namespace, Site.SERVER4, 2)

    machine.systemctl("reload", DAEMON)
    pid = service.wait_for_main_process(other_than=pid)
    assert service.status()["public_key"] == b64(service.identity.public)
    log = machine.journal()
    assert f"{CHANGED}: a reload ends all sessions" in log
    assert f"{CHANGED}: 1 session ended" in log

    send_one(service)  # in the session of the old key
    assert drops(service, "unknown_index") > 0
    wireguard.wg("set", wireguard.name, "peer", b64(before.public), "remove")
    service.identity, after = before, service.identity
    service.client.connect()
    send_one(service)  # a handshake with the old key
    service.identity = after
    assert drops(service, "mac1_invalid") > 0
    assert service.status()["sessions"] == 0

    wireguard.wg("set", wireguard.name, "peer", b64(before.public), "remove")
    service.client.connect()
    ping(service.lab, service.client.namespace, Site.SERVER4, 2)
    handshake = service.handshake()
    machine.kill(pid)
    service.wait_for_main_process(other_than=pid)
    ping(service.lab, service.client.namespace, Site.SERVER4, 2)
    machine.systemctl("reload", DAEMON)
    ping(service.lab, service.client.namespace, Site.SERVER4, 2)
    assert service.handshake() == handshake
