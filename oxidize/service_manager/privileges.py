"""The rights of a serving process: no core dump, and no capability beyond those that it uses.

Rule: a process gives up rights once, when it has opened what needs them, and has no way back: they leave the permitted,
the effective and the inheritable set, and the bounding set where that may be changed, and no program that it executes
gains any (no_new_privs). The process that replaces it is started by the operator or the service manager, with rights of
its own. Capabilities belong to a thread: the main thread gives them up, and later threads inherit from it.

Sources: capabilities(7), capget(2), prctl(2), core(5), getrlimit(2); linux/capability.h for the numbers.
"""

import ctypes
import os
import resource
from collections.abc import Collection
from enum import IntEnum

CAPABILITIES_MAX = 64  # of the 64 bits of a set in version 3 of capget

_VERSION_3 = 0x20080522  # _LINUX_CAPABILITY_VERSION_3
_SETS = ("effective", "permitted", "inheritable")
_PR_CAPBSET_READ = 23
_PR_CAPBSET_DROP = 24
_PR_SET_NO_NEW_PRIVS = 38

_libc = ctypes.CDLL(None, use_errno=True)


class Capability(IntEnum):
    """The capabilities that a process of this project may keep, and the one that is needed to drop others."""

    CHOWN = 0
    DAC_OVERRIDE = 1
    FOWNER = 3
    KILL = 5
    SETPCAP = 8
    NET_ADMIN = 12


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Half(ctypes.Structure):
    """32 of the 64 bits of each set."""

    _fields_ = tuple((name, ctypes.c_uint32) for name in _SETS)


def forbid_core_dumps() -> None:
    """Let this process and its children leave no core dump: their memory holds keys. It needs no right."""
    soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
    if soft != 0:  # a unit that has set it may forbid the call
        resource.setrlimit(resource.RLIMIT_CORE, (0, hard))


def keep_only(kept: Collection[Capability]) -> None:
    """Give up every capability but `kept`, and the way to new ones; raises OSError if the kernel refuses."""
    sets = _capabilities()
    mask = sum(1 << capability for capability in kept)
    if any(value & ~mask for value in sets.values()):
        if sets["effective"] >> Capability.SETPCAP & 1:
            _drop_from_bounding_set(mask)
        _set_capabilities({name: value & mask for name, value in sets.items()})
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def _capabilities() -> dict[str, int]:
    """Return the sets of this thread as bits."""
    halves = (_Half * 2)()
    _check(_libc.capget(ctypes.byref(_Header(_VERSION_3, 0)), ctypes.byref(halves)), "capget")
    return {name: getattr(halves[0], name) | getattr(halves[1], name) << 32 for name in _SETS}


def _set_capabilities(sets: dict[str, int]) -> None:
    halves = (_Half * 2)(*(_Half(*(sets[name] >> shift & 0xFFFF_FFFF for name in _SETS)) for shift in (0, 32)))
    _check(_libc.capset(ctypes.byref(_Header(_VERSION_3, 0)), ctypes.byref(halves)), "capset")


def _drop_from_bounding_set(mask: int) -> None:
    for number in range(CAPABILITIES_MAX):
        # -1 for a number that this kernel does not know.
        if not mask >> number & 1 and _libc.prctl(_PR_CAPBSET_READ, *_longs(number)) == 1:
            _prctl(_PR_CAPBSET_DROP, number)


def _prctl(option: int, argument: int) -> None:
    _check(_libc.prctl(option, *_longs(argument)), f"prctl({option}, {argument})")


def _longs(argument: int) -> tuple[ctypes.c_ulong, ...]:
    return tuple(map(ctypes.c_ulong, (argument, 0, 0, 0)))


def _check(result: int, call: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}")
