"""What comes from outside ends no process without a word and stops none: signals, closed files, an unread log."""

import contextlib
import json
import os
import re
import signal
import subprocess
from functools import partial
from pathlib import Path

import pytest

from oxidize import signals
from tests.support.traffic.clients import EchoClient, Traffic
from tests.support.traffic.namespaces import Namespace
from tests.support.traffic.server import OXIDIZE, Lab, Server, b64, wait_for
from tests.support.traffic.without_ipv6 import WITHOUT_IPV6

LINES_AT_ONCE = 500


@pytest.fixture
def server(lab: Lab, client: EchoClient) -> Server:
    return Server(lab, [client.table()])


# --- Ends ---


@pytest.mark.root
@pytest.mark.parametrize("reloads", [0, 1, 2])
def test_a_generation_that_ends_says_why_however_it_came(lab: Lab, reloads: int) -> None:
    namespace = Namespace(lab.stack)
    server = Server(lab, [], network="tun", inside=namespace.entered)
    pid = server.start()
    for _ in range(reloads):
        pid = server.replace()["pid"]
    with namespace.entered():
        subprocess.run(["ip", "link", "del", "oxidize0"], check=True)
    assert lab.wait_ended(pid) == 1
    last_line = server.log_path.read_text().splitlines()[-1]
    assert last_line.startswith("oxidize: interface oxidize0: was removed while in use;")


@pytest.mark.parametrize("reloads", [0, 1])
def test_signals_without_a_meaning_are_reported_and_end_nothing(server: Server, reloads: int) -> None:
    pid = server.start()
    for _ in range(reloads):
        pid = server.replace()["pid"]
    for number in (*signals.MEANINGLESS, signals.ALARM):
        os.kill(pid, number)
        line = f"{signals.name_of(number)} changes nothing: use `oxidize reload`"
        wait_for(line, partial(is_logged, server, line))
    assert server.status()["pid"] == pid


def is_logged(server: Server, line: str) -> bool:
    return line in server.log_path.read_text()


def test_sigquit_ends_a_server_as_sigterm_does(server: Server) -> None:
    pid = server.start()
    os.kill(pid, signal.SIGQUIT)
    assert server.lab.wait_ended(pid) == 0
    assert "drained" in server.log_path.read_text()


# --- Standard error ---


def in_shell(redirection: str) -> tuple[str, ...]:
    """Return the program with its standard files as a shell gives them."""
    return ("/bin/sh", "-c", f'exec "$0" "$@" {redirection}', *OXIDIZE)


@pytest.mark.parametrize("redirection", ["2>&-", ">&- 2>&-", "<&- >&- 2>&-", "2> /dev/full"])
def test_a_server_starts_serves_and_reloads_without_a_standard_error(
    server: Server, client: EchoClient, redirection: str
) -> None:
    server.start(program=in_shell(redirection))
    with Traffic(server, [client], 50) as traffic:
        server.replace()
        reload = subprocess.run([*in_shell(redirection), "reload", "-c", str(server.config_path)], check=False)
        assert reload.returncode == 0
        traffic.wait_for_more()
        traffic.assert_unharmed()
    status = server.status()
    assert status["generation"] == 3
    for number in range(3):
        assert "socket" not in str(Path(f"/proc/{status['pid']}/fd/{number}").readlink())


def test_a_log_that_is_not_read_costs_lines_which_are_counted_and_no_packet(server: Server, client: EchoClient) -> None:
    fifo = server.lab.folder / "log"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    server.lab.stack.callback(os.close, reader)
    pid = server.start(program=in_shell(f"2> {fifo}"))

    def lost_after_more_lines() -> int:
        for _ in range(LINES_AT_ONCE):
            os.kill(pid, signal.SIGUSR1)
        return int(server.status()["totals"]["log_lines_lost"])

    with Traffic(server, [client], 50) as traffic:
        wait_for("lost lines", lost_after_more_lines)
        traffic.wait_for_more()
        pid = server.replace()["pid"]  # whose log leads to the same reader
        lost = lost_after_more_lines()
        traffic.wait_for_more()
        traffic.assert_unharmed()
    found = bytearray()

    def has_report() -> bool:
        with contextlib.suppress(BlockingIOError):
            found.extend(os.read(reader, 1 << 20))
        return re.search(rb"WARNING oxidize.logs lines of this log were lost: .* lost=\d+\n", found) is not None

    wait_for("the report of the losses", has_report)
    metrics = server.command("status", "--json")
    assert json.loads(metrics.output)["totals"]["log_lines_lost"] >= lost > 0


# --- Without IPv6 ---

SAID = "this kernel has no IPv6: only IPv4 is served"


def test_server_and_client_run_on_a_kernel_without_ipv6_and_say_so_once(lab: Lab, client: EchoClient) -> None:
    server = Server(lab, [client.table()], listen="[::]:0")
    server.start(program=WITHOUT_IPV6)
    reload = subprocess.run([*WITHOUT_IPV6, "reload", "-c", str(server.config_path)], check=False)
    assert reload.returncode == 0
    assert server.log_path.read_text().count(SAID) == 1
    config = lab.folder / "client.toml"
    (lab.folder / "client.key").touch(0o600)
    (lab.folder / "client.key").write_text(b64(client.identity.private))
    config.write_text(
        f'[client]\nserver = "localhost:{server.port}"\nserver_public_key = "{b64(server.identity.public)}"\n'
        f'private_key_file = "client.key"\naddress = "{client.address}/24"\nallowed_ips = ["10.9.0.0/24"]\n'
        'network = "userspace"\ntakeover_socket = "client.sock"\n'
    )
    lab.spawn((*WITHOUT_IPV6, "client", "-c", str(config)), "client")
    wait_for("the client's session", lambda: server.status()["sessions"])
    assert (lab.folder / "client.log").read_text().count(SAID) == 1


def test_ipv6_that_the_configuration_asks_for_is_an_error_where_the_kernel_has_none(lab: Lab) -> None:
    server = Server(lab, [], network="tun", metrics_listen="[::1]:0")
    pid = lab.spawn((*WITHOUT_IPV6, "server", "-c", str(server.config_path)), "refused")
    assert lab.wait_ended(pid) == 2
    remedy = "this kernel has no IPv6: remove it, or start the kernel without ipv6.disable=1"
    assert (lab.folder / "refused.log").read_text().splitlines()[-2:] == [
        f"oxidize: server.address = fd09::1/64: {remedy}",
        f"oxidize: server.metrics_listen = ::1: {remedy}",
    ]
