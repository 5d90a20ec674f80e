"""Completion at <Tab>, as the shells ask for it: names of peers and of releases, and never an error."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from oxidize.cli.commands import main
from scripts.release.completions import FILES, VARIABLE, write
from tests.support.deploy_world import add_release

PEERS = """
[server]
address = ["10.9.0.1/24"]
name = "it is no peer's, but a mistake hides nothing"

[[peer]]
name = "phone"  # of Ann
# name = "old-phone"

[[peer]]
  name='photo-booth'
allowed_ips = ["10.9.0.3/32"
[[peer]]
name = "laptop"
"""


def completed(capsysbinary: pytest.CaptureFixture[bytes], *words: str) -> list[str]:
    """Return what bash is offered for the last of these words; fail on anything else that is printed."""
    environment = {VARIABLE: "bash_complete", "COMP_WORDS": " ".join(words), "COMP_CWORD": str(len(words) - 1)}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        with pytest.raises(SystemExit) as ended:
            main([], prog_name="oxidize")
    assert ended.value.code == 0
    printed = capsysbinary.readouterr()
    assert printed.err == b""
    offered = [line.partition(",") for line in printed.out.decode().splitlines() if line]
    assert {kind for kind, _, _ in offered} <= {"plain"}
    return [name for _, _, name in offered]


def test_names_of_peers_are_completed_even_in_a_file_with_mistakes(
    tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    path = tmp_path / "server.toml"
    path.write_text(PEERS)
    remove = ("oxidize", "peer", "remove", "-c", str(path))
    assert completed(capsysbinary, *remove, "ph") == ["phone", "photo-booth"]
    assert completed(capsysbinary, *remove, "laptop") == ["laptop"]
    assert completed(capsysbinary, *remove, "x") == []


@pytest.mark.parametrize("name", ["missing.toml", "folder", "\udcff", "denied"])
def test_a_file_that_cannot_be_read_has_no_names(
    tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "folder").mkdir()
    path = tmp_path / name
    if name == "denied":
        path.touch()

        def refuse(*_: object, **__: object) -> None:
            raise PermissionError(13, "Permission denied", str(path))  # root is refused nothing

        monkeypatch.setattr(Path, "open", refuse)
    assert completed(capsysbinary, "oxidize", "peer", "remove", "-c", str(path), "p") == []


def test_names_of_releases_are_completed(tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    for number, name in enumerate(("0.1.0-first", "0.1.0-second", "0.2.0-third")):
        add_release(tmp_path, name, float(number))
    (tmp_path / "releases/0.1.0-incomplete").mkdir()
    deploy = ("oxidize", "deploy", "--prefix", str(tmp_path), "--release")
    assert completed(capsysbinary, *deploy, "0.1") == ["0.1.0-second", "0.1.0-first"]
    assert completed(capsysbinary, "oxidize", "deploy", "--prefix", str(tmp_path / "none"), "--release", "0") == []


def test_commands_and_options_are_completed(capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    assert completed(capsysbinary, "oxidize", "re") == ["rehearse", "releases", "reload"]
    assert completed(capsysbinary, "oxidize", "peer", "r") == ["remove", "renew"]
    assert "--settle" in completed(capsysbinary, "oxidize", "deploy", "--se")


@pytest.mark.needs("bash")
def test_bash_completes_by_the_file_that_is_installed(tmp_path: Path) -> None:
    write(tmp_path)
    program = tmp_path / "bin/oxidize"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\ntest "$COMP_CWORD $_OXIDIZE_COMPLETE" = "1 bash_complete" && echo plain,peer\n')
    program.chmod(0o755)
    asked = (
        f"source {tmp_path}/bash-completion/completions/oxidize; complete -p oxidize; "
        'COMP_WORDS=(oxidize p); COMP_CWORD=1; _oxidize_completion oxidize; echo "${COMPREPLY[*]}"'
    )
    environment = {**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}"}
    bash = shutil.which("bash")
    assert bash is not None
    done = subprocess.run([bash, "-c", asked], env=environment, capture_output=True, text=True, check=False)
    assert (done.stderr, done.stdout.splitlines()) == (
        "",
        ["complete -o nosort -F _oxidize_completion oxidize", "peer"],
    )


def test_each_shell_asks_by_the_variable_that_the_command_knows(tmp_path: Path) -> None:
    write(tmp_path)
    for name in FILES:
        shell = name.partition("/")[0].partition("-")[0]
        assert f"{VARIABLE}={shell}_complete" in (tmp_path / name).read_text(), shell
