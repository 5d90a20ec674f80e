"""Oxidize as on a kernel without IPv6, and a namespace in which IPv6 is switched off.

Sources: seccomp(2); ip-sysctl of the kernel's documentation, disable_ipv6.
"""

import sys
from pathlib import Path

from tests.support.traffic.namespaces import Namespace
from tests.support.traffic.server import OXIDIZE

# A seccomp filter that answers socket(AF_INET6, ...) with EAFNOSUPPORT, as a kernel does with ipv6.disable=1.
NO_IPV6 = """
import ctypes, os, platform, struct, sys
number = {"x86_64": 41, "aarch64": 198}[platform.machine()]
def instruction(code, k, if_true=0, if_false=0):
    return struct.pack("HBBI", code, if_true, if_false, k)
program = b"".join([
    instruction(0x20, 0), instruction(0x15, number, 0, 3), instruction(0x20, 16), instruction(0x15, 10, 0, 1),
    instruction(0x06, 0x50000 | 97), instruction(0x06, 0x7FFF0000),
])
libc = ctypes.CDLL(None, use_errno=True)
buffer = ctypes.create_string_buffer(program)
described = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(program) // 8, ctypes.addressof(buffer)))
assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, described, 0, 0) == 0, ctypes.get_errno()
os.execv(sys.argv[1], sys.argv[1:])
"""
WITHOUT_IPV6 = (sys.executable, "-c", NO_IPV6, *OXIDIZE)


def switch_ipv6_off(namespace: Namespace) -> None:
    """Let no interface of a namespace have IPv6, those that are made later included."""
    with namespace.entered():
        for name in ("all", "default"):
            Path("/proc/sys/net/ipv6/conf", name, "disable_ipv6").write_text("1")
