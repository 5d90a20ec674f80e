"""A broken release: a copy of this one that fails when it restores a predecessor's sessions.

Rule: only the copy is changed, and the fault is a realistic one: every import succeeds, the configuration is valid, the
takeover begins, and only then does the new code fail.
"""

import shutil
from pathlib import Path

import oxidize
from oxidize.protocol.restore import restore_change

_FAULT = f'''

def {restore_change.__name__}(*_arguments: object) -> None:  # noqa: F811  # replaces the one above
    """Fail."""
    from oxidize.errors import SnapshotError

    raise SnapshotError("this release cannot read the sessions: it was broken on purpose for the demonstration")
'''


def make_broken_release(directory: Path) -> Path:
    """Copy the package into `directory`, break the copy, and return the value for PYTHONPATH."""
    package = Path(oxidize.__file__).parent
    # Compiled files and the times of their sources are copied too: compiling during the run would disturb the traffic.
    copy = Path(shutil.copytree(package, directory / "oxidize"))
    faulty_module = copy.joinpath(*restore_change.__module__.split(".")[1:]).with_suffix(".py")
    with faulty_module.open("a", encoding="utf-8") as module:
        module.write(_FAULT)
    return directory
