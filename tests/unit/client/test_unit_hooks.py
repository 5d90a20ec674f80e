"""The hooks of a client's units: what they set before the network, and what they remove after an end."""

import os
import socket
from pathlib import Path

import pytest

from oxidize.client import unit_hooks
from oxidize.client.host_setup import _filter
from oxidize.config import load_client
from oxidize.config.values import FWMARK_DEFAULT
from oxidize.errors import ConfigError
from oxidize.hostnet.packet_filter import Filter
from oxidize.hostnet.part import Steps
from oxidize.service_manager import systemctl
from oxidize.settings import NodeSettings
from tests.support.config_files import CLIENT, PRIVATE, secret

FULL = CLIENT + 'allowed_ips = ["0.0.0.0/0", "::/0", "10.0.0.0/24"]\nfwmark = 256\n'
MISTAKES = "nothing leaves until it is corrected"


def steps(result: list[str]) -> Steps[list[str]]:
    yield 0.0
    return result


@pytest.fixture
def applied(monkeypatch: pytest.MonkeyPatch) -> list[Filter]:
    applied: list[Filter] = []

    def apply(wanted: Filter) -> list[str]:
        applied.append(wanted)
        return ["+table"]

    monkeypatch.setattr(unit_hooks, "apply_filter", apply)
    return applied


def config_file(folder: Path, text: str) -> Path:
    (folder / "client.toml").write_text(text)
    return folder / "client.toml"


def test_the_kill_switch_before_the_network_is_the_clients_own(tmp_path: Path, applied: list[Filter]) -> None:
    path = config_file(tmp_path, FULL + "kill_switch = true\n")
    assert unit_hooks.set_kill_switch(path) == ["+table"]  # no key file is there: it is not read
    secret(tmp_path / "server.key", PRIVATE)
    assert applied == [_filter(NodeSettings.of_client(load_client(path)))]


@pytest.mark.parametrize("switch", ["", "kill_switch = false\n"])
def test_without_a_kill_switch_nothing_is_set_before_the_network(
    tmp_path: Path, applied: list[Filter], switch: str
) -> None:
    assert unit_hooks.set_kill_switch(config_file(tmp_path, FULL + switch)) == []
    assert applied == []


@pytest.mark.parametrize(
    ("text", "interface"),
    [
        (FULL + 'interface = "vpn7"\nkill_switch = true\nmtu = "wide"\n', "vpn7"),
        (FULL + "  kill_switch = true\n[", "oxidize1"),
    ],
    ids=["a wrong value", "not TOML"],
)
def test_a_configuration_with_mistakes_lets_nothing_leave_if_it_asks_for_a_kill_switch(
    tmp_path: Path, applied: list[Filter], text: str, interface: str
) -> None:
    assert MISTAKES in unit_hooks.set_kill_switch(config_file(tmp_path, text))[-1]
    assert applied == [Filter(interface, (), (), FWMARK_DEFAULT, kill_switch=True)]


@pytest.mark.parametrize("text", ["mtu = 7\n", "mtu = 7\nkill_switch = false\n", "# kill_switch = true\n["])
def test_a_configuration_with_mistakes_and_without_a_kill_switch_is_refused(
    tmp_path: Path, applied: list[Filter], text: str
) -> None:
    with pytest.raises(ConfigError):
        unit_hooks.set_kill_switch(config_file(tmp_path, FULL + text))
    assert applied == []


@pytest.mark.parametrize(
    ("restarts", "crashed", "is_stopped", "gave_up", "removed"),
    [
        (True, True, False, False, None),
        (True, True, False, True, "all but the kill switch"),
        (False, False, True, False, "all"),
        (False, True, True, False, "all"),  # a stop that took too long
        (False, False, False, False, "all but the kill switch"),  # a shutdown
        (None, True, False, False, None),  # a crash, and systemd does not answer
        (None, False, False, False, "all but the kill switch"),  # a stop or a restart, and systemd does not answer
    ],
)
def test_a_kill_switch_goes_only_where_a_stop_is_known_of(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    restarts: bool | None,
    crashed: bool,
    is_stopped: bool,
    gave_up: bool,
    removed: str | None,
) -> None:
    def remove(interfaces: list[str], *, spare_kill_switch: bool) -> list[str]:
        assert interfaces == ["oxidize1"]
        return ["all but the kill switch" if spare_kill_switch else "all"]

    def will_restart(*, otherwise: bool) -> bool:
        return otherwise if restarts is None else restarts

    monkeypatch.setattr(systemctl, "will_restart", will_restart)
    monkeypatch.setattr(systemctl, "is_stopped", lambda: is_stopped)
    monkeypatch.setattr(unit_hooks, "remove_policy", lambda _: steps([]))
    monkeypatch.setattr(unit_hooks, "remove_filter", remove)
    found = unit_hooks.clean_up(config_file(tmp_path, FULL), gave_up=gave_up, crashed=crashed)
    assert found == ([removed] if removed else [])


@pytest.mark.parametrize("is_stopped", [True, False], ids=["a stop", "a shutdown"])
def test_a_holders_hook_removes_what_the_client_had_set_at_the_interface_that_is_held(
    monkeypatch: pytest.MonkeyPatch, is_stopped: bool
) -> None:
    done: list[object] = []

    def revert(*record: object) -> Steps[None]:
        yield 0.0
        done.append(record)

    monkeypatch.setattr(unit_hooks, "interface_name_of_fd", {5: None, 6: "lo"}.get)
    monkeypatch.setattr(systemctl, "is_stopped", lambda: is_stopped)
    monkeypatch.setattr(unit_hooks, "remove_policy", lambda interfaces: steps([f"-rules of {interfaces}"]))
    monkeypatch.setattr(
        unit_hooks, "remove_filter", lambda names, *, spare_kill_switch: [f"{names} {spare_kill_switch}"]
    )
    monkeypatch.setattr(unit_hooks, "revert_dns", revert)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert unit_hooks.clean_up_held([5, 6]) == ["-rules of ['lo']", f"['lo'] {not is_stopped}"]
    assert done == [("lo", f"tun.lo.{socket.if_nametoindex('lo')}")]
    monkeypatch.setattr(os, "geteuid", lambda: 1)
    unit_hooks.clean_up_held([6])
    assert len(done) == 1
