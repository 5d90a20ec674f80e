"""Bugs in the fast path: receiving and sending in rows."""

from tests.mutants.mutant import Mutant

CUT_AS_JOINED = "properties/test_super_packets_properties.py::test_what_is_joined_is_cut_into_the_same_segments"
FEW_WRITES = "properties/test_super_packets_properties.py::test_a_run_is_as_few_writes_as_the_length_of_a_packet_allows"
ALONE = "properties/test_super_packets_properties.py::test_fragments_and_what_may_become_some_are_written_alone"
DAMAGED = "properties/test_super_packets_properties.py::test_a_damaged_segment_damages_its_super_packet"
AT_MOST_A_BATCH = "test_no_receive_brings_more_packets_than_a_batch_even_if_a_batch_comes_behind_singles"
SAME_AS_SINGLY = "properties/test_rows_properties.py::test_a_server_receives_in_rows_what_it_receives_singly"
INITIATIONS = "unit/net/test_initiations_in_a_batch.py"
CONFIRMED = "properties/test_rows_properties.py::test_the_first_message_of_a_new_session_confirms_it"
ONCE = "properties/test_rows_properties.py::test_what_comes_again_is_delivered_once"

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
        "udp-batch-of-many-initiations",
        "net/udp_receiver.py",
        "            if size == INITIATION_SIZE and parts_initiations and",
        "            if False and",
        (f"{INITIATIONS}::test_data_is_delivered_before_the_initiation_behind_it_is_looked_into",),
        "packets wait for sixty handshakes, each of which takes as long as a batch",
    ),
    Mutant(
        "udp-initiation-behind-a-batch-in-its-turn",
        "net/data_path.py",
        "            if receiver.is_empty or receiver.is_cut:\n",
        "            if receiver.is_empty:\n",
        (f"{INITIATIONS}::test_an_initiation_ends_the_turn_before_it_and_its_own",),
        "a reload's first turn takes twice as long where an initiation waits",
    ),
    Mutant(
        "rows-handshakes-before-data",
        "net/data_path.py",
        "in self.device.receive_rows(rows, now, join_segments=joins):",
        "in list(self.device.receive_rows(rows, now, join_segments=joins)):",
        (f"{INITIATIONS}::test_under_load_initiations_take_little_work_and_end_no_batch",),
        "the packets of a batch wait for the handshakes in it",
    ),
    Mutant(
        "udp-nothing-waits-behind-joined-datagrams",
        "net/udp_receiver.py",
        "self.is_empty = pending[0] == 0",
        "self.is_empty = True",
        ("takeover/test_udp_singles.py::test_joined_datagrams_are_followed_by_no_receive_where_nothing_waits",),
        "a turn of the loop carries one batch of bulk",
    ),
    Mutant(
        "udp-joined-datagrams-received-until-it-fails",
        "net/udp_receiver.py",
        "self.is_empty = pending[0] == 0",
        "self.is_empty = False",
        ("takeover/test_udp_singles.py::test_joined_datagrams_are_followed_by_no_receive_where_nothing_waits",),
        "each batch of bulk costs a receive that fails, and a look at the socket's errors",
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
        "and known_owner(source) is peer:",
        "and known_owner(source) is not None:",
        (SAME_AS_SINGLY,),
        "a peer sends packets with the address of another",
    ),
    Mutant(
        "rows-length-of-the-header-believed",
        "protocol/inner_packets.py",
        "if IPV4_HEADER_SIZE <= length <= room and",
        "if IPV4_HEADER_SIZE <= length and",
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
        "        if words[slot + RECEIVE_NEXT] <= counter < REJECT_AFTER_MESSAGES or is_fresh(words, slot, counter):\n"
        "            sealed, plain = rows.views.of(rows.sizes[number], number + 1)\n"
        "            try:\n"
        "                keypair.opener.decrypt_into(rows.nonces[number], sealed[number], None, plain[number])\n"
        "                return mark(words, slot, counter)\n",
        "        if counter < REJECT_AFTER_MESSAGES:\n"
        "            sealed, plain = rows.views.of(rows.sizes[number], number + 1)\n"
        "            try:\n"
        "                keypair.opener.decrypt_into(rows.nonces[number], sealed[number], None, plain[number])\n"
        "                return mark(words, slot, counter) is not None\n",
        (ONCE,),
        "a datagram that comes twice is delivered twice",
    ),
    Mutant(
        "rows-replayed-run-taken-for-a-new-one",
        "protocol/row_receiver.py",
        "        in_order = first >= words[slot + RECEIVE_NEXT] and end <= REJECT_AFTER_MESSAGES\n",
        "        in_order = end <= REJECT_AFTER_MESSAGES\n",
        (ONCE,),
        "datagrams that are sent again in a row end the turn of the loop with an error",
    ),
    Mutant(
        "rows-unconfirmed-session-opened",
        "protocol/row_receiver.py",
        "                    and keypair is not peer.next\n",
        "",
        (CONFIRMED,),
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
        "                self._schedule.add(peer)  # the one timer that starts by this is that of silence\n",
        "                pass\n",
        (SAME_AS_SINGLY,),
        "a peer that is gone is never asked again",
    ),
    Mutant(
        "rows-silence-noticed-late",
        "protocol/row_sender.py",
        "            if not deadlines or deadlines[-1] > now + timers.silence_secs(peer, counters):\n",
        "            if not deadlines:\n",
        (SAME_AS_SINGLY,),
        "a peer that is gone is asked minutes later",
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
        "rows-shorter-message-sealed-with-the-nonce-before",
        "protocol/row_sender.py",
        "encrypt_into(rows.nonces[alike], last, None, room)",
        "encrypt_into(rows.nonces[alike - 1], last, None, room)",
        (SAME_AS_SINGLY,),
        "two messages are sealed with one nonce",
    ),
    Mutant(
        "rows-packets-to-two-peers-sent-to-the-first",
        "protocol/row_sender.py",
        " and owners.count(first) == len(owners):",
        ":",
        (SAME_AS_SINGLY,),
        "a peer gets packets that are for another",
    ),
    Mutant(
        "segments-joined-over-a-gap",
        "protocol/super_packets.py",
        "                and sequences[row] == (sequences[row - 1] + payload) % (1 << 32)\n",
        "",
        (CUT_AS_JOINED,),
        "the receiver gets bytes in the place of others",
    ),
    Mutant(
        "segments-joined-behind-a-push",
        "protocol/super_packets.py",
        "                and flags[row - 1] == _ACK\n",
        "",
        (CUT_AS_JOINED,),
        "PSH and FIN move to other segments",
    ),
    Mutant(
        "segments-of-odd-length-joined",
        "protocol/super_packets.py",
        " or payload_size % 2:",
        ":",
        (CUT_AS_JOINED,),
        "every super-packet is dropped for its checksum",
    ),
    Mutant(
        "segments-of-fragments-joined",
        "protocol/super_packets.py",
        "packet[6] << 8 | packet[7] == _DO_NOT_FRAGMENT",
        "True",
        (ALONE,),
        "fragments are taken for segments",
    ),
    Mutant(
        "segments-joined-beyond-the-length-of-a-packet",
        "protocol/super_packets.py",
        "            and size + count * payload <= PACKET_BYTES_MAX\n",
        "",
        (FEW_WRITES,),
        "the kernel refuses full batches",
    ),
    Mutant(
        "segments-of-other-flows-joined",
        "protocol/super_packets.py",
        "                and heads[row] == heads[start]\n",
        "",
        (CUT_AS_JOINED,),
        "one flow gets bytes of another",
    ),
    Mutant(
        "super-packet-checksum-of-the-first",
        "protocol/super_packets.py",
        "sum(self._checksums[start:end]) + more",
        "self._checksums[start] * (end - start) + more",
        (DAMAGED,),
        "damage done before the tunnel reaches the receiver",
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
