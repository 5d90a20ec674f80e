"""Words that more than one part prints: numbers with their nouns, and what a release is called."""

from pathlib import PurePath


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """Return "1 peer" or "2 peers"."""
    return f"{number} {noun}" if number == 1 else f"{number} {plural or noun + 's'}"


def release_name(version: str, folder: str) -> str:
    """Return what an installed release is called, by the folder that a process runs from; else its version alone."""
    name = PurePath(folder).name
    return name if name.startswith(f"{version}-") else version


def printable(text: str, characters_max: int = 4096) -> str:
    """To be merged."""
    return text
