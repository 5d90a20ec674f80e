"""A client's configuration as text: a file for wg-quick and WireGuard apps, client.toml, and a script that writes it.

The rule: the text contains the client's private key, so it is never written to a file on the server. It is made of
values that were checked, and checks again that each can only be a value (`peer_tables.written`). Sources: wg-quick(8),
wg(8); examples/client.toml; systemd/tmpfiles.conf for owners and modes.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from oxidize.config import InterfaceAddress, Network
from oxidize.config.values import INTERFACE_NAME_MAX, HostAddress, format_key
from oxidize.provision.peer_tables import table_lines, written, written_name

MTU_DEFAULT = 1420  # of wg-quick and of `oxidize client`

# With umask 077 only root can read the files until they belong to the service, if its user exists.
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
if [ "$(id -u)" = 0 ]; then
  # Releases before 0.2 have one user for server and client.
  for user in oxidize oxidize-client; do
    if id -u "$user" > /dev/null 2>&1; then service=$user; fi
  done
fi
if [ ! -d /etc/oxidize ]; then
  mkdir /etc/oxidize
  if [ "$service" ]; then
    chmod 0751 /etc/oxidize
  fi
fi
cd /etc/oxidize
{files}
if [ "$service" ]; then
  chown "$service:$service" {keys}
  chmod 0400 {keys}
  chown "root:$service" client.toml
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
    """The values of a client's configuration.

    private_key, preshared_key, server_public_key: 32 bytes; private_key is None if the client made its own, and then
    only public_key is known. endpoint: "host:port". dns: name servers and search domains. mtu:
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
    """Return the client's file for wg-quick and WireGuard apps."""
    if setup.private_key is not None:
        key = f"PrivateKey = {format_key(setup.private_key)}"
    else:
        key = f"# PrivateKey = <the private key of {format_key(setup.public_key)}>"
    lines = ["[Interface]", key, f"Address = {_joined(setup.addresses)}"]
    if setup.dns:
        lines.append(f"DNS = {_joined(setup.dns)}")
    if setup.mtu != MTU_DEFAULT:
        lines.append(f"MTU = {setup.mtu}")
    lines += ["", "[Peer]", f"PublicKey = {format_key(setup.server_public_key)}"]
    if setup.preshared_key is not None:
        lines.append(f"PresharedKey = {format_key(setup.preshared_key)}")
    lines += [f"Endpoint = {written(setup.endpoint)}", f"AllowedIPs = {_joined(setup.allowed_ips)}"]
    if setup.persistent_keepalive:
        lines.append(f"PersistentKeepalive = {setup.persistent_keepalive}")
    return "\n".join([*lines, ""])


def as_values(setup: ClientSetup, warnings: Sequence[str]) -> dict[str, object]:
    """Return a client's setup for machines, as values of JSON; its keys are in `configuration`, a wg-quick file."""
    return {
        "changed": True,
        "name": setup.name,
        "public_key": format_key(setup.public_key),
        "addresses": [str(address) for address in setup.addresses],
        "server_public_key": format_key(setup.server_public_key),
        "endpoint": setup.endpoint,
        "allowed_ips": [str(network) for network in setup.allowed_ips],
        "dns": [str(entry) for entry in setup.dns],
        "persistent_keepalive": setup.persistent_keepalive,
        "mtu": setup.mtu,
        "configuration": wg_quick(setup),
        "warnings": list(warnings),
    }


def compact(file: str) -> str:
    """Return a file for WireGuard apps without spaces and empty lines, for a QR code that is as small as possible."""
    return "\n".join(line.replace(" = ", "=").replace(", ", ",") for line in file.splitlines() if line)


def client_toml(setup: ClientSetup) -> str:
    """Return client.toml, which names key files in its own folder."""
    values: dict[str, object] = {
        "server": setup.endpoint,
        "server_public_key": format_key(setup.server_public_key),
        "private_key_file": "client.key",
        "preshared_key_file": "client.psk" if setup.preshared_key is not None else None,
        "address": [str(address) for address in setup.addresses],
        "allowed_ips": [str(network) for network in setup.allowed_ips],
        "dns": [str(entry) for entry in setup.dns] or None,
        "persistent_keepalive": setup.persistent_keepalive if setup.persistent_keepalive != 25 else None,
        "mtu": setup.mtu if setup.mtu != MTU_DEFAULT else None,
    }
    return "\n".join([*table_lines("[client]", values), ""])


def script(setup: ClientSetup) -> str:
    """Return shell commands that write client.toml and its keys, or fail before that if one of the files exists.

    Without a private key in `setup` they require client.key to exist. The files belong to the service's user if the
    commands run as root and that user exists, otherwise to the user who runs them.
    """
    contents: dict[str, str] = {}
    if setup.private_key is not None:
        contents["client.key"] = f"{format_key(setup.private_key)}\n"
    if setup.preshared_key is not None:
        contents["client.psk"] = f"{format_key(setup.preshared_key)}\n"
    contents["client.toml"] = client_toml(setup)
    keys = ["client.key", *(name for name in contents if name == "client.psk")]
    return _SCRIPT.format(
        name=written_name(setup.name),
        written=" ".join(contents),
        needed=_NEEDED if setup.private_key is None else "",
        files="\n".join(f"cat > {name} << 'EOF'\n{content}EOF" for name, content in contents.items()),
        keys=" ".join(keys),
    )


def wg_quick_file_name(name: str) -> str:
    """Return a file name for a peer that wg-quick accepts: the interface is named after the file."""
    interface = re.sub(r"[^A-Za-z0-9_=+.-]", "-", name)[:INTERFACE_NAME_MAX].strip(".-")
    return f"{interface or 'wg0'}.conf"


def _joined(values: Sequence[object]) -> str:
    return ", ".join(written(str(value)) for value in values)
