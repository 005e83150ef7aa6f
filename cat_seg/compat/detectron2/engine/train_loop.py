"""The training loop, and hooks that do something before and after its steps."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from ..utils import comm
from ..utils.events import EventStorage, get_event_storage


class HookBase:
    """Called by a trainer: before_train, (before_step, after_step)*, after_train.

    `trainer` is set when the hook is registered.
    """

    trainer: Any = None

    def before_train(self) -> None:
        """Called before the first step."""

    def after_train(self) -> None:
        """Called after the last step, also where an exception ended the training."""

    def before_step(self) -> None:
        """Called before each step."""

    def after_step(self) -> None:
        """Called after each step."""

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint is to hold of this hook."""
        return {}


class TrainerBase:
    """A loop over iterations, with hooks.

    Attributes:
        iter: the current iteration.
        start_iter: the first one of this run.
        max_iter: where it ends.
        storage: the scalars of this run.
    """

    max_iter: int
    storage: EventStorage

    def __init__(self) -> None:
        self._hooks: list[HookBase] = []
        self.iter = 0
        self.start_iter = 0

    def register_hooks(self, hooks: Sequence[HookBase | None]) -> None:
        """Add hooks, which are called in the order of registration."""
        for hook in hooks:
            if hook is not None:
                assert isinstance(hook, HookBase), hook
                hook.trainer = weakref.proxy(self)  # the trainer owns its hooks, not they it
                self._hooks.append(hook)

    def train(self, start_iter: int, max_iter: int) -> None:
        """Run the iterations from `start_iter` up to `max_iter`, which is not among them."""
        logger = logging.getLogger(__name__)
        logger.info(f"Starting training from iteration {start_iter}")
        self.iter = self.start_iter = start_iter
        self.max_iter = max_iter
        with EventStorage(start_iter) as self.storage:
            try:
                self.before_train()
                for self.iter in range(start_iter, max_iter):
                    self.before_step()
                    self.run_step()
                    self.after_step()
                self.iter += 1  # by which after_train sees that all went well
            except Exception:
                logger.exception("Exception during training:")
                raise
            finally:
                self.after_train()

    def before_train(self) -> None:
        for hook in self._hooks:
            hook.before_train()

    def after_train(self) -> None:
        self.storage.iter = self.iter
        for hook in self._hooks:
            hook.after_train()

    def before_step(self) -> None:
        self.storage.iter = self.iter
        for hook in self._hooks:
            hook.before_step()

    def after_step(self) -> None:
        for hook in self._hooks:
            hook.after_step()

    def run_step(self) -> None:
        """Do one iteration."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """Return the iteration, and the state of hooks by the name of their class."""
        states: dict[str, Any] = {}
        for hook in self._hooks:
            state = hook.state_dict()
            if state:
                states.setdefault(type(hook).__qualname__, state)
        return {"iteration": self.iter, **({"hooks": states} if states else {})}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take back what `state_dict` returned."""
        self.iter = state_dict["iteration"]
        for name, state in state_dict.get("hooks", {}).items():
            hook: Any = next((h for h in self._hooks if type(h).__qualname__ == name), None)
            if hook is None:
                logging.getLogger(__name__).warning(
                    f"Cannot find the hook '{name}', its state_dict is ignored."
                )
            else:
                hook.load_state_dict(state)


class SimpleTrainer(TrainerBase):
    """One model, one loader, one optimizer; a subclass says what a step is, in `run_step`."""

    def __init__(
        self,
        model: nn.Module,
        data_loader: Any,
        optimizer: torch.optim.Optimizer,
    ):
        """Keep the parts, and put the model in training mode.

        Args:
            model: takes a batch, and returns a loss or losses by name.
            data_loader: batches without end.
            optimizer: of the model.
        """
        super().__init__()
        model.train()
        self.model = model
        self.data_loader = data_loader
        self.optimizer = optimizer
        self._data_loader_iter_obj: Iterator[Any] | None = None

    @property
    def _data_loader_iter(self) -> Iterator[Any]:
        if self._data_loader_iter_obj is None:
            self._data_loader_iter_obj = iter(self.data_loader)
        return self._data_loader_iter_obj

    def _write_metrics(self, loss_dict: Mapping[str, torch.Tensor], data_time: float) -> None:
        """Store the mean of each loss over processes, and their sum.

        Args:
            loss_dict: losses by name.
            data_time: seconds spent on loading; the longest of all processes is stored.

        Raises:
            FloatingPointError: if the sum is not finite.
        """
        storage = get_event_storage()
        storage.put_scalars(cur_iter=self.iter, rank_data_time=data_time)
        mine = {name: loss.detach().cpu().item() for name, loss in loss_dict.items()}
        gathered = comm.gather((data_time, mine))
        if not comm.is_main_process():
            return
        times, all_losses = zip(*gathered, strict=True)
        means = {name: np.mean([losses[name] for losses in all_losses]) for name in mine}
        total = sum(means.values())
        if not np.isfinite(total):
            raise FloatingPointError(
                f"Loss became infinite or NaN at iteration={self.iter}!\nloss_dict = {means}"
            )
        storage.put_scalars(cur_iter=self.iter, data_time=max(times), total_loss=total)
        if len(means) > 1:
            storage.put_scalars(cur_iter=self.iter, **means)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.optimizer.load_state_dict(state_dict["optimizer"])
