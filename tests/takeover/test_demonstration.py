"""The demonstration as a test: twenty clients, five reloads, a refused release and a kill -9, judged by the clients."""

import io

import pytest
from rich.console import Console

from demo.run import Demonstration, Options
from demo.screen import open_screen

OPTIONS = Options(seconds=14.0, clients=20, rate=2000.0, reloads=5)


@pytest.mark.handoff
def test_the_clients_of_the_demonstration_notice_nothing() -> None:
    shown = io.StringIO()
    demonstration = Demonstration(OPTIONS)
    try:
        demonstration.start()
        with open_screen(Console(file=shown, width=160), table=False) as show:
            verdict = demonstration.run(show)
        log, drops = demonstration.server_log(), demonstration.server.drops
    finally:
        demonstration.close()
    dropped = f"the kernel dropped {drops} at the server's socket"
    assert verdict.ok, "\n".join([*verdict.reasons, *map(str, verdict.replacements), dropped, shown.getvalue(), log])
    assert verdict.sent >= OPTIONS.seconds * OPTIONS.rate * 0.9, "the clients sent too little to show anything"
    assert len(verdict.replacements) == OPTIONS.reloads + 2, shown.getvalue()
