"""Optimizer and schedule of a config."""

from __future__ import annotations

import logging

import torch
from fvcore.common.config import CfgNode
from fvcore.common.param_scheduler import (
    CosineParamScheduler,
    MultiStepParamScheduler,
    ParamScheduler,
)
from torch import nn

from cat_seg.errors import CATSegError

from .lr_scheduler import LRMultiplier, WarmupParamScheduler


def maybe_add_gradient_clipping(
    cfg: CfgNode, optimizer: type[torch.optim.Optimizer]
) -> type[torch.optim.Optimizer]:
    """Derive a class of optimizers that clip each gradient before they step.

    Args:
        cfg: SOLVER.CLIP_GRADIENTS.CLIP_TYPE "value" bounds each entry, "norm" the norm of each
            parameter's gradient, by CLIP_VALUE. Nothing is done unless ENABLED.
        optimizer: the class to derive from.
    """
    settings = cfg.SOLVER.CLIP_GRADIENTS.clone()
    if not settings.ENABLED:
        return optimizer
    if settings.CLIP_TYPE not in ("value", "norm"):
        raise CATSegError(
            "SOLVER.CLIP_GRADIENTS.CLIP_TYPE: expected 'value' or 'norm', "
            f"got {settings.CLIP_TYPE!r}."
        )

    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                if settings.CLIP_TYPE == "value":
                    nn.utils.clip_grad_value_(parameter, settings.CLIP_VALUE)
                else:
                    nn.utils.clip_grad_norm_(parameter, settings.CLIP_VALUE, settings.NORM_TYPE)
        return optimizer.step(self, closure)

    return type(f"{optimizer.__name__}WithGradientClip", (optimizer,), {"step": step})


def build_lr_scheduler(cfg: CfgNode, optimizer: torch.optim.Optimizer) -> LRMultiplier:
    """Build the schedule that SOLVER.LR_SCHEDULER_NAME names, with its warm-up.

    Raises:
        CATSegError: if the name is neither "WarmupMultiStepLR" nor "WarmupCosineLR".
    """
    solver = cfg.SOLVER
    schedule: ParamScheduler
    if solver.LR_SCHEDULER_NAME == "WarmupMultiStepLR":
        steps = [step for step in solver.STEPS if step <= solver.MAX_ITER]
        if len(steps) < len(solver.STEPS):
            logging.getLogger(__name__).warning(
                "SOLVER.STEPS contains values larger than SOLVER.MAX_ITER. "
                "These values will be ignored."
            )
        schedule = MultiStepParamScheduler(
            values=[solver.GAMMA**k for k in range(len(steps) + 1)],
            milestones=steps,
            num_updates=solver.MAX_ITER,
        )
    elif solver.LR_SCHEDULER_NAME == "WarmupCosineLR":
        end = solver.BASE_LR_END / solver.BASE_LR
        assert 0.0 <= end <= 1.0, end
        schedule = CosineParamScheduler(1, end)
    else:
        raise CATSegError(f"Unknown LR scheduler: {solver.LR_SCHEDULER_NAME}")
    schedule = WarmupParamScheduler(
        schedule,
        solver.WARMUP_FACTOR,
        min(solver.WARMUP_ITERS / solver.MAX_ITER, 1.0),
        solver.WARMUP_METHOD,
        solver.RESCALE_INTERVAL,
    )
    return LRMultiplier(optimizer, multiplier=schedule, max_iter=solver.MAX_ITER)
