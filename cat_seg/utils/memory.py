"""The memory of this process: keeping it between uses, and measuring it (Linux)."""

from __future__ import annotations

import ctypes
import re
import sys
from pathlib import Path

# Parameters of glibc's mallopt.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
# Of both versions of control groups: folder, files of limit and use, what of it is dropped on need.
_CONTROL_GROUPS = (
    ("/sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
    ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "inactive_file"),
)


def keep_freed_memory() -> bool:
    """Let the C library keep freed memory for the next block instead of handing it back.

    glibc maps large blocks one by one and unmaps them when they are freed, so that every large
    activation pays page faults for all of its pages anew; on CPU this can cost more than the
    arithmetic. Our entry points call this; call it yourself, before the first image, where you
    use the library. It holds for the rest of the process, whose size then stays at its peak.

    Returns:
        Whether it was done: False where there is no glibc.
    """
    mallopt = getattr(_libc(), "mallopt", None)
    if mallopt is None:
        return False
    settings = {_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: 2**31 - 1, _M_TOP_PAD: 64 << 20}
    return all([mallopt(parameter, value) == 1 for parameter, value in settings.items()])


def give_back_memory() -> None:
    """Hand freed memory back to the system, where the C library can."""
    trim = getattr(_libc(), "malloc_trim", None)
    if trim is not None:
        trim(0)


def available_bytes() -> int:
    """Memory that this process can still have, in bytes; 0 where unknown.

    The least of what the machine and the process's container have left.
    """
    free = _number(r"MemAvailable:\s+(\d+) kB", "/proc/meminfo", 1024)
    limits = [] if free is None else [free]
    for folder, most, now, cached in _CONTROL_GROUPS:
        limit = _number(r"(\d+)", f"{folder}/{most}")
        used = _number(r"(\d+)", f"{folder}/{now}")
        if limit is not None and used is not None:
            dropped = _number(rf"^{cached} (\d+)", f"{folder}/memory.stat") or 0
            limits.append(max(0, limit - used + dropped))
    return min(limits, default=0)


def resident_bytes() -> int:
    """Memory that the process holds now, in bytes; 0 where unknown."""
    return _status("VmRSS")


def reset_peak() -> bool:
    """Start to measure the peak of `peak_bytes` anew. Returns whether that is possible."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def peak_bytes() -> int:
    """Return the most memory held since `reset_peak`, or the process's start; 0 where unknown."""
    return _status("VmHWM")


def _status(key: str) -> int:
    return _number(rf"{key}:\s+(\d+) kB", "/proc/self/status", 1024) or 0


def _number(pattern: str, file: str, unit: int = 1) -> int | None:
    """Read a number of a file of the system, in units; None where it is not there."""
    try:
        found = re.search(pattern, Path(file).read_text(), re.MULTILINE)
    except OSError:
        return None
    return unit * int(found[1]) if found else None


def _libc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if sys.platform == "linux" else None
