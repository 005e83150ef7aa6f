"""Train the whole small model from masks: python -m cat_seg.synthetic.train_masks.

    python -m cat_seg.synthetic.train_masks --clip CLIP.safetensors --output DIR

Every step has one scene and a vocabulary of its own: names that the scene shows, names that differ
from these in a word, and others; or phrases that leave words out ("star", "red object"), each with
the mask of all that it is true of. Some of what is there has no word, and some words are of
nothing that the model knows, so that scores tell of "none of these" too. What nobody could name
(`Scene.clear`) teaches nothing. No scene shows a held-out object.

Saves the moving average of the weights to DIR, as `CATSeg.save_pretrained` does, in half precision.

Shape letters: T classes of a step, H and W pixels.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import math
import time
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader, Dataset

from cat_seg.label_rules import NOTHING
from cat_seg.loading import load_state
from cat_seg.model import CATSeg
from cat_seg.model_config import ModelConfig
from cat_seg.modeling.clip import load_clip_weights
from cat_seg.modeling.losses import mask_bce
from cat_seg.resources import resource
from cat_seg.synthetic import train_encoder
from cat_seg.synthetic.dataset import SIZE, split_scene
from cat_seg.synthetic.evaluate import evaluate
from cat_seg.synthetic.names import BACKGROUNDS, NAMES, SEEN_NAMES, SEEN_OBJECTS, phrase_groups
from cat_seg.trust.weights import read_weights
from cat_seg.utils.memory import keep_freed_memory

logger = logging.getLogger(__name__)

CONFIG = ModelConfig(  # what configs/synthetic.yaml describes too
    clip=json.loads(resource(train_encoder.CONFIG).read_text()),
    templates="imagenet_select",
    guidance="clip",
    guidance_layers=(2, 1),  # the stem's maps, of strides 4 and 2
    upsample_dims=(32, 16),
    grid=(32, 32),
    window=8,
    hidden_dim=32,
    num_layers=1,
    pooling=(1, 1),
    text_guidance_dim=0,  # it knows no class by name, so held-out ones fare as well
    guidance_dim=32,
    decoder_dims=(16, 16),
    decoder_guidance_dims=(8, 8),
    size_divisibility=1,
    min_size=SIZE,
    sliding_window=None,
)
NO_CLASS = 255
AVERAGED = 0.998  # share of the moving average that a step keeps
_COUNTS, _COUNT_SHARES = (10, 14, 20, 32), (0.4, 0.35, 0.15, 0.1)  # T
_COLOURLESS = (1, 3, 5)  # of `phrase_groups`: shapes, patterns, pairs of them
_OTHERS = ("cat", "dog", "car", "tree", "person", "house", "chair", "boat", "square", "heart")
_PHRASES = tuple(dict.fromkeys(phrase for group in phrase_groups() for phrase in group))
WORDS = (*_PHRASES, *_OTHERS)
"""All that a vocabulary of training is made of."""


class Task(NamedTuple):
    """What a step teaches."""

    image: Tensor  # (3, H, W) uint8
    classes: Tensor  # (T,) indices into WORDS
    targets: Tensor  # (H, W) int64, 0..T-1, NO_CLASS or NOTHING


def draw_task(seed: int, index: int) -> Task:
    """Draw the scene and the vocabulary of a step, from the seed and its number alone."""
    rng = np.random.default_rng([seed, 7, index])
    image, labels, clear = _draw_scene(rng, seed, index)
    phrases, colourless = _draw_phrases(rng, sorted({NAMES[i] for i in np.unique(labels)}))
    if colourless:  # so that a colour does not tell which shapes it never comes with
        image = image[..., rng.permutation(3)]
    if rng.random() < 0.3:
        phrases |= {str(word): frozenset() for word in rng.choice(_OTHERS, 2, replace=False)}
    table = np.full(len(NAMES), NO_CLASS)
    for number, names in enumerate(phrases.values()):
        table[[NAMES.index(name) for name in names]] = number
    targets = np.where(clear, table[labels], NOTHING)
    return Task(
        torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))),
        torch.tensor([WORDS.index(phrase) for phrase in phrases]),
        torch.from_numpy(targets.astype(np.int64)),
    )


def _draw_scene(
    rng: np.random.Generator, seed: int, index: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw a scene, at times a part of a larger one, squeezed: image, labels, what is clear."""
    if rng.random() < 0.7:
        scene = split_scene("train", index, seed=seed)
        return scene.image, scene.labels, scene.clear
    whole = split_scene("train", index, seed=seed, size=SIZE * 5 // 4)
    height, width = rng.integers(SIZE * 3 // 4, SIZE * 5 // 4, 2, endpoint=True)
    y, x = (int(rng.integers(0, SIZE * 5 // 4 - side + 1)) for side in (height, width))
    part = np.s_[y : y + height, x : x + width]
    image = cv2.resize(whole.image[part], (SIZE, SIZE), interpolation=cv2.INTER_LINEAR)
    labels, clear = (
        cv2.resize(m[part].astype(np.uint8), (SIZE, SIZE), interpolation=cv2.INTER_NEAREST)
        for m in (whole.labels, whole.clear)
    )
    return image, labels, clear.astype(bool)


def _draw_phrases(
    rng: np.random.Generator, shown: list[str]
) -> tuple[dict[str, frozenset[str]], bool]:
    """Draw a vocabulary for a scene of these names.

    Returns:
        phrases, and the names that each is true of; whether none of them tells a colour.
    """
    count = int(rng.choice(_COUNTS, p=_COUNT_SHARES))
    kept = [name for name in shown if rng.random() < 0.85] or shown
    colourless = False
    if rng.random() < 0.6:
        near = [
            name
            for name in SEEN_OBJECTS
            if name not in shown
            and any(
                len(other.split()) == 3
                and sum(a == b for a, b in zip(name.split(), other.split(), strict=True)) == 2
                for other in shown
                if other not in BACKGROUNDS
            )
        ]
        rest = [name for name in SEEN_NAMES if name not in shown and name not in near]
        room = max(0, count - len(kept))
        names = [*kept, *rng.permutation(near)[: room * 2 // 3].tolist()]
        names += rng.permutation(rest)[: max(0, count - len(names))].tolist()
        said = {str(name): frozenset([str(name)]) for name in names}
    else:
        number = int(rng.integers(1, 7))
        colourless = number in _COLOURLESS and rng.random() < 0.5
        group = phrase_groups()[number]
        true = [phrase for phrase, names in group.items() if names & set(kept)]
        false = [phrase for phrase, names in group.items() if not names & set(shown)]
        said = {p: group[p] for p in [*true, *rng.permutation(false)[:count].tolist()]}
        grounds = [n for n in kept if n in BACKGROUNDS and not colourless]
        if not colourless:
            grounds += rng.permutation([n for n in BACKGROUNDS if n not in shown])[:4].tolist()
        said |= {str(name): frozenset([str(name)]) for name in grounds}
    items = list(said.items())
    return dict(items[i] for i in rng.permutation(len(items))), colourless


class Tasks(Dataset[Task]):
    """The tasks of all steps."""

    def __init__(self, seed: int, steps: int) -> None:
        self.seed, self.steps = seed, steps

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> Task:
        return draw_task(self.seed, step)


def loss_of(logits: Tensor, targets: Tensor) -> Tensor:
    """Add up what each class says by itself, and how the classes compete where there is one.

    Args:
        logits: (1, T, H, W).
        targets: (1, H, W), see `Task`.
    """
    alone = mask_bce(logits, targets, NO_CLASS) * logits.shape[1]
    known = (targets != NOTHING) & (targets != NO_CLASS)
    if not bool(known.any()):
        return alone
    among = F.cross_entropy(logits, torch.where(known, targets, NOTHING), ignore_index=NOTHING)
    return alone + among


def train(
    model: CATSeg, *, seed: int, steps: int, learning_rate: float, output: Path, skip: int = 0
) -> None:
    """Train all but the text encoder, and save the averaged weights every 250 steps."""
    texts = model.predictor.text_features(list(WORDS))
    visual = list(model.predictor.clip_model.visual.parameters())
    ids = {id(p) for p in (*visual, *model.predictor.clip_model.parameters())}
    rest = [p for p in model.parameters() if id(p) not in ids]
    groups: list[dict[str, Any]] = [
        {"params": visual, "lr": 0.1 * learning_rate},
        {"params": rest},
    ]
    stepper = torch.optim.AdamW(groups, lr=learning_rate, weight_decay=0.01, betas=(0.9, 0.99))

    def factor(step: int) -> float:
        return min((step + 1) / 100, 0.005 + 0.995 * 0.5 * (1 + math.cos(math.pi * step / steps)))

    schedule = torch.optim.lr_scheduler.LambdaLR(stepper, factor)
    averaged = copy.deepcopy(model).eval()
    losses: list[float] = []
    began = time.perf_counter()
    tasks = Tasks(seed, skip + steps)
    batches = DataLoader(tasks, batch_size=None, num_workers=1, sampler=range(skip, skip + steps))
    for step, (image, classes, targets) in enumerate(batches):
        with torch.autocast("cpu", torch.bfloat16):
            padded = model.normalize([image.float()])
            features, guidance = model.encode_crops(*padded)
            with sdpa_kernel(SDPBackend.MATH):  # faster for so small windows
                logits = model.logits(features, guidance, texts[classes])
        loss = loss_of(logits.float(), targets[None])
        stepper.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_([*visual, *rest], 1.0)
        stepper.step()
        schedule.step()
        with torch.no_grad():
            keep = min(AVERAGED, (step + 1) / (step + 10))
            for mean, now in zip(averaged.parameters(), model.parameters(), strict=True):
                if now.requires_grad:
                    mean.lerp_(now, 1 - keep)
        losses.append(loss.item())
        if (step + 1) % 50 == 0:
            seconds = (time.perf_counter() - began) / (step + 1)
            mean_loss = np.mean(losses[-50:])
            logger.info("step %d/%d loss %.3f, %.2f s a step", step + 1, steps, mean_loss, seconds)
        if (step + 1) % 250 == 0 or step + 1 == steps:
            save(averaged, output)
        if (step + 1) % 1000 == 0:
            logger.info("%s", evaluate(averaged, scenes=24))


def save(model: CATSeg, folder: Path) -> None:
    """Write a model as `CATSeg.save_pretrained` does, its weights in half precision."""
    half = copy.deepcopy(model).half()
    half.save_pretrained(folder)


def build(start: Path | None, clip: Path | None) -> CATSeg:
    """Build the model of `CONFIG`, with the weights of a saved model, or of a CLIP alone."""
    torch.manual_seed(0)
    model = CATSeg(CONFIG)
    if start is not None:
        load_state(model, read_weights(start / "model.safetensors"))
    if clip is not None:
        load_clip_weights(model.predictor.clip_model, clip)
    for name, parameter in model.predictor.clip_model.named_parameters():
        parameter.requires_grad_(name.startswith("visual."))
    model.default_words = NAMES
    model.card |= {
        "name": "synthetic",
        "photographs": False,
        "trained_on": "the seen classes of a synthetic world of coloured, patterned shapes "
        "(docs/small_model.md)",
        "licence": "MIT",
    }
    return model.float()


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clip", type=Path, help="weights of train_encoder")
    parser.add_argument("--start", type=Path, help="folder of a model to go on with")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--skip", type=int, default=0, help="steps whose scenes were seen before")
    parser.add_argument("--lr", type=float, default=2e-3)
    options = parser.parse_args(arguments)
    if options.clip is None and options.start is None:
        parser.error("expected --clip or --start.")
    keep_freed_memory()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    model = build(options.start, options.clip)
    train(
        model,
        seed=options.seed,
        steps=options.steps,
        learning_rate=options.lr,
        output=options.output,
        skip=options.skip,
    )


if __name__ == "__main__":
    main()
