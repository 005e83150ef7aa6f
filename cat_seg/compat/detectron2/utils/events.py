"""Scalars of a training run: where they are kept, and what writes them."""

from __future__ import annotations

import datetime
import json
import logging
import os
from collections import defaultdict
from functools import cached_property
from typing import Any

import torch
from fvcore.common.history_buffer import HistoryBuffer

from .file_io import PathManager

__all__ = [
    "CommonMetricPrinter",
    "EventStorage",
    "EventWriter",
    "JSONWriter",
    "TensorboardXWriter",
    "get_event_storage",
]

_storages: list[EventStorage] = []


def get_event_storage() -> EventStorage:
    """Return the storage of the innermost `with EventStorage(...)`."""
    assert _storages, (
        "get_event_storage() has to be called inside a 'with EventStorage(...)' context!"
    )
    return _storages[-1]


class EventStorage:
    """Scalars by name, each with its history."""

    def __init__(self, start_iter: int = 0):
        self._history: dict[str, HistoryBuffer] = defaultdict(HistoryBuffer)
        self._smoothing_hints: dict[str, bool] = {}
        self._latest_scalars: dict[str, tuple[float, int]] = {}
        self._iter = start_iter

    def put_scalar(
        self, name: str, value: Any, smoothing_hint: bool = True, cur_iter: int | None = None
    ) -> None:
        """Add a value, of the current iteration unless told otherwise.

        Args:
            name: of the scalar.
            value: anything that `float` takes.
            smoothing_hint: whether writers should show a median; always the same for a name.
            cur_iter: the iteration.
        """
        cur_iter = self._iter if cur_iter is None else cur_iter
        hint = self._smoothing_hints.setdefault(name, smoothing_hint)
        assert hint == smoothing_hint, f"Scalar {name} was put with a different smoothing_hint!"
        self._history[name].update(float(value), cur_iter)
        self._latest_scalars[name] = (float(value), cur_iter)

    def put_scalars(
        self, *, smoothing_hint: bool = True, cur_iter: int | None = None, **kwargs: Any
    ) -> None:
        """Add several values."""
        for name, value in kwargs.items():
            self.put_scalar(name, value, smoothing_hint=smoothing_hint, cur_iter=cur_iter)

    def history(self, name: str) -> HistoryBuffer:
        """Return the history of a scalar.

        Raises:
            KeyError: if it was never put.
        """
        if name not in self._history:
            raise KeyError(f"No history metric available for {name}!")
        return self._history[name]

    def histories(self) -> dict[str, HistoryBuffer]:
        """Return all histories by name."""
        return self._history

    def latest(self) -> dict[str, tuple[float, int]]:
        """Return the last value of each scalar, and its iteration."""
        return self._latest_scalars

    def latest_with_smoothing_hint(self, window_size: int = 20) -> dict[str, tuple[float, int]]:
        """Return like `latest`, with the median of a window where the scalar's hint says so."""
        return {
            name: (self._median(name, window_size) if self._smoothing_hints[name] else value, at)
            for name, (value, at) in self._latest_scalars.items()
        }

    def _median(self, name: str, window_size: int) -> float:
        return self._history[name].median(self.count_samples(name, window_size))

    def count_samples(self, name: str, window_size: int = 20) -> int:
        """Return how many values of a scalar belong to its last `window_size` iterations."""
        iterations = [at for _, at in self._history[name].values()]
        return sum(at > iterations[-1] - window_size for at in iterations)

    @property
    def iter(self) -> int:
        """The current iteration."""
        return self._iter

    @iter.setter
    def iter(self, val: int) -> None:
        self._iter = int(val)

    def __enter__(self) -> EventStorage:
        _storages.append(self)
        return self

    def __exit__(self, *exc_info: Any) -> None:
        assert _storages.pop() is self


class EventWriter:
    """Writes what is in the current storage."""

    def write(self) -> None:
        """Write what is new."""
        raise NotImplementedError

    def close(self) -> None:
        """Let go of files."""


class JSONWriter(EventWriter):
    """One JSON object a line for each iteration that has scalars."""

    def __init__(self, json_file: str, window_size: int = 20):
        self._file = PathManager.open(json_file, "a")
        self._window_size = window_size
        self._last_write = -1

    def write(self) -> None:
        rows: dict[int, dict[str, float]] = defaultdict(dict)
        latest = get_event_storage().latest_with_smoothing_hint(self._window_size)
        for name, (value, at) in latest.items():
            if at > self._last_write:
                rows[at][name] = value
        self._last_write = max(rows, default=self._last_write)
        for at, row in rows.items():
            self._file.write(json.dumps({**row, "iteration": at}, sort_keys=True) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


class TensorboardXWriter(EventWriter):
    """TensorBoard's event file."""

    def __init__(self, log_dir: str, window_size: int = 20, **kwargs: Any):
        self._window_size = window_size
        self._arguments = {"log_dir": log_dir, **kwargs}
        self._last_write = -1

    @cached_property
    def _writer(self) -> Any:
        from torch.utils.tensorboard import SummaryWriter  # slow to import

        return SummaryWriter(**self._arguments)

    def write(self) -> None:
        storage = get_event_storage()
        newest = self._last_write
        for name, (value, at) in storage.latest_with_smoothing_hint(self._window_size).items():
            if at > self._last_write:
                self._writer.add_scalar(name, value, at)
                newest = max(newest, at)
        self._last_write = newest

    def close(self) -> None:
        if "_writer" in vars(self):
            self._writer.close()


class CommonMetricPrinter(EventWriter):
    """A log line with time left, losses, times, learning rate and memory."""

    def __init__(self, max_iter: int | None = None, window_size: int = 20):
        """Make a printer.

        Args:
            max_iter: iterations of the run; None shows no time left.
            window_size: iterations of which losses are the median.
        """
        self.logger = logging.getLogger("detectron2.utils.events")
        self._max_iter = max_iter
        self._window_size = window_size

    def write(self) -> None:
        storage = get_event_storage()
        if storage.iter == self._max_iter:
            return  # all was written after the last step
        histories = storage.histories()

        def medians(mark: str) -> str:
            named = ((k, storage._median(k, self._window_size)) for k in histories if mark in k)
            return "  ".join(f"{name}: {value:.4g}" for name, value in named)

        times = ""
        if "time" in histories:
            history = histories["time"]
            times += f"time: {history.global_avg():.4f}  last_time: {history.latest():.4f}  "
        if "data_time" in histories:
            history = histories["data_time"]
            mean = history.avg(storage.count_samples("data_time", self._window_size))
            times += f"data_time: {mean:.4f}  last_data_time: {history.latest():.4f}  "
        rate = f"{histories['lr'].latest():.5g}" if "lr" in histories else "N/A"
        left = self._time_left(storage)
        left = f"eta: {left}  " if left else ""
        memory = ""
        if torch.cuda.is_available():
            memory = f"max_mem: {torch.cuda.max_memory_allocated() / 1024**2:.0f}M"
        self.logger.info(
            f" {left}iter: {storage.iter}  {medians('loss')}  {medians('[metric]')}  {times} "
            f"lr: {rate}  {memory}"
        )

    def _time_left(self, storage: EventStorage) -> str:
        if self._max_iter is None or "time" not in storage.histories():
            return ""
        seconds = storage.history("time").median(1000) * (self._max_iter - storage.iter - 1)
        storage.put_scalar("eta_seconds", seconds, smoothing_hint=False)
        return str(datetime.timedelta(seconds=int(seconds)))
