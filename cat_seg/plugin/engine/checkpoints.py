"""Checkpoints in training: when they are written, how many stay, and what resuming needs."""

from __future__ import annotations

import logging
import re
import signal
import time
from typing import Any

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.engine import HookBase
from detectron2.utils import comm

from cat_seg.errors import CATSegError
from cat_seg.plugin.engine.random_state import random_state, set_random_state
from cat_seg.plugin.run_folder import RunFolder
from cat_seg.utils.signals import give_signals_back, take_signals

logger = logging.getLogger(__name__)

# Seconds in which a signal that comes twice is one: to a whole group, and passed on by a parent.
_ONE_SIGNAL = 1.0
_AGREE_PERIOD = 5  # iterations after which several ranks ask each other for a signal


class Checkpoints(HookBase):
    """Writes a checkpoint every `period` iterations and at the end, and removes old ones.

    As a hook with state it adds to each checkpoint the random state and the place in the data of
    every rank, so that a resumed run goes on as the uninterrupted one would.
    """

    def __init__(self, checkpointer: DetectionCheckpointer, *, period: int, keep: int) -> None:
        """Set up the hook, which has to run on every rank.

        Args:
            checkpointer: writes the files, on the main process.
            period: iterations between checkpoints.
            keep: the newest checkpoints that stay; 0 for all. The final one always stays.
        """
        self.checkpointer = checkpointer
        self.period = period
        self.keep = keep
        self._folder: RunFolder | None = None  # whose record lists what may be removed
        self._signal = 0  # that asks for the end
        self._signal_time = 0.0
        self._handlers: dict[int, Any] = {}
        self._ranks: list[dict[str, Any]] = []
        self._random_state: dict[str, Any] | None = None

    def before_train(self) -> None:
        """Put the random state back, as late as possible; from now on, signals are waited for."""
        self._handlers = take_signals(self._stop)
        if self._random_state is not None:
            set_random_state(self._random_state)
            self._random_state = None

    def after_train(self) -> None:
        """Give the signals back."""
        give_signals_back(self._handlers)
        self._handlers = {}

    def _stop(self, number: int, _: Any) -> None:
        if not self._signal:
            self._signal, self._signal_time = number, time.monotonic()
        elif time.monotonic() - self._signal_time > _ONE_SIGNAL:
            self.after_train()
            signal.raise_signal(number)  # a second one ends at once

    def _asked_to_stop(self, done: int) -> int:
        """Return the signal that came to any rank, on which all agree now and then; 0 for none."""
        if comm.get_world_size() == 1:
            return self._signal
        if done % _AGREE_PERIOD:
            return 0
        return max(comm.all_gather(self._signal))

    def after_step(self) -> None:
        """Write a checkpoint if it is time, or if a signal asks for the end.

        Raises:
            SystemExit: with 128 + the signal's number, once the checkpoint is written.
        """
        done = self.trainer.iter + 1
        is_final = done == self.trainer.max_iter
        number = self._asked_to_stop(done)
        if is_final or number or not done % self.period:
            self._save(is_final)
        if number and not is_final:
            logger.warning(
                "Stopped by %s after iteration %d; --resume goes on from there.",
                signal.Signals(number).name,
                self.trainer.iter,
            )
            comm.synchronize()  # the first process to end may take the others with it
            raise SystemExit(128 + number)

    def _save(self, is_final: bool) -> None:
        stream = self.trainer.data_loader.dataset
        position = self.trainer._trainer.next_position
        self._ranks = comm.gather(
            {"random": random_state(), "seed": stream.seed, "position": position}
        )
        if comm.is_main_process():
            name = "model_final" if is_final else f"model_{self.trainer.iter:07d}"
            self._folder = self._folder or RunFolder(self.checkpointer.save_dir, "training")
            try:
                with self._folder.writing(f"{name}.pth"):
                    self.checkpointer.save(name, iteration=self.trainer.iter)
            except (CATSegError, OSError) as error:
                logger.error("%s What was saved before is whole: go on by --resume.", error)
                raise SystemExit(1) from error  # past detectron2, which shows a traceback
            self._remove_old(self._folder)

    def _remove_old(self, folder: RunFolder) -> None:
        """Remove old checkpoints of this run; what its record does not list is left alone."""
        checkpoints = sorted(name for name in folder.wrote if re.match(r"model_\d+\.pth$", name))
        folder.remove(*(checkpoints[: -self.keep] if self.keep else []))

    def state_dict(self) -> dict[str, Any]:
        """Return random state, seed and position of every rank."""
        return {"ranks": self._ranks}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take this rank's state; with another number of ranks, only the place in the data."""
        ranks, world_size = state["ranks"], comm.get_world_size()
        mine = ranks[comm.get_rank() % len(ranks)]
        position = mine["position"]
        if len(ranks) == world_size:
            self._random_state = mine["random"]
        else:
            position = min(rank["position"] for rank in ranks) * len(ranks) // world_size
            logger.warning(
                "The checkpoint was written by %d processes and is resumed by %d: the random "
                "state starts anew, and the data go on at about the same place.",
                len(ranks),
                world_size,
            )
        self.trainer.data_loader.dataset.seek(mine["seed"], position)
        self.trainer._trainer.next_position = position
