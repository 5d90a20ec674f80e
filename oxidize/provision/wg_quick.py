"""Parse a wg-quick file as wg and wg-quick do.

The rule: what they accept is accepted, what they refuse is refused with its line number, and no message shows a
possible key. Values are not checked: every setting is returned as text, with its line. Sources: wg(8), section
"Configuration File Format"; wg-quick(8). Both cut a line at the first "#" and compare names without regard to case; of
a setting that holds one value the last one counts. wg drops every blank of a line, also within names.

A section [Peer] that is commented out as a whole is kept as one that is not enabled, since installers and operators
disable clients that way.
"""

import codecs
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
_NAMES = {
    "interface": {name.lower(): name for name in INTERFACE_NAMES},
    "peer": {name.lower(): name for name in PEER_NAMES},
}
_WG_NAMES = {"PrivateKey", "ListenPort", "FwMark", *PEER_NAMES}  # the others are wg-quick's, which keeps blanks
_SETTING = re.compile(r"([A-Za-z][A-Za-z0-9 \t]{0,31})=(.*)", re.DOTALL)
_DISABLED = re.compile(r"\[disabled\][#\s]*", re.IGNORECASE)  # as PiVPN marks the lines of a client that is off
_HEADER = re.compile(r"\[\s*(interface|peer)\s*\]", re.IGNORECASE)
# AmneziaWG's: packets before a handshake, and the padding and the numbers of its messages.
_AMNEZIA = re.compile(r"jc|jmin|jmax|itime|[ij][1-5]|[sh][1-4]|advancedsecurity", re.IGNORECASE)
_AMNEZIA_MESSAGES = re.compile(r"[sh][1-4]|advancedsecurity", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Setting:
    """One line: its name as in the manual, its value, which may be a key, and its number."""

    name: str
    value: str = field(repr=False)
    line: int


@dataclass(slots=True)
class Section:
    """One section: its settings in order, and the comments that belong to it. enabled: it is not commented out."""

    line: int
    settings: list[Setting] = field(default_factory=list)
    comments: list[str] = field(default_factory=list, repr=False)
    enabled: bool = True

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


def decode(content: bytes, source: str) -> str:
    """Return the text of a file; raises ConfigError for UTF-16 and for a NUL.

    A byte order mark is left out. A line that is not UTF-8 is read as Latin-1: wg minds bytes only in values.
    """
    report = Report(source)
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or content[:2].count(0) == 1:
        remedy = "save it as UTF-8, or convert it: `iconv -f UTF-16 -t UTF-8`"
        report.fail(f"this is UTF-16, as editors for Windows write it: expected UTF-8; {remedy}")
    if b"\0" in content:
        line = content.count(b"\n", 0, content.index(b"\0")) + 1
        report.fail(f"line {line} has a NUL byte: expected a wg-quick file, which is text; correct the path")
    content = content.removeprefix(codecs.BOM_UTF8)
    try:
        return content.decode()
    except UnicodeDecodeError:
        return "\n".join(map(_decode_line, content.split(b"\n")))


def _decode_line(line: bytes) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError:
        return line.decode("latin-1")


def parse(text: str, source: str) -> Document:
    """Return the parsed text; raises ConfigError with a line for each mistake, beginning with `source`."""
    reader = _Reader(source)
    for number, line in enumerate(text.split("\n"), start=1):
        reader.read(number, line)
    reader.end()
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
        self._disabled: Section | None = None  # the section that the comments here make up
        self._comments: list[str] = []  # those right above the current line: the next one decides whose they are
        self._amnezia: dict[str, int] = {}  # names, and the line of the first

    def read(self, number: int, line: str) -> None:
        text, mark, comment = line.partition("#")
        text, comment = text.strip(), comment.strip("# \t\r")
        if comment and not text:
            self._comment(number, comment)
            return
        if text.startswith("["):
            self._begin(number, text, [comment] if comment else [])
            return
        if comment:
            self._comments.append(comment)
        if not text and mark:
            return  # a "#" alone
        self._keep_comments()
        self._disabled = None
        if text:
            self._set(number, text)

    def end(self) -> None:
        """Assign what is left, and report what belongs to the file as a whole."""
        self._keep_comments()
        self.peers = [peer for peer in self.peers if peer.enabled or peer.last("PublicKey") is not None]
        if self._amnezia:
            self._reject_amnezia()

    def _comment(self, number: int, comment: str) -> None:
        """Read a line that is only a comment: one of a section that is commented out, or any other."""
        given = _DISABLED.sub("", comment, count=1)
        header = _HEADER.match(given)
        if header is not None:
            self._disabled = Section(number, comments=self._comments[::-1], enabled=False)  # the closest first
            self._comments = []
            if header[1].lower() == "peer":
                self.peers.append(self._disabled)
            return
        setting = _SETTING.fullmatch(given)
        name = _named(setting[1], _NAMES["peer"]) if setting is not None else None
        if self._disabled is not None and setting is not None and name is not None:
            value, _, rest = setting[2].partition("#")
            self._disabled.settings.append(Setting(name, value.strip(), number))
            self._comments += filter(None, [rest.strip("# \t\r")])
            self._keep_comments()
        elif self._disabled is not None and given != comment:
            self._disabled.comments.append(given)
        else:
            self._comments.append(given)

    def _keep_comments(self) -> None:
        """Assign the comments above this line to the current section."""
        section = self._disabled or self._section
        if section is not None:
            section.comments += self._comments
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
        self._disabled = None
        if self._section is not None:
            self._section.comments += [*comments, *reversed(self._comments)]  # the closest first
        self._comments = []

    def _set(self, number: int, text: str) -> None:
        match = _SETTING.fullmatch(text)
        if match is None:
            self._wrong(number, "expected Name = value, or a section in brackets; correct it, or begin it with #")
        elif self._section is not None:
            given = match[1].strip()
            name = _named(given, _NAMES[self._kind])
            if name is not None:
                self._section.settings.append(Setting(name, match[2].strip(), number))
            elif _AMNEZIA.fullmatch(given):
                self._amnezia.setdefault(given, number)
            else:
                self._reject_name(number, given)
        elif not self._kind:
            self._wrong(number, "expected a section first; write [Interface] above it")

    def _reject_name(self, number: int, given: str) -> None:
        if self.report.has_room():
            names = _NAMES[self._kind]
            close = difflib.get_close_matches("".join(given.split()).lower(), names, 1)
            remedy = f"did you mean {names[close[0]]}?" if close else "correct it, or begin the line with #"
            self._wrong(number, f"{given}: expected a name that [{self._kind.capitalize()}] has; {remedy}")

    def _reject_amnezia(self) -> None:
        names = ", ".join(self._amnezia)
        if any(map(_AMNEZIA_MESSAGES.fullmatch, self._amnezia)):
            remedy = (
                "a server with these settings answers nothing else, so no change of this file helps: "
                "ask its operator for a WireGuard configuration"
            )
        else:
            remedy = "they only add packets, which a WireGuard server ignores: begin these lines with #"
        self._wrong(
            min(self._amnezia.values()),
            f"{names}: these are AmneziaWG's, which disguises WireGuard's messages: "
            f"expected WireGuard, which Oxidize and wg speak; {remedy}",
        )

    def _wrong(self, number: int, text: str) -> None:
        self.report.add(f"line {number}: {text}")


def _named(given: str, names: dict[str, str]) -> str | None:
    """Return the name that was given, as in the manual, or None; wg's names may have blanks in them."""
    name = names.get("".join(given.split()).lower())
    return name if name in _WG_NAMES or len(given.strip()) == len(name or "") else None
