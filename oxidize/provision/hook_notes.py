"""The notes about the commands of a wg-quick file.

The rule: a note names the line that it is about, and every command in full, for the interface that the result names,
without keys. Sources: wg-quick(8), wg(8).
"""

import re
from dataclasses import dataclass

from oxidize.config.report import without_keys
from oxidize.provision.wg_quick import Setting
from oxidize.provision.wg_values import Reading

_WHEN = {
    "PreUp": "before {unit} starts",
    "PostUp": "after {unit} has started",
    "PreDown": "before {unit} ends",
    "PostDown": "after {unit} has ended",
}


@dataclass(frozen=True, slots=True)
class Tunnel:
    """The names of a tunnel, before and after: the interface, the unit that is going to run it, and its side."""

    old: str
    new: str
    unit: str
    is_client: bool


class HookNotes:
    """Collects what there is to say of the commands of one setting; those of which the same is said share a note.

    setting: the one that is read. has_units: whether a note is about a line for a unit.
    """

    def __init__(self, tunnel: Tunnel, reading: Reading) -> None:
        self.setting = Setting("", "", 0)
        self.has_units = False
        self._tunnel = tunnel
        self._reading = reading
        self._commands: dict[str, list[str]] = {}
        self._name = re.compile(rf"(?<![\w./-]){re.escape(tunnel.old)}(?![\w./-])")

    def unit(self, source: str, more: str = "") -> None:
        """Say of a command that a unit has to run it."""
        self.has_units = True
        when = _WHEN[self.setting.name].format(unit=self._tunnel.unit)
        self.say(f"nothing here does this{more}: have a unit run it {when}", source)

    def say(self, text: str, source: str) -> None:
        """Say something of a command."""
        self._commands.setdefault(text, []).append(self.shown(source))

    def flush(self) -> None:
        """Add the notes about this setting to those of the file."""
        for text, sources in self._commands.items():
            self._reading.note(self.setting.line, f"{text}: {'; '.join(dict.fromkeys(sources))}")
        self._commands = {}

    def shown(self, source: str) -> str:
        """Return a command for the new interface, without keys."""
        return self._name.sub(self._tunnel.new, without_keys(source))
