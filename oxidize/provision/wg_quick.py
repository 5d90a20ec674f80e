"""Parse a wg-quick file as wg and wg-quick do.

The rule: what they accept is accepted, what they refuse is refused with its line number, and no message shows a
possible key. Values are not checked: every setting is returned as text, with its line. Sources: wg(8), section
"Configuration File Format"; wg-quick(8). Both cut a line at the first "#" and compare names without regard to case; of
a setting that holds one value the last one counts.
"""

import difflib
import re
from dataclasses import dataclass, field

from oxidize.config.report import Report
from oxidize.protocol.constants import PEERS_MAX

# Every name as in the manuals, and whether a repeated setting adds to those before.
INTERFACE_NAMES = {
    "PrivateKey": False,
    "ListenPort": False,
    "FwMark": False,
    "Address": True,
    "DNS": True,
    "MTU": False,
    "Table": False,
    "PreUp": True,
    "PostUp": True,
    "PreDown": True,
    "PostDown": True,
    "SaveConfig": False,
}
PEER_NAMES = {
    "PublicKey": False,
    "PresharedKey": False,
    "AllowedIPs": True,
    "Endpoint": False,
    "PersistentKeepalive": False,
}
_NAMES = {"interface": INTERFACE_NAMES, "peer": PEER_NAMES}
_SETTING = re.compile(r"([A-Za-z]{1,32})\s*=(.*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Setting:
    """One line: its name as in the manual, its value, which may be a key, and its number."""

    name: str
    value: str = field(repr=False)
    line: int


@dataclass(slots=True)
class Section:
    """One section: its settings in order, and the comments that belong to it."""

    line: int
    settings: list[Setting] = field(default_factory=list)
    comments: list[str] = field(default_factory=list, repr=False)

    def all(self, name: str) -> list[Setting]:
        """Return the effective settings of one name: all if they add up, otherwise the last."""
        found = [setting for setting in self.settings if setting.name == name]
        return found if INTERFACE_NAMES.get(name, PEER_NAMES.get(name)) else found[-1:]

    def last(self, name: str) -> Setting | None:
        """Return the setting of a name that holds one value."""
        found = self.all(name)
        return found[-1] if found else None


@dataclass(frozen=True, slots=True)
class Document:
    """A whole file. Several [Interface] sections are one, as for wg."""

    interface: Section
    peers: list[Section]


def parse(text: str, source: str) -> Document:
    """Return the parsed text; raises ConfigError with a line for each mistake, beginning with `source`."""
    reader = _Reader(source)
    for number, line in enumerate(text.split("\n"), start=1):
        reader.read(number, line)
    reader.keep_comments()
    reader.report.check()
    if reader.interface is None:
        reader.report.fail("there is no section [Interface]: expected a file of wg-quick; correct the path")
    if len(reader.peers) > PEERS_MAX:
        expected = f"expected at most {PEERS_MAX}; give the rest to a second server"
        reader.report.fail(f"{len(reader.peers)} sections [Peer]: {expected}")
    return Document(reader.interface, reader.peers)


class _Reader:
    """The state of parsing."""

    def __init__(self, source: str) -> None:
        self.interface: Section | None = None
        self.peers: list[Section] = []
        self.report = Report(source)
        self._kind = ""
        self._section: Section | None = None  # None before the first header and after a wrong one
        self._comments: list[str] = []  # those right above the current line: the next one decides whose they are

    def read(self, number: int, line: str) -> None:
        text, _, comment = line.partition("#")
        text, comment = text.strip(), comment.strip("# \t\r")
        if text.startswith("["):
            self._begin(number, text, [comment] if comment else [])
            return
        if comment:
            self._comments.append(comment)
        if not text and comment:
            return
        self.keep_comments()
        if text:
            self._set(number, text)

    def keep_comments(self) -> None:
        """Assign the comments above this line to the current section."""
        if self._section is not None:
            self._section.comments += self._comments
        self._comments = []

    def _begin(self, number: int, text: str, comments: list[str]) -> None:
        kind = "".join(text.split()).lower()
        if kind == "[peer]":
            self._section = Section(number)
            self.peers.append(self._section)
        elif kind == "[interface]":
            self._section = self.interface = self.interface or Section(number)
        else:
            self._section = None
            self._wrong(number, "expected [Interface] or [Peer]; correct it")
        self._kind = kind[1:-1]
        if self._section is not None:
            self._section.comments += [*comments, *reversed(self._comments)]  # the closest first
        self._comments = []

    def _set(self, number: int, text: str) -> None:
        match = _SETTING.fullmatch(text)
        if match is None:
            self._wrong(number, "expected Name = value, or a section in brackets; correct it, or begin it with #")
        elif self._section is not None:
            names = {name.lower(): name for name in _NAMES[self._kind]}
            name = names.get(match[1].lower())
            if name is None:
                self._reject_name(number, match[1], names)
            else:
                self._section.settings.append(Setting(name, match[2].strip(), number))
        elif not self._kind:
            self._wrong(number, "expected a section first; write [Interface] above it")

    def _reject_name(self, number: int, given: str, names: dict[str, str]) -> None:
        if self.report.has_room():
            close = difflib.get_close_matches(given.lower(), names, 1)
            remedy = f"did you mean {names[close[0]]}?" if close else "correct it, or begin the line with #"
            self._wrong(number, f"{given}: expected a name that [{self._kind.capitalize()}] has; {remedy}")

    def _wrong(self, number: int, text: str) -> None:
        self.report.add(f"line {number}: {text}")
