"""Names for the peers of a wg-quick file, which has none, from its comments.

The rule: a name comes from a comment that is short enough and contains neither a possible key nor a setting that is
commented out; every peer gets a different name. Sources of the forms: what operators and common installers write, such
as "# laptop", "# Name = laptop", "### Client laptop", "### begin laptop ###".
"""

import re
from collections.abc import Iterable, Iterator, Sequence

from oxidize.config.values import PEER_NAME_MAX
from oxidize.provision.wg_quick import PEER_NAMES, Section

_WORDS_MAX = 3  # more words are a sentence
_LABELLED = re.compile(r"(?:friendly_?)?name\s*[=:]\s*(?P<name>.+)", re.IGNORECASE)
_INTRODUCED = re.compile(r"(?:client|peer|user|begin|begin_peer)\b[\s:=]+(?P<name>.+)", re.IGNORECASE)
_ENDING = re.compile(r"(?:end|end_peer)\b", re.IGNORECASE)
_SETTING = re.compile(rf"(?:{'|'.join(PEER_NAMES)}|\[)", re.IGNORECASE)
_KEY = re.compile(r"[A-Za-z0-9+/]{40,}|[0-9A-Fa-f]{64}")


def peer_names(peers: Sequence[Section]) -> list[str]:
    """Return a name for each peer, in order."""
    taken: dict[str, int] = {}  # names, and the number that the last further one was given
    names = []
    for number, section in enumerate(peers, start=1):
        name = _free(_from_comments(section.comments) or f"peer-{number}", taken)
        names.append(name)
    return names


def _from_comments(comments: Iterable[str]) -> str:
    """Return the name in the comments, preferably one with a label; empty if there is none."""
    usable = [comment for comment in comments if not (_KEY.search(comment) or _SETTING.match(comment))]
    labelled = [match["name"] for match in map(_LABELLED.match, usable) if match]
    return next((name for name in map(_sanitized, [*labelled, *_short(usable)]) if name), "")


def _short(comments: Iterable[str]) -> Iterator[str]:
    for comment in comments:
        introduced = _INTRODUCED.match(comment)
        text = introduced["name"] if introduced else comment
        if len(text.split()) <= _WORDS_MAX and not _ENDING.match(comment):
            yield text


def _sanitized(text: str) -> str:
    """Return a text without the characters that a name cannot have."""
    name = re.sub(r"[^A-Za-z0-9_.@-]+", "-", text.strip().strip("\"'"))
    return re.sub(r"^[^A-Za-z0-9]+", "", name)[:PEER_NAME_MAX].rstrip("-")


def _free(name: str, taken: dict[str, int]) -> str:
    """Return the name, or if it is taken the first free one with a number, and take it; each number is tried once."""
    number, free = taken.get(name, 0), name
    while free in taken:
        number = max(number, 1) + 1
        free = f"{name[: PEER_NAME_MAX - len(str(number)) - 1]}-{number}"
    taken[name] = number
    taken.setdefault(free, 0)
    return free
