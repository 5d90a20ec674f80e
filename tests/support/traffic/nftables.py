"""The nftables of a namespace, as `nft` lists them.

Rule: the tables of a server are read with nft, never with the server's own code. Source: nft(8).
"""

import re
import subprocess

from tests.support.traffic.namespaces import Namespace
from tests.support.traffic.server import WAIT_SECS


def nft(namespace: Namespace, *arguments: str, text: str = "") -> str:
    """Run nft with `text` as input and return its output."""
    with namespace.entered():
        done = subprocess.run(
            ["/usr/sbin/nft", *arguments], input=text, capture_output=True, check=False, text=True, timeout=WAIT_SECS
        )
    assert done.returncode == 0, f"nft {' '.join(arguments)}: {done.stderr}"
    return done.stdout


def tables(namespace: Namespace) -> list[str]:
    """Return the names of all tables, with their families."""
    return [line.removeprefix("table ") for line in nft(namespace, "list", "tables").splitlines()]


def rules(namespace: Namespace, table: str) -> list[str]:
    """Return the lines of a table, without indentation and comments."""
    lines = nft(namespace, "list", "table", *table.split()).splitlines()
    return [line.partition(" #")[0].strip() for line in lines if line.strip()]


def handles(namespace: Namespace) -> list[str]:
    """Return the lines of tables and chains with their handles, which the kernel assigns on creation.

    Handles of chains are unique in a table, handles of tables in the namespace. The owner's name is left out: nft takes
    it from the process whose pid equals the owner's port, which may be an unrelated one.
    """
    return re.findall(
        r"^\s*((?:table|chain) .*# handle \d+)", nft(namespace, "--handle", "list", "ruleset"), re.MULTILINE
    )
