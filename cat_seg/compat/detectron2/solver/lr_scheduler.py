"""Learning rates as a multiple, over the course of a run, of what they are at its start."""

from __future__ import annotations

from typing import Any

from fvcore.common.param_scheduler import (
    CompositeParamScheduler,
    ConstantParamScheduler,
    LinearParamScheduler,
    ParamScheduler,
)
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from cat_seg.errors import CATSegError


class WarmupParamScheduler(CompositeParamScheduler):
    """Puts a warm-up before a schedule."""

    def __init__(
        self,
        scheduler: ParamScheduler,
        warmup_factor: float,
        warmup_length: float,
        warmup_method: str = "linear",
        rescale_interval: bool = False,
    ):
        """Combine both.

        Args:
            scheduler: what follows.
            warmup_factor: multiple of the schedule's first value with which warm-up begins.
            warmup_length: share of the run.
            warmup_method: "linear" or "constant".
            rescale_interval: whether all of `scheduler` is squeezed into the rest of the run;
                else warm-up hides its beginning.
        """
        begin = warmup_factor * scheduler(0.0)
        end = scheduler(0.0 if rescale_interval else warmup_length)
        if warmup_method == "linear":
            warmup: ParamScheduler = LinearParamScheduler(begin, end)
        elif warmup_method == "constant":
            warmup = ConstantParamScheduler(begin)
        else:
            raise CATSegError(f"Unknown warmup method: {warmup_method}")
        super().__init__(
            [warmup, scheduler],
            interval_scaling=["rescaled", "rescaled" if rescale_interval else "fixed"],
            lengths=[warmup_length, 1 - warmup_length],
        )


class LRMultiplier(LRScheduler):
    """Multiplies every learning rate of an optimizer by the same schedule."""

    def __init__(
        self,
        optimizer: Optimizer,
        multiplier: ParamScheduler,
        max_iter: int,
        last_iter: int = -1,
    ):
        """Set the learning rates of the first iteration.

        Args:
            optimizer: whose learning rates are set.
            multiplier: factor as a function of the progress, 0 to 1.
            max_iter: iterations of the run.
            last_iter: the iteration that was done last.
        """
        if not isinstance(multiplier, ParamScheduler):
            raise CATSegError(
                "LRMultiplier(multiplier=) must be an instance of fvcore ParamScheduler. "
                f"Got {multiplier} instead."
            )
        self._multiplier = multiplier
        self._max_iter = max_iter
        super().__init__(optimizer, last_epoch=last_iter)

    def state_dict(self) -> dict[str, Any]:
        """Return the place in the schedule, which has no state of its own."""
        return {"base_lrs": self.base_lrs, "last_epoch": self.last_epoch}

    def get_lr(self) -> list[Any]:
        """Return the learning rates of the current iteration."""
        factor = self._multiplier(self.last_epoch / self._max_iter)
        return [base * factor for base in self.base_lrs]
