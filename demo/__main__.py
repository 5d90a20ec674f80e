"""`make demo`: replace a server under the traffic of its clients, and judge by what the clients saw.

Rule: exit status 0 if the promise was kept, 1 if it was not or the run failed, 2 for a wrong option, 130 for Ctrl-C;
no process, file or socket remains in any of these cases.
"""

import signal
import sys
from pathlib import Path
from types import FrameType
from typing import NoReturn

import click
from rich.console import Console

from demo.plot import write_report
from demo.run import Demonstration, Options
from demo.screen import PLAIN_WIDTH, open_screen, print_verdict
from oxidize.errors import OxidizeError
from oxidize.net.udp import SOCKET_BUFFER_BYTES

CLIENTS_MAX = 500  # select(2), which the clients use, is limited to file descriptors below 1024
REPORT = Path("demo-report.html")


def _end(number: int, _frame: FrameType | None) -> NoReturn:
    click.echo("demo: interrupted; ending every process", err=True)
    sys.exit(128 + number)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--seconds", type=click.FloatRange(1, 3600), default=20.0, show_default=True, help="Duration of the traffic."
)
@click.option(
    "--clients", type=click.IntRange(1, CLIENTS_MAX), default=20, show_default=True, help="Number of clients."
)
@click.option(
    "--rate",
    type=click.FloatRange(1, 20_000),
    default=2000.0,
    show_default=True,
    help="Packets per second of all clients together.",
)
@click.option("--reloads", type=click.IntRange(0, 100), default=5, show_default=True, help="Planned replacements.")
@click.option(
    "--plot",
    "report",
    type=click.Path(dir_okay=False, writable=True, path_type=Path),
    default=REPORT,
    show_default=True,
    help="File for the report.",
)
@click.option("--no-table", is_flag=True, help="Print lines, not a live table.")
def main(seconds: float, clients: int, rate: float, reloads: int, report: Path, no_table: bool) -> None:
    """Replace a server under traffic, kill it once, and report what its clients noticed."""
    console = Console() if sys.stdout.isatty() else Console(width=PLAIN_WIDTH)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, _end)
    try:
        passed = _run(console, Options(seconds, clients, rate, reloads), report, table=not no_table)
    except OxidizeError as error:
        click.echo(f"demo: {error}", err=True)
        sys.exit(1)
    sys.exit(0 if passed else 1)


def _introduce(console: Console, demonstration: Demonstration) -> None:
    options, burst = demonstration.options, demonstration.burst
    text = (
        f"{options.clients} clients send {options.rate:,.0f} numbered echo requests a second through their tunnels; "
        f"the server is replaced {options.reloads} times, refuses a broken release once, and is killed once."
    )
    if burst > 1:
        text += (
            f" Each client sends {burst} at once: the receive buffer of the server's socket is limited to "
            f"{demonstration.receive_buffer_bytes:,} bytes (net.core.rmem_max) while a killed server restarts."
        )
    console.print(text, highlight=False, soft_wrap=not console.is_terminal)


def _remedy(buffer_bytes: int) -> str:
    """Return what helps where a receive buffer was full; the kernel reports twice what it was asked for."""
    if buffer_bytes < 2 * SOCKET_BUFFER_BYTES:
        return f"raise it with `sysctl net.core.rmem_max={SOCKET_BUFFER_BYTES}`"
    return "it holds seconds of these requests, so this machine is busy with other work: try again when it is not"


def _run(console: Console, options: Options, report: Path, *, table: bool) -> bool:
    """Make one run and write its report; return whether it passed."""
    demonstration = Demonstration(options)
    try:
        demonstration.start()
        _introduce(console, demonstration)
        with open_screen(console, table=table) as show:
            verdict = demonstration.run(show)
        if not verdict.ok:
            click.echo(demonstration.server_log(), err=True)
        drops, buffer_bytes = demonstration.server.drops, demonstration.receive_buffer_bytes
    except OxidizeError:
        click.echo(demonstration.server_log(), err=True)
        raise
    finally:
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)  # a second Ctrl-C must not interrupt the clean-up
        demonstration.close()
    print_verdict(console, verdict, demonstration.origin)
    if drops:
        console.print(
            f"The kernel dropped {drops} datagrams because its receive buffer of {buffer_bytes:,} bytes was full: "
            f"{_remedy(buffer_bytes)}, or send less with --rate.",
            style="yellow",
            highlight=False,
        )
    try:
        write_report(report, demonstration.tally, verdict)
    except OSError as error:
        raise OxidizeError(f"--plot {report}: expected a file that can be written: {error}") from error
    console.print(f"Every reply's latency over time: {report.resolve()}", highlight=False, soft_wrap=True)
    return verdict.ok


if __name__ == "__main__":
    main(prog_name="python -m demo")
