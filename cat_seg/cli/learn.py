"""Learn words from a few labelled pictures, for things that CLIP has no name of.

    cat-seg learn --words "grass, sand, blick" --example blick photo.jpg mask.png -o it.safetensors
    cat-seg predict holiday/ --words-file it.safetensors

A mask is a picture of the same size, 0 where the class is not; or a label map of cat-seg or of
`Segmentation.save`, which has the class's name inside. Nothing is trained, and the other words stay
as they are.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cat_seg.cli.options import (
    add_model_options,
    add_word_options,
    encode_words,
    load_model,
    parse_words,
)
from cat_seg.errors import CATSegError

if TYPE_CHECKING:  # torch takes seconds, and --help needs none
    import numpy as np


def main(arguments: Sequence[str]) -> int:
    """Write a vocabulary whose features come from pictures."""
    parser = argparse.ArgumentParser(
        prog="cat-seg learn",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_word_options(parser, threshold=False)
    parser.add_argument(
        "--example",
        nargs=3,
        action="append",
        required=True,
        metavar=("NAME", "PICTURE", "MASK"),
        help="a word, a picture that shows it, and where; again for further pictures or words",
    )
    parser.add_argument(
        "--share",
        type=float,
        default=1.0,
        metavar="S",
        help="of the pictures in the result, 0 to 1; the rest is of the word (1 if left out)",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("learned.safetensors"),
        metavar="FILE",
        help="what --words-file reads (learned.safetensors if left out)",
    )
    add_model_options(parser)
    args = parser.parse_args(arguments)
    words, background = parse_words(args)
    if args.output.suffix.lower() != ".safetensors":
        raise CATSegError(f"--output: {args.output} should end in .safetensors.")
    pictures: dict[str, dict[str, Any]] = {}
    for name, picture, mask in args.example:
        pictures.setdefault(picture, {})[name] = _read_mask(mask, name)
    model = load_model(args)
    vocabulary = encode_words(model, words, background)
    learned = model.learn(vocabulary, list(pictures.items()), share=args.share)
    learned.save(args.output)
    names = ", ".join(sorted({name for name, _, _ in args.example}))
    print(f"{names} of {len(learned)} words, pictures: {len(pictures)}: {args.output}")
    print(f"To use it: cat-seg predict photo.jpg --words-file {args.output}")
    return 0


def _read_mask(path: str, name: str) -> np.ndarray:
    """Read a mask, or a class of a label map that has names inside: (H, W) bool."""
    from cat_seg.images import open_image
    from cat_seg.label_maps import read_label_map, text_inside
    from cat_seg.segmentation import Segmentation

    with open_image(path) as image:
        image.load()
        named = text_inside(image) is not None
    if named:
        return Segmentation.load(path).mask(name)
    mask: np.ndarray = read_label_map(path) != 0
    return mask
