"""What a process does before it trains or evaluates."""

from __future__ import annotations

import argparse

import torch
from detectron2.config import CfgNode
from detectron2.engine import default_setup
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger


def set_up(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Write the log and the config to OUTPUT_DIR, seed, and set FLOAT32_PRECISION."""
    default_setup(cfg, args)
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="cat_seg")
    if cfg.FLOAT32_PRECISION:  # detectron2 leaves the convolutions as they are
        torch.backends.cudnn.allow_tf32 = cfg.FLOAT32_PRECISION != "highest"
