"""wg-quick files, imported as a server's and as a client's configuration.

Checked: the result is TOML, names of key files stay in their folder, and neither notes nor mistakes show a key.

Allowed exceptions: ConfigError.
"""

import tomllib
from collections.abc import Iterable

from oxidize.errors import ConfigError
from oxidize.provision import conversion, wg_quick
from tests.fuzz.configuration import check_problems
from tests.fuzz.script import Script, parts
from tests.support.config_files import ALICE, BOB, PRESHARED, PRIVATE

LINES = (
    "[Interface]\n",
    "[Peer]\n",
    f"PrivateKey = {PRIVATE}\n",
    f"PresharedKey = {PRESHARED}\n",
    f"PublicKey = {ALICE}\n",
    f"PublicKey = {BOB}\n",
    "Address = 10.0.0.1/24, fd00::1\n",
    "AllowedIPs = 10.0.0.2/32, fd00::2/128\n",
    "AllowedIPs = 0.0.0.0/0, ::/0\n",
    "Endpoint = vpn.example.org:51820\n",
    "Endpoint = [2001:db8::1]:51820\n",
    "ListenPort = 51820\n",
    "FwMark = 0x20\n",
    "MTU = 1420\n",
    "Table = off\n",
    "DNS = 10.0.0.1, example.org\n",
    "PersistentKeepalive = off\n",
    "PersistentKeepalive = 25\n",
    "PostUp = iptables -t nat -A POSTROUTING -o eth0 -j MASQUERADE\n",
    "PostDown = iptables -D FORWARD -i %i -j ACCEPT\n",
    "PostUp = nft 'add rule ip nat post oifname != \"wg0\" masquerade'; ip link set %i mtu 1300\n",
    "PostUp = ufw route allow in on wg0; ip addr add 10.0.0.3/24 peer 10.0.0.4 dev %i; ip r a ::/0 dev wg0\n",
    f"PostUp = wg set %i peer {ALICE} preshared-key <(echo {PRESHARED}) remove; wg set %i remove\n",
    f"PostUp = echo {PRIVATE} | wg set wg0 private-key /dev/stdin fwmark 0x7 listen-port $(( 1 + 1 ))\n",
    "PostUp = A=1; sh -c 'iptables -t nat -A PREROUTING -i $A ! -d 1.2.3.4 -j DNAT --to 10.0.0.2:1'; sysctl a.b=1 &&\n",
    "#[Peer]\n#PublicKey = x\n",
    f"#[disabled] [Peer]\n#[disabled] PublicKey = {BOB}\n#[disabled] AllowedIPs = 10.0.0.2/32\n",
    "Jc = 3\n",
    "SaveConfig = true\n",
    "# name = alice\n",
    "# alice's laptop\n",
    "### begin ../../etc/passwd ###\n",
    "\n",
)


def run(data: bytes) -> None:
    script = Script(data)
    choice = script.number(2)
    text = script.rest().decode("utf-8", "replace") if choice == 2 else parts(script, LINES, 24)
    try:
        document = wg_quick.parse(text, "wg0.conf")
        conversion.is_client(document)
        convert = conversion.to_client if choice == 1 else conversion.to_server
        converted = convert(document, "wg0.conf")
    except ConfigError as error:
        check_problems(error)
        return
    tomllib.loads(converted.toml)
    for secret in (PRIVATE, PRESHARED):
        # A key that the file itself has as a public one is public.
        assert secret not in converted.toml or f"publickey={secret}".lower() in "".join(text.lower().split())
    for note in converted.notes:
        assert PRIVATE not in note, note
        assert PRESHARED not in note, note
    for name in converted.keys:
        assert name.isprintable(), name
        assert "/" not in name, name
        assert not name.startswith((".", "-")), name


def seeds() -> Iterable[bytes]:
    server = "[Interface]\n" + LINES[2] + LINES[6] + LINES[11] + "[Peer]\n# name = alice\n" + LINES[4] + LINES[7]
    client = "[Interface]\n" + LINES[2] + LINES[6] + LINES[15] + "[Peer]\n" + LINES[4] + LINES[8] + LINES[9] + LINES[3]
    yield b"\2" + server.encode()
    yield b"\2" + client.encode()
    yield from (b"\2" + server.replace("[Peer]\n", f"{line}[Peer]\n").encode() for line in LINES)
    for choice in (0, 1):
        for number in range(len(LINES)):
            yield bytes([choice, 9, 0, 0, 2, 0, 6, 0, number, 0, 1, 0, 4, 0, 8, 0, 9, 0, number, 1, 3, 3]) + b"=#\n\0"
