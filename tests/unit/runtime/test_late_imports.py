"""Modules of HTTP are imported one in a slice, and none of them can end a process that serves."""

import logging
import sys

import pytest

from oxidize.runtime.late_imports import MODULES, import_late


def test_each_slice_imports_one_module_up_to_the_one_of_the_metrics() -> None:
    assert len(list(import_late())) == len(MODULES)
    assert all(name in sys.modules for name in MODULES)
    assert MODULES[-1] == "oxidize.metrics"


@pytest.mark.parametrize("error", [ImportError("gone"), PermissionError(13, "Permission denied")])
def test_a_module_that_cannot_be_imported_is_told_and_the_next_one_is_imported(
    error: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked = []

    def refuse(name: str) -> None:
        asked.append(name)
        raise error

    monkeypatch.setattr("oxidize.runtime.late_imports.importlib.import_module", refuse)
    with caplog.at_level(logging.WARNING):
        assert len(list(import_late())) == len(MODULES)
    assert asked == list(MODULES)
    assert {record.getMessage() for record in caplog.records} == {"a module of HTTP cannot be imported"}
