"""Write the completions of `oxidize` for bash, zsh and fish, as click makes them from the commands.

The rule: a completion asks the command at each <Tab>, so that it knows the peers and the releases of that moment; the
file itself depends on no release. Sources: bash-completion's README, zshcompsys(1), fish's completions.

Run `python scripts/release/completions.py FOLDER`; FOLDER is a share folder, as /usr/share.
"""

import sys
from pathlib import Path

from click.shell_completion import BashComplete, FishComplete, ShellComplete, ZshComplete

from oxidize.cli.commands import main as oxidize

FILES: dict[str, type[ShellComplete]] = {
    "bash-completion/completions/oxidize": BashComplete,
    "zsh/site-functions/_oxidize": ZshComplete,
    "fish/vendor_completions.d/oxidize.fish": FishComplete,
}
VARIABLE = "_OXIDIZE_COMPLETE"  # as click derives it from the name of the program


def write(folder: Path) -> None:
    """Write all completions below a folder."""
    for name, shell in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(shell(oxidize, {}, "oxidize", VARIABLE).source())


if __name__ == "__main__":
    write(Path(sys.argv[1]))
