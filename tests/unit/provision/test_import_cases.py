"""What `oxidize import` makes of files as they are in use: those of installers, other tools, and users' reports."""

import re

import pytest

from tests.support.import_cases import CASES, FOLDER, outcome

_KEY = re.compile(r"(?:PrivateKey|PresharedKey)\s*[=:]\s*(\S{44})")


@pytest.mark.parametrize("name", CASES)
def test_a_file_is_imported_as_expected(name: str) -> None:
    found = outcome(name)
    assert found == (FOLDER / f"{name}.expected").read_text("utf-8")
    secrets = _KEY.findall((FOLDER / f"{name}.conf").read_bytes().decode("utf-8", "replace"))
    assert not any(secret in found for secret in secrets)


def test_every_expectation_belongs_to_a_case() -> None:
    assert sorted(path.stem for path in FOLDER.glob("*.expected")) == CASES
