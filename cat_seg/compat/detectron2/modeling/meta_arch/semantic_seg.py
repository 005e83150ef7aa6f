"""A head of semantic segmentation by the name in the config."""

from __future__ import annotations

from fvcore.common.config import CfgNode
from torch import nn

from ...layers import ShapeSpec
from ...utils.registry import Registry
from ..registered import registered

# Holds callables (cfg, ShapeSpec by name of feature map) -> nn.Module.
SEM_SEG_HEADS_REGISTRY = Registry("SEM_SEG_HEADS")


def build_sem_seg_head(cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> nn.Module:
    """Build the head that MODEL.SEM_SEG_HEAD.NAME names.

    Raises:
        ValueError: if no head is registered under that name.
    """
    name = cfg.MODEL.SEM_SEG_HEAD.NAME
    return registered(SEM_SEG_HEADS_REGISTRY, "MODEL.SEM_SEG_HEAD.NAME", name)(cfg, input_shape)
