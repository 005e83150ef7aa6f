"""Checkpoints in training: when they are written, how many stay, and what resuming needs."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.engine import HookBase
from detectron2.utils import comm

from cat_seg.plugin.engine.random_state import random_state, set_random_state

logger = logging.getLogger(__name__)


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
        self._ranks: list[dict[str, Any]] = []
        self._random_state: dict[str, Any] | None = None

    def before_train(self) -> None:
        """Put the random state back, as late as possible."""
        if self._random_state is not None:
            set_random_state(self._random_state)
            self._random_state = None

    def after_step(self) -> None:
        """Write a checkpoint if it is time."""
        done = self.trainer.iter + 1
        is_final = done == self.trainer.max_iter
        if not is_final and done % self.period:
            return
        stream = self.trainer.data_loader.dataset
        position = self.trainer._trainer.next_position
        self._ranks = comm.gather(
            {"random": random_state(), "seed": stream.seed, "position": position}
        )
        if comm.is_main_process():
            name = "model_final" if is_final else f"model_{self.trainer.iter:07d}"
            self.checkpointer.save(name, iteration=self.trainer.iter)
            self._remove_old()

    def _remove_old(self) -> None:
        checkpoints = sorted(Path(self.checkpointer.save_dir).glob("model_[0-9]*.pth"))
        for path in checkpoints[: -self.keep] if self.keep else []:
            path.unlink()

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
