"""Hooks of a client's systemd unit: as its own user after each end, and as root for the name servers only.

The rule: a hook removes nothing while the unit is about to restart, so that no packet bypasses the tunnel across a
restart or a crash. A client that gave up is not started again. Source: systemd.service(5), ExecStartPost=,
ExecStopPost= and the prefix "+".
"""

from pathlib import Path

from oxidize import config
from oxidize.hostnet.dns_config import apply_dns, record_name, revert_dns
from oxidize.hostnet.packet_filter import remove_filter
from oxidize.hostnet.part import run
from oxidize.hostnet.policy_routing import remove_policy
from oxidize.service_manager import systemctl


def clean_up(config_path: Path, *, gave_up: bool) -> list[str]:
    """Remove the client's rules unless its unit will restart; return the changes, a line each. Raises OxidizeError.

    A kill switch stays where the client gave up: that is no planned end. The interface may still be there: systemd's
    store holds it until after the last hook.
    """
    if systemctl.will_restart() and not gave_up:
        return []
    interface = config.client_interface_of(config_path)
    return [*run(remove_policy([interface])), *remove_filter([interface], spare_kill_switch=gave_up)]


def set_names(config_path: Path) -> list[str]:
    """Set the configured name servers, or remove them if none are configured; return the servers.

    Raises OxidizeError.
    """
    wanted = config.load_name_servers(config_path)
    record = record_name(systemctl.own_name() or wanted.interface)
    if wanted.servers:
        run(apply_dns(wanted, record))
    else:
        run(revert_dns(wanted.interface, record))
    return [str(server) for server in wanted.servers]


def remove_names(config_path: Path, *, gave_up: bool) -> None:
    """Remove the name servers unless the unit will restart; raises OxidizeError."""
    if gave_up or not systemctl.will_restart():
        interface = config.client_interface_of(config_path)
        run(revert_dns(interface, record_name(systemctl.own_name() or interface)))
