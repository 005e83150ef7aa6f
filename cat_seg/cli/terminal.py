"""How a command ends: mistakes as sentences, and signals without a traceback."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import NoReturn

from cat_seg.errors import CATSegError
from cat_seg.utils.signals import give_signals_back, take_signals
from cat_seg.utils.text import printable

DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)  # nothing can be written any more


class _Ended(BaseException):
    """A signal asked for the end."""

    def __init__(self, number: int) -> None:
        self.number = number


def _end(number: int, _: object) -> NoReturn:
    raise _Ended(number)


def run(program: str, command: Callable[[], int]) -> int:
    """Run a command and return its exit code.

    A `CATSegError` becomes one sentence on stderr and the exit code 1, and a signal that asks for
    the end one line and 128 + its number, and so does a full or read-only disk; any other exception
    keeps its traceback.
    """
    for stream in (sys.stdout, sys.stderr):
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors="backslashreplace")  # names that its encoding does not have
    handlers = take_signals(_end, (signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)))
    try:
        with _logs_without_room():
            code = command()
        sys.stdout.flush()
        return code
    except CATSegError as error:
        print(f"{program}: {printable(str(error))}", file=sys.stderr)
        return 1
    except _Ended as error:
        print(f"{program}: interrupted by {signal.Signals(error.number).name}", file=sys.stderr)
        return 128 + error.number
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    except BrokenPipeError:  # as in `cat-seg models | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if error.errno not in DISK:
            raise
        what = printable(str(error.filename)) if error.filename else "a file"
        print(f"{program}: {what} cannot be written ({error.strerror})", file=sys.stderr)
        return 1
    finally:
        give_signals_back(handlers)


@contextlib.contextmanager
def _logs_without_room() -> Iterator[None]:
    """Tell once that the disk has no room for a log; logging shows a traceback of every line."""
    handle, told = logging.Handler.handleError, False

    def tell(handler: logging.Handler, record: logging.LogRecord) -> None:
        nonlocal told
        error = sys.exc_info()[1]
        if not isinstance(error, OSError) or error.errno not in DISK:
            handle(handler, record)
        elif not told:
            told = True
            print(f"Lines of a log are lost ({error.strerror})", file=sys.stderr)

    logging.Handler.handleError = tell  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        logging.Handler.handleError = handle  # type: ignore[method-assign]


def size(count: int) -> str:
    """Show a number of bytes, in steps of 1000."""
    units = ["B", "kB", "MB", "GB", "TB"]
    step = min((len(str(count)) - 1) // 3, len(units) - 1)
    value = count / 1000**step
    return f"{value:.1f} {units[step]}" if step and value < 10 else f"{value:.0f} {units[step]}"


def percent(share: float) -> str:
    """Show a share of 1."""
    return f"{100 * share:.0f}%" if share >= 0.005 else "<1%"
