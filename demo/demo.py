"""Segment images by any list of words; `cat-seg predict` with the options of detectron2's demos.

    python demo/demo.py --input demo/images/harbour.jpg
    python demo/demo.py --input photo.jpg --vocabulary "cat, sofa|couch, window" \\
        --config-file configs/vitl.yaml --opts MODEL.WEIGHTS model_final_large.pth

    python demo/demo.py --video-input street.mp4 --output labelled.mp4

For each image this writes NAME_overlay.jpg, the classes drawn over the image with a legend,
NAME_labels.png, the class of each pixel, and NAME_labels.json. Outputs mirror the inputs' tree.
A video becomes NAME.mp4 and its labels, as by `cat-seg video`; --webcam ends by Ctrl-C.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from cat_seg.cli.predict import add_options, predict
from cat_seg.cli.terminal import run
from cat_seg.cli.video import build_parser as build_video_parser
from cat_seg.cli.video import segment


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo.

    Returns:
        The exit code: 1 if an image could not be read, or nothing could be done at all.
    """
    args = build_parser().parse_args(arguments)
    return run("demo.py", lambda: video(args) if args.inputs is None else predict(args))


def video(args: argparse.Namespace) -> int:
    """Segment a video or what the first camera sees."""
    source = "0" if args.webcam else args.video_input
    command = build_video_parser().parse_args([source, "--output", str(args.output)])
    if not args.output.suffix:  # a folder
        command.output = args.output / ("webcam.mp4" if args.webcam else f"{Path(source).stem}.mp4")
    return segment(argparse.Namespace(**{**vars(command), **_shared(args)}))


def _shared(args: argparse.Namespace) -> dict[str, object]:
    """Return the options of words and model."""
    return {name: value for name, value in vars(args).items() if name not in ("inputs", "output")}


def build_parser() -> argparse.ArgumentParser:
    """Name the inputs by options; all else is as for `cat-seg predict`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    inputs = parser.add_mutually_exclusive_group(required=True)
    inputs.add_argument(
        "--input",
        dest="inputs",
        nargs="+",
        metavar="PATH",
        help="images, globs or folders with all that is in them",
    )
    inputs.add_argument("--video-input", metavar="PATH", help="a video, see `cat-seg video`")
    inputs.add_argument("--webcam", action="store_true", help="the first camera, until Ctrl-C")
    add_options(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
