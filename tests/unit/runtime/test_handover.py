"""The predecessor's side of a takeover: parts that no process test reaches."""

from types import SimpleNamespace

import pytest

from oxidize.net.tun import TunDevice
from oxidize.runtime.handover import Handover
from oxidize.service_manager import notify
from oxidize.state.session_state import SessionState
from oxidize.takeover.messages import Hello


def test_an_offer_that_cannot_be_made_does_not_hold_compaction() -> None:
    held: list[bool] = []

    def fileno() -> int:
        raise OSError("no descriptor")

    handover = object.__new__(Handover)
    handover.node = SimpleNamespace(  # type: ignore[assignment]  # what an offer reads of a node
        session_state=SimpleNamespace(
            journal=SimpleNamespace(envelope={"min_reader": 1}), generation=1, hold=lambda: held.append(True)
        ),
        is_ending=False,
        settings=SimpleNamespace(listen=("::", 0), metrics_listen=None, server=None),
        interface=SimpleNamespace(digest=""),
        host_setup=None,
        watchdog_secs=0.0,
        connection=None,
        udp=SimpleNamespace(fileno=fileno),
    )
    with pytest.raises(OSError, match="no descriptor"):
        handover.offer(Hello("1.0", 1, (1,)))
    assert not held


def test_the_regions_of_the_journal_do_not_change_sides_while_an_offer_is_open() -> None:
    """The successor would have to read everything again, after COMMIT."""
    state = SessionState.create("0.2.0", 1, "boot", b"k" * 32)
    for number in range(50):
        state.record_takeover({"number": number})
    handover = object.__new__(Handover)
    handover._preparation = SimpleNamespace(begin=lambda: None)  # type: ignore[assignment]  # it prepares nothing
    handover.uapi = SimpleNamespace(named_fd=lambda: None)  # type: ignore[assignment]  # what an offer asks of it
    handover.node = SimpleNamespace(  # type: ignore[assignment]  # what an offer reads of a node
        session_state=state,
        settings=SimpleNamespace(listen=("::", 0), metrics_listen=None, server=None),
        interface=SimpleNamespace(digest=""),
        is_ending=False,
        drain_left_secs=None,
        host_setup=None,
        watchdog_secs=0.0,
        connection=None,
        udp=SimpleNamespace(fileno=lambda: 0, framing=dict),
        http_listener=None,
        tunnel=None,
        nat=SimpleNamespace(fileno=lambda: None),
    )
    handover.offer(Hello("1.0", 1, (1,)))
    while state.maintain(purge=True):
        pass
    assert state.journal.position[0] == 0
    state.unhold()
    assert state.journal.position[0] == 1
    state.close()


@pytest.mark.parametrize(("abilities", "spared"), [((), True), (("reads_tun_flags",), False)])
def test_a_device_leaves_the_store_before_a_release_that_cannot_use_it_takes_over(
    abilities: tuple[str, ...], spared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And it returns to the store where that release gives up."""
    state = SessionState.create("0.2.0", 1, "boot", b"k" * 32)
    forgotten: list[tuple[str, ...]] = []
    timed: list[object] = []
    monkeypatch.setattr(notify, "forget_fds", lambda *names: forgotten.append(names))
    handover = object.__new__(Handover)
    handover._preparation = SimpleNamespace(begin=lambda: None, cancel=lambda: None)  # type: ignore[assignment]  # nothing to do
    handover._loop = SimpleNamespace(add_timed=timed.append)  # type: ignore[assignment]  # it only takes
    handover._is_tunnel_spared = False
    handover.uapi = SimpleNamespace(named_fd=lambda: None)  # type: ignore[assignment]  # what an offer asks of it
    handover.node = SimpleNamespace(  # type: ignore[assignment]  # what an offer reads of a node
        session_state=state,
        generation=1,
        counters=state.arena.counters,
        settings=SimpleNamespace(listen=("::", 0), metrics_listen=None, server=None),
        interface=SimpleNamespace(digest=""),
        is_ending=False,
        host_setup=None,
        watchdog_secs=0.0,
        connection=None,
        udp=SimpleNamespace(fileno=lambda: 0, framing=dict),
        http_listener=None,
        tunnel=TunDevice(0, "ox0", 10),
        nat=SimpleNamespace(fileno=lambda: None),
    )
    offer = handover.offer(Hello("1.0", 1, (1,), abilities=abilities))
    assert offer.find("tun").options == {"name": "ox0", "vnet_header": True}
    assert offer.state["stores_tun"] is True
    assert forgotten == ([("tun", "tun-parked")] if spared else [])
    handover.offer_withdrawn("it gave up")
    assert [type(each).__name__ for each in timed] == (["_HostRestore"] if spared else [])
    state.close()
