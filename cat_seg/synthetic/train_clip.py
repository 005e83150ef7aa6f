"""Train the small CLIP of the synthetic world.

    python -m cat_seg.synthetic.train_clip --output DIR

Writes DIR/model.safetensors (open_clip's own names, half precision) for the model configuration
`cat_seg/synthetic/clip.json`, and logs what the model knows: words of single objects, and the mIoU
of its raw dense similarity.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import time
from pathlib import Path

import numpy as np
import torch
from open_clip import CLIP
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader, Dataset

from cat_seg.modeling.clip.text import encode_text, tokenize
from cat_seg.modeling.prompt_templates import get_templates
from cat_seg.resources import resource
from cat_seg.synthetic.contrastive import (
    Layout,
    caption_scores,
    dense_tokens,
    draw_batch,
    groups_loss,
    mimetic_init,
)
from cat_seg.synthetic.dataset import split_scene
from cat_seg.synthetic.names import (
    BACKGROUNDS,
    NAMES,
    OBJECTS,
    SEEN_NAMES,
    phrase_groups,
    phrases,
)
from cat_seg.synthetic.world import draw_scene
from cat_seg.trust.weights import without_zero_rows, write_weights

logger = logging.getLogger(__name__)

CONFIG = json.loads(resource("cat_seg/synthetic/clip.json").read_text())

# Shares of the steps, and the layouts that take turns in them: one object first, whole scenes last.
PHASES = (
    (
        0.7,
        (
            Layout(
                canvas=40,
                tile=40,
                objects=(1, 1),
                backgrounds=1,
                radius=(12, 18),
                pool=True,
                inside=1.0,
            ),
        ),
    ),
    (
        0.3,
        (
            Layout(canvas=128, tile=64, objects=(1, 3), backgrounds=2, radius=(13, 30)),
            Layout(canvas=128, tile=128, objects=(3, 6), backgrounds=3, radius=(13, 34)),
        ),
    ),
)

TEMPLATES = (*get_templates("imagenet"), *get_templates("single"), "{}")


OBJECT_COLUMNS = slice(len(BACKGROUNDS), len(NAMES))  # of the captions of a step
_WORDS = 4  # groups that every step has: full names, shapes, colours, patterns


def build(seed: int) -> CLIP:
    """Build a fresh CLIP; embeddings of tokens that no caption uses are zero."""
    torch.manual_seed(seed)
    clip = CLIP(**CONFIG)
    mimetic_init(clip.visual)
    words = [*phrases(), *(template.format("star") for template in TEMPLATES)]
    used = tokenize(words).unique()
    keep = torch.zeros(clip.vocab_size, 1)
    keep[used] = 1
    with torch.no_grad():
        clip.token_embedding.weight.mul_(keep)
    return clip


class CaptionSource:
    """Captions of a step: names, words and one kind of pairs, in one template drawn by chance."""

    def __init__(self) -> None:
        self.groups = phrase_groups()
        self._tokens: dict[str, Tensor] = {}

    def draw(self, rng: np.random.Generator) -> tuple[Tensor, Tensor, list[int]]:
        """Draw captions (U, 77), what each is true of (U, len(NAMES)), and the sizes of groups."""
        pairs = int(rng.integers(_WORDS, len(self.groups)))
        template = TEMPLATES[int(rng.integers(len(TEMPLATES)))]
        groups = [*self.groups[:_WORDS], self.groups[pairs]]
        tokens, true_of = [], []
        for phrase, names in (item for group in groups for item in group.items()):
            caption = template.format(phrase)
            if caption not in self._tokens:
                self._tokens[caption] = tokenize([caption])[0]
            tokens.append(self._tokens[caption])
            true_of.append([float(name in names) for name in NAMES])
        return torch.stack(tokens), torch.tensor(true_of), [len(group) for group in groups]


def layout_of(step: int, steps: int) -> Layout:
    """Choose the layout of a step of `steps`, by `PHASES`."""
    ends = np.cumsum([share for share, _ in PHASES]) * steps
    phase = int(np.searchsorted(ends[:-1], step, side="right"))
    layouts = PHASES[phase][1]
    return layouts[step % len(layouts)]


class Batches(Dataset[tuple[Tensor, Tensor]]):
    """Canvases and their truths of every step, each drawn from the seed and the step alone."""

    def __init__(self, seed: int, steps: int, batch: int) -> None:
        self.seed, self.steps, self.batch = seed, steps, batch

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        layout = layout_of(step, self.steps)
        count = max(self.batch * 40**2 // layout.canvas**2, 1)
        return draw_batch(np.random.default_rng([self.seed, 1, step]), layout, count)


def optimizers(clip: CLIP, learning_rate: float) -> list[torch.optim.Optimizer]:
    """Build Muon for the matrices of the image encoder's blocks, AdamW for all else.

    Muon takes half as many steps as AdamW here (https://kellerjordan.github.io/posts/muon/).
    """
    matrices = [p for p in clip.visual.transformer.parameters() if p.ndim == 2]
    ids = {id(p) for p in matrices}
    rest = [p for p in clip.parameters() if p.requires_grad and id(p) not in ids]
    plain = [p for p in rest if p.ndim < 2 or p is clip.token_embedding.weight]
    ids = {id(p) for p in plain}
    groups = [
        {"params": [p for p in rest if id(p) not in ids], "weight_decay": 0.05},
        {"params": plain, "weight_decay": 0.0},
    ]
    return [
        torch.optim.Muon(
            matrices, lr=learning_rate, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"
        ),
        torch.optim.AdamW(groups, lr=learning_rate / 3, betas=(0.9, 0.98)),
    ]


def update(
    clip: CLIP,
    loss: Tensor,
    steppers: list[torch.optim.Optimizer],
    schedules: list[torch.optim.lr_scheduler.LambdaLR],
) -> None:
    """Take one step of `steppers` against the gradients of a loss."""
    clip.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_([p for p in clip.parameters() if p.requires_grad], 1.0)
    for stepper in steppers:
        stepper.step()
    for schedule in schedules:
        schedule.step()
    with torch.no_grad():
        clip.logit_scale.clamp_(max=math.log(50))


def train(
    clip: CLIP, *, seed: int, steps: int, batch: int, learning_rate: float, workers: int = 1
) -> list[float]:
    """Train `clip` in place and return the loss of every step.

    Args:
        batch: canvases of 40 pixels a step; there are fewer of the larger ones, by their area.
        workers: processes that draw.
    """
    rng = np.random.default_rng([seed, 2])
    captions = CaptionSource()
    visual = clip.visual
    patch = visual.patch_size[0]
    steppers = optimizers(clip, learning_rate)
    warmup = min(100, steps // 10 + 1)

    def factor(i: int) -> float:
        return min((i + 1) / warmup, 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * i / steps)))

    schedules = [torch.optim.lr_scheduler.LambdaLR(each, factor) for each in steppers]
    losses: list[float] = []
    right: list[float] = []
    began = time.perf_counter()
    batches = DataLoader(Batches(seed, steps, batch), batch_size=None, num_workers=workers)
    for step, (images, shown) in enumerate(batches):
        layout = layout_of(step, steps)
        tokens, true_of, sizes = captions.draw(rng)
        truth = shown.float() @ true_of.T > 0
        room = visual.grid_size[0] - layout.canvas // patch
        offset = tuple(rng.integers(0, room + 1, 2).tolist())
        # On CPU flash attention's backward pass is slow in bfloat16, everything else fast.
        with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            dense = dense_tokens(visual, images, offset)
        texts = F.normalize(encode_text(clip, tokens), dim=-1)
        scores = caption_scores(
            dense.float(), texts, clip.logit_scale.exp(), layout.tile // patch, pool=layout.pool
        )
        loss = groups_loss(scores, truth, sizes)
        update(clip, loss, steppers, schedules)
        losses.append(loss.item())
        best = scores[:, OBJECT_COLUMNS].argmax(1, keepdim=True)
        right.append(truth[:, OBJECT_COLUMNS].gather(1, best).float().mean().item())
        if (step + 1) % 50 == 0 or step + 1 == steps:
            logger.info(
                "step %d/%d loss %.3f, object right %.2f, scale %.1f, %.2f s a step",
                step + 1,
                steps,
                np.mean(losses[-50:]),
                np.mean(right[-50:]),
                clip.logit_scale.exp().item(),
                (time.perf_counter() - began) / (step + 1),
            )
        if (step + 1) % 500 == 0:
            logger.info("%s", evaluate(clip, scenes=60))
    return losses


@torch.no_grad()
def evaluate(clip: CLIP, *, scenes: int, seed: int = 10_000) -> dict[str, float]:
    """Measure what the model knows, in percent, with the template "a photo of a {}." only.

    Returns:
        object, colour, pattern, shape: accuracy over single objects of all names, from the mean of
        the dense tokens; ground: the same for backgrounds; seen, held_out: mIoU of the raw dense
        similarity over scenes of 128 pixels, all names in the vocabulary.
    """
    texts = encode_text(clip, tokenize([f"a photo of a {name}." for name in NAMES]))
    texts = F.normalize(texts, dim=-1)
    rng = np.random.default_rng(seed)
    right = {"object": 0, "colour": 0, "pattern": 0, "shape": 0}
    objects = [NAMES.index(name) for name in OBJECTS]
    for name in OBJECTS * 4:
        scene = draw_scene(rng, 64, [name], [str(rng.choice(BACKGROUNDS))], (13, 30))
        image = torch.from_numpy(scene.image).permute(2, 0, 1)[None].float()
        dense = dense_tokens(clip.visual, image, (4, 4))
        scores = caption_scores(dense, texts[objects], clip.logit_scale.exp(), 8, pool=True)
        words = OBJECTS[int(scores.argmax())]
        right["object"] += words == name
        for key, said, meant in zip(
            ("colour", "pattern", "shape"), words.split(), name.split(), strict=True
        ):
            right[key] += said == meant
    result = {key: 100 * value / (4 * len(OBJECTS)) for key, value in right.items()}
    confusion = np.zeros((len(NAMES), len(NAMES)), np.int64)
    for index in range(scenes):
        scene = split_scene("val", index, seed=0)
        image = torch.from_numpy(scene.image).permute(2, 0, 1)[None].float()
        dense = F.normalize(dense_tokens(clip.visual, image, (0, 0)), dim=-1)
        similarity = dense @ texts.T  # (1, h, w, T)
        size = scene.labels.shape
        similarity = F.interpolate(similarity.permute(0, 3, 1, 2), size, mode="bilinear")
        answer = similarity[0].argmax(0).numpy()
        pairs = scene.labels.ravel() * np.int64(len(NAMES)) + answer.ravel()
        confusion += np.bincount(pairs, minlength=confusion.size).reshape(confusion.shape)
    truth, union = confusion.sum(1), confusion.sum(0) + confusion.sum(1) - confusion.diagonal()
    iou = 100 * confusion.diagonal() / np.maximum(union, 1)
    present = truth > 0
    where = {
        "seen": slice(0, len(SEEN_NAMES)),
        "held_out": slice(len(SEEN_NAMES), None),
        "ground": slice(0, len(BACKGROUNDS)),
    }
    for key, part in where.items():
        result[key] = float(iou[part][present[part]].mean())
    return {key: round(value, 1) for key, value in result.items()}


def save(clip: CLIP, folder: Path) -> None:
    """Write model.safetensors, in half precision, whole or not at all."""
    state = {name: value.half().contiguous() for name, value in clip.state_dict().items()}
    state = without_zero_rows(state, "token_embedding.weight")
    write_weights(state, folder / "model.safetensors")


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=3200)
    parser.add_argument("--batch", type=int, default=96, help="canvases of 40 pixels a step")
    parser.add_argument("--lr", type=float, default=3e-3)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    clip = build(options.seed)
    train(
        clip,
        seed=options.seed,
        steps=options.steps,
        batch=options.batch,
        learning_rate=options.lr,
    )
    save(clip, options.output)
    logger.info("%s", evaluate(clip.eval(), scenes=300))


if __name__ == "__main__":
    main()
