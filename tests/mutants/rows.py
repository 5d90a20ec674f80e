"""Bugs in the fast path: receiving and sending in rows."""

from tests.mutants.mutant import Mutant

AT_MOST_A_BATCH = "test_no_receive_brings_more_packets_than_a_batch_even_if_a_batch_comes_behind_singles"
SAME_AS_SINGLY = "properties/test_rows_properties.py::test_a_server_receives_in_rows_what_it_receives_singly"

ROWS = (
    Mutant(
        "udp-batch-taken-behind-singles",
        "net/udp_receiver.py",
        " or number + 1 + following // DATA_OVERHEAD > BATCH_PACKETS_MAX:",
        ":",
        (f"takeover/test_udp_singles.py::{AT_MOST_A_BATCH}",),
        "a crash loses two batches",
    ),
    Mutant(
        "udp-sign-of-a-lost-session-dropped",
        "protocol/row_receiver.py",
        "if endpoint.remote in by_remote]",
        "if endpoint in by_remote]",
        ("unit/net/test_strays.py::test_a_peer_that_uses_a_lost_session_is_asked_beside_strays",),
        "a peer whose session this side has lost waits for its own timers",
    ),
    Mutant(
        "rows-any-peers-source-address-accepted",
        "protocol/inner_packets.py",
        "and known_owner(sources[number]) is peer",
        "and known_owner(sources[number]) is not None",
        (SAME_AS_SINGLY,),
        "a peer sends packets with the address of another",
    ),
    Mutant(
        "rows-length-of-the-header-believed",
        "protocol/inner_packets.py",
        "and IPV4_HEADER_SIZE <= length <= room\n",
        "and IPV4_HEADER_SIZE <= length\n",
        (SAME_AS_SINGLY,),
        "a peer has bytes of other peers' packets delivered behind its own",
    ),
    Mutant(
        "rows-forged-datagram-delivered",
        "protocol/row_receiver.py",
        "                self._table.drop(DropReason.AUTHENTICATION_FAILED)\n                return False\n",
        "                self._table.drop(DropReason.AUTHENTICATION_FAILED)\n                return True\n",
        (SAME_AS_SINGLY,),
        "what was in the row before is delivered again",
    ),
    Mutant(
        "rows-replayed-datagram-delivered",
        "protocol/row_receiver.py",
        "                return mark(words, slot, counter)\n",
        "                return mark(words, slot, counter) is not None\n",
        (SAME_AS_SINGLY,),
        "a datagram that comes twice in one batch is delivered twice",
    ),
    Mutant(
        "rows-unconfirmed-session-opened",
        "protocol/row_receiver.py",
        "                    and keypair is not peer.next\n",
        "",
        (SAME_AS_SINGLY,),
        "a responder never takes its session into use",
    ),
    Mutant(
        "rows-keepalive-of-a-receiver-late",
        "protocol/row_receiver.py",
        "        if not deadlines or deadlines[-1] > now + KEEPALIVE_TIMEOUT:\n",
        "        if not deadlines:\n",
        (SAME_AS_SINGLY,),
        "the sender gives a session up that is alive",
    ),
    Mutant(
        "rows-endpoint-record-late",
        "protocol/row_receiver.py",
        "            self._schedule.add(peer)  # the record of it may be what is due next\n",
        "",
        (SAME_AS_SINGLY,),
        "after a crash packets go to where a peer was long ago",
    ),
    Mutant(
        "rows-send-counter-used-again",
        "protocol/row_sender.py",
        "            counters[word] = first + count\n",
        "            counters[word] = first + count - 1\n",
        (SAME_AS_SINGLY,),
        "two messages are sealed with one nonce",
    ),
    Mutant(
        "rows-silence-not-noticed",
        "protocol/row_sender.py",
        "            self._schedule.add(peer)  # the one timer that starts by this is that of silence\n",
        "",
        (SAME_AS_SINGLY,),
        "a peer that is gone is never asked again",
    ),
    Mutant(
        "rows-sealed-with-an-old-keypair",
        "protocol/row_sender.py",
        "            or now >= keypair.seals_until\n",
        "            or now >= keypair.expires_at\n",
        (SAME_AS_SINGLY,),
        "a session is not renewed while packets are sent",
    ),
    Mutant(
        "rows-flood-not-measured",
        "protocol/device.py",
        "for run in [left] if rows.are_joined else [[number] for number in left]:",
        "for run in [left]:",
        ("takeover/test_flood_filter.py::test_the_process_after_one_that_was_killed_in_a_flood_has_no_filter",),
        "no flood is shed, and sessions starve beside it",
    ),
)
