"""The usual hooks."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

from fvcore.common.timer import Timer

from ..evaluation.testing import flatten_results_dict
from ..utils import comm
from ..utils.events import EventWriter
from .train_loop import HookBase

_logger = logging.getLogger(__name__)


def _every(period: int, trainer: Any) -> bool:
    """Tell whether a step ends a period, other than the last one of the training."""
    done = trainer.iter + 1
    return period > 0 and done % period == 0 and done != trainer.max_iter


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


class LRScheduler(HookBase):
    """Steps the trainer's schedule after each iteration, and stores a typical learning rate."""

    def before_train(self) -> None:
        groups = self.trainer.optimizer.param_groups
        sizes = [len(group["params"]) for group in groups]
        if max(sizes) > 1:
            self._group = sizes.index(max(sizes))
        else:
            rates = [group["lr"] for group in groups]
            self._group = rates.index(Counter(rates).most_common(1)[0][0])

    def after_step(self) -> None:
        rate = self.trainer.optimizer.param_groups[self._group]["lr"]
        self.trainer.storage.put_scalar("lr", rate, smoothing_hint=False)
        self.trainer.scheduler.step()

    def state_dict(self) -> dict[str, Any]:
        return self.trainer.scheduler.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what `state_dict` returned."""
        _logger.info("Loading scheduler from state_dict ...")
        self.trainer.scheduler.load_state_dict(state_dict)


class EvalHook(HookBase):
    """Evaluates every `eval_period` steps and in the end, and stores the results."""

    def __init__(self, eval_period: int, eval_function: Callable[[], dict[str, Any] | None]):
        """Keep the settings.

        Args:
            eval_period: in iterations; 0 for the end only.
            eval_function: returns numbers by name, nested or not.
        """
        self._period = eval_period
        self._function: Callable[[], dict[str, Any] | None] | None = eval_function

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
        if self.trainer.iter + 1 >= self.trainer.max_iter:
            self._evaluate()
        self._function = None  # it may hold the trainer
