"""The wg-quick files in tests/vectors/wg_quick, and what `oxidize import` makes of each.

Rule: NAME.conf is imported as /etc/wireguard/wg0.conf of a machine whose files with keys are KEYS, with --client where
NAME ends in "-client". NAME.expected has the exit status, all lines, and the files without their keys. `python -m
tests.support.import_cases` writes them all; what that changes is to be read like any other change.
"""

import tempfile
from pathlib import Path
from unittest import mock

from click.testing import CliRunner, Result

from oxidize.cli import import_wg_quick
from oxidize.cli.commands import main
from oxidize.config.paths import Role
from oxidize.provision.conversion import Machine
from tests.support.config_files import PRESHARED, PRIVATE

FOLDER = Path(__file__).parents[1] / "vectors" / "wg_quick"
CASES = sorted(path.stem for path in FOLDER.glob("*.conf"))
KEYS = {"/etc/wireguard/dn42.priv": f"{PRIVATE}\n", "/etc/wireguard/laptop.psk": f"{PRESHARED}\n"}


def _read_key(path: str) -> str:
    if path not in KEYS:
        raise FileNotFoundError(2, "No such file or directory", path)
    return KEYS[path]


MACHINE = Machine(_read_key)


def role_of(name: str) -> Role:
    return "client" if name.endswith("-client") else "server"


def run_import(content: bytes, role: Role, folder: Path) -> tuple[Result, Path]:
    """Import a file; return the outcome, and the path of the configuration, which is not there after a mistake."""
    source, output = folder / "wg0.conf", folder / "out" / f"{role}.toml"
    source.write_bytes(content)
    with (
        mock.patch.object(import_wg_quick, "machine", return_value=MACHINE),
        mock.patch("oxidize.provision.config_file.service_owner", return_value=None),
    ):
        option = ["--client"] if role == "client" else []
        result = CliRunner().invoke(main, ["import", str(source), "-o", str(output), *option])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert result.stdout == ""
    return result, output


def outcome(name: str) -> str:
    """Return the exit status, the output and the files of importing one case."""
    with tempfile.TemporaryDirectory() as folder:
        result, output = run_import((FOLDER / f"{name}.conf").read_bytes(), role_of(name), Path(folder))
        files = output.read_text("utf-8") if output.exists() else ""
        return f"exit {result.exit_code}\n{result.stderr}\n{files}".replace(f"{folder}/", "")


if __name__ == "__main__":
    for case in CASES:
        (FOLDER / f"{case}.expected").write_text(outcome(case), "utf-8")
