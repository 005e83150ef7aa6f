"""What a log should tell of the machine."""

from __future__ import annotations

import importlib
import os
import sys

import torch
from tabulate import tabulate

__all__ = ["collect_env_info"]


def collect_env_info() -> str:
    """Return a table of versions and devices."""
    rows = [("sys.platform", sys.platform), ("Python", sys.version.replace("\n", ""))]
    for name in ("detectron2", "torch", "torchvision", "numpy", "PIL", "fvcore", "iopath"):
        module = importlib.import_module(name)
        place = os.path.dirname(module.__file__ or "")
        rows.append((name, f"{getattr(module, '__version__', 'unknown')} @{place}"))
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    rows.append(("GPU", ", ".join(gpus) or "not available"))
    return tabulate(rows) + "\n" + torch.__config__.show()
