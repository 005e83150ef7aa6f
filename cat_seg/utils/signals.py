"""The signals by which a person, a scheduler or a closing terminal asks for the end."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

ENDING = (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM))


def take_signals(
    handler: Callable[[int, Any], Any], numbers: Sequence[int] = ENDING
) -> dict[int, Any]:
    """Let a handler be called at signals, but for those that are ignored, as `nohup` does.

    Returns:
        the handlers before, for `give_signals_back`; none outside the main thread, which alone
        may have handlers.
    """
    if threading.current_thread() is not threading.main_thread():
        return {}
    ours = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
    return {number: signal.signal(number, handler) for number in ours}


def give_signals_back(handlers: Mapping[int, Any]) -> None:
    """Undo `take_signals`."""
    for number, handler in handlers.items():
        signal.signal(number, handler)
