"""Loggers for terminal and file."""

from __future__ import annotations

import atexit
import functools
import logging
import os
import sys
from typing import TextIO

from termcolor import colored

from .file_io import PathManager

__all__ = ["setup_logger"]

_DATE = "%m/%d %H:%M:%S"
_PREFIX = {
    logging.WARNING: colored("WARNING", "red", attrs=["blink"]),
    logging.ERROR: colored("ERROR", "red", attrs=["blink", "underline"]),
    logging.CRITICAL: colored("ERROR", "red", attrs=["blink", "underline"]),
}


class _ColorfulFormatter(logging.Formatter):
    """Shortens the first part of logger names, and colours the level."""

    def __init__(self, fmt: str, *, root_name: str, abbrev_name: str):
        super().__init__(fmt, datefmt=_DATE)
        self._long = root_name + "."
        self._short = abbrev_name + "." if abbrev_name else ""

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.name = record.name.replace(self._long, self._short)  # in the file after this too
        line = super().formatMessage(record)
        prefix = _PREFIX.get(record.levelno)
        return f"{prefix} {line}" if prefix else line


@functools.lru_cache  # a second call must not add handlers
def setup_logger(
    output: str | None = None,
    distributed_rank: int = 0,
    *,
    color: bool = True,
    name: str = "detectron2",
    abbrev_name: str | None = None,
    enable_propagation: bool = False,
    configure_stdout: bool = True,
) -> logging.Logger:
    """Send everything that a logger gets to the terminal (rank 0) and to a file (every rank).

    Args:
        output: a file (.txt or .log), or a folder for `log.txt`; None for no file.
        distributed_rank: of this process; it ends the file's name if it is not 0.
        color: whether the terminal gets colours.
        name: of the logger.
        abbrev_name: what the terminal shows for `name`; "d2" for "detectron2".
        enable_propagation: whether loggers above get the messages too.
        configure_stdout: whether the terminal gets them.
    """
    logger = logging.getLogger(name)
    logger.setLevel(logging.DEBUG)
    logger.propagate = enable_propagation
    plain = logging.Formatter("[%(asctime)s] %(name)s %(levelname)s: %(message)s", datefmt=_DATE)
    formatter: logging.Formatter = plain
    if color:
        short = "d2" if name == "detectron2" else name
        formatter = _ColorfulFormatter(
            colored("[%(asctime)s %(name)s]: ", "green") + "%(message)s",
            root_name=name,
            abbrev_name=short if abbrev_name is None else abbrev_name,
        )
    if configure_stdout and distributed_rank == 0:
        _add_handler(logger, sys.stdout, formatter)
    if output is not None:
        file = output if output.endswith((".txt", ".log")) else os.path.join(output, "log.txt")
        if distributed_rank > 0:
            file += f".rank{distributed_rank}"
        PathManager.mkdirs(os.path.dirname(file))
        _add_handler(logger, _open_log(file), plain)
    return logger


def _add_handler(logger: logging.Logger, stream: TextIO, formatter: logging.Formatter) -> None:
    handler = logging.StreamHandler(stream)
    handler.setLevel(logging.DEBUG)
    handler.setFormatter(formatter)
    logger.addHandler(handler)


@functools.cache  # loggers that share a file share its stream
def _open_log(file: str) -> TextIO:
    stream = PathManager.open(file, "a")
    atexit.register(stream.close)
    return stream
