"""The contents of an OFFER: defaults, other types, and descriptors that are missing or unknown.

What releases really send is in tests/golden.
"""

from typing import Any

import pytest

from oxidize.errors import DecodeError, TakeoverError
from oxidize.runtime.offer import FDS, FdName, OfferState, descriptors_of, named_fd
from oxidize.takeover.host import NamedFd, Offer


def test_missing_fields_have_defaults() -> None:
    assert OfferState.decode({}) == OfferState()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("format", "1"),
        ("format", True),
        ("interface", b"digest"),
        ("name_servers", ["10.78.0.1"]),
        ("name_servers", {"record": 5}),
        ("watchdog_secs", "5"),
        ("watchdog_secs", None),
        ("watchdog_secs", float("nan")),
        ("watchdog_secs", -1.0),
        ("listen", "0.0.0.0:51820"),
        ("listen", ["0.0.0.0"]),
        ("metrics_listen", ["127.0.0.1", "9090"]),
        ("metrics_listen", None),
        ("server", 7),
        ("has_host_setup", 1),
        ("nameservers", "10.78.0.1"),
        ("nameservers", [1]),
    ],
)
def test_a_field_of_another_type_is_an_error_that_names_it(key: str, value: Any) -> None:
    with pytest.raises(DecodeError, match=r"offer\.state\..*; expected .*: stop the predecessor") as caught:
        OfferState.decode(OfferState().encode() | {key: value})
    assert key in str(caught.value) or "record" in str(caught.value)


def test_a_descriptor_of_a_later_release_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[int] = []
    monkeypatch.setattr("oxidize.runtime.offer.os.close", closed.append)
    required = [named_fd(name, number) for number, name in enumerate(FDS) if FDS[name].is_required]
    offer = Offer(2, (*required, NamedFd("vsock", 77, "socket")), {})
    assert descriptors_of(offer) == {FdName(named.name): named for named in required}
    assert closed == [77]


@pytest.mark.parametrize("missing", [name for name, traits in FDS.items() if traits.is_required])
def test_an_offer_without_a_required_descriptor_is_refused(missing: FdName) -> None:
    offer = Offer(2, tuple(named_fd(name, 0) for name in FDS if name is not missing), {})
    with pytest.raises(TakeoverError, match=f"the offer has no '{missing}'"):
        descriptors_of(offer)
