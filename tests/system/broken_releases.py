"""Broken releases: code to add at the end of modules of a release, by the names of the modules.

Rule: the code calls `got_there()` where it has its effect (`tests.system.service.Service.add_release`), and everything
that it replaces exists, which tests/unit/support/test_planted_faults.py checks.
"""

CANNOT_BE_RUN = {"settings": "got_there()\nraise RuntimeError('broken on purpose')"}
DOES_NOT_START = {"runtime.startup": "def start(*_):\n    got_there()\n    raise RuntimeError('broken on purpose')"}
NEVER_READY = {
    "runtime.startup": "import time\n\n\ndef start(*_):\n    got_there()\n    time.sleep(1000)",
    "control.reload": "PREPARE_TIMEOUT_SECS /= 15",  # not the half minute that is right for a slow machine
}
CRASHES = {
    "runtime.node": """
import os
import threading

_serve = Node.serve

def serve(self):
    _serve(self)
    got_there()
    threading.Timer(2, os.kill, (os.getpid(), signal.SIGSEGV)).start()

Node.serve = serve
"""
}
DROPS = {
    "net.data_path": """
def from_udp(self):
    got_there()
    self.udp.receiver.receive(self._rows)

DataPath.from_udp = from_udp
"""
}
CANNOT_READ = {"runtime.parts": "import oxidize.state.session_state as s\ngot_there()\ns.FORMAT = 0"}
CANNOT_BE_READ_BY_THE_SUCCESSOR = {"runtime.startup": "got_there()\nFORMAT = 0"}
# What a later release may do: fields and records that this one does not know, in those of the live session too.
WRITES_MORE = {
    "runtime.parts": """
_begin = SessionState.begin_generation

def begin_generation(self, release, generation):
    _begin(self, "0.2.0", generation)
    for record in self.journal.live_records():
        if record["type"] in ("peer", "keypairs", "endpoint"):
            self.journal.append({**record, "quota": {"bytes": 2**40}})
    self.journal.append({"type": "statistics", "key": b"", "values": [1.5, None]})
    got_there()

SessionState.begin_generation = begin_generation
"""
}
ANSWERS_RUBBISH = {
    "runtime.status": """
def describe_vitals(node):
    got_there()
    return b"[" * 100_000

def describe(node):
    return b"null"

def describe_process(node):
    return b"null"
"""
}
LOGS_ERRORS = {
    "runtime.node": """
_notify_ready = Node.notify_ready

def notify_ready(self):
    _notify_ready(self)
    got_there()
    log.error("bad")

Node.notify_ready = notify_ready
"""
}
EXITS = {"runtime.startup": "def start(*_):\n    got_there()\n    raise SystemExit(3)"}
_KILLED = "import signal; got_there(); os.kill(os.getpid(), signal.SIGKILL)"
KILLED_AFTER_MAINPID = {
    "control.reload_channel": f"""
_prepared = Control.prepared

def prepared(self, *arguments):
    _prepared(self, *arguments)
    if self.is_coordinated:  # not where systemd starts the release again
        {_KILLED}

Control.prepared = prepared
"""
}
KILLED_AFTER_COMMIT = {
    "runtime.succession": f"""
def _own(self, node, commit):
    {_KILLED}

Succession._own = _own
"""
}
COORDINATOR_KILLED_AFTER_MAINPID = {
    "control.reload": f"""
_accepted = _set_main_pid

def _set_main_pid(pid):
    _accepted(pid)
    {_KILLED}
"""
}
