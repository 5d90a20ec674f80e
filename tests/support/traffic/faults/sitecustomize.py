"""Makes a server of the tests go wrong at a chosen place; put on PYTHONPATH by a test, and known to nothing else.

TEST_FAULT is JSON. where: "module:function" or "module:Class.method". when: "before" or "after" it. do: "raise"; "exit"
without a word; "stall" until the file `mark` with the suffix .go exists, having written its pid to `mark`. With the
where "module:" and the do "absent" the module cannot be imported.
"""

import functools
import importlib
import json
import os
import sys
import time
from pathlib import Path

STALL_SECS_MAX = 60.0  # nothing that stalls here outlives the test by more


def _go_wrong(do, mark):
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


def _install(where, when, do, mark):
    module_name, _, path = where.partition(":")
    if do == "absent":
        sys.modules[module_name] = None  # type: ignore[assignment]  # import then raises ModuleNotFoundError
        return
    *parents, name = path.split(".")
    owner = functools.reduce(getattr, parents, importlib.import_module(module_name))
    original = getattr(owner, name)

    @functools.wraps(original)
    def faulty(*args, **kwargs):
        if when == "before":
            _go_wrong(do, Path(mark))
        result = original(*args, **kwargs)
        if when == "after":
            _go_wrong(do, Path(mark))
        return result

    setattr(owner, name, faulty)


if "TEST_FAULT" in os.environ and "server" in sys.orig_argv:
    _install(**json.loads(os.environ["TEST_FAULT"]))
