"""A release that cannot start: this one, with a fault that shows only when it restores a predecessor's sessions.

Rule: the fault is in the copy alone, and it is of the kind that matters: everything imports, the configuration is good,
the takeover begins, and then the new code cannot do what the old one did.
"""

import shutil
from pathlib import Path

import oxidize
from oxidize.protocol.restore import restore_change

_FAULT = f'''

def {restore_change.__name__}(*_arguments: object) -> None:  # noqa: F811  # it takes the place of the real one
    """Fail."""
    from oxidize.errors import SnapshotError

    raise SnapshotError("this release cannot read the sessions: it was broken on purpose, for the demonstration")
'''


def make_broken_release(directory: Path) -> Path:
    """Copy the package into `directory`, break it, and return what to put into PYTHONPATH."""
    package = Path(oxidize.__file__).parent
    # Compiled files come along with their sources' times, or the traffic would be disturbed by compiling it all again.
    copy = Path(shutil.copytree(package, directory / "oxidize"))
    faulty_module = copy.joinpath(*restore_change.__module__.split(".")[1:]).with_suffix(".py")
    with faulty_module.open("a", encoding="utf-8") as module:
        module.write(_FAULT)
    return directory
