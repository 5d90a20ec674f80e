"""A broken release: an environment with a copy of this release that fails when it restores a predecessor's sessions.

Rule: only the copy is changed, and the fault is a realistic one: every import succeeds, the configuration is valid, the
takeover begins, and only then does the new code fail.
"""

import shutil
import site
import venv
from pathlib import Path

import oxidize
from oxidize.protocol.restore import restore_change

_FAULT = f'''

def {restore_change.__name__}(*_arguments: object) -> None:  # noqa: F811  # replaces the one above
    """Fail."""
    from oxidize.errors import SnapshotError

    raise SnapshotError("this release cannot read the sessions: it was broken on purpose for the demonstration")
'''


def make_broken_release(directory: Path) -> str:
    """Make an environment in `directory`, with a broken copy of the package, and return its interpreter."""
    venv.create(directory, symlinks=True)
    (packages,) = directory.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text("\n".join(site.getsitepackages()) + "\n", "utf-8")
    # Compiled files and the times of their sources are copied too: compiling during the run would disturb the traffic.
    copy = Path(shutil.copytree(Path(oxidize.__file__).parent, packages / "oxidize"))
    faulty_module = copy.joinpath(*restore_change.__module__.split(".")[1:]).with_suffix(".py")
    with faulty_module.open("a", encoding="utf-8") as module:
        module.write(_FAULT)
    return str(directory / "bin" / "python")
