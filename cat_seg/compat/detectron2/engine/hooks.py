"""The usual hooks."""

from __future__ import annotations

import logging
import math
import operator
import time
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

from fvcore.common.checkpoint import Checkpointer
from fvcore.common.checkpoint import PeriodicCheckpointer as _PeriodicCheckpointer
from fvcore.common.param_scheduler import ParamScheduler
from fvcore.common.timer import Timer
from torch.optim import Optimizer

from ..evaluation.testing import flatten_results_dict
from ..solver.lr_scheduler import LRMultiplier
from ..solver.lr_scheduler import LRScheduler as _LRScheduler
from ..utils import comm
from ..utils.events import EventWriter
from .train_loop import HookBase

__all__ = [
    "BestCheckpointer",
    "CallbackHook",
    "EvalHook",
    "IterationTimer",
    "LRScheduler",
    "PeriodicCheckpointer",
    "PeriodicWriter",
]

_logger = logging.getLogger(__name__)


def _every(period: int, trainer: Any) -> bool:
    """Tell whether a step ends a period, other than the last one of the training."""
    done = trainer.iter + 1
    return period > 0 and done % period == 0 and done != trainer.max_iter


class CallbackHook(HookBase):
    """Calls functions with the trainer."""

    def __init__(
        self,
        *,
        before_train: Callable[[Any], None] | None = None,
        after_train: Callable[[Any], None] | None = None,
        before_step: Callable[[Any], None] | None = None,
        after_step: Callable[[Any], None] | None = None,
    ):
        self._functions = {
            "before_train": before_train,
            "after_train": after_train,
            "before_step": before_step,
            "after_step": after_step,
        }

    def _call(self, event: str) -> None:
        function = self._functions[event]
        if function is not None:
            function(self.trainer)

    def before_train(self) -> None:
        self._call("before_train")

    def after_train(self) -> None:
        self._call("after_train")
        self._functions.clear()  # they may hold the trainer

    def before_step(self) -> None:
        self._call("before_step")

    def after_step(self) -> None:
        self._call("after_step")


class IterationTimer(HookBase):
    """Stores the time of each step, and logs the sum in the end. To be the first hook."""

    def __init__(self, warmup_iter: int = 3):
        """Make a timer that leaves out the first `warmup_iter` steps."""
        self._warmup_iter = warmup_iter
        self._start_time = time.perf_counter()
        self._step_timer = Timer()
        self._steps_timer = Timer()  # runs during steps only

    def before_train(self) -> None:
        self._restart()
        self._steps_timer.pause()

    def _restart(self) -> None:
        self._start_time = time.perf_counter()
        self._steps_timer.reset()

    def before_step(self) -> None:
        self._step_timer.reset()
        self._steps_timer.resume()

    def after_step(self) -> None:
        trainer = self.trainer
        if trainer.storage.iter - trainer.start_iter + 1 >= self._warmup_iter:
            trainer.storage.put_scalars(time=self._step_timer.seconds())
        else:
            self._restart()
        self._steps_timer.pause()

    def after_train(self) -> None:
        total = time.perf_counter() - self._start_time
        steps = self._steps_timer.seconds()
        count = self.trainer.storage.iter + 1 - self.trainer.start_iter - self._warmup_iter
        if count > 0 and steps > 0:
            _logger.info(
                f"Overall training speed: {count} iterations in {timedelta(seconds=int(steps))} "
                f"({steps / count:.4f} s / it)"
            )
        _logger.info(
            f"Total training time: {timedelta(seconds=int(total))} "
            f"({timedelta(seconds=int(total - steps))} on hooks)"
        )


class PeriodicWriter(HookBase):
    """Lets writers write every `period` steps, after the last one, and in the end."""

    def __init__(self, writers: Sequence[EventWriter], period: int = 20):
        for writer in writers:
            assert isinstance(writer, EventWriter), writer
        self._writers = writers
        self._period = period

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done % self._period == 0 or done == self.trainer.max_iter:
            for writer in self._writers:
                writer.write()

    def after_train(self) -> None:
        for writer in self._writers:
            writer.write()
            writer.close()


class PeriodicCheckpointer(_PeriodicCheckpointer, HookBase):
    """fvcore's `PeriodicCheckpointer` as a hook."""

    def before_train(self) -> None:
        self.max_iter = self.trainer.max_iter

    def after_step(self) -> None:
        self.step(self.trainer.iter)


class BestCheckpointer(HookBase):
    """Saves a checkpoint when a metric is the best so far. To follow the `EvalHook`."""

    def __init__(
        self,
        eval_period: int,
        checkpointer: Checkpointer,
        val_metric: str,
        mode: str = "max",
        file_prefix: str = "model_best",
    ):
        """Keep the settings.

        Args:
            eval_period: of the `EvalHook`, in iterations.
            checkpointer: what saves.
            val_metric: name of the scalar, such as "sem_seg/mIoU".
            mode: "max" or "min", whichever is best.
            file_prefix: name of the file.
        """
        assert mode in ("max", "min"), f"expected mode 'max' or 'min', got {mode!r}"
        self._better = operator.gt if mode == "max" else operator.lt
        self._period = eval_period
        self._checkpointer = checkpointer
        self._val_metric = val_metric
        self._file_prefix = file_prefix
        self.best_metric: float | None = None
        self.best_iter: int | None = None

    def _check(self) -> None:
        value, at = self.trainer.storage.latest().get(self._val_metric, (None, 0))
        if value is None:
            _logger.warning(
                f"Given val metric {self._val_metric} does not seem to be computed/stored."
                "Will not be checkpointing based on it."
            )
            return
        before = self.best_metric
        if not math.isfinite(value) or (before is not None and not self._better(value, before)):
            _logger.info(
                f"Not saving as latest eval score for {self._val_metric} is {value:0.5f}, "
                f"not better than best score {before} @ iteration {self.best_iter}."
            )
            return
        self._checkpointer.save(self._file_prefix, iteration=at)
        self.best_metric, self.best_iter = value, at
        if before is None:
            _logger.info(f"Saved first model at {value:0.5f} @ {at} steps")
        else:
            _logger.info(
                f"Saved best model as latest eval score for {self._val_metric} is {value:0.5f}, "
                f"better than last best score {before:0.5f}."
            )

    def after_step(self) -> None:
        if _every(self._period, self.trainer):
            self._check()

    def after_train(self) -> None:
        if self.trainer.iter + 1 >= self.trainer.max_iter:
            self._check()


class LRScheduler(HookBase):
    """Steps a learning rate schedule after each iteration, and stores a typical learning rate."""

    def __init__(self, optimizer: Optimizer | None = None, scheduler: Any = None):
        """Keep both; None takes the trainer's.

        Args:
            optimizer: whose learning rate is stored.
            scheduler: of torch, or fvcore's `ParamScheduler` as a factor on learning rates.
        """
        self._optimizer = optimizer
        self._scheduler = scheduler

    @property
    def scheduler(self) -> Any:
        """The schedule."""
        return self._scheduler or self.trainer.scheduler

    def before_train(self) -> None:
        trainer = self.trainer
        self._optimizer = self._optimizer or trainer.optimizer
        if isinstance(self.scheduler, ParamScheduler):
            self._scheduler = LRMultiplier(
                self._optimizer, self.scheduler, trainer.max_iter, last_iter=trainer.iter - 1
            )
        self._group = self.get_best_param_group_id(self._optimizer)

    @staticmethod
    def get_best_param_group_id(optimizer: Any) -> int:
        """Return the index of the largest group; with groups of one, of the commonest rate."""
        groups = optimizer.param_groups
        sizes = [len(group["params"]) for group in groups]
        if max(sizes) > 1:
            return sizes.index(max(sizes))
        rates = [group["lr"] for group in groups]
        return rates.index(Counter(rates).most_common(1)[0][0])

    def after_step(self) -> None:
        assert self._optimizer is not None
        rate = self._optimizer.param_groups[self._group]["lr"]
        self.trainer.storage.put_scalar("lr", rate, smoothing_hint=False)
        self.scheduler.step()

    def state_dict(self) -> dict[str, Any]:
        return self.scheduler.state_dict() if isinstance(self.scheduler, _LRScheduler) else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what `state_dict` returned."""
        if isinstance(self.scheduler, _LRScheduler):
            _logger.info("Loading scheduler from state_dict ...")
            self.scheduler.load_state_dict(state_dict)


class EvalHook(HookBase):
    """Evaluates every `eval_period` steps and in the end, and stores the results."""

    def __init__(
        self,
        eval_period: int,
        eval_function: Callable[[], dict[str, Any] | None],
        eval_after_train: bool = True,
    ):
        """Keep the settings.

        Args:
            eval_period: in iterations; 0 for the end only.
            eval_function: returns numbers by name, nested or not.
            eval_after_train: whether to evaluate in the end.
        """
        self._period = eval_period
        self._function: Callable[[], dict[str, Any] | None] | None = eval_function
        self._eval_after_train = eval_after_train

    def _evaluate(self) -> None:
        assert self._function is not None
        results = self._function()
        if results:
            assert isinstance(results, dict), (
                f"Eval function must return a dict. Got {results} instead."
            )
            for name, value in flatten_results_dict(results).items():
                try:
                    self.trainer.storage.put_scalar(name, float(value), smoothing_hint=False)
                except (TypeError, ValueError) as error:
                    raise ValueError(
                        "[EvalHook] eval_function should return a nested dict of float. "
                        f"Got '{name}: {value}' instead."
                    ) from error
        comm.synchronize()  # processes may take unequal times

    def after_step(self) -> None:
        if _every(self._period, self.trainer):
            self._evaluate()

    def after_train(self) -> None:
        if self._eval_after_train and self.trainer.iter + 1 >= self.trainer.max_iter:
            self._evaluate()
        self._function = None  # it may hold the trainer
