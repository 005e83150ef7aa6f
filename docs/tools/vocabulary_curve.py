"""Measure how many labels change where only some classes of a vocabulary are computed.

    python docs/tools/vocabulary_curve.py --json out.json --plot out.svg

A model of two layers, as the published ones have, is trained for a few minutes on the synthetic
world, from the model that ships (its one layer is the start of both). Then, with a vocabulary of
words of which most are in no picture, labels of all classes are compared with those of the most
similar ones alone (the others dropped) and with representatives of the others.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from matplotlib import rc_context
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import trange

from cat_seg.inference import Inference
from cat_seg.model import CATSeg
from cat_seg.modeling.losses import mask_bce
from cat_seg.synthetic.dataset import split_scene
from cat_seg.synthetic.names import SEEN_NAMES, wide_names
from cat_seg.utils.files import atomic_write
from docs.tools.plot_benchmark import STYLE

SEED = 31  # of scenes that no other figure uses
# Classes computed, and representatives of the others.
SETTINGS = (
    (24, 0), (32, 0), (48, 0), (64, 0), (96, 0), (160, 0), (16, 8), (24, 8), (24, 24), (32, 16),
    (48, 16), (64, 32), (96, 64),
)  # fmt: skip


def train(iterations: int) -> CATSeg:
    """Train the aggregation of a two-layer model; CLIP and the guidance backbone stay."""
    torch.manual_seed(0)
    shipped = CATSeg.from_pretrained("synthetic", device="cpu")
    model = CATSeg(replace(shipped.config, num_layers=2))
    state = shipped.state_dict()
    for key in [key for key in state if "predictor.transformer.layers.0." in key]:
        state[key.replace(".layers.0.", ".layers.1.")] = state[key].clone()
    model.load_state_dict(state)
    text = shipped.vocabulary(SEEN_NAMES).features
    assert text is not None
    aggregator = model.eval().requires_grad_(False).predictor.transformer.requires_grad_(True)
    optimizer = torch.optim.AdamW(aggregator.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, iterations, pct_start=0.1)
    for step in trange(iterations, desc="Training"):
        scenes = [split_scene("train", 2 * step + i, seed=SEED) for i in range(2)]
        pixels = torch.stack([torch.from_numpy(s.image).permute(2, 0, 1) for s in scenes])
        labels = torch.stack([torch.from_numpy(s.labels).long() for s in scenes])
        loss = mask_bce(model(pixels, text), labels)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(aggregator.parameters(), 0.1)
        optimizer.step()
        schedule.step()
    return model.requires_grad_(False)


def measure(model: CATSeg, words: Sequence[str], scenes: int) -> list[dict[str, Any]]:
    """Measure each setting against all classes, in turns scene by scene."""
    text = CATSeg.from_pretrained("synthetic", device="cpu").vocabulary(words).features
    assert text is not None
    settings = ((0, 0), *SETTINGS)
    every = [
        Inference(model, replace(model.plan, max_classes=k, representatives=m)) for k, m in settings
    ]
    changed: list[list[float]] = [[] for _ in settings]
    seconds: list[list[float]] = [[] for _ in settings]
    right = []
    for index in trange(scenes, desc=f"{len(words)} words"):
        scene = split_scene("val", index, seed=SEED)
        image = torch.from_numpy(scene.image).permute(2, 0, 1)
        full: Tensor | None = None
        for i, inference in enumerate(every):
            start = time.process_time()
            labels, _ = inference([image], text, [scene.labels.shape])[0].best()
            seconds[i].append(time.process_time() - start)
            full = labels if full is None else full
            changed[i].append(float((labels != full).float().mean()))
        assert full is not None
        right.append(float((full == torch.from_numpy(scene.labels)).float().mean()))
    print(f"{len(words)} words: {100 * sum(right) / scenes:.1f} % of the pixels are right")
    return [
        {
            "words": len(words),
            "classes": k or len(words),
            "representatives": m,
            "changed": sum(changed[i]) / scenes,
            "changed_most": max(changed[i]),
            "cpu_seconds": sorted(seconds[i])[scenes // 2],
        }
        for i, (k, m) in enumerate(settings)
    ]


def draw(results: list[dict[str, Any]]) -> Figure:
    """Draw the share of changed labels over time, a line for what is done with the others."""
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.add_subplot()
    for name, wanted in (("others dropped", False), ("others represented", True)):
        points = sorted(
            (r["cpu_seconds"], 100 * r["changed"])
            for r in results
            if bool(r["representatives"]) is wanted and r["classes"] < r["words"]
        )
        axes.plot(*zip(*points, strict=True), marker="o", label=name)
    full = next(r for r in results if r["classes"] == r["words"])
    axes.axvline(full["cpu_seconds"], color="#888", linestyle=":", label="all classes")
    axes.axhline(0.1, color="#ccc")
    axes.set(xscale="log", xlabel="seconds of CPU an image", ylabel="changed labels, %")
    axes.set_yscale("symlog", linthresh=0.01)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.legend(frameon=False)
    return figure


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--iterations", type=int, default=150, help="of training")
    parser.add_argument("--words", type=int, default=800)
    parser.add_argument("--scenes", type=int, default=24)
    parser.add_argument("--json", type=Path, required=True, metavar="FILE")
    parser.add_argument("--plot", type=Path, metavar="FILE.svg")
    options = parser.parse_args(arguments)
    model = train(options.iterations)
    model.save_pretrained(options.json.with_suffix(""))
    results = measure(model, wide_names(options.words), options.scenes)
    with atomic_write(options.json) as part:
        part.write_text(json.dumps(results, indent=1) + "\n")
    for r in results:
        print(
            f"{r['classes']:>5} + {r['representatives']:<3} {100 * r['changed']:8.3f} % "
            f"(at most {100 * r['changed_most']:.2f} %)  {r['cpu_seconds']:.2f} s"
        )
    if options.plot:
        with rc_context(STYLE), atomic_write(options.plot) as part:
            draw(results).savefig(part, format="svg", metadata={"Date": None})
    return 0


if __name__ == "__main__":
    sys.exit(main())
