"""The commands of a deployment: the build, and those of a release that has not served yet."""

import os
import tempfile
from pathlib import Path

import pytest

from oxidize.deploy.commands import Commands, Rehearsed, run
from oxidize.deploy.releases import Release, Releases
from oxidize.errors import DeployError
from tests.support.deploy_world import add_release

MAKEFILE = """
release:
	@test "$(PREFIX)" = "{prefix}" && test "$$OXIDIZE_LOCKED" = 1
	@echo chatter; echo more >&2
	@mkdir -p {prefix}/releases/new/bin
	@echo '{{"version": "1", "built_unix": 5, "revision": "r"}}' > {prefix}/releases/new/release.json
	@echo {prefix}/releases/new
changed-units:
	@echo oxidize.socket
broken:
	@echo out; echo err >&2; false
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "Makefile").write_text(MAKEFILE.format(prefix=tmp_path))
    return folder


@pytest.fixture
def release(tmp_path: Path) -> Release:
    return add_release(tmp_path, "one", 1.0)


def commands(tmp_path: Path, source: Path | None = None) -> Commands:
    return Commands(Releases(tmp_path), Path("server.toml"), source, os.open("/dev/null", os.O_RDONLY))


def set_program(release: Release, script: str) -> None:
    release.program.write_text(f"#!/bin/sh\n{script}\n")
    release.program.chmod(0o755)
    python = release.program.with_name("python")
    python.write_text('#!/bin/sh\ntest "$*" = "-P -c import oxidize.runtime.daemon"\n')
    python.chmod(0o755)


def test_a_build_returns_the_release_that_it_prints_last(tmp_path: Path, source: Path) -> None:
    built = commands(tmp_path, source).build()
    assert (built.name, built.built_unix, built.folder) == ("new", 5.0, tmp_path / "releases/new")


def test_a_failed_build_reports_its_last_lines(tmp_path: Path, source: Path) -> None:
    (source / "Makefile").write_text("release:\n\t@seq 5000; echo broken on purpose >&2; false\n")
    with pytest.raises(DeployError) as caught:
        commands(tmp_path, source).build()
    lines = str(caught.value).splitlines()
    assert lines[0] == f"make release in {source} failed:"
    assert "broken on purpose" in lines
    assert "1" not in lines


def test_a_build_is_what_the_kernel_ends_first_where_memory_runs_out(tmp_path: Path, source: Path) -> None:
    (source / "Makefile").write_text("release:\n\t@echo score $$(cat /proc/self/oom_score_adj); false\n")
    with pytest.raises(DeployError, match="score 1000"):
        commands(tmp_path, source).build()


@pytest.mark.parametrize("recipe", ["@true", "@echo", "@echo /elsewhere"])
def test_a_build_without_a_release_is_an_error(tmp_path: Path, source: Path, recipe: str) -> None:
    (source / "Makefile").write_text(f"release:\n\t{recipe}\n")
    with pytest.raises(DeployError, match="expected the folder of a release"):
        commands(tmp_path, source).build()


def test_units_that_differ_are_named(tmp_path: Path, source: Path) -> None:
    assert commands(tmp_path, source).changed_units() == ["oxidize.socket"]
    assert commands(tmp_path).changed_units() == []


def test_a_check_runs_the_release_itself(tmp_path: Path, release: Release) -> None:
    set_program(release, 'test "$1 $2" = "check -c" && echo "$3: good: 2 peers"')
    assert commands(tmp_path).check(release, None) == f"{Path('server.toml').absolute()}: good: 2 peers"
    set_program(release, 'echo "oxidize: mtu: expected more" >&2; echo "oxidize: nat: expected less" >&2; exit 2')
    with pytest.raises(DeployError, match=r"^mtu: expected more\nnat: expected less$"):
        commands(tmp_path).check(release, None)
    set_program(release, "exit 7")
    with pytest.raises(DeployError, match="exit status 7, without any output"):
        commands(tmp_path).check(release, None)
    release.program.unlink()
    with pytest.raises(DeployError, match="No such file"):
        commands(tmp_path).check(release, None)


def test_a_release_that_cannot_load_its_code_does_not_pass_the_check(tmp_path: Path, release: Release) -> None:
    set_program(release, "echo good")
    release.program.with_name("python").write_text("#!/bin/sh\necho 'No module named msgpack' >&2; exit 1\n")
    with pytest.raises(DeployError, match="No module named msgpack"):
        commands(tmp_path).check(release, None)


def test_the_output_of_a_rehearsal_is_parsed(tmp_path: Path, release: Release) -> None:
    set_program(release, """echo '{"sessions": 1, "sessions_now": 2, "refused": {"gone": 1}, "more": null}'""")
    assert commands(tmp_path).rehearse(release, None) == Rehearsed(1, 2, {"gone": 1})


@pytest.mark.parametrize(
    "printed",
    [
        "",
        "{}",
        "[]",
        "7",
        "{",
        "[" * 4000,
        '{"sessions": "x", "sessions_now": 2, "refused": {}}',
        '{"sessions": 1e400, "sessions_now": 2, "refused": {}}',
    ],
)
def test_a_rehearsal_with_invalid_output_is_an_error(tmp_path: Path, release: Release, printed: str) -> None:
    set_program(release, f"echo '{printed}'")
    with pytest.raises(DeployError, match="expected JSON"):
        commands(tmp_path).rehearse(release, None)


def test_a_command_has_no_terminal_and_a_session_of_its_own(release: Release) -> None:
    set_program(release, 'echo "$$ $(cut -d" " -f6 /proc/self/stat)"')
    pid, session = run([release.program], None).split()
    assert pid == session


def test_a_command_with_endless_output_is_killed(release: Release) -> None:
    set_program(release, "echo $$ > $0.pid; exec yes")
    with pytest.raises(DeployError, match="prints more than"):
        run([release.program], None)
    assert not Path("/proc", Path(f"{release.program}.pid").read_text().strip()).exists()


@pytest.mark.parametrize("script", ["exec sleep 1000", "exec > /dev/null 2>&1; exec sleep 1000", "sleep 1000 & wait"])
def test_a_command_that_hangs_is_killed_with_its_children(release: Release, script: str) -> None:
    set_program(release, script)
    with pytest.raises(DeployError, match="it hangs"):
        run([release.program], None, timeout_secs=0.2)


def test_only_the_last_errors_of_a_command_are_reported(release: Release) -> None:
    set_program(release, "seq 5000 >&2; echo the reason >&2; exit 1")
    with pytest.raises(DeployError, match=r"4999\n5000\nthe reason$"):
        run([release.program], None)


@pytest.mark.root
def test_an_untried_release_runs_without_root_and_its_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/0")
    monkeypatch.setenv("SECRET", "of root")
    with tempfile.TemporaryDirectory() as folder:  # pytest's own is below one that other users may not enter
        release = add_release(Path(folder), "one", 1.0)
        Path(folder).chmod(0o755)
        set_program(
            release, 'echo "$(id -u) $(id -g) $(id -G) [$XDG_RUNTIME_DIR$SECRET$HOME] $(ls /proc/self/fd | wc -l)"'
        )
        asked = commands(Path(folder))
        assert asked.check(release, (1234, 1235)) == "1234 1235 1235 [] 4"
        assert asked.check(release, None).startswith("0 0 ")
