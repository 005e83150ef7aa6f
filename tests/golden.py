"""The golden runs of the two published generations: what the models compute, at tiny widths.

`tests/data/golden/{swin_tiny,clip_tiny}` hold random weights under the released key names and what
the published models make of them, stage by stage (float32, one CPU). An array is kept at a stride;
its spec gives the full shape, the stride and the absolute tolerance.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

DATA = Path(__file__).parent / "data"
GOLDEN = ("swin_tiny", "clip_tiny")
CLIP_PREFIX = "sem_seg_head.predictor.clip_model."


@dataclass(frozen=True)
class Run:
    """Arrays of one run by stage name, as kept, with their specs (shape, stride, tolerance)."""

    arrays: dict[str, Tensor]
    specs: dict[str, dict[str, Any]]

    def __getitem__(self, stage: str) -> Tensor:
        return self.arrays[stage]

    def assert_matches(self, actual: Tensor, stage: str) -> None:
        """Compare a whole tensor with the stage of this name, at the stride that was kept."""
        spec = self.specs[stage]
        assert list(actual.shape) == spec["shape"], f"{stage}: {tuple(actual.shape)}"
        stride = spec.get("stride", [1] * actual.ndim)
        kept = actual.detach().cpu()[tuple(slice(None, None, step) for step in stride)]
        torch.testing.assert_close(
            kept.to(self[stage].dtype),
            self[stage],
            atol=spec["absolute_tolerance"],
            rtol=0,
            msg=lambda message: f"{stage}: {message}",
        )


@dataclass(frozen=True)
class Golden:
    """One golden model: its settings, weights, runs and facts about training."""

    name: str
    recipe: dict[str, Any]
    weights: dict[str, Tensor]
    runs: dict[str, Run]
    facts: dict[str, Any]

    @property
    def inference(self) -> Run:
        """The sliding-window run of one image."""
        return self.runs["inference"]

    @property
    def training(self) -> Run:
        """A batch, its loss, some gradients, the losses of three optimiser steps."""
        return self.runs["training"]

    @property
    def clip_config(self) -> dict[str, Any]:
        """The CLIP as a model configuration of open_clip."""
        clip = self.recipe["clip"]
        return {
            "embed_dim": clip["embed_dim"],
            "quick_gelu": clip["quick_gelu"],
            "vision_cfg": {
                "image_size": clip["image_size"],
                "layers": clip["vision_layers"],
                "width": clip["vision_width"],
                "head_width": clip["vision_width"] // clip["vision_heads"],
                "patch_size": clip["patch_size"],
            },
            "text_cfg": {
                "context_length": clip["context_length"],
                "vocab_size": clip["vocab_size"],
                "width": clip["text_width"],
                "heads": clip["text_heads"],
                "layers": clip["text_layers"],
            },
        }

    @property
    def clip_weights(self) -> dict[str, Tensor]:
        """CLIP's part of the weights, without prefix."""
        return {
            key.removeprefix(CLIP_PREFIX): value
            for key, value in self.weights.items()
            if key.startswith(CLIP_PREFIX)
        }

    def assert_matches(self, actual: Tensor, stage: str, run: str = "inference") -> None:
        """Compare a whole tensor with a stage of a run, at the stride that was kept."""
        self.runs[run].assert_matches(actual, stage)


@cache
def load_golden(name: str) -> Golden:
    """Read a golden model ("swin_tiny" or "clip_tiny"), weights as float32. Do not write to it."""
    folder = DATA / "golden" / name
    facts = {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}
    runs = {
        path.stem: Run(arrays=_arrays(path), specs=facts.pop(path.stem))
        for path in folder.glob("*.npz")
        if path.stem != "weights"
    }
    weights = {key: value.float() for key, value in _arrays(folder / "weights.npz").items()}
    return Golden(name, facts.pop("recipe"), weights, runs, facts)


def checkpoint_rows(name: str) -> list[dict[str, Any]]:
    """Key, shape and trainable of every tensor of a released model, such as "swinb_vitl336"."""
    path = DATA / "checkpoints" / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def _arrays(path: Path) -> dict[str, Tensor]:
    with np.load(path) as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in arrays.files}
