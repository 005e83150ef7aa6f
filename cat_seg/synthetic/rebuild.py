"""Rebuild the model that ships, from nothing: python -m cat_seg.synthetic.rebuild.

Run in a clone. Trains the small CLIP, whose text encoder stays (output/synthetic_clip), an image
encoder from masks (output/synthetic_encoder), other words, and the whole of CATSeg
(output/synthetic); calibrates it, and prints its figures. Each step is a command of its own.
"""

from __future__ import annotations

import argparse
import logging
import time
from pathlib import Path

from cat_seg.synthetic import (
    calibrate,
    evaluate,
    train_clip,
    train_encoder,
    train_masks,
    train_words,
)

CLIP = Path("output/synthetic_clip")
ENCODER = Path("output/synthetic_encoder")
MODEL = Path("output/synthetic")

logger = logging.getLogger(__name__)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    encoder = str(ENCODER / "model.safetensors")
    text = str(CLIP / "model.safetensors")
    for step, options in (
        (train_clip.main, ["--output", str(CLIP)]),
        (train_encoder.main, ["--text", text, "--output", str(ENCODER)]),
        (train_words.main, ["--clip", encoder]),
        (train_masks.main, ["--clip", encoder, "--output", str(MODEL)]),
        (calibrate.main, [str(MODEL), "--scores"]),
        (evaluate.main, [str(MODEL)]),
    ):
        began = time.perf_counter()
        step(options)
        logger.info("%s: %.0f s", step.__module__, time.perf_counter() - began)


if __name__ == "__main__":
    main()
