"""Capture the OFFER of a release: start its server and its client, and record what they send to a successor.

Run it once, when a release is cut, as root: `python tests/golden/capture_offer.py` (PYTHONPATH names the release's
source where it is not the installed one). The files are the datagrams as they were sent. It works in a network
namespace of its own, where a stand-in for `resolvconf` takes the client's name servers.
"""

import os
import socket
import subprocess
import sys
import tempfile
import time
from base64 import b64encode
from collections.abc import Mapping
from pathlib import Path

import oxidize
from oxidize.state.records import FORMAT
from oxidize.takeover.messages import MESSAGE_BYTES_MAX, Hello, encode

HERE = Path(__file__).parent
WAIT_SECS = 30.0
INSIDE = "--in-a-namespace-of-its-own"
KEYS = [b64encode(bytes([number]) * 32).decode() for number in (1, 2, 3)]
SERVER = f"""
[server]
address = ["10.77.0.1/24", "fd77::1/64"]
private_key_file = "private.key"
listen = "127.0.0.1:51877"
metrics_listen = "127.0.0.1:9877"
interface = "golden-s"
nat = true
takeover_socket = "server.sock"

[[peer]]
name = "alice"
public_key = "{KEYS[1]}"
allowed_ips = ["10.77.0.2/32", "192.168.77.0/24"]
"""
CLIENT = f"""
[client]
address = "10.78.0.2/24"
private_key_file = "private.key"
server = "127.0.0.1:51878"
server_public_key = "{KEYS[2]}"
allowed_ips = ["0.0.0.0/0"]
dns = ["10.78.0.1", "example.org"]
interface = "golden-c"
takeover_socket = "client.sock"
"""


def capture(role: str, folder: Path, environ: Mapping[str, str]) -> bytes:
    """Return the datagram with which a process of this role answers HELLO."""
    config = folder / f"{role}.toml"
    with (folder / f"{role}.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "oxidize", role, "-c", str(config)], stderr=log, stdout=log, env=environ
        )
    try:
        link = connect(folder / f"{role}.sock", process)
        with link:
            link.send(encode(Hello(oxidize.__version__, os.getpid(), (FORMAT,))))
            return link.recv(MESSAGE_BYTES_MAX)  # without room for the descriptors the kernel drops them
    finally:
        process.kill()
        process.wait()
        print((folder / f"{role}.log").read_text(), file=sys.stderr)


def connect(path: Path, process: "subprocess.Popen[bytes]") -> socket.socket:
    link = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    link.settimeout(WAIT_SECS)
    ends_at = time.monotonic() + WAIT_SECS
    while process.poll() is None and time.monotonic() < ends_at:
        try:
            link.connect(str(path))
        except OSError:
            time.sleep(0.05)
        else:
            return link
    raise RuntimeError(f"{path}: expected a process that listens; see its log")


def main() -> None:
    """Write the files of this release; raises FileExistsError when it has them."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    for sysctl in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
        Path("/proc/sys/net", sysctl).write_text("1")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        key = folder / "private.key"
        key.touch(0o600)
        key.write_text(KEYS[0])
        resolvconf = folder / "resolvconf"
        resolvconf.write_text("#!/bin/sh\ncat >/dev/null\n")
        resolvconf.chmod(0o755)
        environ = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}
        for role, text in (("server", SERVER), ("client", CLIENT)):
            (folder / f"{role}.toml").write_text(text)
            datagram = capture(role, folder, environ)
            with (HERE / f"offer-{role}-{oxidize.__version__}.bin").open("xb") as file:
                file.write(datagram)


if __name__ == "__main__":
    if sys.argv[1:] != [INSIDE]:
        os.execvp("unshare", ["unshare", "--net", sys.executable, "-P", __file__, INSIDE])
    main()
