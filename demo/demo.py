"""Segment images by any list of words; `cat-seg predict` with the options of detectron2's demos.

    python demo/demo.py --input demo/images/harbour.jpg
    python demo/demo.py --input photo.jpg --vocabulary "cat, sofa|couch, window" \\
        --config-file configs/vitl.yaml --opts MODEL.WEIGHTS model_final_large.pth

For each image this writes NAME_overlay.jpg, the classes drawn over the image with a legend,
NAME_labels.png, the class of each pixel, and NAME_labels.json. Outputs mirror the inputs' tree.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from cat_seg.cli.predict import add_options, predict
from cat_seg.cli.terminal import run


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo.

    Returns:
        The exit code: 1 if an image could not be read, or nothing could be done at all.
    """
    args = build_parser().parse_args(arguments)
    return run("demo.py", lambda: predict(args))


def build_parser() -> argparse.ArgumentParser:
    """Name the inputs by an option; all else is as for `cat-seg predict`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--input",
        dest="inputs",
        nargs="+",
        required=True,
        metavar="PATH",
        help="images, globs or folders with all that is in them",
    )
    add_options(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
