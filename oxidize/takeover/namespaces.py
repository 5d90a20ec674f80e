"""The network and time namespace of a process: both sides of a takeover must have the same.

The rule: a successor names its namespaces in HELLO, and the predecessor compares them with its own of that moment. What
one of the two does not name, as an older release or a kernel without it, is not compared. In another network namespace
the successor would look after interfaces that are not its tunnel's; in another time namespace the clocks differ, and
so every age of a session.

Source: namespaces(7), time_namespaces(7): two processes share a namespace if the links of /proc/PID/ns are equal.
"""

import os
from pathlib import Path

NETWORK = Path("/proc/self/ns/net")
TIME = Path("/proc/self/ns/time")


def network_namespace() -> str:
    """Return the network namespace of this process, as `net:[4026531840]`; "" where the kernel does not say."""
    return _link(NETWORK)


def time_namespace() -> str:
    """Return the time namespace of this process, as `time:[4026531834]`; "" where the kernel does not say."""
    return _link(TIME)


def difference(network: str, time: str) -> str:
    """Return why a process of these namespaces cannot replace this one, with the remedy; "" where it can."""
    for name, option, theirs, own in (
        ("network", "--net", network, network_namespace()),
        ("time", "--time", time, time_namespace()),
    ):
        if theirs and own and theirs != own:
            return (
                f"the successor is in {name} namespace {theirs}; expected {own}, that of the server: put "
                f"`nsenter --target {os.getpid()} {option}` before the command"
            )
    return ""


def _link(path: Path) -> str:
    try:
        return str(path.readlink())
    except OSError:
        return ""
