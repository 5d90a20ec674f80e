"""Bugs in the journal, the arena, the records and the copies."""

from tests.mutants.mutant import Mutant

STATE = (
    # --- The journal ---
    Mutant(
        "journal-end-before-the-bytes",
        "state/journal.py",
        "        self._write(region.end, data)\n        self._store(END + region.number, end)\n",
        "        self._store(END + region.number, end)\n        self._write(region.end, data)\n",
        (
            "unit/state/test_journal_order.py::test_a_writer_that_is_killed_before_its_bytes_are_written_leaves_no_record",
        ),
        "a writer that is killed leaves a journal that no process can read",
    ),
    Mutant(
        "writer-lock-not-taken",
        "state/writer_lock.py",
        "        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)\n",
        "        pass\n",
        ("unit/state/test_writer_lock.py::test_a_second_process_cannot_become_the_writer",),
        "two processes own the state",
    ),
    Mutant(
        "journal-writer-that-has-not-read-everything",
        "state/journal.py",
        "        if self._seen != (activations, end):\n",
        "        if False:\n",
        ("unit/state/test_journal.py::test_a_reader_must_not_append_before_it_is_the_writer_and_has_read_everything",),
        "a new owner overwrites what it has not read",
    ),
    Mutant(
        "journal-record-missing-in-the-copy",
        "state/journal.py",
        "            self._write(self._target.end, data)\n            self._target.note_all(records, encoded)\n",
        "            pass\n",
        ("unit/state/test_journal_compaction.py::test_records_appended_during_a_compaction_go_to_both_regions",),
        "what is recorded during a compaction is lost by it",
    ),
    Mutant(
        "journal-compaction-drops-the-last-key-of-a-step",
        "state/journal.py",
        "        for count, key in enumerate(self._pending, 1):\n",
        "        for count, key in enumerate(self._pending, 1):\n"
        "            if count == keys_max and keys_max > 8:\n"
        "                is_last = False\n"
        "                break\n",
        ("unit/runtime/test_compactor.py::test_a_compaction_with_the_steps_of_the_server_keeps_every_record",),
        "a compaction loses one session in sixteen",
    ),
    Mutant(
        "journal-changes-sides-while-it-is-held",
        "state/journal.py",
        "        if self._is_copied and not self._held:\n",
        "        if self._is_copied:\n",
        ("unit/state/test_journal_compaction.py::test_a_held_journal_changes_sides_only_when_it_is_held_no_longer",),
        "a successor reads everything again after COMMIT, in the blackout",
    ),
    Mutant(
        "journal-offers-keep-a-compaction-from-its-end",
        "state/journal.py",
        "        self._held = False\n        if self._is_copied:\n",
        "        self._held = False\n        if False:\n",
        ("unit/state/test_journal_compaction.py::test_a_held_journal_changes_sides_only_when_it_is_held_no_longer",),
        "attempts to take over fill the journal",
    ),
    Mutant(
        "journal-full-of-dead-records-refuses",
        "state/journal.py",
        "            self._compact_at_once()\n",
        "            pass\n",
        (
            "unit/state/test_journal_limits.py::test_a_journal_full_of_dead_records_is_compacted_by_the_append_that_needs_the_room",
        ),
        "a server whose journal is full of dead records makes no more sessions",
    ),
    Mutant(
        "journal-takes-more-than-a-compaction-can-copy",
        "state/journal.py",
        "                raise self._full(len(data))\n        if region.end",
        "                pass\n        if region.end",
        (
            "unit/state/test_journal_limits.py::test_a_journal_full_of_live_records_refuses_one_more_and_takes_what_replaces_or_retires",
        ),
        "a journal full of live records can no longer be compacted",
    ),
    Mutant(
        "journal-changes-sides-before-the-end-is-stored",
        "state/journal.py",
        "        self._store(END + target.number, target.end)\n"
        "        self._store(ACTIVATIONS, self._words[ACTIVATIONS] + 1)\n",
        "        self._store(ACTIVATIONS, self._words[ACTIVATIONS] + 1)\n"
        "        self._store(END + target.number, target.end)\n",
        ("properties/test_journal_properties.py::test_a_killed_writer_leaves_the_state_before_or_after_its_operation",),
        "a process killed between the two stores leaves an empty or a stale state",
    ),
    Mutant(
        "journal-vanished-records-stay",
        "state/journal.py",
        "return vanished + records",
        "return records",
        ("unit/state/test_journal.py::test_a_reader_behind_a_compaction_gets_a_retirement_for_each_vanished_record",),
        "a reader keeps sessions that were removed before a compaction",
    ),
    Mutant(
        "journal-min-reader-ignored",
        "state/journal.py",
        "if min_reader > self._reader:",
        "if False:",
        ("unit/state/test_journal_limits.py::test_an_envelope_for_newer_readers_is_refused",),
        "an old release serves with a state that it misunderstands",
    ),
    Mutant(
        "journal-overtaken-attempt-noted",
        "state/journal.py",
        "            if self._words[ACTIVATIONS] == activations:\n                self._seen",
        "            if self._words[ACTIVATIONS] != activations:\n                self._accept(region, found)\n"
        "            else:\n                self._seen",
        ("unit/state/test_journal.py::test_a_reader_that_is_overtaken_by_a_compaction_misses_no_retirement",),
        "a successor sends packets again that its predecessor has sent",
    ),
    Mutant(
        "session-state-later-packets-read-first",
        "state/session_state.py",
        'with_last("staged_more", records)',
        "consumed(records)",
        (
            "unit/state/test_session_state.py::test_later_packets_stay_behind_the_earlier_ones_although_a_compaction_copies_them_first",
        ),
        "packets that wait for a session are lost in a crash after a compaction",
    ),
    Mutant(
        "journal-torn-record-counts-as-read",
        "state/journal.py",
        "                return self._accept(region, found)\n",
        "                records = self._accept(region, found)\n                region.end = end\n"
        "                return records\n",
        ("unit/state/test_journal.py::test_an_incomplete_record_before_the_end_is_skipped_and_overwritten",),
        "records behind one that was cut by a kill are unreadable",
    ),
    # --- The stream ---
    Mutant(
        "stream-last-of-two-fields-wins",
        "state/stream.py",
        "    if len(fields) != len(pairs):\n",
        "    if False:\n",
        ("unit/state/test_stream.py::test_a_record_that_cannot_be_read_is_refused_with_its_offset",),
        "a map that names a field twice is read as something that was never written",
    ),
    Mutant(
        "stream-removal-leaves-the-records-of-the-peer",
        "state/stream.py",
        "            live.pop(key, None)\n",
        "            live.get(key, {}).pop(kind, None)\n",
        ("unit/state/test_stream.py::test_a_fold_keeps_the_last_record_of_each_type_and_key_unless_retired",),
        "a removed peer's sessions come back at the next start",
    ),
    # --- The arena ---
    Mutant(
        "arena-allocated-slot-not-zeroed",
        "state/arena.py",
        "_write(self.fd, HEADER_BYTES + slot * _WORD_BYTES, _ZERO_SLOT)",
        '_write(self.fd, HEADER_BYTES + slot * _WORD_BYTES, b"")',
        ("unit/state/test_arena.py::test_allocating_a_slot_zeroes_it_and_releasing_does_not",),
        "a new session begins with another one's replay window",
    ),
    Mutant(
        "arena-release-zeroes-the-slot",
        "state/arena.py",
        "            self._used[slot // SLOT_WORDS] = 0\n",
        "            self._used[slot // SLOT_WORDS] = 0\n"
        "            _write(self.fd, HEADER_BYTES + 8 * slot, _ZERO_SLOT)\n",
        ("unit/state/test_arena.py::test_allocating_a_slot_zeroes_it_and_releasing_does_not",),
        "a process that restores from the records reuses the counters of a live session",
    ),
    Mutant(
        "arena-claimed-slot-allocated-again",
        "state/arena.py",
        "        self._free.pop(slot, None)\n        self._used[slot // SLOT_WORDS] = 1\n",
        "        self._used[slot // SLOT_WORDS] = 1\n",
        (
            "unit/state/test_arena.py::test_the_first_allocation_of_a_generation_is_independent_of_the_number_of_sessions",
        ),
        "two sessions share their counters",
    ),
    Mutant(
        "arena-size-not-checked",
        "state/arena.py",
        "if size != _file_bytes(slot_count):",
        "if False:",
        ("unit/state/test_arena.py::test_an_arena_of_another_layout_is_refused_by_name_and_its_descriptor_stays_open",),
        "SIGBUS ends the process at its first packet",
    ),
    # --- Records ---
    Mutant(
        "records-unknown-field-refused",
        "state/records.py",
        "        self._unknown.fields += len(self._fields)\n",
        '        if self._fields:\n            raise self._error("", "has unknown fields", "none")\n',
        ("unit/state/test_records.py::test_unknown_fields_are_skipped_and_counted_at_every_depth",),
        "an older release cannot take over from a newer one",
    ),
    Mutant(
        "records-new-field-required",
        "state/records.py",
        'fields.seconds("last_handshake_unix", 0.0)',
        'fields.seconds("last_handshake_unix")',
        ("unit/state/test_records.py::test_missing_fields_take_their_defaults",),
        "the state of an older release cannot be read",
    ),
    Mutant(
        "records-index-zero-is-a-handshake",
        "state/records.py",
        "    return PeerHandshake(\n"
        "        peer,\n"
        '        local_index=fields.integer("local_index", _U32_MAX, minimum=1),\n',
        '    return PeerHandshake(\n        peer,\n        local_index=fields.integer("local_index", _U32_MAX),\n',
        ("unit/state/test_records.py::test_a_field_of_another_type_or_range_is_refused_by_name",),
        "a damaged record is taken for the end of a handshake",
    ),
    Mutant(
        "records-size-of-a-key-not-checked",
        "state/records.py",
        "        if len(value) not in sizes:\n",
        "        if False:\n",
        ("unit/state/test_records.py::test_a_field_of_another_type_or_range_is_refused_by_name",),
        "a damaged key raises in the middle of a restore",
    ),
    # --- Copies ---
    Mutant(
        "copies-compaction-during-the-copy-unnoticed",
        "state/copies.py",
        "is_good = _header(source)[ACTIVATIONS] == activations",
        "is_good = True",
        ("unit/state/test_copies.py::test_a_journal_that_is_compacted_during_the_copy_is_not_returned",),
        "a rehearsal judges a mixture of two states",
    ),
    Mutant(
        "copies-end-of-the-newest-record",
        "state/copies.py",
        "        header[END + number] = end\n",
        "",
        ("unit/state/test_copies.py::test_a_copy_is_the_state_at_the_given_position",),
        "a copy has records that its position does not have",
    ),
    # --- The state as a whole ---
    Mutant(
        "session-state-of-another-boot-used",
        "state/session_state.py",
        'if envelope.get("boot_id") != boot_id:',
        "if False:",
        ("unit/state/test_session_state.py::test_state_of_another_boot_identity_or_clock_is_refused_and_closed",),
        "sessions are restored with times of another clock",
    ),
    Mutant(
        "session-state-of-another-key-used",
        "state/session_state.py",
        'if public_key is not None and envelope.get("public_key") != public_key:',
        "if False:",
        ("unit/state/test_session_state.py::test_state_of_another_boot_identity_or_clock_is_refused_and_closed",),
        "sessions continue under a private key that was replaced",
    ),
    Mutant(
        "key-change-keeps-the-sessions",
        "state/key_change.py",
        "            if not isinstance(change, PeerKeypairs | PeerHandshake):\n",
        "            if not isinstance(change, PeerHandshake):\n",
        (
            "unit/state/test_key_change.py::test_all_but_the_sessions_and_handshakes_is_kept_and_recorded_under_the_new_key",
        ),
        "sessions outlive the private key that they were made with",
    ),
    Mutant(
        "key-change-uses-the-slots-of-the-sessions-before",
        "state/key_change.py",
        "            self.arena.claim(slot)\n",
        "            pass\n",
        ("unit/state/test_key_change.py::test_a_predecessor_continues_with_its_sessions_where_the_successor_ends",),
        "a predecessor that serves again seals with counters that were used before",
    ),
    Mutant(
        "key-change-keeps-the-keys-before",
        "state/key_change.py",
        "            yield from journal.erase()\n",
        "            pass\n",
        ("unit/state/test_key_change.py::test_the_keys_before_are_erased_and_their_slots_used_again",),
        "keys of sessions that have ended stay in a memory file",
    ),
    Mutant(
        "session-state-of-another-clock-used",
        "state/session_state.py",
        "if keypair.created_at > now + CLOCK_AHEAD_SECS_MAX:",
        "if False:",
        ("unit/state/test_session_state.py::test_state_of_another_boot_identity_or_clock_is_refused_and_closed",),
        "sessions live for hours beyond their limit",
    ),
    Mutant(
        "session-state-slot-outside-the-arena",
        "state/session_state.py",
        "if not self.arena.holds(slot):",
        "if False:",
        ("unit/state/test_session_state.py::test_a_slot_outside_the_arena_is_refused",),
        "a damaged record raises in the middle of serving",
    ),
    Mutant(
        "session-state-lowers-min-reader",
        "state/session_state.py",
        '        if self.journal.envelope["min_reader"] < MIN_READER:\n',
        '        if self.journal.envelope["min_reader"] != MIN_READER:\n',
        ("unit/state/test_session_state.py::test_a_rollback_never_lowers_min_reader",),
        "an old release reads records that it cannot understand",
    ),
)
