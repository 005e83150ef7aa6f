"""A model by the name in the config."""

from __future__ import annotations

import torch
from fvcore.common.config import CfgNode
from torch import nn

from ...utils.registry import Registry
from ..registered import registered

# Holds callables cfg -> nn.Module.
META_ARCH_REGISTRY = Registry("META_ARCH")


def build_model(cfg: CfgNode) -> nn.Module:
    """Build the model that MODEL.META_ARCHITECTURE names, on MODEL.DEVICE, without weights.

    Raises:
        ValueError: if no model is registered under that name.
    """
    name = cfg.MODEL.META_ARCHITECTURE
    model = registered(META_ARCH_REGISTRY, "MODEL.META_ARCHITECTURE", name)(cfg)
    return model.to(torch.device(cfg.MODEL.DEVICE))
