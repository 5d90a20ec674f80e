"""A client's configuration, as the server's operator hands it over: for wg-quick and the like, and `oxidize client`.

The rule: whoever has the text has the client's private key. It is made of values that were checked, and it is nowhere
written by this side. Sources: wg-quick(8), wg(8); examples/client.toml; systemd/tmpfiles.conf for who may read what.
"""

import base64
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from oxidize.config import InterfaceAddress, Network
from oxidize.config.values import INTERFACE_NAME_MAX, HostAddress

MTU_USUAL = 1420  # what both clients take where nothing is said

# With umask 077 all is root's alone until it is the service's, where there is one.
_SCRIPT = """\
# For {name}, as root: writes /etc/oxidize/client.toml and its keys.
(
set -euC
umask 077
for file in {written}; do
  if [ -e "/etc/oxidize/$file" ]; then
    echo "oxidize: /etc/oxidize/$file exists, so nothing is written: move it" \\
      "away, \\`oxidize peer remove {name}\\`" \\
      "on the server, and add it again" >&2
    exit 1
  fi
done
{needed}service=
if [ "$(id -u)" = 0 ] && id -u oxidize > /dev/null 2>&1; then service=yes; fi
if [ ! -d /etc/oxidize ]; then
  mkdir /etc/oxidize
  if [ "$service" ]; then
    chown root:oxidize /etc/oxidize
    chmod 0750 /etc/oxidize
  fi
fi
cd /etc/oxidize
{files}
if [ "$service" ]; then
  chown oxidize:oxidize {keys}
  chmod 0400 {keys}
  chown root:oxidize client.toml
  chmod 0640 client.toml
fi
)
"""
_NEEDED = """\
if [ ! -e /etc/oxidize/client.key ]; then
  echo "oxidize: /etc/oxidize/client.key is missing: write the client's own" \\
    "private key to it, and run this again" >&2
  exit 1
fi
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientSetup:
    """All that a client must know.

    private_key, preshared_key, server_public_key: 32 bytes; private_key is None where the client made its own, and the
    public key is then what it is known by. endpoint: "host:port". dns: name servers and search domains. mtu:
    bytes. persistent_keepalive: seconds, 0 for off.
    """

    name: str
    addresses: Sequence[InterfaceAddress]
    private_key: bytes | None = field(repr=False)
    public_key: bytes
    preshared_key: bytes | None = field(repr=False)
    server_public_key: bytes
    endpoint: str
    allowed_ips: Sequence[Network]
    dns: Sequence[HostAddress | str]
    persistent_keepalive: int
    mtu: int


def wg_quick(setup: ClientSetup) -> str:
    """Return the client's file for wg-quick and every other WireGuard app."""
    if setup.private_key is not None:
        key = f"PrivateKey = {_base64(setup.private_key)}"
    else:
        key = f"# PrivateKey = <the private key of {_base64(setup.public_key)}>"
    lines = ["[Interface]", key, f"Address = {_joined(setup.addresses)}"]
    if setup.dns:
        lines.append(f"DNS = {_joined(setup.dns)}")
    if setup.mtu != MTU_USUAL:
        lines.append(f"MTU = {setup.mtu}")
    lines += ["", "[Peer]", f"PublicKey = {_base64(setup.server_public_key)}"]
    if setup.preshared_key is not None:
        lines.append(f"PresharedKey = {_base64(setup.preshared_key)}")
    lines += [f"Endpoint = {setup.endpoint}", f"AllowedIPs = {_joined(setup.allowed_ips)}"]
    if setup.persistent_keepalive:
        lines.append(f"PersistentKeepalive = {setup.persistent_keepalive}")
    return "\n".join([*lines, ""])


def client_toml(setup: ClientSetup) -> str:
    """Return client.toml; the keys are in files beside it."""
    values: dict[str, object] = {
        "server": setup.endpoint,
        "server_public_key": _base64(setup.server_public_key),
        "private_key_file": "client.key",
        "preshared_key_file": "client.psk" if setup.preshared_key is not None else None,
        "address": [str(address) for address in setup.addresses],
        "allowed_ips": [str(network) for network in setup.allowed_ips],
        "dns": [str(entry) for entry in setup.dns] or None,
        "persistent_keepalive": setup.persistent_keepalive if setup.persistent_keepalive != 25 else None,
        "mtu": setup.mtu if setup.mtu != MTU_USUAL else None,
    }
    lines = [f"{key} = {json.dumps(value)}" for key, value in values.items() if value is not None]
    return "\n".join(["[client]", *lines, ""])


def script(setup: ClientSetup) -> str:
    """Return shell commands that write client.toml and its keys; a file that exists already ends them before that.

    Without a private key they expect that of the client to be in client.key. What they write belongs to the service
    where they run as root and its user exists, else to whoever runs them.
    """
    contents: dict[str, str] = {}
    if setup.private_key is not None:
        contents["client.key"] = f"{_base64(setup.private_key)}\n"
    if setup.preshared_key is not None:
        contents["client.psk"] = f"{_base64(setup.preshared_key)}\n"
    contents["client.toml"] = client_toml(setup)
    keys = ["client.key", *(name for name in contents if name == "client.psk")]
    return _SCRIPT.format(
        name=setup.name,
        written=" ".join(contents),
        needed=_NEEDED if setup.private_key is None else "",
        files="\n".join(f"cat > {name} << 'EOF'\n{content}EOF" for name, content in contents.items()),
        keys=" ".join(keys),
    )


def wg_quick_file_name(name: str) -> str:
    """Return what to call a peer's file so that wg-quick, which names its interface after it, accepts it."""
    interface = re.sub(r"[^A-Za-z0-9_=+.-]", "-", name)[:INTERFACE_NAME_MAX].rstrip(".-")
    return f"{interface}.conf"


def _base64(key: bytes) -> str:
    return base64.b64encode(key).decode()


def _joined(values: Sequence[object]) -> str:
    return ", ".join(map(str, values))
