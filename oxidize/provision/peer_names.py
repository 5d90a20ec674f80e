"""Names for the peers of a wg-quick file, which has none, from its comments.

The rule: a name comes from a comment that is short enough and contains neither a possible key nor a setting that is
commented out; every peer gets a different name. Sources of the forms: what operators and common installers write, such
as "# laptop", "# Name = laptop", "### Client laptop", "### begin laptop ###", "# Client: laptop (its UUID)",
"# laptop start", "# 10: laptop > its file", "# laptop / its address / Updated: a date".
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence

from oxidize.config.values import PEER_NAME_BYTES_MAX, PEER_NAME_MAX
from oxidize.provision.wg_quick import PEER_NAMES, Section

_WORDS_MAX = 3  # more words are a sentence
_LABELLED = re.compile(
    r"(?:(?:(?:friendly|display|peer|client|user|device)[_ -]?)?name|client|alias|label)\s*#?\s*[=:]\s*(?P<name>.+)",
    re.IGNORECASE,
)
_JSON_NAME = re.compile(r'friendly_json\s*=.*?"(?:friendly_)?name"\s*:\s*"(?P<name>[^"]+)"', re.IGNORECASE)
_INTRODUCED = re.compile(r"(?:client|peer|user|device|begin|begin_peer)\b[\s:=]+(?P<name>.+)", re.IGNORECASE)
_NUMBERED = re.compile(r"\d+:\s*(?P<name>\S.*?)\s*>\s*\S+")  # easy-wg-quick: the number of its address, and its file
_STARTING = re.compile(r"(?P<name>\S.*?)\s+start", re.IGNORECASE)
_STARTED = re.compile(r"\S.*?\s+end", re.IGNORECASE)
_DATED = re.compile(r"\s/\s+(?:updated|created):", re.IGNORECASE)
_ENDING = re.compile(r"(?:end|end_peer)\b", re.IGNORECASE)
_SETTING = re.compile(rf"(?:{'|'.join(PEER_NAMES)}|\[)", re.IGNORECASE)
_KEY = re.compile(r"[A-Za-z0-9+/]{40,}|[0-9A-Fa-f]{64}")
_UUID = re.compile(r"[\s(\[-]+[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}[)\]]?\s*", re.IGNORECASE)


def peer_names(peers: Sequence[Section]) -> list[str]:
    """Return a name for each peer, in order."""
    comments = [comment for section in peers for comment in section.comments]
    has_marks = any(map(_STARTING.fullmatch, comments)) and any(map(_STARTED.fullmatch, comments))
    taken: dict[str, int] = {}  # names, and the number that the last further one was given
    return [
        _free(_from_comments(section.comments, has_marks) or f"peer-{number}", taken)
        for number, section in enumerate(peers, start=1)
    ]


def _from_comments(comments: Iterable[str], has_marks: bool) -> str:
    """Return the name in the comments, preferably one with a label; empty if there is none.

    has_marks: whether this file marks its sections by "NAME start" and "NAME end".
    """
    usable = [comment for comment in comments if not (_KEY.search(comment) or _SETTING.match(comment))]
    labelled = [match["name"] for pattern in (_LABELLED, _JSON_NAME) for match in map(pattern.match, usable) if match]
    return next((name for name in map(_sanitized, [*labelled, *_short(usable, has_marks)]) if name), "")


def _short(comments: Iterable[str], has_marks: bool) -> Iterator[str]:
    for comment in comments:
        text = _DATED.split(comment)[0]
        if text != comment:
            text = text.split(" / ")[0]  # the name before its mail address
        introduced = _INTRODUCED.match(text) or _NUMBERED.fullmatch(text)
        if introduced is None and has_marks:
            introduced = _STARTING.fullmatch(text)
        if introduced:
            text = introduced["name"]
        is_end = _ENDING.match(comment) or (has_marks and _STARTED.fullmatch(comment))
        if len(text.split()) <= _WORDS_MAX and not is_end:
            yield text


def _sanitized(text: str) -> str:
    """Return a text without the characters that a name cannot have."""
    text = _UUID.sub("", unicodedata.normalize("NFC", text).strip()) or text
    name = re.sub(r"[^\w.@-]+", "-", text.strip().strip("\"'"))
    name = re.sub(r"^[\W_]+", "", name)[:PEER_NAME_MAX].encode()[:PEER_NAME_BYTES_MAX].decode(errors="ignore")
    return name.rstrip("-")


def _free(name: str, taken: dict[str, int]) -> str:
    """Return the name, or if it is taken the first free one with a number, and take it; each number is tried once."""
    number, free = taken.get(name, 0), name
    while free in taken:
        number = max(number, 1) + 1
        end = f"-{number}"
        start = name[: PEER_NAME_MAX - len(end)].encode()[: PEER_NAME_BYTES_MAX - len(end)].decode(errors="ignore")
        free = f"{start}{end}"
    taken[name] = number
    taken.setdefault(free, 0)
    return free
