"""The operator's configuration: one TOML file and the key files that it names.

The rule: a configuration is either loaded whole and without a doubt, or refused with every mistake in it at once, one
line each that names the file, the key, the value, what was expected and the remedy. No line ever shows a private or a
pre-shared key. Sources: TOML 1.0; wg(8) for the meaning of a peer's keys; systemd.exec(5) for credentials.
"""

from oxidize.config.load import load_client, load_name_servers, load_server
from oxidize.config.locate import client_interface_of, takeover_socket_of
from oxidize.config.model import ClientConfig, InterfaceAddress, NameServers, Network, PeerConfig, ServerConfig
from oxidize.config.schema import default_takeover_socket

__all__ = [
    "ClientConfig",
    "InterfaceAddress",
    "NameServers",
    "Network",
    "PeerConfig",
    "ServerConfig",
    "client_interface_of",
    "default_takeover_socket",
    "load_client",
    "load_name_servers",
    "load_server",
    "takeover_socket_of",
]
