"""Optimizer and schedule of a config."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from fvcore.common.config import CfgNode
from fvcore.common.param_scheduler import (
    CosineParamScheduler,
    MultiStepParamScheduler,
    ParamScheduler,
)
from torch import nn

from .lr_scheduler import LRMultiplier, WarmupParamScheduler

_NORMS = (
    nn.modules.batchnorm._NormBase,  # batch and instance norms
    nn.GroupNorm,
    nn.LayerNorm,
    nn.LocalResponseNorm,
)


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """Build SGD as SOLVER.* says."""
    params = get_default_optimizer_params(
        model,
        base_lr=cfg.SOLVER.BASE_LR,
        weight_decay_norm=cfg.SOLVER.WEIGHT_DECAY_NORM,
        bias_lr_factor=cfg.SOLVER.BIAS_LR_FACTOR,
        weight_decay_bias=cfg.SOLVER.WEIGHT_DECAY_BIAS,
    )
    optimizer = maybe_add_gradient_clipping(cfg, torch.optim.SGD)
    return optimizer(
        params,
        lr=cfg.SOLVER.BASE_LR,
        momentum=cfg.SOLVER.MOMENTUM,
        nesterov=cfg.SOLVER.NESTEROV,
        weight_decay=cfg.SOLVER.WEIGHT_DECAY,
    )


def maybe_add_gradient_clipping(cfg: CfgNode, optimizer: Any) -> Any:
    """Let an optimizer, or a class of optimizers, clip each gradient before it steps.

    Args:
        cfg: SOLVER.CLIP_GRADIENTS.CLIP_TYPE "value" bounds each entry, "norm" the norm of each
            parameter's gradient, by CLIP_VALUE. Nothing is done unless ENABLED.
        optimizer: an instance, which is changed, or a class, which is derived from.
    """
    settings = cfg.SOLVER.CLIP_GRADIENTS.clone()
    if not settings.ENABLED:
        return optimizer
    if settings.CLIP_TYPE not in ("value", "norm"):
        raise ValueError(
            "SOLVER.CLIP_GRADIENTS.CLIP_TYPE: expected 'value' or 'norm', "
            f"got {settings.CLIP_TYPE!r}."
        )
    base = optimizer if isinstance(optimizer, type) else type(optimizer)

    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                if settings.CLIP_TYPE == "value":
                    nn.utils.clip_grad_value_(parameter, settings.CLIP_VALUE)
                else:
                    nn.utils.clip_grad_norm_(parameter, settings.CLIP_VALUE, settings.NORM_TYPE)
        return base.step(self, closure)

    clipping = type(f"{base.__name__}WithGradientClip", (base,), {"step": step})
    if base is optimizer:
        return clipping
    optimizer.__class__ = clipping
    return optimizer


def get_default_optimizer_params(
    model: nn.Module,
    base_lr: float | None = None,
    weight_decay: float | None = None,
    weight_decay_norm: float | None = None,
    bias_lr_factor: float | None = 1.0,
    weight_decay_bias: float | None = None,
    lr_factor_func: Callable[[str], float] | None = None,
    overrides: dict[str, dict[str, float]] | None = None,
) -> list[dict[str, Any]]:
    """Sort the trained parameters into groups of equal settings.

    Args:
        model: whose parameters.
        base_lr: learning rate; None for the optimizer's.
        weight_decay: None for the optimizer's.
        weight_decay_norm: of the parameters of normalisation layers; None for the others'.
        bias_lr_factor: factor on the learning rate of parameters named "bias".
        weight_decay_bias: of these; None for the others'.
        lr_factor_func: full name of a parameter to a factor on its learning rate.
        overrides: settings by the last part of a parameter's name.
    """
    settings: dict[str, float] = {}
    if base_lr is not None:
        settings["lr"] = base_lr
    elif lr_factor_func is not None or bias_lr_factor not in (None, 1.0):
        raise ValueError("bias_lr_factor and lr_factor_func require base_lr")
    if weight_decay is not None:
        settings["weight_decay"] = weight_decay
    bias: dict[str, float] = {}
    if base_lr is not None and bias_lr_factor not in (None, 1.0):
        bias["lr"] = base_lr * bias_lr_factor
    if weight_decay_bias is not None:
        bias["weight_decay"] = weight_decay_bias
    overrides = dict(overrides or {})
    if bias and "bias" in overrides:
        raise ValueError("settings of 'bias' are given twice: in overrides and as arguments")
    if bias:
        overrides["bias"] = bias

    groups, done = [], set()
    for module_name, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or parameter in done:
                continue
            done.add(parameter)
            own = dict(settings)
            if isinstance(module, _NORMS) and weight_decay_norm is not None:
                own["weight_decay"] = weight_decay_norm
            if lr_factor_func is not None:
                own["lr"] *= lr_factor_func(f"{module_name}.{name}")
            own.update(overrides.get(name, {}))
            groups.append({"params": [parameter], **own})
    return reduce_param_groups(groups)


def reduce_param_groups(params: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Merge groups of equal settings; of several settings for a parameter the last one counts."""
    settings: dict[nn.Parameter, dict[str, Any]] = defaultdict(dict)
    for group in params:
        for parameter in group["params"]:
            settings[parameter].update({k: v for k, v in group.items() if k != "params"})
    merged: dict[tuple, list[nn.Parameter]] = defaultdict(list)
    for parameter, own in settings.items():
        merged[tuple(own.items())].append(parameter)
    return [{**dict(own), "params": parameters} for own, parameters in merged.items()]


def build_lr_scheduler(cfg: CfgNode, optimizer: torch.optim.Optimizer) -> LRMultiplier:
    """Build the schedule that SOLVER.LR_SCHEDULER_NAME names, with its warm-up.

    Raises:
        ValueError: if the name is neither "WarmupMultiStepLR" nor "WarmupCosineLR".
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
        raise ValueError(f"Unknown LR scheduler: {solver.LR_SCHEDULER_NAME}")
    schedule = WarmupParamScheduler(
        schedule,
        solver.WARMUP_FACTOR,
        min(solver.WARMUP_ITERS / solver.MAX_ITER, 1.0),
        solver.WARMUP_METHOD,
        solver.RESCALE_INTERVAL,
    )
    return LRMultiplier(optimizer, multiplier=schedule, max_iter=solver.MAX_ITER)
