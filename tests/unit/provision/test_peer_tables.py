"""Adding and removing a peer changes nothing else in the text, not even a space."""

from datetime import date

import pytest

from oxidize.errors import ConfigError
from oxidize.provision.peer_tables import add_peer, change_peer, remove_peer, table_lines

LAPTOP = {"name": "laptop", "public_key": "KEY=", "allowed_ips": ["10.9.0.2/32", "fd09::2/128"]}
LAPTOP_TEXT = '[[peer]]\nname = "laptop"\npublic_key = "KEY="\nallowed_ips = ["10.9.0.2/32", "fd09::2/128"]\n'

FILE = """\
# the machine in the cellar
[server]
address = "10.9.0.1/24"    # ours

# --- people ---

# Alice's laptop
[[peer]]
name   = "alice"     # she
allowed_ips = [
  "10.9.0.2/32",     # [[peer]] in a comment
]

[[ "peer" ]]  # Bob
name = 'bob'
note = '''
[[peer]]
name = "alice"
'''

# Carol, who has
# two lines
[[peer]]
name = "carol"

# the end
"""


def test_a_new_peer_is_added_at_the_end() -> None:
    assert add_peer(FILE, LAPTOP) == FILE + "\n" + LAPTOP_TEXT
    assert add_peer("", LAPTOP) == LAPTOP_TEXT
    assert add_peer("[server]", LAPTOP) == "[server]\n\n" + LAPTOP_TEXT
    windows = FILE.replace("\n", "\r\n")
    assert add_peer(windows, LAPTOP) == windows + ("\n" + LAPTOP_TEXT).replace("\n", "\r\n")


def test_a_table_has_only_the_keys_that_are_set() -> None:
    assert table_lines("[[peer]]", {"allowed_ips": [], "endpoint": None, "persistent_keepalive": 9}) == [
        "[[peer]]",
        "allowed_ips = []",
        "persistent_keepalive = 9",
    ]


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_removing_an_added_peer_restores_the_text(newline: str) -> None:
    text = FILE.replace("\n", newline)
    removed = remove_peer(add_peer(text, LAPTOP), "laptop")
    assert removed.text == text
    assert removed.table["public_key"] == "KEY="
    assert not removed.with_comment


def test_a_peer_is_removed_with_the_comment_right_above_it() -> None:
    start, end = FILE.index("# Alice's laptop"), FILE.index('[[ "peer" ]]')
    removed = remove_peer(FILE, "alice")
    assert removed.text == FILE[:start] + FILE[end:]
    assert removed.with_comment


def test_the_comment_above_the_next_table_stays() -> None:
    start, end = FILE.index('[[ "peer" ]]'), FILE.index("# Carol")
    removed = remove_peer(FILE, "bob")
    assert removed.text == FILE[:start] + FILE[end:]
    assert not removed.with_comment


def test_the_comments_below_the_last_peer_stay() -> None:
    start, end = FILE.index("# Carol"), FILE.index("# the end")
    assert remove_peer(FILE, "carol").text == FILE[:start] + FILE[end:]


def test_a_peer_is_removed_from_a_file_without_a_last_newline() -> None:
    assert remove_peer('[[peer]]\nname = "a"\n[[peer]]\nname = "b"', "b").text == '[[peer]]\nname = "a"\n'
    assert remove_peer('[[peer]]\nname = "a"\n[[peer]]\nname = "b"', "a").text == '[[peer]]\nname = "b"'
    assert remove_peer('[[peer]]\nname = "a"', "a").text == ""


@pytest.mark.parametrize(
    ("name", "hint"), [("alise", "did you mean alice?"), ("xyz", "`oxidize peer list` shows them"), ("", "`oxidize")]
)
def test_an_unknown_name_of_a_peer_is_refused_with_a_hint(name: str, hint: str) -> None:
    with pytest.raises(ConfigError, match="expected the name of a peer") as caught:
        remove_peer(FILE, name)
    assert hint in str(caught.value)


@pytest.mark.parametrize("text", ['peer = [{name = "a"}]\n', "peer = []\n", 'peer = [\n {name = "a"},\n]\n[server]\n'])
def test_peers_in_a_list_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"expected a table \[\[peer\]\]"):
        add_peer(text, LAPTOP)
    with pytest.raises(ConfigError):
        remove_peer(text, "a")


def test_a_table_within_a_peer_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"expected a table \[\[peer\]\]"):
        remove_peer('[[peer]]\nname = "a"\n[peer.x]\n', "a")


# --- Changing one ---

CHANGED = """\
[server]
a = 1

# Alice
[[peer]]
name = "alice"
  enabled = true  # "until" # May
note = '''
enabled = true
'''

# Bob
[[peer]]
name = "bob"
key = "#1" # his
"""


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize(
    ("name", "changes", "before", "after"),
    [
        ("alice", {"enabled": False}, '  enabled = true  # "until" # May', 'enabled = false # "until" # May'),
        ("alice", {"enabled": None}, '  enabled = true  # "until" # May', '# "until" # May'),
        ("alice", {"note": None, "more": None}, None, None),
        ("bob", {"key": "K="}, 'key = "#1" # his', 'key = "K=" # his'),
        ("bob", {"enabled": False}, "# his\n", "# his\nenabled = false\n"),
        ("bob", {"key": "K=", "expires": date(2030, 12, 31)}, '"#1" # his\n', '"K=" # his\nexpires = 2030-12-31\n'),
        ("bob", {"enabled": None, "other": None}, "", ""),
    ],
)
def test_a_key_is_changed_on_its_own_line(
    name: str, changes: dict[str, object], before: str | None, after: str | None, newline: str
) -> None:
    text = CHANGED.replace("\n", newline)
    if before is None or after is None:
        with pytest.raises(ConfigError, match=r"peer\.alice\.note: expected it on one line of its own; write it so"):
            change_peer(text, name, changes)
        return
    expected = CHANGED.replace(before, after).replace("\n", newline)
    assert change_peer(text, name, changes) == expected


def test_a_change_and_its_reverse_restore_the_text() -> None:
    text = CHANGED.rstrip("\n")
    assert change_peer(change_peer(text, "bob", {"enabled": False}), "bob", {"enabled": None}) == text + "\n"


def test_an_unknown_peer_is_not_changed() -> None:
    with pytest.raises(ConfigError, match="alcie: expected the name of a peer; did you mean alice"):
        change_peer(CHANGED, "alcie", {"enabled": False})
