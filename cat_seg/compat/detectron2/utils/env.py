"""Random state."""

from __future__ import annotations

import logging
import os
import random
from datetime import datetime

import numpy as np
import torch

__all__ = ["seed_all_rng"]


def seed_all_rng(seed: int | None = None) -> None:
    """Seed numpy, torch and random; with None, by a number that differs between processes."""
    if seed is None:
        clock = int(datetime.now().strftime("%S%f"))
        seed = os.getpid() + clock + int.from_bytes(os.urandom(2), "big")
        logging.getLogger(__name__).info(f"Using a generated random seed {seed}")
    np.random.seed(seed)
    random.seed(seed)
    torch.manual_seed(seed)  # all devices
    os.environ["PYTHONHASHSEED"] = str(seed)
