"""The serving process and its replacement, known from systemd and the kernel and not from the server."""

import os
import pwd
from pathlib import Path

import pytest

from oxidize.cli import running_server
from oxidize.cli.running_server import RunningServer
from oxidize.deploy.releases import folder_of
from oxidize.deploy.server import Serving
from oxidize.errors import DeployError, Phase, TakeoverError
from oxidize.service_manager import systemctl

SERVICE = "oxidize-daemon.service"


class Played:
    """A stand-in for systemd and the kernel. listener: pid and uid; services: of pids; unit: its properties."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.listener: tuple[int, int] | None = None
        self.services: dict[int, str] = {}
        self.unit: dict[str, str] = {}
        self.reloaded: list[str] = []
        patch.setattr(running_server, "who_listens", lambda *_, **__: self.listener)
        patch.setattr(systemctl, "service_of", self.services.get)
        patch.setattr(systemctl, "property_of", lambda service, name: self.unit.get(name))
        patch.setattr(systemctl, "reload", self.reloaded.append)

    def runs(self, pid: int, *, main_pid: int | None = None, user: str = "nobody") -> None:
        self.listener, self.services[pid] = (pid, 0), SERVICE
        self.unit |= {"ActiveState": "active", "MainPID": str(main_pid or pid), "User": user}


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> Played:
    return Played(monkeypatch)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "server.toml"
    path.write_text("[server]\n")
    return path


def own_config(tmp_path: Path) -> Path:
    """Return the configuration of a server that belongs to no service."""
    path = tmp_path / "own.toml"
    path.write_text('[server]\ntakeover_socket = "/tmp/none/takeover.sock"\n')
    return path


def test_the_main_process_of_the_service_serves_whatever_process_listens(played: Played, config: Path) -> None:
    played.runs(1, main_pid=os.getpid())
    server = RunningServer(config)
    assert server.serving() == Serving(os.getpid(), folder_of(os.getpid()))
    assert server.main_pid() == os.getpid()
    assert server.is_expected()


def test_without_a_service_the_listening_process_serves(played: Played, config: Path) -> None:
    played.listener = (os.getpid(), 1234)
    played.unit = {"ActiveState": "active", "MainPID": "77", "User": "nobody"}  # of another service
    server = RunningServer(config)
    assert server.serving() == Serving(os.getpid(), folder_of(os.getpid()))
    assert (server.main_pid(), server.is_expected(), server.is_reloading()) == (None, False, False)
    assert server.owner() == (1234, 1234)


def test_a_listener_that_has_just_ended_still_belongs_to_its_service(played: Played, config: Path) -> None:
    played.runs(os.getpid())
    server = RunningServer(config)
    assert server.main_pid() == os.getpid()
    played.services.clear()
    played.listener = (999_999, 0)
    assert server.main_pid() == os.getpid()
    server.reload(Path("/none/bin/oxidize"))
    assert played.reloaded == [SERVICE]


@pytest.mark.parametrize(
    ("state", "expected", "reloading"),
    [
        ("active", True, False),
        ("activating", True, False),
        ("reloading", True, True),
        ("failed", False, False),
        ("inactive", False, False),
        ("deactivating", False, False),
        (None, False, False),
    ],
)
def test_a_service_without_a_listener_may_still_be_starting(
    played: Played, config: Path, state: str | None, expected: bool, reloading: bool
) -> None:
    if state is not None:
        played.unit = {"ActiveState": state, "MainPID": "0"}
    server = RunningServer(config)
    assert (server.serving(), server.is_expected(), server.is_reloading()) == (None, expected, reloading)


def test_the_service_does_not_serve_another_configuration(played: Played, tmp_path: Path) -> None:
    played.unit = {"ActiveState": "active", "MainPID": str(os.getpid())}
    server = RunningServer(own_config(tmp_path))
    assert (server.serving(), server.is_expected()) == (None, False)


def test_the_listening_process_serves_if_systemd_does_not_answer(played: Played, config: Path) -> None:
    played.runs(os.getpid())
    server = RunningServer(config)
    assert server.serving() is not None
    played.unit = {}
    assert server.serving() == Serving(os.getpid(), folder_of(os.getpid()))
    played.unit = {"MainPID": "0"}
    assert server.serving() is None


def test_a_service_that_is_being_stopped_still_owns_the_server(played: Played, config: Path) -> None:
    played.runs(os.getpid())
    played.unit["ActiveState"] = "deactivating"
    server = RunningServer(config)
    server.reload(Path("/none/bin/oxidize"))
    assert played.reloaded == [SERVICE]


def test_a_service_may_have_another_name(played: Played, tmp_path: Path) -> None:
    played.runs(os.getpid())
    played.services[os.getpid()] = "relay.service"
    server = RunningServer(own_config(tmp_path))
    server.reload(Path("/none/bin/oxidize"))
    played.unit["MainPID"] = "77"  # in the middle of a takeover
    assert server.main_pid() == 77
    played.listener = None  # in the middle of a restart
    assert server.is_expected()
    assert played.reloaded == ["relay.service"]


def test_a_server_that_is_a_child_of_another_service_does_not_belong_to_it(played: Played, tmp_path: Path) -> None:
    played.runs(os.getpid(), main_pid=77)
    played.services[os.getpid()] = "ssh.service"
    server = RunningServer(own_config(tmp_path))
    assert server.main_pid() is None
    assert server.serving() == Serving(os.getpid(), folder_of(os.getpid()))


def test_the_owner_of_a_service_comes_from_its_unit(played: Played, config: Path) -> None:
    played.runs(os.getpid(), user="nobody")
    nobody = pwd.getpwnam("nobody")
    assert RunningServer(config).owner() == (nobody.pw_uid, nobody.pw_gid)


def test_there_is_no_owner_without_a_server(played: Played, config: Path) -> None:
    assert RunningServer(config).owner() is None


def test_a_server_without_a_service_is_reloaded_by_the_program_with_the_lock(
    played: Played, config: Path, tmp_path: Path
) -> None:
    played.listener = (os.getpid(), os.getuid())
    lock = os.open(tmp_path / "lock", os.O_CREAT | os.O_RDWR)
    program = tmp_path / "oxidize"
    program.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/args; readlink /proc/self/fd/{lock} >> {tmp_path}/args\n')
    program.chmod(0o755)
    RunningServer(config, lock).reload(program)
    assert (tmp_path / "args").read_text().splitlines() == [f"reload -c {config}", str(tmp_path / "lock")]
    program.write_text("#!/bin/sh\necho 'oxidize: no' >&2; exit 1\n")
    with pytest.raises(DeployError, match=r"^no$"):
        RunningServer(config, lock).reload(program)
    os.close(lock)
    assert played.reloaded == []


def test_a_server_that_does_not_answer_has_no_vitals_and_raises_nothing(
    played: Played, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mute(*_: object) -> None:
        raise TakeoverError(Phase.QUERYING, "does it hang?")

    monkeypatch.setattr(running_server, "find", mute)
    server = RunningServer(config)
    assert server.vitals_or_none() is None
    with pytest.raises(TakeoverError):
        server.vitals()


def test_what_runs_without_listening_is_named_with_the_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "server.toml"
    path.write_text('[server]\nlisten = "[::]:7"\ntakeover_socket = "/tmp/none/takeover.sock"\n')
    monkeypatch.setattr(running_server, "who_runs", lambda path, port: [f"pid 5 runs all the same at {path}, {port}"])
    told = "no process listens at /tmp/none/takeover.sock, but pid 5 runs all the same at /tmp/none/takeover.sock, 7"
    assert RunningServer(path).unreached() == told
    monkeypatch.setattr(running_server, "who_runs", lambda *_: [])
    assert RunningServer(path).unreached() == ""
