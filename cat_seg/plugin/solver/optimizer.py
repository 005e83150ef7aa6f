"""The optimiser: one group a parameter, and gradients clipped over the whole model.

Which parameters train is decided by the model (`requires_grad`); here is only how they train.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.solver.build import maybe_add_gradient_clipping
from torch import Tensor, nn

from cat_seg.errors import CATSegError

_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.LocalResponseNorm)
_NEVER_DECAYED = ("relative_position_bias_table", "absolute_pos_embed")


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """Build the optimiser of a config for the trainable parameters of a model.

    Raises:
        CATSegError: if SOLVER.OPTIMIZER is unknown, or no parameter trains.
    """
    solver = cfg.SOLVER
    settings: dict[str, Any] = {"lr": solver.BASE_LR, "weight_decay": solver.WEIGHT_DECAY}
    kind: type[torch.optim.Optimizer]
    if solver.OPTIMIZER == "ADAMW":
        kind = torch.optim.AdamW
    elif solver.OPTIMIZER == "SGD":
        kind = torch.optim.SGD
        settings |= {"momentum": solver.MOMENTUM, "nesterov": solver.NESTEROV}
    else:
        raise CATSegError(f"SOLVER.OPTIMIZER is {solver.OPTIMIZER!r}; expected 'ADAMW' or 'SGD'.")
    groups = parameter_groups(
        model,
        lr=solver.BASE_LR,
        backbone_multiplier=solver.BACKBONE_MULTIPLIER,
        clip_multiplier=solver.CLIP_MULTIPLIER,
        factors=solver.LR_FACTORS,
        weight_decay=solver.WEIGHT_DECAY,
        weight_decay_norm=solver.WEIGHT_DECAY_NORM,
        weight_decay_embed=solver.WEIGHT_DECAY_EMBED,
    )
    if not groups:
        raise CATSegError(
            "No parameter of the model trains; see MODEL.SEM_SEG_HEAD.CLIP_FINETUNE and "
            "SOLVER.BACKBONE_MULTIPLIER."
        )
    return _with_clipping(kind, solver.CLIP_GRADIENTS, cfg)(groups, **settings)


def parameter_groups(
    model: nn.Module,
    *,
    lr: float,
    backbone_multiplier: float,
    clip_multiplier: float,
    weight_decay: float,
    weight_decay_norm: float,
    weight_decay_embed: float,
    factors: Sequence[tuple[str, float]] = (),
) -> list[dict[str, Any]]:
    """Give every trainable parameter its learning rate and weight decay; see SOLVER's keys.

    Returns:
        One group ("params", "lr", "weight_decay") a parameter, in the model's order.
    """
    groups = []
    seen: set[nn.Parameter] = set()
    for module_name, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or parameter in seen:
                continue
            seen.add(parameter)
            rate, decay = lr, weight_decay
            if "backbone" in module_name:
                rate *= backbone_multiplier
            if "clip_model" in module_name:
                rate *= clip_multiplier
            for pattern, factor in factors:
                if re.search(pattern, f"{module_name}.{name}"):
                    rate *= factor
            if isinstance(module, _NORMS):
                decay = weight_decay_norm
            elif isinstance(module, nn.Embedding):
                decay = weight_decay_embed
            if name in _NEVER_DECAYED:
                decay = 0.0
            groups.append({"params": [parameter], "lr": rate, "weight_decay": decay})
    return groups


def _with_clipping(
    kind: type[torch.optim.Optimizer], clip: CfgNode, cfg: CfgNode
) -> type[torch.optim.Optimizer]:
    """Derive from an optimiser class one that clips as SOLVER.CLIP_GRADIENTS says."""
    if not clip.ENABLED:
        return kind
    if clip.CLIP_TYPE in ("value", "norm"):  # each parameter by itself
        return maybe_add_gradient_clipping(cfg, kind)
    if clip.CLIP_TYPE != "full_model":
        raise CATSegError(
            f"SOLVER.CLIP_GRADIENTS.CLIP_TYPE is {clip.CLIP_TYPE!r}; expected 'full_model', "
            "'value' or 'norm'."
        )
    limit, norm_type = clip.CLIP_VALUE, clip.NORM_TYPE

    class FullModelGradientClippingOptimizer(kind):  # type: ignore[valid-type,misc]
        """Scales all gradients by one factor so that their joint norm is at most the limit.

        `gradient_norm` is the norm before clipping, of the last step.
        """

        gradient_norm: Tensor | None = None

        def step(self, closure: Any = None) -> Any:
            parameters = [p for group in self.param_groups for p in group["params"]]
            self.gradient_norm = nn.utils.clip_grad_norm_(parameters, limit, norm_type)
            return super().step(closure)

    return FullModelGradientClippingOptimizer
