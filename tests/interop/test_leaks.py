"""What passes a client's machine past its tunnel: nothing leaves in the clear, or enters for the tunnel's address.

The server is Debian's wireguard-go.
"""

import contextlib
import os
import secrets
import signal
import socket
import struct
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from oxidize.cli.common import GAVE_UP_STATUS
from oxidize.errors import OxidizeError
from tests.support.traffic.leaks import Leaks, Senders
from tests.support.traffic.nftables import nft, tables
from tests.support.traffic.ping import ping
from tests.support.traffic.routed_client import EVERYTHING, FAR4, FAR6, NEAR4, NEAR6, Place
from tests.support.traffic.server import OXIDIZE, Lab, kill, wait_for

pytestmark = [pytest.mark.root, pytest.mark.needs("wireguard-go", "wg", "ping", "ip", "nft")]

KILLS = 5


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    with Lab(tmp_path) as lab:
        yield lab


def routed_for_neighbours(lab: Lab, *, ipv6: bool = False) -> Place:
    """Return a place where the client's machine forwards its neighbour's packets, too."""
    place = Place(lab, ipv6=ipv6)
    place.sysctl("ipv4/ip_forward", 1)
    place.sysctl("ipv6/conf/all/forwarding", 1)
    with place.near.entered():
        subprocess.run(["ip", "route", "add", "default", "via", "192.168.7.2"], check=True)
        subprocess.run(["ip", "-6", "route", "add", "default", "via", "fd07::2"], check=True)
    return place


# --- The kill switch ---


def remove_rules(place: Place) -> None:
    for family in ("-4", "-6"):
        place.ip(family, "rule", "flush", "proto", "151")


def flush_routes(place: Place) -> None:
    for family in ("-4", "-6"):
        place.ip(family, "route", "flush", "proto", "151", "table", "all")


def set_down(place: Place) -> None:
    place.ip("link", "set", place.interface, "down")


def set_up(place: Place) -> None:
    place.ip("link", "set", place.interface, "up")


def flush_addresses(place: Place) -> None:
    place.ip("address", "flush", "dev", place.interface)


def restart_uplink(place: Place) -> None:
    place.ip("link", "set", "up0", "down")
    place.ip("link", "set", "up0", "up")
    place.ip("-6", "address", "replace", "2001:db8:1::2/64", "dev", "up0", "nodad")
    place.ip("route", "replace", "default", "via", "192.0.2.1")
    place.ip("-6", "route", "replace", "default", "via", "2001:db8:1::1")


def silence_the_server(place: Place) -> None:
    place.server.wg("set", place.server.name, "listen-port", "51999")


def end_the_silence(place: Place) -> None:
    place.server.wg("set", place.server.name, "listen-port", "51820")


def join_another_network(place: Place) -> None:
    place.ip("address", "add", "172.20.1.2/16", "dev", "lan0")


def reload(place: Place) -> None:
    place.client.replace()


def reload_with_another_mark(place: Place) -> None:
    place.client.write_config(kill_switch=True, fwmark=4711)
    place.client.replace()


def reload_with_another_interface(place: Place) -> None:
    place.interface = f"ox{secrets.token_hex(5)}"
    place.client.write_config(kill_switch=True, interface=place.interface)
    place.client.replace()


DISTURBANCES: tuple[Callable[[Place], None], ...] = (
    remove_rules,
    flush_routes,
    reload,
    set_down,
    set_up,
    flush_addresses,
    restart_uplink,
    silence_the_server,
    end_the_silence,
    join_another_network,
    reload_with_another_mark,
    reload_with_another_interface,
)


@pytest.mark.parametrize("ipv6", [False, True], ids=["over IPv4", "over IPv6"])
def test_nothing_leaves_in_the_clear_whatever_happens(lab: Lab, ipv6: bool) -> None:
    place = routed_for_neighbours(lab, ipv6=ipv6)
    place.client.write_config(kill_switch=True)
    place.client.start()
    ping(lab, place.here, FAR4, 2)
    with Leaks(place.here) as leaks:
        with Senders(place.here, place.near) as senders:
            senders.send_on()
            for disturb in DISTURBANCES:
                disturb(place)
                senders.send_on()
                assert leaks.seen == set(), disturb.__name__
            for _ in range(KILLS):
                place.client.kill()
                wait_for("the guard to end", lambda: not place.guards())
                senders.send_on()
                assert leaks.seen == set()
                place.client.start()
                senders.send_on()
        ping(lab, place.here, FAR6, 2)
        for target in (NEAR4, NEAR6, "192.0.2.1"):
            ping(lab, place.here, target, 2)  # the local networks
    assert leaks.seen == set()
    assert leaks.own > 0
    place.client.stop()
    assert tables(place.here) == []


@pytest.mark.parametrize("disturb", [remove_rules, set_down], ids=lambda disturb: disturb.__name__)
def test_without_a_kill_switch_the_same_disturbance_is_seen_to_leak(lab: Lab, disturb: Callable[[Place], None]) -> None:
    place = routed_for_neighbours(lab)
    place.client.start()
    with Leaks(place.here) as leaks, Senders(place.here, place.near) as senders:
        disturb(place)
        senders.send_on()
        place.client.kill()
        wait_for("the guard to end", lambda: not place.guards())
        senders.send_on()
    assert {destination for _, _, destination, _ in leaks.seen} >= {FAR4, FAR6}


def test_only_a_stop_ends_the_kill_switch(lab: Lab) -> None:
    place = Place(lab)
    place.client.write_config(kill_switch=True, max_reconnect_attempts=2)
    place.client.start()
    ping(lab, place.here, FAR4, 2)
    expected = [f"inet oxidize-{place.interface}"]
    assert tables(place.here) == expected
    pid = place.client.status()["pid"]
    silence_the_server(place)
    with Senders(place.here, place.near):
        assert lab.wait_ended(pid) == GAVE_UP_STATUS, place.client.log
    assert place.rules() == []
    assert tables(place.here) == expected
    end_the_silence(place)
    place.client.start()
    place.client.stop()
    assert tables(place.here) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_without_a_kill_switch_no_table_stays_behind(lab: Lab, number: signal.Signals) -> None:
    place = Place(lab, allowed_ips=["10.9.0.0/24"])
    place.client.start()
    assert tables(place.here) == [f"inet oxidize-{place.interface}"]
    place.client.stop(number)
    wait_for("the table to be gone", lambda: tables(place.here) == [])


def test_under_a_holder_nothing_leaves_in_the_clear_when_a_generation_is_killed(lab: Lab) -> None:
    place = routed_for_neighbours(lab)  # without a kill switch

    def wait_until_serving(generation: int) -> int:
        def look() -> int | None:
            with contextlib.suppress(OxidizeError):
                status = place.client.status()
                return int(status["pid"]) if status["generation"] == generation else None
            return None

        return wait_for(f"generation {generation}", look)

    held = place.client.spawn(options=())
    serving = wait_until_serving(1)
    ping(lab, place.here, FAR4, 2)
    with Leaks(place.here) as leaks, Senders(place.here, place.near) as senders:
        kill(serving, signal.SIGKILL)
        senders.send_on()
        wait_until_serving(2)
        kill(held, signal.SIGKILL)  # which ends no generation
        lab.wait_ended(held)
        held = place.client.spawn(options=())
        serving = wait_until_serving(3)
        kill(serving, signal.SIGKILL)  # what the new holder has was stored by the takeover
        wait_until_serving(4)
        assert place.client.status()["sessions"] == 1
        senders.send_on()
    assert leaks.seen == set()
    assert leaks.own > 0
    assert len(place.guards()) == 1
    place.assert_full()
    place.client.write_config(network="userspace", allowed_ips=["10.9.0.1/32"])
    assert place.client.reload().status == 0
    place.wait_bare()
    wait_for("the guard to end", lambda: not place.guards())
    assert place.client.command("stop", "--client").status == 0
    assert lab.wait_ended(held) == 0


def test_a_stop_while_no_client_of_a_holder_lives_removes_what_the_client_set(lab: Lab) -> None:
    place = Place(lab)
    place.client.write_config(kill_switch=True)
    held = place.client.spawn(options=())
    wait_for("the client to serve", lambda: "serving" in place.client.log)
    assert tables(place.here) == [f"inet oxidize-{place.interface}"]
    place.assert_full()
    place.client.config_path.write_text(place.client.config_path.read_text().replace("[client]", "[client"))
    kill(place.client.status()["pid"], signal.SIGKILL)
    wait_for("a start that fails", lambda: "exit status 2: the next generation starts" in place.client.log)
    (told,) = place.client.command("status", "--client").errors.splitlines()[1:]
    assert f"pid {held} runs all the same: it was started for {place.client.takeover_socket}; it is a holder" in told
    done = place.client.command("stop", "--client")
    assert (done.status, done.errors) == (0, "")
    assert done.output.startswith(f"stopped: pid {held}, ")
    assert tables(place.here) == []
    place.wait_bare()
    assert lab.wait_ended(held) == 0


def test_a_kill_switch_follows_a_reload_both_ways(lab: Lab) -> None:
    place = Place(lab)
    place.client.start()
    switch = "kill_switch: everything else"
    assert switch not in nft(place.here, "list", "ruleset")
    place.client.write_config(kill_switch=True)
    place.client.replace()
    assert switch in nft(place.here, "list", "ruleset")
    place.client.write_config()
    place.client.replace()
    assert switch not in nft(place.here, "list", "ruleset")
    ping(lab, place.here, FAR4, 2)
    place.client.write_config(network="userspace", allowed_ips=["10.9.0.1/32"])
    place.client.replace()
    assert tables(place.here) == []


# A desktop session's terminals inherit the variable, whose stream is not theirs.
@pytest.mark.parametrize("inherited", [None, "1:1"], ids=["from a plain shell", "with an inherited JOURNAL_STREAM"])
def test_nothing_that_a_reload_starts_keeps_its_callers_pipes(lab: Lab, inherited: str | None) -> None:
    env = {key: value for key, value in os.environ.items() if key != "JOURNAL_STREAM"}
    env |= {"JOURNAL_STREAM": inherited} if inherited is not None else {}
    place = Place(lab)
    place.client.write_config(network="userspace", allowed_ips=["10.9.0.1/32"])
    place.client.start(env)
    assert place.guards() == set()  # so that the reload starts one
    for options in ({"allowed_ips": EVERYTHING}, {"allowed_ips": EVERYTHING, "kill_switch": True}):
        place.client.write_config(**options)
        status, said = reload_into_a_pipe(place, env)
        assert status == 0, said
        assert b"reloaded: generation" in said
    assert place.client.log.count(" took over ") == 2  # where the first generation logs


def reload_into_a_pipe(place: Place, env: Mapping[str, str]) -> tuple[int, bytes]:
    """Return status and output of a reload; raises BlockingIOError where a process holds the pipe after its end."""
    read_end, write_end = os.pipe()
    try:
        command = [*OXIDIZE, "reload", "--client", "-c", str(place.client.config_path)]
        with place.here.entered():
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=write_end, stderr=write_end, env=env, check=False
            )
        os.close(write_end)
        os.set_blocking(read_end, False)
        return done.returncode, b"".join(iter(lambda: os.read(read_end, 65_536), b""))
    finally:
        os.close(read_end)


# --- What comes in elsewhere ---


@pytest.mark.parametrize("allowed_ips", [EVERYTHING, ("10.9.0.0/24", "fd09::/64", FAR4)], ids=["full", "split"])
@pytest.mark.parametrize("rp_filter", [0, 2], ids=["no rp_filter", "loose rp_filter"])
def test_a_neighbour_neither_finds_the_tunnels_address_nor_sends_into_its_flows(
    lab: Lab, allowed_ips: tuple[str, ...], rp_filter: int
) -> None:
    place = Place(lab, allowed_ips=allowed_ips)
    for name in ("all", "lan0", "up0"):
        place.sysctl(f"ipv4/conf/{name}/rp_filter", rp_filter)
    with place.near.entered():
        subprocess.run(["ip", "route", "add", "10.9.0.0/24", "via", "192.168.7.2"], check=True)
        subprocess.run(["ip", "-6", "route", "add", "fd09::/64", "via", "fd07::2"], check=True)
    place.client.start()
    ping(lab, place.here, FAR4, 2)
    with place.here.entered():
        flow = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        other = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with flow, other:
        flow.bind(("10.9.0.2", 5555))
        flow.connect((FAR4, 53))
        other.bind(("192.168.7.2", 5555))
        other.settimeout(10)
        for target in ("10.9.0.2", "fd09::2"):
            with place.near.entered():
                done = subprocess.run(
                    ["ping", "-c", "2", "-i", "0.2", "-W", "1", target], capture_output=True, check=False
                )
            assert done.returncode == 1, done.stdout
        with place.near.entered(), socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as forging:
            # The second one arrives, and so the first one had its chance.
            for source, target in ((FAR4, "10.9.0.2"), (NEAR4, "192.168.7.2")):
                forging.sendto(forged(source, target), (target, 0))
        assert other.recv(100) == b"spoof"
        with pytest.raises(BlockingIOError):
            flow.recv(100, socket.MSG_DONTWAIT)
    # This machine itself reaches the address, by lo.
    ping(lab, place.here, "10.9.0.2", 2)
    ping(lab, place.here, "fd09::2", 2)


def forged(source: str, target: str) -> bytes:
    """Return a datagram from port 53 of `source` to port 5555 of `target`, with the header of IPv4."""
    datagram = struct.pack(">HHHH", 53, 5555, 13, 0) + b"spoof"
    head = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(datagram), 0, 0, 64, 17, 0)
    return head + socket.inet_aton(source) + socket.inet_aton(target) + datagram
