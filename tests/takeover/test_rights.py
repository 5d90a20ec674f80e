"""A serving process leaves no core dump and keeps no right that it does not use, whoever started it."""

import contextlib
import os
import signal
import subprocess
from functools import partial
from pathlib import Path

import pytest

from oxidize.service_manager.privileges import Capability
from tests.support.traffic.clients import EchoClient
from tests.support.traffic.namespaces import Namespace
from tests.support.traffic.server import OXIDIZE, Lab, Server, kill, wait_for

WITH_CORE_DUMPS = ("/bin/sh", "-c", 'ulimit -c unlimited && exec "$@"', "sh", *OXIDIZE)
SETS = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
NET_ADMIN = 1 << Capability.NET_ADMIN


def status(pid: int) -> dict[str, int]:
    """Return the sets of capabilities of a process as numbers, and whether it can gain new ones."""
    lines = (line.split() for line in Path("/proc", str(pid), "status").read_text().splitlines())
    return {words[0][:-1]: int(words[1], 16) for words in lines if words[0][:-1] in {*SETS, "NoNewPrivs"}}


def core_limit(pid: int) -> str:
    for line in Path("/proc", str(pid), "limits").read_text().splitlines():
        if line.startswith("Max core file size"):
            return line.split()[4]
    raise AssertionError("expected a limit of core files")


def end(server: Server) -> None:
    """End a server without sessions, which drains nothing."""
    pid = server.status()["pid"]
    kill(pid, signal.SIGTERM)
    assert server.lab.wait_ended(pid) == 0


def has_given_up(pid: int) -> bool:
    return status(pid)["NoNewPrivs"] == 1


def assert_reduced(pid: int, kept: int) -> None:
    """Check a process that may be one moment away from giving up its rights."""
    wait_for("the process to have given up rights", partial(has_given_up, pid))
    found = status(pid)
    assert found["CapPrm"] == found["CapEff"] == kept
    assert found["CapInh"] | found["CapAmb"] | found["CapBnd"] | kept == kept
    assert core_limit(pid) == "0"


def test_a_server_leaves_no_core_dump_and_gains_no_rights(lab: Lab) -> None:
    client = EchoClient(2)
    with contextlib.closing(client.socket):
        server = Server(lab, [client.table()])
        pid = server.start(program=WITH_CORE_DUMPS)
        for _ in range(2):
            wait_for("the process to have given up rights", partial(has_given_up, pid))
            assert core_limit(pid) == "0"
            pid = server.replace()["pid"]
        kill(pid, signal.SIGABRT)
        wait_for("the server to end", lambda: pid not in server.processes())
        assert [path.name for path in (*lab.folder.iterdir(), *Path.cwd().iterdir()) if "core" in path.name] == []


@pytest.mark.root
def test_a_server_without_a_kernel_interface_keeps_no_capability(lab: Lab) -> None:
    client = EchoClient(2)
    with contextlib.closing(client.socket):
        server = Server(lab, [client.table()])
        assert_reduced(server.start(), 0)
        assert_reduced(server.replace()["pid"], 0)
        end(server)


@pytest.mark.root
@pytest.mark.needs("nft")
def test_a_server_with_an_interface_keeps_the_right_to_set_it_and_no_other(lab: Lab) -> None:
    """The reload that fails after the hand-off needs it: the predecessor sets its own table again."""
    namespace = Namespace(lab.stack)
    client = EchoClient(2)
    with contextlib.closing(client.socket):
        server = Server(lab, [client.table()], network="tun", inside=namespace.entered)
        with namespace.entered():
            for name in ("net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"):
                Path("/proc/sys", name.replace(".", "/")).write_text("1")
        server.write_config(nat=True)
        assert_reduced(server.start(), NET_ADMIN)
        before = server.status()
        server.write_config(nat=False, mtu=1400)
        assert_reduced(server.replace()["pid"], NET_ADMIN)
        server.write_config(nat=True)
        after = server.replace()
        assert_reduced(after["pid"], NET_ADMIN)
        assert after["generation"] == before["generation"] + 2
        with namespace.entered():
            rules = subprocess.run(["nft", "list", "ruleset"], capture_output=True, text=True, check=True).stdout
        assert "masquerade" in rules
        end(server)


@pytest.mark.root
def test_root_in_a_folder_of_another_user_can_still_remove_its_socket(lab: Lab) -> None:
    client = EchoClient(2)
    with contextlib.closing(client.socket):
        server = Server(lab, [client.table()])
        folder = lab.folder / "theirs"
        folder.mkdir(mode=0o755)
        os.chown(folder, 12_345, 12_345)
        server.takeover_socket = folder / "t.sock"
        server.write_config(takeover_socket=str(server.takeover_socket))
        assert_reduced(server.start(), 1 << Capability.DAC_OVERRIDE)
        assert_reduced(server.replace()["pid"], 1 << Capability.DAC_OVERRIDE)
        end(server)
        assert [path.name for path in folder.iterdir()] == ["t.sock.lock"]  # which stays
