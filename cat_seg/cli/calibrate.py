"""Find how few classes of a large vocabulary have to be computed, with a guarantee.

    cat-seg calibrate photos/ --model my_model/ --words-file names.txt --allow 0.1%

On pictures without labels, labels of all classes are compared with those of fewer. The cheapest
setting that keeps the promise is written into the model's folder with its certificate: pictures
that this model segments by these words are then computed so, and every result says it.
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
from cat_seg.errors import CATSegError


def main(arguments: Sequence[str]) -> int:
    """Calibrate a model."""
    parser = argparse.ArgumentParser(
        prog="cat-seg calibrate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="PICTURE",
        help="pictures, globs or folders, like those to come",
    )
    add_word_options(parser)
    add_model_options(parser)
    parser.add_argument(
        "--allow", type=_share, default=0.001, metavar="SHARE",
        help="of a picture's pixels that may change, such as 0.1%% (default)",
    )  # fmt: skip
    parser.add_argument(
        "--of-pictures", type=_share, default=0.95, metavar="SHARE",
        help="in how many pictures that is to hold (default 95%%)",
    )  # fmt: skip
    parser.add_argument(
        "--confidence", type=_share, default=0.95, metavar="SHARE",
        help="of the statement (default 95%%)",
    )  # fmt: skip
    parser.add_argument(
        "--output", type=Path, metavar="FOLDER",
        help="where the calibrated model is saved; the model's own folder if left out",
    )  # fmt: skip
    args = parser.parse_intermixed_args(arguments)
    words, background = parse_words(args)
    folder = args.output or Path(args.model or "")
    if args.output is None and not (args.model and folder.is_dir()):
        raise CATSegError("The certificate goes into a model's folder: name one by --output.")

    from cat_seg import images, saved
    from cat_seg.certificate import calibrate

    model = load_model(args)
    vocabulary = encode_words(model, words, background)
    model.certificate = calibrate(
        model,
        images.find_images(args.inputs),
        vocabulary,
        allow=args.allow,
        share=1 - args.of_pictures,
        confidence=args.confidence,
    )
    if args.output is None:
        saved.save_description(model, folder)
    else:
        model.save_pretrained(folder)
    print(model.certificate)
    return 0


def _share(text: str) -> float:
    value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a share; expected 0.1% or the like")
    return value
