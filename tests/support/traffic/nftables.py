"""What `nft` says of a namespace's tables.

Rule: what a server made is looked at by the kernel's other user, never by the code that made it. Source: nft(8).
"""

import re
import subprocess

from tests.support.traffic.namespaces import Namespace
from tests.support.traffic.server import WAIT_SECS


def nft(namespace: Namespace, *arguments: str, text: str = "") -> str:
    """Run nft, with `text` as its input, and return what it prints."""
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
    """Return the lines that name a table or chain, with the number that the kernel gave it when it was made.

    A chain's number begins anew with each table, a table's never. What nft takes for the owner's name is left out: it
    asks who has the number of the owner's port as a pid, and by now that may be anybody.
    """
    return re.findall(
        r"^\s*((?:table|chain) .*# handle \d+)", nft(namespace, "--handle", "list", "ruleset"), re.MULTILINE
    )
