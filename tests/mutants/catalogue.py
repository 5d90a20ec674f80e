"""All mutants, and the changes that look like bugs and are none."""

from tests.mutants.access import ACCESS
from tests.mutants.commands import COMMANDS
from tests.mutants.handshake import HANDSHAKE
from tests.mutants.hostnet import HOSTNET
from tests.mutants.mutant import Equivalent
from tests.mutants.protocol import PROTOCOL
from tests.mutants.rows import ROWS
from tests.mutants.runtime import RUNTIME
from tests.mutants.session import SESSION
from tests.mutants.settings import SETTINGS
from tests.mutants.state import STATE
from tests.mutants.takeover import TAKEOVER
from tests.mutants.uapi import UAPI

MUTANTS = (
    *HANDSHAKE,
    *SESSION,
    *PROTOCOL,
    *STATE,
    *TAKEOVER,
    *RUNTIME,
    *ROWS,
    *HOSTNET,
    *COMMANDS,
    *SETTINGS,
    *UAPI,
    *ACCESS,
)

EQUIVALENT = (
    Equivalent(
        "the send counter is advanced after sealing",
        "nothing leaves between the two lines: a process that dies there has sent nothing with these counters",
    ),
    Equivalent(
        "a slot is released before the record that replaces its keypair",
        "one thread: nothing allocates between the two lines, and another process reads only the records",
    ),
    Equivalent(
        "a node serves before it holds the writer's lock, in a takeover or in a thaw",
        "the loop does not run between the two lines; the case that matters is a lock that is never taken",
    ),
    Equivalent(
        "a new owner does not record the handshakes that it found answered while restoring",
        "each later restore finds them answered in the same way",
    ),
)
