"""Write a model as files that run without this package.

    cat-seg export -o exported --model large-2024 --words "cat, sofa|couch, window"
    python exported/segment.py photo.jpg labels.png      # numpy, pillow and onnxruntime

Words are an input of the file: --words-only writes others for a model that is exported already.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from cat_seg.cli.options import (
    add_model_options,
    add_word_options,
    encode_words,
    load_model,
    parse_words,
)
from cat_seg.cli.terminal import size
from cat_seg.utils.text import printable

_FORMATS = ("onnx", "fp16", "int8", "pt2", "aoti")


def main(arguments: Sequence[str]) -> int:
    """Export a model and words."""
    parser = argparse.ArgumentParser(
        prog="cat-seg export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR")
    parser.add_argument(
        "--format",
        nargs="+",
        choices=_FORMATS,
        default=["onnx", "pt2"],
        help="onnx; fp16 and int8, the same smaller, whose labels differ; pt2 (torch.export); aoti "
        "(AOTInductor, compiled for this kind of machine, in minutes). Default: onnx pt2",
    )
    parser.add_argument("--words-only", action="store_true", help="write words.npz alone")
    add_word_options(parser)
    add_model_options(parser)
    args = parser.parse_args(arguments)
    words, background = parse_words(args)

    from cat_seg.export import export, export_words

    args.device = "cpu"
    model = load_model(args)
    vocabulary = encode_words(model, words, background)
    if args.words_only:
        path = export_words(model, args.output, vocabulary, threshold=args.threshold)
        print(printable(f"{path}: {len(vocabulary)} words"))
        return 0
    made = export(model, args.output, vocabulary, formats=args.format, threshold=args.threshold)
    for one in made:
        bytes_ = sum(file.stat().st_size for file in one.path.parent.glob(f"{one.path.name}*"))
        apart = f"probabilities within {one.difference:.1e} of PyTorch's"
        print(printable(f"{one.path}: {size(bytes_)}, {apart}"))
    return 0
