"""Plant a fault in a process: a test puts this folder on PYTHONPATH, and Python imports this module at start.

TEST_FAULT is JSON. command: the subcommand of `oxidize` whose processes have the fault. where: "module:function" or
"module:Class.method". when: "before" or "after" the call. do: "raise"; "exit" without a message; "stall": write the pid
to `mark` and wait for the file `mark` with the suffix .go. With where "module:" and do "absent" the module cannot be
imported.

TEST_LACKS is JSON: constants of modules, as "module:NAME", and the values that they get, by which a process asks the
kernel for what it has not.
"""

import functools
import importlib
import json
import os
import sys
import time
from pathlib import Path

STALL_SECS_MAX = 60.0  # a stalled process outlives its test by at most this


def _go_wrong(do: str, mark: Path) -> None:
    if do == "exit":
        os._exit(3)
    if do == "raise":
        raise RuntimeError("broken on purpose")
    assert do == "stall", do
    temporary = mark.with_suffix(".new")
    temporary.write_text(str(os.getpid()))
    temporary.rename(mark)
    deadline = time.monotonic() + STALL_SECS_MAX
    while not mark.with_suffix(".go").exists() and time.monotonic() < deadline:
        time.sleep(0.005)


def _install(where: str, when: str, do: str, mark: str) -> None:
    module_name, _, path = where.partition(":")
    if do == "absent":
        sys.modules[module_name] = None  # type: ignore[assignment]  # import then raises ModuleNotFoundError
        return
    *parents, name = path.split(".")
    owner = functools.reduce(getattr, parents, importlib.import_module(module_name))
    original = getattr(owner, name)

    @functools.wraps(original)
    def faulty(*args: object, **kwargs: object) -> object:
        if when == "before":
            _go_wrong(do, Path(mark))
        result = original(*args, **kwargs)
        if when == "after":
            _go_wrong(do, Path(mark))
        return result

    setattr(owner, name, faulty)


for where, value in json.loads(os.environ.get("TEST_LACKS", "{}")).items():
    module_name, _, name = where.partition(":")
    setattr(importlib.import_module(module_name), name, value)
if "TEST_FAULT" in os.environ:
    fault = json.loads(os.environ["TEST_FAULT"])
    if fault.pop("command") in sys.orig_argv:
        _install(**fault)
