"""Bugs in what takes a peer's access: enabled, expires, and the removal of a peer from a running device."""

from tests.mutants.mutant import Mutant

ACCESS = (
    Mutant(
        "clock-trusted-until-the-end",
        "runtime/peer_terms.py",
        "pause = min(left, RETRY_SECS if self._unrecorded else CHECK_SECS)",
        "pause = left",
        ("unit/runtime/test_peer_terms.py::test_a_clock_that_is_set_forward_ends_access_within_seconds",),
        "where the clock is set forward, access ends when the time until then has passed",
    ),
    Mutant(
        "end-after-the-first-packet",
        "runtime/node.py",
        "        self.terms.begin(boot_time())  # before the first packet: one may be of a peer whose time has come\n",
        "",
        ("unit/runtime/test_peer_terms.py::test_a_node_ends_access_before_it_reads",),
        "a session that ended while no process served carries one more batch",
    ),
    Mutant(
        "removed-peers-index-stays",
        "protocol/session_table.py",
        "            if self.indices.get(keypair.state.local_index) is keypair:\n"
        "                self.indices.release(keypair.state.local_index)\n"
        "        peer.older = peer.previous",
        "            pass\n        peer.older = peer.previous",
        ("unit/protocol/test_membership.py::test_the_session_of_a_removed_peer_ends_and_its_handshakes_are_refused",),
        "the session of a removed peer goes on",
    ),
    Mutant(
        "removed-peers-slots-freed-before-the-record",
        "protocol/session_table.py",
        "        for kind, named in slots.items():\n            self._rename_slots(unknown, kind, named)\n",
        "        for kind, named in slots.items():\n            self._rename_slots(unknown, kind, named)\n"
        "            self._rename_slots(unknown, kind, set())\n",
        ("unit/protocol/test_membership.py::test_a_removal_that_cannot_be_recorded_counts_and_keeps_the_slots",),
        "a process that restores the records finds two owners of one slot",
    ),
    Mutant(
        "expired-peers-session-missed-by-a-deployment",
        "runtime/status.py",
        "min(unix_at_boot + ends_at, peer.settings.expires_unix)",
        "(unix_at_boot + ends_at)",
        ("unit/runtime/test_status.py::test_a_session_is_said_to_end_when_access_does",),
        "a deployment is taken back because a peer expired meanwhile",
    ),
)
