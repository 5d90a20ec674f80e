"""Settings of a node for tests that look at some of them."""

from ipaddress import ip_interface
from pathlib import Path
from typing import Any

from oxidize.protocol.crypto import public_key
from oxidize.settings import NodeSettings

PRIVATE_KEY = bytes([7]) * 32


def settings_with(**values: Any) -> NodeSettings:
    """Return the settings of a server without peers, but for `values`."""
    private_key = values.get("private_key", PRIVATE_KEY)
    defaults = {
        "role": "server",
        "addresses": (ip_interface("10.0.0.1/16"),),
        "private_key": private_key,
        "public_key": public_key(private_key),
        "mtu": 1420,
        "network": "tun",
        "takeover_socket": Path("/run/oxidize/takeover.sock"),
        "interface": "oxidize0",
        "metrics_listen": None,
        "peers": (),
        "routes": (),
    }
    return NodeSettings(**defaults | values)
