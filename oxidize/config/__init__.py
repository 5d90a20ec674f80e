"""The operator's configuration: one TOML file and the key files that it names.

The rule: a configuration is either loaded whole, or refused with every mistake in it at once, one line each that names
the file, the key, the value, what was expected and the remedy. No line ever shows a private or a pre-shared key. A key
is defined once, in `schema`, from which docs/configuration.md is generated; its user reads the attribute of that name.
Sources: TOML 1.0; wg(8) for the meaning of a peer's keys; systemd.exec(5) for credentials.
"""

import importlib
from typing import TYPE_CHECKING

from oxidize.config.paths import Role, default_takeover_socket
from oxidize.config.values import HostAddress, InterfaceAddress, NameServers, Network

if TYPE_CHECKING:
    from oxidize.config.load import ClientConfig, ServerConfig, load_client, load_client_table, load_server
    from oxidize.config.locate import asks_for_kill_switch, client_interface_of, takeover_socket_of, udp_port_of
else:
    # Most commands only ask the running process, and a generation after a crash uses what was validated before: the
    # schema, and pydantic with it, is imported at its first use.
    _LOAD = ("ClientConfig", "ServerConfig", "load_client", "load_client_table", "load_server")
    _LOCATE = ("asks_for_kill_switch", "client_interface_of", "takeover_socket_of", "udp_port_of")
    _MODULES = {**dict.fromkeys(_LOAD, "load"), **dict.fromkeys(_LOCATE, "locate")}

    def __getattr__(name):
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


__all__ = [
    "ClientConfig",
    "HostAddress",
    "InterfaceAddress",
    "NameServers",
    "Network",
    "Role",
    "ServerConfig",
    "asks_for_kill_switch",
    "client_interface_of",
    "default_takeover_socket",
    "load_client",
    "load_client_table",
    "load_server",
    "takeover_socket_of",
    "udp_port_of",
]
