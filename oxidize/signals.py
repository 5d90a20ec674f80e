"""The signals that mean nothing here, and whose default action would end the process.

The rule: a serving process ends only when it is told to: by SIGTERM, SIGINT and SIGQUIT. Programs that rotate logs or
supervise send others, as other daemons use them; each is reported, and changes nothing. Signals of a fault in the
process itself (SIGSEGV, SIGABRT, SIGSYS, ...) keep their default action, for the code after it could not continue.

Source: signal(7).
"""

import signal

# Of a successor it is the limit in time that its coordinator has set, until it owns.
ALARM = signal.SIGALRM

MEANINGLESS = tuple(
    sorted(
        {
            signal.SIGHUP,
            signal.SIGUSR1,
            signal.SIGUSR2,
            signal.SIGVTALRM,
            signal.SIGPROF,
            signal.SIGIO,
            signal.SIGPWR,
            signal.SIGXCPU,
            signal.SIGSTKFLT,
            *range(signal.SIGRTMIN, signal.SIGRTMAX + 1),
        }
    )
)


def name_of(number: int) -> str:
    """Return the name of a signal, "SIGUSR1"; most of the real-time signals have a number only."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def text_for(number: int) -> str:
    """Return the line that reports a signal which has no meaning here."""
    return f"{name_of(number)} changes nothing: use `oxidize reload`"
