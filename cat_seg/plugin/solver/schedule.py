"""Learning-rate schedules: detectron2's, and the polynomial one of DeepLab."""

from __future__ import annotations

import torch
from detectron2.config import CfgNode
from detectron2.solver import LRMultiplier
from detectron2.solver import build_lr_scheduler as build_detectron2_lr_scheduler
from fvcore.common.param_scheduler import ParamScheduler

from cat_seg.errors import CATSegError


def build_lr_scheduler(
    cfg: CfgNode, optimizer: torch.optim.Optimizer
) -> torch.optim.lr_scheduler.LRScheduler:
    """Build SOLVER.LR_SCHEDULER_NAME: "WarmupCosineLR", "WarmupPolyLR" or another of detectron2's.

    Raises:
        CATSegError: if the name is unknown.
    """
    solver = cfg.SOLVER
    if solver.LR_SCHEDULER_NAME != "WarmupPolyLR":
        return build_detectron2_lr_scheduler(cfg, optimizer)
    schedule = WarmupPolySchedule(
        power=solver.POLY_LR_POWER,
        constant_ending=solver.POLY_LR_CONSTANT_ENDING,
        warmup_length=solver.WARMUP_ITERS / solver.MAX_ITER,
        warmup_factor=solver.WARMUP_FACTOR,
        warmup_method=solver.WARMUP_METHOD,
    )
    return LRMultiplier(optimizer, multiplier=schedule, max_iter=solver.MAX_ITER)


class WarmupPolySchedule(ParamScheduler):
    """(1 - x) ** power of the training's share x, times a warm-up factor.

    Once the polynomial falls below `constant_ending`, it stays there.
    """

    def __init__(
        self,
        *,
        power: float,
        constant_ending: float,
        warmup_length: float,
        warmup_factor: float,
        warmup_method: str,
    ) -> None:
        """Set the schedule; `warmup_length` is a share of the training in 0..1."""
        if warmup_method not in ("linear", "constant"):
            raise CATSegError(
                f"SOLVER.WARMUP_METHOD is {warmup_method!r}; expected 'linear' or 'constant'."
            )
        self.power = power
        self.constant_ending = constant_ending
        self.warmup_length = warmup_length
        self.warmup_factor = warmup_factor
        self.warmup_method = warmup_method

    def __call__(self, where: float) -> float:
        """Give the factor of the base learning rate at `where`, a share of the training."""
        return self._warmup(where) * max((1 - where) ** self.power, self.constant_ending)

    def _warmup(self, where: float) -> float:
        if where >= self.warmup_length:
            return 1.0
        if self.warmup_method == "constant":
            return self.warmup_factor
        done = where / self.warmup_length
        return self.warmup_factor * (1 - done) + done
