"""Train the image encoder of the small model from masks: python -m cat_seg.synthetic.train_encoder.

    python -m cat_seg.synthetic.train_encoder --text CLIP.safetensors --output DIR

The text encoder is that of `cat_seg.synthetic.train_clip` and stays. A new image encoder, with a
convolutional stem and a position every four pixels, learns what each position shows: its feature
must be nearest to the phrases that are true of the object there, among phrases that say as much
(shapes with shapes, colours with colours, pairs with pairs, as in `contrastive`). Masks are of seen
objects alone; of a held-out one every word, and every pair of words, is met in others.

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
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from cat_seg.modeling.clip import build_clip, encode_dense
from cat_seg.modeling.clip.stem import ConvStem
from cat_seg.modeling.clip.text import encode_text, tokenize
from cat_seg.modeling.prompt_templates import get_templates
from cat_seg.synthetic.contrastive import PIXEL_MEAN, PIXEL_STD, mimetic_init
from cat_seg.synthetic.dataset import SIZE, split_scene
from cat_seg.synthetic.names import BACKGROUNDS, NAMES, SEEN_NAMES, phrase_groups
from cat_seg.synthetic.train_clip import optimizers
from cat_seg.trust.weights import read_weights, without_zero_rows
from cat_seg.utils.files import atomic_write
from cat_seg.utils.memory import keep_freed_memory

logger = logging.getLogger(__name__)

CONFIG = "cat_seg/synthetic/clip_stem.json"
TEMPLATES = (*get_templates("imagenet_select"), *get_templates("single"), "a photo of a {}.", "{}")
WEIGHTS = (1.0, 1.0, 0.5, 0.5, 0.5, 0.5, 0.5)  # of the groups of `phrase_groups`
NOTHING = -1  # the label of a position that teaches nothing
_PATCH = 4  # pixels


class Group(NamedTuple):
    """Phrases that compete."""

    features: Tensor  # (P, G, D) of unit length
    true_of: Tensor  # (len(NAMES),) the phrase that is true of a name; NOTHING for none


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


def groups_of(clip: CLIP) -> list[Group]:
    """Return the groups of phrases; backgrounds compete in each, held-out names in none."""
    groups = []
    for group in phrase_groups():
        said = {p: names for p, names in group.items() if names & set(SEEN_NAMES)}
        said |= {name: frozenset([name]) for name in BACKGROUNDS}
        true_of = torch.full((len(NAMES),), NOTHING)
        for index, names in enumerate(said.values()):
            true_of[[NAMES.index(name) for name in names]] = index
        groups.append(Group(phrase_features(clip, list(said)), true_of))
    return groups


class Scenes(Dataset[tuple[Tensor, Tensor]]):
    """Batches of training scenes: images (B, 3, H, W) uint8 and names of positions (B, h, w)."""

    def __init__(self, seed: int, steps: int, batch: int) -> None:
        self.seed, self.steps, self.batch = seed, steps, batch

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        images, labels = [], []
        for index in range(step * self.batch, (step + 1) * self.batch):
            scene = split_scene("train", index, seed=self.seed)
            images.append(scene.image)
            names = np.where(scene.clear, scene.labels.astype(np.int64), NOTHING)
            labels.append(names[_PATCH // 2 :: _PATCH, _PATCH // 2 :: _PATCH])
        pictures = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
        return pictures, torch.from_numpy(np.stack(labels))


def positions(clip: CLIP, images: Tensor) -> Tensor:
    """Encode images (B, 3, H, W) in 0..255 to features (B, h, w, D) of unit length."""
    mean, std = (images.new_tensor(x)[:, None, None] for x in (PIXEL_MEAN, PIXEL_STD))
    dense = encode_dense(clip.visual, (images - mean) / std, last_residual="token")
    return F.normalize(dense.final.float(), dim=1).permute(0, 2, 3, 1)


def dense_loss(features: Tensor, names: Tensor, groups: list[Group], scale: Tensor) -> Tensor:
    """Sum the cross entropies of the groups, in one template drawn by chance.

    Args:
        features: (B, h, w, D) of unit length.
        names: (B, h, w) indices into NAMES, or NOTHING.
        groups: see `groups_of`.
        scale: inverse temperature.
    """
    taught = names != NOTHING
    features, names = features[taught], names[taught]
    template = int(torch.randint(len(TEMPLATES), ()))
    losses = [
        weight * F.cross_entropy(scale * features @ group.features[template].T, group.true_of[names])
        for weight, group in zip(WEIGHTS, groups, strict=True)
    ]
    return torch.stack(losses).sum()


def train(
    clip: CLIP, *, seed: int, steps: int, batch: int, learning_rate: float, output: Path
) -> None:
    """Train the image encoder in place, and save it every 200 steps."""
    groups = groups_of(clip)
    trained = [p for p in clip.parameters() if p.requires_grad]
    steppers = optimizers(clip, learning_rate)

    def factor(step: int) -> float:
        return min((step + 1) / 50, 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / steps)))

    schedules = [torch.optim.lr_scheduler.LambdaLR(each, factor) for each in steppers]
    losses: list[float] = []
    began = time.perf_counter()
    batches = DataLoader(Scenes(seed, steps, batch), batch_size=None, num_workers=1)
    for step, (images, names) in enumerate(batches):
        with torch.autocast("cpu", torch.bfloat16):
            features = positions(clip, images.float())
        loss = dense_loss(features, names, groups, clip.logit_scale.exp())
        clip.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        for stepper in (*steppers, *schedules):
            stepper.step()
        with torch.no_grad():
            clip.logit_scale.clamp_(max=math.log(50))
        losses.append(loss.item())
        if (step + 1) % 50 == 0:
            seconds = (time.perf_counter() - began) / (step + 1)
            mean = np.mean(losses[-50:])
            logger.info("step %d/%d loss %.3f, %.2f s a step", step + 1, steps, mean, seconds)
        if (step + 1) % 200 == 0 or step + 1 == steps:
            save(clip, output)
            logger.info("%s", evaluate(clip, scenes=20))


@torch.no_grad()
def evaluate(clip: CLIP, *, scenes: int) -> dict[str, float]:
    """Measure, in percent, how many positions of clear things get their name, of all names.

    Returns:
        seen, held_out: of objects; shape: the share of positions of objects that get an object of
        the right shape; ground: of backgrounds.
    """
    texts = F.normalize(
        encode_text(clip, tokenize([f"a photo of a {name}." for name in NAMES])), dim=-1
    )
    shapes = np.array([name.split()[-1] for name in NAMES])
    right = {"seen": [], "held_out": [], "shape": [], "ground": []}  # type: dict[str, list]
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
        objects = clear & ~ground
        right["shape"] += (shapes[answer] == shapes[truth])[objects].tolist()
    return {key: round(100 * float(np.mean(values)), 1) for key, values in right.items()}


def save(clip: CLIP, folder: Path) -> None:
    """Write model.safetensors, in half precision, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: value.half().contiguous() for name, value in clip.state_dict().items()}
    state = without_zero_rows(state, "token_embedding.weight")
    with atomic_write(folder / "model.safetensors") as part:
        save_file(state, part)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--text", type=Path, required=True, help="weights with the text encoder")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--batch", type=int, default=4, help="scenes a step")
    parser.add_argument("--lr", type=float, default=3e-3)
    options = parser.parse_args(arguments)
    keep_freed_memory()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    clip = build(options.text, options.seed)
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
