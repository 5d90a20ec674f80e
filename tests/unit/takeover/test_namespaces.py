"""A successor in another network or time namespace is refused with both names and the remedy."""

import os
from pathlib import Path

import pytest

from oxidize.takeover import namespaces
from oxidize.takeover.namespaces import difference, network_namespace, time_namespace


def test_the_namespaces_are_those_of_this_process() -> None:
    assert network_namespace() == str(Path(f"/proc/{os.getpid()}/ns/net").readlink())
    assert network_namespace().startswith("net:[")


def test_the_same_namespaces_make_no_difference() -> None:
    assert difference(network_namespace(), time_namespace()) == ""


def test_another_network_namespace_is_named_with_the_remedy() -> None:
    reason = difference("net:[1]", time_namespace())
    assert reason.startswith(f"the successor is in network namespace net:[1]; expected {network_namespace()}, ")
    assert f"`nsenter --target {os.getpid()} --net`" in reason


def test_another_time_namespace_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(namespaces, "time_namespace", lambda: "time:[2]")
    reason = difference(network_namespace(), "time:[1]")
    assert reason.startswith("the successor is in time namespace time:[1]; expected time:[2], ")
    assert f"`nsenter --target {os.getpid()} --time`" in reason


def test_a_namespace_that_one_side_does_not_know_is_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Release 0.1.0 names none, and an older kernel has no time namespaces."""
    assert difference("", "") == ""
    monkeypatch.setattr(namespaces, "TIME", Path("/proc/self/ns/nothing"))
    assert time_namespace() == ""
    assert difference("", "time:[1]") == ""
