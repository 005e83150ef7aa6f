"""Plan a training: what a config takes of memory and arithmetic, by counting, without a GPU.

    python docs/tools/plan_training.py --config-file configs/open.yaml --gpus 4

The network is built at its full size without weights and run once, forward and backward, on tensors
that have shapes and no contents. Counted are its parameters, the memory that lives at once, and
products. CUDA's own memory, a library's work space and fragments come on top.
"""

from __future__ import annotations

import argparse
import json
import math
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

import cat_seg.plugin  # noqa: F401  (before any import of detectron2)

# isort: split
from detectron2.modeling import build_model

from cat_seg.plugin import load_config
from cat_seg.plugin.engine.trainer import AUTOCAST

GB = 1e9
# A step runs at such a share of the peak of the card's arithmetic: assumptions.
UTILISATION = {"at best": 0.3, "at worst": 0.05}


class Memory(TorchDispatchMode):
    """Adds up the storages that operations make, as long as they live.

    Attributes:
        peak: the most bytes at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.known: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self.add(tensor.untyped_storage())
        return out

    def add(self, storage: torch.UntypedStorage, *, counts: bool = True) -> None:
        """Count a storage once; one that does not count is only known."""
        key, size = storage._cdata, storage.nbytes() if counts else 0
        if key in self.known:
            return

        def end(_: Any) -> None:
            del self.known[key]
            self.live -= size

        self.known[key] = weakref.ref(storage, end)
        self.live += size
        self.peak = max(self.peak, self.live)


def plan(config: str, opts: Sequence[str], gpus: int, teraflops: float) -> dict[str, Any]:
    """Count one process's share of a step.

    Args:
        config: a YAML.
        opts: KEY VALUE pairs that override it.
        gpus: over which SOLVER.IMS_PER_BATCH is spread.
        teraflops: peak of a card, in the precision of the config.

    Returns:
        parameters and trained ones (millions), memory (GB), FLOPs of a step (1e12), and days.
    """
    cfg = load_config(config, opts, "cpu")
    images = math.ceil(cfg.SOLVER.IMS_PER_BATCH / gpus)
    height, width = cfg.INPUT.CROP.SIZE
    cfg.defrost()
    cfg.MODEL.DEVICE = "meta"
    # Without a number, not the small ones of a CPU, but a GPU's.
    cfg.MODEL.SEM_SEG_HEAD.CLASS_CHUNK = cfg.MODEL.SEM_SEG_HEAD.CLASS_CHUNK or 1 << 20
    with torch.device("meta"):
        model = build_model(cfg).train()
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = model.to_empty(device="cpu")
        classes, predictor = len(model.class_names), model.predictor
        text = torch.empty(classes, len(predictor.templates), predictor.text_dim)
        pictures = [torch.empty(3, height, width) for _ in range(images)]
        memory, counter = Memory(), FlopCounterMode(display=False)
        for tensor in [*model.parameters(), *model.buffers()]:
            memory.add(tensor.untyped_storage(), counts=False)
        mixed = cfg.SOLVER.AMP.ENABLED
        with memory, counter:
            with torch.autocast("cpu", AUTOCAST[cfg.SOLVER.AMP.DTYPE], enabled=mixed):
                crops = model.encode_crops(*model.normalize(pictures))
                loss = model.logits(*crops, text).float().square().mean()
            del crops
            loss.backward()
    every = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    flops = counter.get_total_flops() * cfg.SOLVER.ACCUMULATE_STEPS
    days = flops / (teraflops * 1e12) * cfg.SOLVER.MAX_ITER / 86400
    return {
        "parameters, millions": round(every / 1e6),
        "trained, millions": round(trained / 1e6),
        "images of a card": images,
        "classes": classes,
        # In float32; two moments of each that trains.
        "GB of weights and optimiser": round((4 * every + 8 * trained) / GB, 1),
        "GB of activations and gradients": round(memory.peak / GB, 2),
        "TFLOP of a step": round(flops / 1e12, 1),
        "days": {name: round(days / share, 1) for name, share in UTILISATION.items()},
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config-file", required=True)
    parser.add_argument("--gpus", type=int, default=1, help="over which a batch is spread")
    parser.add_argument("--teraflops", type=float, default=165, help="peak of one card")
    parser.add_argument("opts", nargs="*", help="config keys and values")
    options = parser.parse_args(arguments)
    found = plan(options.config_file, options.opts, options.gpus, options.teraflops)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
