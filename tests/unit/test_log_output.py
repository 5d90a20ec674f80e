"""A log whose reader does not read loses lines, says how many, and never makes the process wait."""

import fcntl
import os
import pty
import socket
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest

from oxidize import log_output
from oxidize.log_output import (
    JournalSocket,
    Losses,
    Output,
    StandardError,
    is_journal,
    journal_datagram,
    open_journal_stream,
)

LINE = b"%0119d\n" % 7
MORE_THAN_A_PIPE_HOLDS = 1 << 20

pytestmark = pytest.mark.usefixtures("no_leak")


def report(lost: int) -> bytes:
    return b"lost=%-114d\n" % lost  # as long as a line: where there is room for one, there is for the other


def fill(error: StandardError) -> int:
    """Write lines until some are lost; return how many were lost."""
    losses = Losses()
    error.output._losses = losses
    lost = 0
    for _ in range(MORE_THAN_A_PIPE_HOLDS // len(LINE)):
        error.write(LINE)
        lost += losses.take()
    assert lost > 1
    return lost


def read_all(fd: int) -> bytes:
    os.set_blocking(fd, False)
    found = b""
    try:
        while data := os.read(fd, 65_536):
            found += data
    except BlockingIOError:
        pass
    return found


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    read_end, write_end = os.pipe()
    yield read_end, write_end
    os.close(read_end)
    os.close(write_end)


def refuse_to_open(*_: object) -> int:
    raise PermissionError


@pytest.mark.parametrize("is_refused", [False, True])
def test_a_pipe_that_is_not_read_loses_lines_and_says_how_many(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch, is_refused: bool
) -> None:
    read_end, write_end = pipe
    if is_refused:  # to open it a second time, as for a pipe of another user
        monkeypatch.setattr("oxidize.log_output.os.open", refuse_to_open)
    with StandardError(report, write_end) as error:
        lost = fill(error)
        begun = read_all(read_end)
        error.write(b"after\n")
    after = read_all(read_end)
    lines = (begun + after).splitlines(keepends=True)
    assert lines[-2:] == [report(lost), b"after\n"]
    assert set(lines[:-2]) == {LINE}


def test_the_open_file_of_the_caller_stays_blocking(pipe: tuple[int, int]) -> None:
    _, write_end = pipe
    with StandardError(report, write_end) as error:
        error.write(LINE)
        assert not fcntl.fcntl(write_end, fcntl.F_GETFL) & os.O_NONBLOCK


def test_a_line_longer_than_the_room_is_finished_before_the_next_one(pipe: tuple[int, int]) -> None:
    read_end, write_end = pipe
    long = b"a" * MORE_THAN_A_PIPE_HOLDS + b"\n"
    with StandardError(report, write_end) as error:
        error.write(long)
        error.write(b"lost\n")
        found = b""
        while not found.endswith(b"next\n"):
            found += read_all(read_end)
            if not error.output.report_losses():
                continue
            if b"next" not in found:
                error.write(b"next\n")
    assert found == long + report(1) + b"next\n"


def test_a_reader_that_is_gone_costs_lines_and_no_error() -> None:
    read_end, write_end = os.pipe()
    with StandardError(report, write_end) as error:
        os.close(read_end)
        error.write(LINE)
        assert not error.output.report_losses()
    with StandardError(report, write_end) as error:  # now it cannot be opened again
        error.write(LINE)
        assert not error.output.report_losses()
    os.close(write_end)


@pytest.mark.parametrize("is_refused", [False, True])
def test_a_terminal_that_is_stopped_loses_lines_and_says_how_many(
    monkeypatch: pytest.MonkeyPatch, is_refused: bool
) -> None:
    master, terminal = pty.openpty()
    if is_refused:
        monkeypatch.setattr("oxidize.log_output.os.open", refuse_to_open)
    with StandardError(report, terminal) as error:
        termios.tcflow(terminal, termios.TCOOFF)  # as Ctrl-S
        error.write(b"lost\n")
        assert not error.output.report_losses()
        termios.tcflow(terminal, termios.TCOON)
        error.write(b"after\n")
        assert read_all(master).splitlines() == [report(1).rstrip(b"\n"), b"after"]
    os.close(master)
    os.close(terminal)


def test_a_socket_that_is_not_read_loses_lines() -> None:
    near, far = socket.socketpair()
    with near, far, StandardError(report, near.fileno()) as error:
        lost = fill(error)
        begun = read_all(far.fileno())
        error.write(b"after\n")
        assert (begun + read_all(far.fileno())).splitlines(keepends=True)[-2:] == [report(lost), b"after\n"]


def test_a_full_disk_loses_lines() -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    losses = Losses()
    with StandardError(report, full) as error:
        error.output._losses = losses
        error.write(LINE)
    assert losses.take() == 1
    os.close(full)


def test_a_file_keeps_the_place_that_it_shares_with_other_writers(tmp_path: Path) -> None:
    path = tmp_path / "log"
    fd = os.open(path, os.O_WRONLY | os.O_CREAT)
    with StandardError(report, fd) as error:
        error.write(b"one\n")
        os.write(fd, b"two\n")
        error.write(b"three\n")
    os.close(fd)
    assert path.read_text() == "one\ntwo\nthree\n"


def test_lines_go_where_the_descriptor_leads_after_it_is_replaced(pipe: tuple[int, int]) -> None:
    read_end, write_end = pipe
    other_read, other_write = os.pipe()
    with StandardError(report, write_end) as error:
        os.dup2(other_write, write_end)
        os.close(other_write)
        error.reopen()
        error.write(LINE)
        assert read_all(other_read) == LINE
        assert os.read(read_end, 1) == b""  # no writer of the pipe before is left: its reader sees the end
    os.close(other_read)


def test_each_loss_is_noted_at_once() -> None:
    losses = Losses()
    noted: list[int] = []
    losses.noted = lambda: noted.append(losses.take())
    output = Output(lambda _: 0, report, losses)
    output.write(LINE)
    output.write(LINE)
    assert noted == [1, 1]


# --- The journal ---


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[tuple[socket.socket, JournalSocket]]:
    path = tmp_path / "journal"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(path))
        sender = JournalSocket(path)
        yield receiver, sender
        sender.close()


def test_a_journal_that_does_not_read_costs_lines_and_no_time(journal: tuple[socket.socket, JournalSocket]) -> None:
    receiver, sender = journal
    losses = Losses()
    output = Output(sender.send, report, losses)
    for _ in range(5_000):  # more than any net.unix.max_dgram_qlen in use
        output.write(LINE)
    lost = losses.take()
    assert lost > 0
    receiver.setblocking(False)
    for _ in range(5_000 - lost):
        assert receiver.recv(200) == LINE
    output.write(b"after")
    assert [receiver.recv(200), receiver.recv(200)] == [report(lost), b"after"]


def test_a_journal_that_is_gone_costs_the_line(tmp_path: Path) -> None:
    losses = Losses()
    sender = JournalSocket(tmp_path / "none")
    Output(sender.send, report, losses).write(LINE)
    sender.close()
    assert losses.take() == 1


def test_a_field_of_several_lines_goes_to_the_journal_with_its_length() -> None:
    assert journal_datagram({"MESSAGE": "a\nb", "PRIORITY": 4}) == b"MESSAGE\n\x03" + bytes(7) + b"a\nb\nPRIORITY=4\n"


def test_a_descriptor_is_the_journals_if_the_variable_names_this_very_file(tmp_path: Path) -> None:
    with (tmp_path / "stream").open("w") as stream, (tmp_path / "other").open("w") as other:
        found = os.fstat(stream.fileno())
        environ = {"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"}
        assert is_journal(stream.fileno(), environ)
        assert not is_journal(other.fileno(), environ)  # the variable alone was inherited
        assert not is_journal(stream.fileno(), {})


@pytest.fixture
def listener(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    path = tmp_path / "stdout"
    monkeypatch.setattr(log_output, "JOURNAL_STREAM", path)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        yield listener


def test_lines_of_a_journal_stream_come_after_the_header_that_the_journal_expects(listener: socket.socket) -> None:
    listener.listen()
    fd = open_journal_stream()
    os.write(fd, b"a line\n")
    os.close(fd)
    connection, _ = listener.accept()
    with connection:
        assert connection.makefile().read() == "oxidize\n\n6\n0\n0\n0\n0\na line\n"


def test_a_stream_that_ended_with_the_journal_is_opened_again(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    near, far = socket.socketpair()
    found = os.fstat(near.fileno())
    monkeypatch.setenv("JOURNAL_STREAM", f"{found.st_dev}:{found.st_ino}")
    losses = Losses()
    with near, StandardError(report, near.fileno()) as error:
        error.output._losses = losses
        far.close()
        error.write(b"lost\n")
        assert losses.take() == 1, "no journal listens"
        listener.listen()
        error.write(b"the reason\n")
        listener.setblocking(False)
        connection, _ = listener.accept()
        with connection:
            lines = connection.recv(4096).decode().splitlines()
        assert is_journal(near.fileno(), os.environ)
    assert (lines[0], lines[-1], losses.take()) == ("oxidize", "the reason", 0)
    assert any(line.startswith("lost=1") for line in lines)


@pytest.mark.parametrize("backlog", [None, 0], ids=["is gone", "accepts nothing"])
def test_where_the_journal_takes_no_stream_lines_go_to_dev_null(listener: socket.socket, backlog: int | None) -> None:
    with socket.socket(socket.AF_UNIX) as only:
        if backlog is not None:
            listener.listen(backlog)
            only.connect(listener.getsockname())  # the next one would wait
        fd = open_journal_stream()
    assert os.path.samestat(os.fstat(fd), Path(os.devnull).stat())
    os.close(fd)


# --- Closed streams ---

CLOSED = (
    "import os, sys; [os.close(int(fd)) for fd in sys.argv[1]];"
    "os.execv(sys.executable, [sys.executable, *sys.argv[2:]])"
)
OPENED = (
    "import os; from oxidize.log_output import open_standard_streams as f; f(); import socket, sys;"
    "number = socket.socket().fileno(); assert number > 2, number;"
    "assert None not in (sys.stdin, sys.stdout, sys.stderr);"
    "print('out', flush=True); print('err', file=sys.stderr, flush=True)"
)


@pytest.mark.parametrize("closed", ["2", "12", "012", "0", "1"])
def test_no_socket_takes_the_number_of_a_closed_stream(closed: str) -> None:
    command = [sys.executable, "-c", CLOSED, closed, "-c", OPENED]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == ("" if "1" in closed else "out\n")
    assert done.stderr == ("" if "2" in closed else "err\n")
