"""Teach the text encoder other words for what it knows: python -m cat_seg.synthetic.train_words.

    python -m cat_seg.synthetic.train_words --clip CLIP.safetensors

"crimson disc" shall be what "red circle" is, and "something striped" a "striped object". No picture
is needed: the encoder, as it was, tells what a phrase means; it learns to say the same of the
phrase's `wordings`, and still of the phrase itself. Rewrites the file, in half precision.
"""

from __future__ import annotations

import argparse
import copy
import logging
import math
from pathlib import Path

import numpy as np
import torch
from open_clip import CLIP
from torch import Tensor
from torch.nn import functional as F

from cat_seg.modeling.clip import build_clip, load_clip_weights
from cat_seg.modeling.clip.text import encode_text, tokenize
from cat_seg.synthetic.names import phrases, wordings
from cat_seg.synthetic.train_clip import TEMPLATES, save
from cat_seg.synthetic.train_encoder import CONFIG
from cat_seg.utils.memory import keep_freed_memory

logger = logging.getLogger(__name__)

_EACH = 64  # phrases, and as many wordings, of a step


def agreement(
    clip: CLIP, teacher: CLIP, said: list[str], meant: list[str], template: str
) -> Tensor:
    """Compare what `clip` says of `said` with what `teacher` says of `meant`: (N,) cosines."""
    student = F.normalize(encode_text(clip, tokenize([template.format(x) for x in said])), dim=-1)
    with torch.no_grad():
        tokens = tokenize([template.format(x) for x in meant])
        target = F.normalize(encode_text(teacher, tokens), dim=-1)
    return (student * target).sum(-1)


def train(clip: CLIP, *, seed: int, steps: int, learning_rate: float) -> None:
    """Train the text encoder in place."""
    teacher = copy.deepcopy(clip).eval()
    rng = np.random.default_rng(seed)
    known = list(phrases())
    pairs = [(said, phrase) for phrase in known for said in wordings(phrase)]
    weights = [p for n, p in clip.named_parameters() if not n.startswith(("visual.", "logit"))]
    stepper = torch.optim.Adam(weights, lr=learning_rate)
    used = tokenize([said for said, _ in pairs]).unique()
    with torch.no_grad():
        table = clip.token_embedding.weight
        fresh = used[~table[used].any(dim=1)]
        table[fresh] = 0.02 * torch.randn(len(fresh), table.shape[1])
    for step in range(steps):
        for group in stepper.param_groups:
            group["lr"] = learning_rate * 0.5 * (1 + math.cos(math.pi * step / steps))
        others = [pairs[i] for i in rng.integers(len(pairs), size=_EACH)]
        same = [(p, p) for p in rng.choice(known, _EACH).tolist()]
        said, meant = zip(*others, *same, strict=True)
        template = TEMPLATES[int(rng.integers(len(TEMPLATES)))]
        loss = (1 - agreement(clip, teacher, list(said), list(meant), template)).mean()
        stepper.zero_grad(set_to_none=True)
        loss.backward()
        stepper.step()
        if (step + 1) % 200 == 0:
            logger.info("step %d/%d loss %.4f", step + 1, steps, loss.item())


@torch.no_grad()
def evaluate(clip: CLIP, teacher: CLIP) -> dict[str, float]:
    """Return the mean and least cosine of all wordings, and of the phrases themselves."""
    known = list(phrases())
    pairs = [(said, phrase) for phrase in known for said in wordings(phrase)]
    result = {}
    for key, some in (("wordings", pairs), ("phrases", [(p, p) for p in known])):
        said, meant = zip(*some, strict=True)
        found = agreement(clip, teacher, list(said), list(meant), "a photo of a {}.")
        result[key] = round(float(found.mean()), 4)
        result[f"{key}, least"] = round(float(found.min()), 4)
    return result


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clip", type=Path, required=True, help="weights of train_encoder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--lr", type=float, default=2e-3)
    options = parser.parse_args(arguments)
    keep_freed_memory()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.manual_seed(options.seed)
    clip = build_clip(CONFIG)
    load_clip_weights(clip, options.clip)
    before = copy.deepcopy(clip)
    train(clip, seed=options.seed, steps=options.steps, learning_rate=options.lr)
    logger.info("%s", evaluate(clip, before))
    save(clip, options.clip.parent)


if __name__ == "__main__":
    main()
