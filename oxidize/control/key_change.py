"""A private key that differs from the running process's, as a line for the operator: before the change and after it.

The rule: the change is announced before it is made, for no session survives it, and the other side has to be told the
new public key. A process that does not answer, or whose release does not name its key, is no reason for a warning.
"""

from pathlib import Path

from oxidize.config.values import format_key
from oxidize.control import query
from oxidize.errors import OxidizeError
from oxidize.text import counted

KEY_CHANGED = "the private key has changed"  # also the reason for refused sessions, which other releases read


def announcement(role: str, takeover_socket: Path, public_key: bytes) -> str | None:
    """Return what a reload with this key would end, None where the running process has it too, or none answers."""
    try:
        found = query.find(takeover_socket, query.IDENTITY)
        if found is not None and "public_key" not in found:  # release 0.1.0 names it in its status alone
            found = query.find(takeover_socket)
    except OxidizeError:
        return None
    before = found.get("public_key") if found is not None else None
    if found is None or not isinstance(before, str) or before == format_key(public_key):
        return None
    return (
        f"{KEY_CHANGED}: a reload ends all sessions; {_remedy(role)} (before, and still of pid {found.get('pid')}: "
        f"{before}; then: {format_key(public_key)})"
    )


def report(role: str, ended: int) -> str:
    """Return what a change of the key has done. Without the key, which no log shows."""
    return f"{KEY_CHANGED}: {counted(ended, 'session')} ended; {_remedy(role)}, which `oxidize status --json` shows"


def _remedy(role: str) -> str:
    own, other = ("client", "the server") if role == "client" else ("server", "each peer")
    return f"{other} gets no answer until it has this {own}'s new public key"
