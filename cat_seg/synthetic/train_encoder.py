"""Train the image encoder of the small model from masks: python -m cat_seg.synthetic.train_encoder.

    python -m cat_seg.synthetic.train_encoder --text CLIP.safetensors --output DIR

The text encoder is that of `cat_seg.synthetic.train_clip` and stays. A new image encoder, with a
convolutional stem and a position every four pixels, learns what each position shows: its feature
must be nearest to the phrases that are true of the object there, among phrases that say as much
(shapes with shapes, colours with colours, pairs with pairs, as in `contrastive`).

Masks are of seen objects alone, so a colour and a pattern tell which shape they never come with.
Two things keep the encoder from learning that. Small pictures of one object, of any name, have a
caption and no mask: as in `contrastive`, the mean of their positions must be nearest to what is
true of them. And most pictures have their colour channels exchanged: these alone teach shapes by
masks, and the others colours.

Writes DIR/model.safetensors, as `train_clip` does, for `cat_seg/synthetic/clip_stem.json`.

Shape letters: B scenes, h x w positions, G phrases of a group, P templates, D embedding width.
"""

from __future__ import annotations

import argparse
import logging
import math
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from open_clip import CLIP
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from cat_seg.modeling.clip import build_clip, encode_dense, load_clip_weights
from cat_seg.modeling.clip.stem import ConvStem
from cat_seg.modeling.clip.text import encode_text, tokenize
from cat_seg.modeling.prompt_templates import get_templates
from cat_seg.synthetic.contrastive import PIXEL_MEAN, PIXEL_STD, dense_tokens, mimetic_init
from cat_seg.synthetic.dataset import split_scene
from cat_seg.synthetic.names import (
    BACKGROUNDS,
    HELD_OUT_OBJECTS,
    NAMES,
    OBJECTS,
    SEEN_NAMES,
    phrase_groups,
)
from cat_seg.synthetic.train_clip import optimizers, save, update
from cat_seg.synthetic.world import Scene, draw_scene
from cat_seg.trust.weights import read_weights
from cat_seg.utils.memory import keep_freed_memory

logger = logging.getLogger(__name__)

CONFIG = "cat_seg/synthetic/clip_stem.json"
TEMPLATES = (*get_templates("imagenet_select"), *get_templates("single"), "a photo of a {}.", "{}")
WEIGHTS = (1.0, 1.0, 0.5, 0.5, 0.5, 0.5, 0.5)  # of the groups of `phrase_groups`
WEIGHTS_MASKS = (0.0, 0.0, 1.0, 0.5, 0.0, 0.0, 0.5)  # the same, of masks
WEIGHTS_EXCHANGED = (0.0, 1.5, 0.0, 0.5, 0.0, 0.5, 0.0)  # of both, where channels are exchanged
_PLAIN = 3  # one step in so many shows the true colours
_GROUND = 0.15  # weight of a position of a background; they are many, and easy
_TILE, _TILES = 40, 48  # pixels of a picture of one object, and how many of them a step has
NOTHING = -1  # the label of a position that teaches nothing
_PATCH = 4  # pixels


class Group(NamedTuple):
    """Phrases that compete."""

    features: Tensor  # (P, G, D) of unit length
    true_of: Tensor  # (len(NAMES),) the phrase that is true of a name; NOTHING for none


class Batch(NamedTuple):
    """What a step shows."""

    scenes: Tensor  # (B, 3, H, W) uint8
    names: Tensor  # (B, h, w) indices into NAMES, or NOTHING
    tiles: Tensor  # (N, 3, _TILE, _TILE) uint8
    tile_names: Tensor  # (N,) of the object of each
    tile_labels: Tensor  # (N, h, w) as `names`; NOTHING in all of a held-out object's picture


def build(text: Path, seed: int) -> CLIP:
    """Build the CLIP: a fresh image encoder, and the text encoder of a file.

    Args:
        text: weights of `train_clip`, or of a CATSeg with that text encoder.
        seed: of the image encoder.
    """
    torch.manual_seed(seed)
    clip = build_clip(CONFIG)
    mimetic_init(clip.visual)
    stem = clip.visual.conv1
    assert isinstance(stem, ConvStem)
    stem.tokens.reset_parameters()
    part = "sem_seg_head.predictor.clip_model."
    state = {key.removeprefix(part): value for key, value in read_weights(text).items()}
    rows = state.pop("token_embedding.weight")
    with torch.no_grad():
        clip.token_embedding.weight.zero_()[: len(rows)] = rows
    expected = clip.state_dict()
    known = {k: v for k, v in state.items() if k in expected and not k.startswith("visual.")}
    clip.load_state_dict(known, strict=False)
    for name, parameter in clip.named_parameters():
        parameter.requires_grad_(name.startswith("visual.") or name == "logit_scale")
    return clip


@torch.no_grad()
def phrase_features(clip: CLIP, phrases: list[str]) -> Tensor:
    """Embed phrases in every template: (P, G, D), of unit length."""
    return torch.stack(
        [
            F.normalize(encode_text(clip, tokenize([t.format(p) for p in phrases])), dim=-1)
            for t in TEMPLATES
        ]
    )


def groups_of(clip: CLIP, names: tuple[str, ...] = SEEN_NAMES) -> list[Group]:
    """Return the groups of phrases that are true of some of `names`; backgrounds are in each."""
    groups = []
    for group in phrase_groups():
        said = {p: true for p, true in group.items() if true & set(names)}
        said |= {name: frozenset([name]) for name in BACKGROUNDS}
        true_of = torch.full((len(NAMES),), NOTHING)
        for index, true in enumerate(said.values()):
            true_of[[NAMES.index(name) for name in true]] = index
        groups.append(Group(phrase_features(clip, list(said)), true_of))
    return groups


class Batches(Dataset[Batch]):
    """Training scenes, and small pictures of one object, of every step."""

    def __init__(self, seed: int, steps: int, batch: int) -> None:
        self.seed, self.steps, self.batch = seed, steps, batch

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> Batch:
        scenes = [
            split_scene("train", index, seed=self.seed)
            for index in range(step * self.batch, (step + 1) * self.batch)
        ]
        rng = np.random.default_rng([self.seed, 3, step])
        objects = [str(name) for name in rng.choice(OBJECTS, _TILES)]
        tiles = [
            draw_scene(rng, _TILE, [name], [str(rng.choice(BACKGROUNDS))], (11, 18), 1.0)
            for name in objects
        ]
        labels = _labels(tiles)
        labels[[name in HELD_OUT_OBJECTS for name in objects]] = NOTHING
        indices = torch.tensor([NAMES.index(name) for name in objects])
        return Batch(_images(scenes), _labels(scenes), _images(tiles), indices, labels)


def _images(scenes: list[Scene]) -> Tensor:
    return torch.from_numpy(np.stack([scene.image for scene in scenes])).permute(0, 3, 1, 2)


def _labels(scenes: list[Scene]) -> Tensor:
    """What is at the middle of each patch of scenes: (B, h, w)."""
    at = slice(_PATCH // 2, None, _PATCH)
    names = [np.where(s.clear, s.labels.astype(np.int64), NOTHING)[at, at] for s in scenes]
    return torch.from_numpy(np.stack(names))


def exchange_channels(images: Tensor) -> Tensor:
    """Exchange the colour channels of images (B, 3, H, W), of each in an order of its own."""
    orders = torch.stack([torch.randperm(3) for _ in images])
    return images[torch.arange(len(images))[:, None], orders]


def positions(clip: CLIP, images: Tensor) -> Tensor:
    """Encode images (B, 3, H, W) in 0..255 to features (B, h, w, D) of unit length."""
    mean, std = (images.new_tensor(x)[:, None, None] for x in (PIXEL_MEAN, PIXEL_STD))
    dense = encode_dense(clip.visual, (images - mean) / std, last_residual="token")
    return F.normalize(dense.final.float(), dim=1).permute(0, 2, 3, 1)


def dense_loss(
    features: Tensor,
    names: Tensor,
    groups: list[Group],
    scale: Tensor,
    weights: tuple[float, ...] = WEIGHTS,
) -> Tensor:
    """Sum the cross entropies of the groups, in one template drawn by chance.

    Args:
        features: (..., D) of unit length.
        names: (...) indices into NAMES, or NOTHING.
        groups: see `groups_of`.
        scale: inverse temperature.
        weights: of the groups.
    """
    taught = names != NOTHING
    if not bool(taught.any()):
        return features.sum() * 0
    features, names = features[taught], names[taught]
    each = torch.where(names < len(BACKGROUNDS), _GROUND, 1.0)
    template = int(torch.randint(len(TEMPLATES), ()))
    total = features.new_zeros(())
    for weight, group in zip(weights, groups, strict=True):
        if weight:
            logits = scale * features @ group.features[template].T
            losses = F.cross_entropy(logits, group.true_of[names], reduction="none")
            total = total + weight * (losses * each).sum() / each.sum()
    return total


def loss_of(
    clip: CLIP, batch: Batch, groups: list[Group], every: list[Group], *, exchange: bool
) -> Tensor:
    """Compute the loss of a step.

    Args:
        batch: see `Batches`.
        groups: of the seen names, for masks.
        every: of all names, for captions.
        exchange: exchange channels, and teach shapes and patterns alone.
    """
    scenes, tiles = batch.scenes.float(), batch.tiles.float()
    names, labels = batch.names, batch.tile_labels
    weights, of_captions = WEIGHTS_MASKS, WEIGHTS
    if exchange:
        scenes, tiles = exchange_channels(scenes), exchange_channels(tiles)
        weights = of_captions = WEIGHTS_EXCHANGED
        names, labels = (t.where(t >= len(BACKGROUNDS), NOTHING) for t in (names, labels))
    room = clip.visual.grid_size[0] - _TILE // _PATCH
    offset = int(torch.randint(room + 1, ())), int(torch.randint(room + 1, ()))
    with torch.autocast("cpu", torch.bfloat16):
        whole = positions(clip, scenes)
        small = dense_tokens(clip.visual, tiles, offset)
    scale, small = clip.logit_scale.exp(), small.float()
    pooled = F.normalize(small.mean((1, 2)), dim=-1)
    return (
        dense_loss(whole, names, groups, scale, weights)
        + dense_loss(F.normalize(small, dim=-1), labels, groups, scale, weights)
        + dense_loss(pooled, batch.tile_names, every, scale, of_captions)
    )


def train(
    clip: CLIP, *, seed: int, steps: int, batch: int, learning_rate: float, output: Path
) -> None:
    """Train the image encoder in place, and save it every 200 steps."""
    groups, every = groups_of(clip), groups_of(clip, NAMES)
    steppers = optimizers(clip, learning_rate)

    def factor(step: int) -> float:
        return min((step + 1) / 50, 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / steps)))

    schedules = [torch.optim.lr_scheduler.LambdaLR(each, factor) for each in steppers]
    losses: list[float] = []
    began = time.perf_counter()
    batches = DataLoader(Batches(seed, steps, batch), batch_size=None, num_workers=1)
    for step, shown in enumerate(batches):
        loss = loss_of(clip, shown, groups, every, exchange=step % _PLAIN > 0)
        update(clip, loss, steppers, schedules)
        losses.append(loss.item())
        if (step + 1) % 25 == 0:
            seconds = (time.perf_counter() - began) / (step + 1)
            mean = np.mean(losses[-25:])
            logger.info("step %d/%d loss %.3f, %.2f s a step", step + 1, steps, mean, seconds)
        if (step + 1) % 100 == 0 or step + 1 == steps:
            save(clip, output)
            logger.info("%s", evaluate(clip, scenes=20))


@torch.no_grad()
def evaluate(clip: CLIP, *, scenes: int) -> dict[str, float]:
    """Measure, in percent, how many positions of clear things get their name, of all names.

    Returns:
        seen, held_out: of objects; shape, held_out_shape: the share of these positions that get an
        object of the right shape; ground: of backgrounds.
    """
    texts = F.normalize(
        encode_text(clip, tokenize([f"a photo of a {name}." for name in NAMES])), dim=-1
    )
    shapes = np.array([name.split()[-1] for name in NAMES])
    keys = ("seen", "held_out", "ground", "shape", "held_out_shape")
    right: dict[str, list[bool]] = {key: [] for key in keys}
    for index in range(scenes):
        scene = split_scene("val", index, seed=0)
        image = torch.from_numpy(scene.image).permute(2, 0, 1)[None].float()
        with torch.autocast("cpu", torch.bfloat16):
            features = positions(clip, image)
        answer = (features[0] @ texts.T).argmax(-1).numpy()
        at = (slice(_PATCH // 2, None, _PATCH),) * 2
        truth, clear = scene.labels[at].astype(int), scene.clear[at]
        ground, held_out = truth < len(BACKGROUNDS), truth >= len(SEEN_NAMES)
        correct = answer == truth
        right["seen"] += correct[clear & ~ground & ~held_out].tolist()
        right["held_out"] += correct[clear & held_out].tolist()
        right["ground"] += correct[ground].tolist()
        same = shapes[answer] == shapes[truth]
        right["shape"] += same[clear & ~ground & ~held_out].tolist()
        right["held_out_shape"] += same[clear & held_out].tolist()
    return {key: round(100 * float(np.mean(values)), 1) for key, values in right.items()}


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--text", type=Path, required=True, help="weights with the text encoder")
    parser.add_argument("--start", type=Path, help="weights to go on with")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--batch", type=int, default=2, help="scenes a step")
    parser.add_argument("--lr", type=float, default=3e-3)
    options = parser.parse_args(arguments)
    keep_freed_memory()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    clip = build(options.text, options.seed)
    if options.start is not None:
        load_clip_weights(clip, options.start)
    train(
        clip,
        seed=options.seed,
        steps=options.steps,
        batch=options.batch,
        learning_rate=options.lr,
        output=options.output,
    )
    logger.info("%s", evaluate(clip.eval(), scenes=100))


if __name__ == "__main__":
    main()
