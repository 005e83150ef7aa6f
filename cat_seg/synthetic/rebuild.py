"""Rebuild the model that ships, from nothing: python -m cat_seg.synthetic.rebuild.

Run in a clone. Draws the data (datasets/synthetic), trains the small CLIP (output/synthetic_clip)
and CATSeg on the seen classes (output/synthetic), writes its weights in half precision to
output/synthetic/model.safetensors, and evaluates those beside the raw similarity of the CLIP.
`--evaluate WEIGHTS` does the last step only.
"""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
from safetensors.torch import load_file

from cat_seg.cli import convert as convert_checkpoint
from cat_seg.plugin.checkpointer import CATSegCheckpointer
from cat_seg.plugin.engine import Trainer, load_config
from cat_seg.resources import resource
from cat_seg.synthetic import dataset, train_clip
from cat_seg.synthetic.names import BACKGROUNDS, HELD_OUT_OBJECTS, SEEN_NAMES, SEEN_OBJECTS
from cat_seg.utils.memory import keep_freed_memory

DATA = Path("datasets/synthetic")
CLIP = Path("output/synthetic_clip")
MODEL = Path("output/synthetic")
CONFIG = "configs/synthetic.yaml"


def evaluate(weights: str, opts: list[str], config: str = CONFIG) -> dict[str, float]:
    """Evaluate a model on the validation scenes: mean IoU in percent, all names known.

    Returns:
        seen, held_out: over classes with and without masks in training; background, seen_object:
        the two parts of `seen`.
    """
    cfg = load_config(config, ["MODEL.WEIGHTS", weights, *opts])
    model = Trainer.build_model(cfg).eval()
    CATSegCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    result = Trainer.test(cfg, model)["sem_seg"]
    parts = {
        "seen": SEEN_NAMES,
        "held_out": HELD_OUT_OBJECTS,
        "background": BACKGROUNDS,
        "seen_object": SEEN_OBJECTS,
    }
    return {
        part: round(float(np.nanmean([result[f"IoU-{name}"] for name in names])), 1)
        for part, names in parts.items()
    }


def baseline() -> dict[str, float]:
    """Evaluate the small CLIP before CAT-Seg; see `train_clip.evaluate`."""
    clip = train_clip.build(0)
    clip.load_state_dict(load_file(CLIP / "model.safetensors"))
    return train_clip.evaluate(clip.eval(), scenes=len(list((DATA / "val/images").iterdir())))


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--evaluate", default="", metavar="WEIGHTS", help="evaluate these only")
    parser.add_argument("--config-file", default=CONFIG, help="of the weights to evaluate")
    parser.add_argument("opts", nargs="*", help="config keys and values")
    options = parser.parse_args(arguments)
    keep_freed_memory()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    weights = options.evaluate
    if not weights:
        weights = str(MODEL / "model.safetensors")
        dataset.main(["--output", str(DATA)])
        train_clip.main(["--output", str(CLIP)])
        train_net = [sys.executable, str(resource("train_net.py")), "--config-file", CONFIG]
        changes = ["MODEL.WEIGHTS", "", "OUTPUT_DIR", str(MODEL), *options.opts]
        subprocess.run([*train_net, *changes], check=True)
        convert_checkpoint.convert(str(MODEL / "model_final.pth"), weights, half=True)
    print(json.dumps({"CATSeg": evaluate(weights, options.opts, options.config_file)}))
    if (CLIP / "model.safetensors").exists():
        print(json.dumps({"raw dense similarity of the CLIP": baseline()}))


if __name__ == "__main__":
    main()
