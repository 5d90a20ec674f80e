"""Errors as reasons within other errors."""

import pytest

from oxidize.errors import OxidizeError, Phase, TakeoverError, reason_of


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (TakeoverError(Phase.AWAITING_OFFER, "another successor waits already"), "another successor waits already"),
        (OxidizeError("nothing runs"), "nothing runs"),
        (KeyError("udp"), "KeyError: 'udp'"),
    ],
)
def test_the_reason_of_an_error_names_no_phase(error: Exception, reason: str) -> None:
    assert reason_of(error) == reason
