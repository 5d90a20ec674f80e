"""Unpacking the release of a package: a good one, damaged ones, and those that would write elsewhere."""

import io
import json
import lzma
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from oxidize.deploy import history, package
from oxidize.deploy.package import unpack
from oxidize.deploy.progress import Step
from oxidize.deploy.releases import Releases
from oxidize.errors import DeployError
from tests.support.deploy_world import World, add_release

NAME = "0.3.0-20261201T000000Z-abc1234"
RECORD = {"version": "0.3.0", "built_unix": 5.0, "revision": "abc1234"}
Change = Callable[[list[tarfile.TarInfo], dict[str, bytes]], None]


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", mode: int = 0o644) -> tarfile.TarInfo:
    found = tarfile.TarInfo(f"./usr/lib/oxidize/{name}" if not name.startswith("/") else f".{name}")
    found.type, found.linkname, found.mode = kind, link, mode
    return found


def make(
    file: Path, prefix: Path, change: Change = lambda *_: None, compress: Callable[[bytes], bytes] = lzma.compress
) -> Path:
    """Write a package as dpkg-deb does; change: of its members and the contents of its files."""
    folder = f"{NAME}/lib/python3.11"
    members = [
        member("/usr/bin", tarfile.DIRTYPE),
        member("/usr/bin/oxidize", tarfile.SYMTYPE, "/opt/oxidize/current/bin/oxidize"),
        *(member(name, tarfile.DIRTYPE, mode=0o777) for name in (NAME, f"{NAME}/bin", f"{NAME}/lib", folder)),
        member(f"{NAME}/bin/oxidize", mode=0o4777),
        member(f"{NAME}/bin/python", tarfile.SYMTYPE, "python3.11"),
        member(f"{NAME}/bin/python3.11", tarfile.SYMTYPE, "/usr/bin/python3.11"),
        member(f"{folder}/module.py", mode=0o666),
        member(f"{NAME}/release.json"),
    ]
    contents = {
        f"{NAME}/bin/oxidize": f"#!/bin/sh\npython={prefix}/releases/{NAME}/bin/python\n".encode(),
        f"{folder}/module.py": b"x" * 3_000_000,
        f"{NAME}/release.json": json.dumps(RECORD).encode(),
    }
    change(members, contents)
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        for each in members:
            content = contents.get(each.name.removeprefix("./usr/lib/oxidize/"), b"") if each.isreg() else b""
            each.size = len(content)
            archive.addfile(each, io.BytesIO(content))
    parts = {"debian-binary": b"2.0\n", "control.tar.xz": b"odd", "data.tar.xz": compress(data.getvalue())}
    ar = b"!<arch>\n"
    for name, content in parts.items():
        ar += (
            f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(content):<10}`\n".encode()
            + content
            + b"\n" * (len(content) % 2)
        )
    file.write_bytes(ar)
    return file


def test_the_release_of_a_package_is_unpacked_and_nothing_else(tmp_path: Path) -> None:
    prefix = tmp_path / "prefix"
    found = unpack(make(tmp_path / "a.deb", prefix), Releases(prefix))
    assert (found.name, found.version, found.built_unix, found.revision) == (NAME, "0.3.0", 5.0, "abc1234")
    assert Releases(prefix).all() == [found]
    assert [path.name for path in prefix.iterdir()] == ["releases"]
    assert found.program.stat().st_mode & 0o7777 == 0o755
    module = found.folder / "lib/python3.11/module.py"
    assert (module.stat().st_mode & 0o7777, module.stat().st_size) == (0o644, 3_000_000)
    assert str((found.folder / "bin/python").readlink()) == "python3.11"
    found.program.write_text("changed\n")
    assert unpack(tmp_path / "a.deb", Releases(prefix)) == found, "it is there already"
    assert found.program.read_text() == "changed\n"


def test_what_an_interrupted_run_has_left_is_replaced(tmp_path: Path) -> None:
    prefix = tmp_path / "prefix"
    left = prefix / "releases" / NAME / "bin/oxidize"
    left.parent.mkdir(parents=True)
    left.write_text("half\n")
    assert "half" not in unpack(make(tmp_path / "a.deb", prefix), Releases(prefix)).program.read_text()


def adding(*more: tarfile.TarInfo) -> Change:
    return lambda members, _: members.extend(more)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (adding(member(f"{NAME}/../../../escaped")), "a path below the release"),
        (adding(member(f"{NAME}/lib/evil", tarfile.SYMTYPE, "/etc")), "a link within"),
        (adding(member(f"{NAME}/lib/evil", tarfile.SYMTYPE, "../../..")), "a link within"),
        (adding(member(f"{NAME}/lib/evil", tarfile.SYMTYPE, "..")), "a link within"),
        (adding(member(f"{NAME}/up", tarfile.SYMTYPE, "lib"), member(f"{NAME}/up/evil")), "a path below the release"),
        (adding(member(f"{NAME}/evil", tarfile.CHRTYPE)), "a file, a folder or a link"),
        (adding(member(f"{NAME}/evil", tarfile.FIFOTYPE)), "a file, a folder or a link"),
        (adding(member(f"{NAME}/evil", tarfile.LNKTYPE, "/etc/shadow")), "a file, a folder or a link"),
        (adding(member(f"{NAME}/bin/oxidize")), "File exists"),
        (adding(member("0.4.0-other/bin/oxidize")), "two releases"),
        (lambda members, _: members.insert(0, member("../x/y")), "the name of a release"),
        (lambda members, _: members.__delitem__(slice(2, None)), "no release in it"),
        (lambda members, _: members.pop(), "release.json of"),
        (lambda _, contents: contents.__setitem__(f"{NAME}/release.json", b"[1"), "release.json of"),
        (lambda _, contents: contents.__setitem__(f"{NAME}/bin/oxidize", b"/opt/other"), "another prefix"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_package_with_anything_else_is_refused_and_leaves_nothing(
    tmp_path: Path, change: Change, expected: str
) -> None:
    prefix = tmp_path / "prefix"
    file = make(tmp_path / "a.deb", prefix, change)
    with pytest.raises(DeployError, match=expected) as refused:
        unpack(file, Releases(prefix))
    assert "expected a package that `make deb` has built" in str(refused.value)
    assert Releases(prefix).all() == []
    assert [path for path in tmp_path.rglob("*") if path.name in {"escaped", "evil", "y", NAME}] == []


def test_bounds_of_a_package_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = make(tmp_path / "a.deb", tmp_path)
    for name, value in (("BYTES_MAX", 2_999_999), ("MEMBERS_MAX", 5)):
        with monkeypatch.context() as patch:
            patch.setattr(package, name, value)
            with pytest.raises(DeployError, match="more than"):
                unpack(file, Releases(tmp_path))
    assert unpack(file, Releases(tmp_path)).name == NAME


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    whole = make(tmp_path / "a.deb", tmp_path).read_bytes()
    cut = tmp_path / "cut.deb"
    for size in (0, 5, 30, 69, 100, 140, 200, 220, len(whole) // 2, len(whole) - 60):
        cut.write_bytes(whole[:size])
        with pytest.raises(DeployError, match="expected a package"):
            unpack(cut, Releases(tmp_path))
    make(cut, tmp_path, compress=lambda data: b"(\xb5/\xfd" + data)  # zstandard, which Python 3.11 cannot read
    for path in (cut, tmp_path / "missing.deb", tmp_path):
        with pytest.raises(DeployError, match="expected a package"):
            unpack(path, Releases(tmp_path))
    assert Releases(tmp_path).all() == []
    assert Releases(tmp_path).incomplete() == []


def test_a_package_is_deployed_as_any_release(tmp_path: Path) -> None:
    world = World(tmp_path / "prefix")
    world.serve(add_release(world.prefix, "one", 1.0))
    entry = world.deployer().deploy_package(make(tmp_path / "a.deb", world.prefix))
    assert (entry.result, entry.source, entry.target) == (history.SUCCESS, "one", NAME)
    assert [done.step for done in world.progress.results][:2] == [Step.UNPACK, Step.CHECK]
    entry = world.deployer().deploy_package(tmp_path / "missing.deb")
    assert (entry.result, entry.target) == (history.REFUSED, "")
    assert "No such file" in entry.reason
