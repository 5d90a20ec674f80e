"""Hooks of a client's systemd units: as its own user before the network and after each end, as root for name servers.

The rule: a hook removes nothing while the unit is about to restart, so that no packet bypasses the tunnel across a
restart or a crash. A client that gave up is not started again. A kill switch is removed by a hook that knows of a stop
alone; whatever the hooks of the client know, that of oxidize-kill-switch.service runs at each stop. A holder has one
hook, `clean_up_held`, which it runs at a stop that no client lives to see. Source: systemd.service(5), ExecStartPost=,
ExecStopPost= and the prefix "+"; systemd.unit(5), PartOf=.
"""

import os
import socket
from collections.abc import Iterable
from pathlib import Path

from oxidize import config
from oxidize.config.values import FWMARK_DEFAULT
from oxidize.errors import ConfigError
from oxidize.hostnet.dns_config import apply_dns, record_name, revert_dns
from oxidize.hostnet.packet_filter import Filter, apply_filter, remove_filter
from oxidize.hostnet.part import run
from oxidize.hostnet.policy_routing import remove_policy
from oxidize.net.tun import interface_name_of_fd
from oxidize.service_manager import systemctl
from oxidize.settings import tunnel_mark


def clean_up(config_path: Path, *, gave_up: bool, crashed: bool) -> list[str]:
    """Remove the client's rules unless its unit will restart; return the changes, a line each. Raises OxidizeError.

    A kill switch stays where the client gave up, and where no stop is known of. The interface may still be there:
    systemd's store holds it until after the last hook.
    """
    if systemctl.will_restart(otherwise=crashed) and not gave_up:
        return []
    interface = config.client_interface_of(config_path)
    spare_kill_switch = gave_up or not systemctl.is_stopped()
    return [*run(remove_policy([interface])), *remove_filter([interface], spare_kill_switch=spare_kill_switch)]


def clean_up_held(fds: Iterable[int]) -> list[str]:
    """Remove what a dead client of a holder has set; return the changes, a line each. Raises OxidizeError.

    fds: what the holder keeps, and so the interface, by whatever name the client had it.
    """
    changes = []
    for interface in filter(None, map(interface_name_of_fd, fds)):
        changes += run(remove_policy([interface]))
        changes += remove_filter([interface], spare_kill_switch=not systemctl.is_stopped())
        if os.geteuid() == 0:
            run(revert_dns(interface, record_name(interface, socket.if_nametoindex(interface))))
    return changes


def set_kill_switch(config_path: Path) -> list[str]:
    """Set the packet filter if it has a kill switch, before this machine has a network; return the changes.

    With a configuration that a client would not start with, nothing leaves but what every kill switch lets out. Raises
    OxidizeError.
    """
    try:
        client = config.load_client_table(config_path)
    except ConfigError:
        if not config.asks_for_kill_switch(config_path):
            raise
        closed = Filter(config.client_interface_of(config_path), (), (), FWMARK_DEFAULT, kill_switch=True)
        return [*apply_filter(closed), "the configuration has mistakes: nothing leaves until it is corrected"]
    routes = tuple(network for network in client.allowed_ips if network.prefixlen)
    mark = tunnel_mark(client.fwmark, client.table, client.allowed_ips)
    wanted = Filter(client.interface, tuple(client.addresses), routes, mark, client.kill_switch)
    return apply_filter(wanted) if wanted.kill_switch else []


def set_names(config_path: Path) -> list[str]:
    """Set the configured name servers, or remove them if none are configured; return the servers.

    Raises OxidizeError.
    """
    wanted = config.load_client_table(config_path).name_servers
    record = record_name(systemctl.own_name() or wanted.interface)
    if wanted.servers:
        run(apply_dns(wanted, record))
    else:
        run(revert_dns(wanted.interface, record))
    return [str(server) for server in wanted.servers]


def remove_names(config_path: Path, *, gave_up: bool, client_unit: str | None = None) -> None:
    """Remove the name servers unless the unit will restart; raises OxidizeError.

    client_unit: the client's unit, without ".service", where this is a hook of another one.
    """
    if gave_up or not systemctl.will_restart():
        interface = config.client_interface_of(config_path)
        run(revert_dns(interface, record_name(client_unit or systemctl.own_name() or interface)))
