"""What `make bench` prints and writes, and the packets that its player seals; nothing here measures."""

import re
from ipaddress import ip_address
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest

from benchmarks.bench_blackout import Sample, p99
from benchmarks.bench_profile import WHOLE, lines
from benchmarks.echoes import Account, Heard
from benchmarks.page import Section, first_paragraphs, plot, write_page
from benchmarks.player import DISCARD_PORT, Sent, pace, udp_packet
from benchmarks.results import RESULTS, Row, Table, read_rows
from benchmarks.stages import Recorder, Stage
from benchmarks.stored_server import Reload
from demo.echo import checksum
from oxidize.protocol.allowed_ips import inner_length

SVG = "{http://www.w3.org/2000/svg}"


def test_a_table_prints_median_range_and_ratio_to_the_first_of_its_group(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table("cost", "us")
    table.add("in", "old", [4.0, 2.0, 3.0])
    table.add("in", "new", [1.5], "50 kpps")
    table.add("out", "old", [8.0])
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert rows == [
        ["in", "old", "3.00", "(2.00-4.00)", "1.00x"],
        ["in", "new", "1.50", "(1.50-1.50)", "0.50x", "50", "kpps"],
        ["out", "old", "8.00", "(8.00-8.00)", "1.00x"],
    ]


def test_rows_are_kept_as_they_were_added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rows.json"
    monkeypatch.setenv(RESULTS, str(path))
    Table("cost", "us").add("in", "old", [1.0, 2.0], "more")
    Table("rate", "kpps").add("in", "old", [3.0])
    assert read_rows(path) == [
        Row("cost", "us", "in", "old", [1.0, 2.0], "more"),
        Row("rate", "kpps", "in", "old", [3.0]),
    ]


def test_a_plot_has_a_bar_as_long_as_each_median_and_a_line_over_its_range() -> None:
    rows = [Row("<cost>", "us", "in", "old", [4.0, 2.0, 3.0]), Row("<cost>", "us", "in", "new", [1.5])]
    drawn = ElementTree.fromstring(plot(rows))
    _, old, new = (float(bar.attrib["width"]) for bar in drawn.iter(f"{SVG}rect"))
    assert old == pytest.approx(2 * new, rel=0.01)
    line = next(drawn.iter(f"{SVG}line")).attrib
    assert float(line["x2"]) - float(line["x1"]) == pytest.approx(old * 2 / 3, rel=0.01)
    assert "<cost>: us" in [text.text for text in drawn.iter(f"{SVG}text")]


def test_the_page_has_every_output_and_a_plot_of_every_table_and_no_older_one(tmp_path: Path) -> None:
    (tmp_path / "old-1.svg").write_text("")
    rows = [Row(table, "us", "in", "old", [1.0]) for table in ("cost", "cost", "rate")]
    page = write_page(tmp_path, [Section("idle", "About.", "a  b\n", rows), Section("udp", "Too.", "c\n", [])], "abc")
    text = page.read_text()
    assert sorted(re.findall(r"\((\S+\.svg)\)", text)) == ["idle-1.svg", "idle-2.svg"]
    assert sorted(path.name for path in tmp_path.glob("*.svg")) == ["idle-1.svg", "idle-2.svg"]
    assert "```text\na  b\n```" in text
    assert "```text\nc\n```" in text
    assert "failed" not in text


def test_the_page_has_what_a_benchmark_found_before_it_failed(tmp_path: Path) -> None:
    text = write_page(
        tmp_path, [Section("idle", "About.", "a\n", [], 3), Section("udp", "Too.", "c\n", [])], "abc"
    ).read_text()
    assert text.count("failed, with status 3") == 1
    assert text.index("failed") < text.index("```text\na\n```") < text.index("## Udp")


def test_a_page_says_of_a_benchmark_what_its_module_says_without_how_to_start_it() -> None:
    assert (
        first_paragraphs("Measure it: `python -m benchmarks it [--help]`, as root.\n\nMore.") == "Measure it.\n\nMore."
    )


@pytest.mark.parametrize("payload", [0, 1, 64, 1300])
@pytest.mark.parametrize(("source", "sink"), [("10.10.1.0", "10.10.0.1"), ("fd10::100", "fd10::1")])
def test_the_player_makes_packets_with_right_lengths_and_checksums(source: str, sink: str, payload: int) -> None:
    packet = udp_packet(source, sink, payload)
    header = 20 if packet[0] >> 4 == 4 else 40
    addresses = ip_address(source).packed + ip_address(sink).packed
    body = packet[header:]
    assert inner_length(packet) == len(packet) == header + 8 + payload
    assert addresses in packet[:header]
    assert header == 40 or checksum(packet[:20]) == 0
    assert int.from_bytes(body[2:4], "big") == DISCARD_PORT
    assert int.from_bytes(body[4:6], "big") == len(body)
    pseudo = addresses + bytes([0, 17]) + len(body).to_bytes(2, "big")
    assert checksum(pseudo + body + bytes(len(body) % 2)) == 0


def test_the_player_carries_out_every_action_once_in_order_and_counts_from_the_warm_up_on() -> None:
    done: list[int] = []

    def refused() -> None:
        done.append(-1)
        raise BlockingIOError

    actions = [*(lambda n=n: done.append(n) for n in range(9)), refused]
    sent = pace(actions, 1e-6, lambda: len(done))
    assert done == [*range(9), -1]
    assert (sent.sent, sent.passed) == (10, 10 - 4)  # a third of 10 and one more are the warm-up
    assert isinstance(sent, Sent)


def test_a_profile_names_what_the_whole_takes_more_than_its_stages() -> None:
    made = lines("in", {"single": {"read": 1.0, "write": 2.5, WHOLE: 5.0}, "bulk": {"read": 0.5, WHOLE: 0.25}})
    assert [line.split() for line in made] == [
        ["in", "single", "bulk"],
        ["read", "1.00", "0.50"],
        ["write", "2.50", "0.00"],
        ["sum", "of", "the", "stages", "3.50", "0.50"],
        ["between", "them", "1.50", "-0.25"],
        ["whole", "5.00", "0.25"],
    ]
    assert max(map(len, made)) <= 80


def test_a_recorder_notes_which_stage_called_which_with_what_and_puts_everything_back() -> None:
    class Path:
        def receive(self, count: int) -> int:
            return self.open(count) + self.open(1, times=3)

        def open(self, count: int, *, times: int = 2) -> int:
            return times * count

    rig = SimpleNamespace(path=Path())
    recorder = Recorder()
    stages = (
        Stage("open", ("path.open",)),
        Stage("of another revision", ("path.unknown",)),
        Stage("in", ("path.receive",)),
    )
    with recorder.replacing(rig, stages):
        rig.path.open(5)
        assert rig.path.receive(3) == 9
    assert [call.function(*call.arguments) for call in recorder.calls["open"]] == [10, 6, 3]
    found = [
        (stage, each.arguments, each.inside, each.number) for stage in recorder.calls for each in recorder.calls[stage]
    ]
    assert found == [("open", (5,), "", 0), ("open", (3,), "in", 1), ("open", (1,), "in", 1), ("in", (3,), "", 1)]
    assert vars(rig.path) == {}


def sample(blackout_ms: float, *initiations: float) -> Sample:
    return Sample(Reload(blackout_ms, 100.0, 0.5), Heard(initiations=list(initiations)))


@pytest.mark.parametrize(
    ("initiations", "met"),
    [((), False), ((99.9,), False), ((99.9, 99.999), True), ((99.9985,), True), ((100.1,), False)],
)
def test_an_initiation_counts_for_a_reload_if_it_came_while_no_process_read(
    initiations: tuple[float, ...], met: bool
) -> None:
    assert sample(2.0, *initiations).met_initiation is met


def test_a_percentile_is_a_figure_that_was_measured() -> None:
    assert p99([float(number) for number in range(100, 0, -1)]) == "p99 99.00"
    assert p99([3.0, 1.0, 2.0]) == "p99 3.00"


def test_a_client_counts_what_is_lost_twice_and_out_of_order_and_finds_the_longest_gap() -> None:
    account = Account(first=10)
    for number in range(6):
        account.note_request(at_ns=number * 1_000_000)
    for number, at_ms in ((9, 1), (10, 2), (12, 3), (11, 8), (11, 9), (15, 10)):  # 9 is of an earlier play
        account.note_reply(number, at_ms * 1_000_000)
    heard = account.conclude()
    assert (heard.sent, heard.lost, heard.twice, heard.out_of_order) == (6, 2, 1, 2)
    assert (heard.gap_ms, heard.slowest_ms) == (5.0, 8.0)
    assert heard.faults() == "2 lost, 1 twice, 2 out of order"
    assert Heard(sent=5).faults() == ""
