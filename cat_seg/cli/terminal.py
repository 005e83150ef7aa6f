"""What a command shows: text that gives a terminal no orders, mistakes as sentences."""

from __future__ import annotations

import os
import sys
import unicodedata
from collections.abc import Callable

from cat_seg.errors import CATSegError

_INTERRUPTED = 130  # the exit code that shells give to SIGINT


def run(program: str, command: Callable[[], int]) -> int:
    """Run a command and return its exit code.

    A `CATSegError` becomes one sentence on stderr and the exit code 1; any other exception keeps
    its traceback.
    """
    for stream in (sys.stdout, sys.stderr):
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors="backslashreplace")  # names that its encoding does not have
    try:
        code = command()
        sys.stdout.flush()
        return code
    except CATSegError as error:
        print(f"{program}: {printable(str(error))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        return _INTERRUPTED
    except BrokenPipeError:  # as in `cat-seg models | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def printable(text: str | os.PathLike[str]) -> str:
    r"""Escape what is no text: control and direction codes, and bytes of names not in UTF-8.

    A file may be called anything, also "\x1b[2J", which would clear the screen.
    """
    return "".join(
        repr(c)[1:-1] if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") else c
        for c in os.fspath(text)
    )


def as_text(path: str | os.PathLike[str]) -> str:
    """Return a file's name as text that every encoding of Unicode can hold."""
    return os.fspath(path).encode("utf-8", "backslashreplace").decode()


def size(count: int) -> str:
    """Show a number of bytes, in steps of 1000."""
    units = ["B", "kB", "MB", "GB", "TB"]
    step = min((len(str(count)) - 1) // 3, len(units) - 1)
    value = count / 1000**step
    return f"{value:.1f} {units[step]}" if step and value < 10 else f"{value:.0f} {units[step]}"


def percent(share: float) -> str:
    """Show a share of 1."""
    return f"{100 * share:.0f}%" if share >= 0.005 else "<1%"
