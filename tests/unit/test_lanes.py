"""`make test` runs every folder of tests."""

from pathlib import Path

from tests.lanes import BEHIND, IN_FRONT, LITTLE_TRAFFIC

ROOT = Path(__file__).parents[2]


def test_each_folder_of_tests_is_in_one_lane() -> None:
    folders = {path.relative_to(ROOT).parts[:2] for path in (ROOT / "tests").rglob("test_*.py")}
    assert sorted((*BEHIND, *IN_FRONT)) == sorted("/".join(parts) for parts in folders)


def test_what_goes_from_one_lane_to_the_other_is_there() -> None:
    for path in LITTLE_TRAFFIC:
        assert path.startswith(IN_FRONT)
        assert (ROOT / path).is_file()
