"""Bugs in what `wg`, the metrics and the log say of peers, and in the socket at which `wg` looks."""

from tests.mutants.mutant import Mutant

ANSWERS = "unit/runtime/test_uapi_answers.py::"
PATH = "unit/net/test_uapi_path.py::"
SOCKET = "unit/runtime/test_uapi_socket.py::"

UAPI = (
    Mutant(
        "wg-shows-keys-to-every-user",
        "runtime/uapi_answers.py",
        "has_keys=uid == ROOT",
        "has_keys=True",
        (f"{ANSWERS}test_keys_are_for_root_alone",),
        "who is let into the folder gets the private key",
    ),
    Mutant(
        "wg-logs-every-refusal",
        "runtime/uapi_answers.py",
        "if self._refusals.passes(boot_time()):",
        "if self._refusals.passes(boot_time()) or True:",
        (f"{ANSWERS}test_a_program_that_tries_again_and_again_does_not_fill_the_log",),
        "a program that tries again and again fills the log",
    ),
    Mutant(
        "wg-shows-the-first-peers",
        "runtime/uapi_answers.py",
        "for first in range(0, len(peers), PEERS_PER_PIECE)",
        "for first in range(0, min(len(peers), 1), PEERS_PER_PIECE)",
        (f"{ANSWERS}test_many_peers_come_in_pieces[65]",),
        "wg shows the first peers alone",
    ),
    Mutant(
        "wg-request-is-kept-whole",
        "net/uapi_connection.py",
        "min(taken, KEPT_BYTES_MAX - len(self._kept))",
        "taken",
        ("unit/net/test_uapi_connection.py::test_of_a_long_request_only_the_beginning_is_kept",),
        "a request to change something makes the server hold all keys in it",
    ),
    Mutant(
        "wg-path-taken-from-a-process-that-listens",
        "net/uapi_path.py",
        "            if _is_served(path):\n",
        "            if False:\n",
        (f"{PATH}test_a_socket_at_which_a_process_listens_is_left_alone",),
        "of two servers with one name the second takes the socket of the first",
    ),
    Mutant(
        "wg-path-in-a-folder-of-others",
        "net/uapi_path.py",
        "found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)",
        "False",
        (f"{PATH}test_a_folder_that_others_may_write_to_is_not_used[1023]",),
        "another user replaces the socket, and gets the keys that wg sends",
    ),
    Mutant(
        "wg-path-of-another-process-removed",
        "net/uapi_path.py",
        "        if leads_to(path, identity):\n            path.unlink()\n",
        "        path.unlink(missing_ok=True)\n",
        (f"{PATH}test_the_path_of_another_process_is_not_removed",),
        "a server that ends removes the socket of the one that has its name by now",
    ),
    Mutant(
        "wg-waits-for-an-older-release",
        "runtime/uapi_socket.py",
        "                self._listener.shutdown(socket.SHUT_RDWR)\n",
        "                pass\n",
        (f"{SOCKET}test_the_socket_of_a_unit_refuses_under_an_older_release",),
        "after a rollback every `wg show` on the machine hangs",
    ),
    Mutant(
        "peer-connected-by-an-initiation",
        "runtime/peer_events.py",
        "        session = peer.current ",
        "        session = peer.next or peer.current ",
        ("unit/runtime/test_peer_events.py::test_an_initiation_alone_connects_nobody",),
        "who replays an initiation fills the log with a peer that is not there",
    ),
    Mutant(
        "peers-looked-at-for-ever",
        "runtime/peer_events.py",
        "        self._looks_left -= 1\n",
        "",
        ("unit/runtime/test_peer_events.py::test_nobody_is_looked_at_while_nothing_can_have_changed",),
        "an idle server looks at all its peers every five seconds",
    ),
    Mutant(
        "metrics-of-peers-beyond-the-limit",
        "runtime/peer_metrics.py",
        "        if self.left_out or not self._device.peers:\n",
        "        if not self._device.peers:\n",
        ("unit/runtime/test_peer_metrics.py::test_more_peers_than_are_wanted_have_none[4-3-4]",),
        "the metrics of a large fleet fill the memory of Prometheus",
    ),
    Mutant(
        "wg-is-answered-while-frozen",
        "runtime/uapi_socket.py",
        "        self._is_paused = True\n        if self._server is not None:\n            self._server.pause()\n",
        "        self._is_paused = True\n",
        (f"{SOCKET}test_a_request_during_a_hand_off_waits_for_the_successor",),
        "a predecessor answers with what it had counted before the hand-off",
    ),
)
