"""Bugs in the settings that are kept for the next process, and in what a start imports."""

from tests.mutants.mutant import Mutant

KEPT = "takeover/test_kept_settings.py::"
VALIDATED = "unit/runtime/test_validated.py::"
SETTINGS = (
    Mutant(
        "kept-settings-of-another-key",
        "runtime/validated.py",
        "_pack([covered, *kept])",
        "_pack([covered, kept[0], *kept[2:]])",
        (f"{VALIDATED}test_a_file_with_other_contents_is_validated",),
        "a pre-shared key that is also the file's private key is refused by `check` and used after a crash",
    ),
    Mutant(
        "kept-settings-are-used-with-an-unsafe-key",
        "runtime/validated.py",
        "if not source.report.problems and digest ==",
        "if digest ==",
        (f"{VALIDATED}test_a_key_file_that_has_become_unsafe_is_refused_as_always",),
        "a key that others can read is used after a crash",
    ),
    Mutant(
        "kept-settings-of-another-environment",
        "runtime/validated.py",
        'os.geteuid(), *(environ.get(name, "") for name in ENVIRONMENT)',
        "os.geteuid()",
        (f"{VALIDATED}test_another_environment_is_validated",),
        "a server looks for its successor at the socket of another session of its user",
    ),
    Mutant(
        "kept-settings-of-other-code",
        "runtime/validated.py",
        "return [own_release(), *_code(), *here, content]",
        "return [own_release(), *here, content]",
        (f"{VALIDATED}test_changed_code_of_the_same_release_validates",),
        "a tree of sources that was updated serves with what the code before had validated",
    ),
    Mutant(
        "keys-are-kept",
        "runtime/validated.py",
        '_WITHOUT = {"private_key", "public_key", "peers"}',
        '_WITHOUT = {"public_key", "peers"}',
        (f"{VALIDATED}test_no_key_is_kept_logged_or_shown",),
        "the private key lies in one more memory file",
    ),
    Mutant(
        "kept-settings-can-be-changed",
        "state/memory_file.py",
        "seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK",
        "seals = fcntl.F_SEAL_SHRINK",
        (f"{VALIDATED}test_the_memory_file_holds_it_and_cannot_be_changed",),
        "what is kept is not what was validated",
    ),
    Mutant(
        "settings-are-stored-beside-those-before",
        "runtime/kept_settings.py",
        "            notify.forget_fds(STORED_NAME)\n",
        "",
        ("unit/runtime/test_kept_settings.py::test_what_was_validated_replaces_what_is_stored",),
        "each changed configuration takes one of 16 places in the store, until there is none for the state",
    ),
    Mutant(
        "successor-stores-no-settings",
        "runtime/succession.py",
        "[self.kept.store, partial(apply_nat",
        "[partial(apply_nat",
        (f"{KEPT}test_after_a_reload_what_the_successor_validated_is_used",),
        "after a reload a crash costs a validation",
    ),
    Mutant(
        "successor-is-given-no-settings",
        "cli/replacement.py",
        "        return match.takeover_socket, match.kept\n",
        "        return match.takeover_socket, None\n",
        (f"{KEPT}test_a_reload_validates_a_changed_configuration_once_and_an_unchanged_one_not_at_all",),
        "a reload validates an unchanged configuration",
    ),
    Mutant(
        "first-packet-waits-for-what-successors-need",
        "runtime/cold_start.py",
        "        self._loop.run_once(0)  # what has waited since a crash is answered before all that follows\n",
        "",
        ("unit/cli/test_entry.py::test_what_has_waited_is_answered_before_a_successor_can_come",),
        "packets of a crash wait for modules that they do not need",
    ),
)
