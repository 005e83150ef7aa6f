"""Requests that wait are encoded together; each is then segmented by its own words."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np

from cat_seg.model import CATSeg
from cat_seg.segmentation import Segmentation
from cat_seg.vocabulary import Vocabulary


class Full(Exception):
    """As many requests wait as may."""


@dataclass
class _Request:
    pixels: np.ndarray
    words: Vocabulary
    threshold: float | None
    future: Future[Segmentation] = field(default_factory=Future)


class Batcher:
    """One thread that holds a model, and those who wait for it."""

    def __init__(
        self,
        model: CATSeg,
        *,
        batch: int = 8,
        waiting: int = 64,
        on_batch: Callable[[int, float], None] = lambda pictures, seconds: None,
    ) -> None:
        """Start the thread.

        Args:
            model: what segments.
            batch: pictures that are encoded together, at most. Nobody waits for others to come.
            waiting: requests that may wait.
            on_batch: called with the pictures of a batch and the seconds that it took.
        """
        self._model = model
        self._batch = batch
        self._on_batch = on_batch
        self._queue: queue.Queue[_Request | None] = queue.Queue(waiting)
        self._thread = threading.Thread(target=self._run, name="cat-seg-model", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """How many requests wait."""
        return self._queue.qsize()

    def submit(
        self, pixels: np.ndarray, words: Vocabulary, threshold: float | None = None
    ) -> Future[Segmentation]:
        """Ask for a segmentation; one that is cancelled before its turn costs nothing.

        Args:
            pixels: (H, W, 3) uint8, RGB.
            words: encoded by the model.
            threshold: see `CATSeg.predict`.

        Raises:
            Full: if too many wait.
        """
        request = _Request(pixels, words, threshold)
        try:
            self._queue.put_nowait(request)
        except queue.Full:
            raise Full from None
        return request.future

    def close(self) -> None:
        """Finish what waits, and end the thread."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        ended = False
        while not ended:
            found = [self._queue.get()]
            while len(found) < self._batch and found[-1] is not None:
                try:
                    found.append(self._queue.get_nowait())
                except queue.Empty:
                    break
            ended = found[-1] is None
            wanted = [r for r in found if r and r.future.set_running_or_notify_cancel()]
            if wanted:
                start = time.perf_counter()
                self._segment(wanted)
                self._on_batch(len(wanted), time.perf_counter() - start)

    def _segment(self, requests: list[_Request]) -> None:
        try:
            encoded = self._model.encode_batch([request.pixels for request in requests])
        except Exception as error:
            for request in requests:
                request.future.set_exception(error)
            return
        for request, picture in zip(requests, encoded, strict=True):
            try:
                result = self._model.predict(picture, request.words, threshold=request.threshold)
            except Exception as error:  # one request's trouble is not the others'
                request.future.set_exception(error)
            else:
                request.future.set_result(result)
