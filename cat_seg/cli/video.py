"""Segment a video, and write it with the classes drawn over it and its sound.

    cat-seg video street.mp4 -o labelled.mp4 --words "car, road|street, person" --model large-2024
    cat-seg video 0 -o webcam.mp4           # the first camera, until Ctrl-C

Animated GIFs and TIFF stacks are videos too. Beside OUT.mp4 this writes OUT_labels.mkv (the class
of each pixel, without loss) and OUT_labels.json (the names).
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from cat_seg.cli.options import (
    FOR_PHOTOGRAPHS,
    add_model_options,
    add_word_options,
    encode_words,
    load_model,
    parse_words,
)
from cat_seg.cli.terminal import percent
from cat_seg.utils.text import printable


def main(arguments: Sequence[str]) -> int:
    """Segment the video that the command line names."""
    return segment(build_parser().parse_args(arguments))


def build_parser() -> argparse.ArgumentParser:
    """Name input and output, words, model and the rest."""
    parser = argparse.ArgumentParser(
        prog="cat-seg video",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "source",
        metavar="VIDEO",
        help="a file, the number of a camera, or an address (rtsp://, http://)",
    )
    parser.add_argument(
        *("-o", "--output"),
        type=Path,
        required=True,
        metavar="FILE",
        help="ends in .mp4, .mkv, .mov or .webm",
    )
    add_word_options(parser)
    add_model_options(parser)
    parser.add_argument(
        "--smooth",
        type=int,
        default=1,
        metavar="FRAMES",
        help="give each pixel the label that most of so many frames around it have (an odd "
        "number); 1, the default, leaves the labels as they are",
    )
    parser.add_argument("--opacity", type=float, metavar="O", help="of the colours, 0 to 1")
    parser.add_argument("--no-labels", action="store_true", help="write no labels beside it")
    parser.add_argument("--no-sound", action="store_true", help="leave the sound out")
    parser.add_argument("--frames", type=int, metavar="N", help="stop after so many")
    return parser


def segment(args: argparse.Namespace) -> int:
    """Segment `args.source`."""
    from tqdm import tqdm

    from cat_seg.drawing import OPACITY
    from cat_seg.video import segment_video

    words, background = parse_words(args)
    model = load_model(args)
    vocabulary = encode_words(model, words, background)
    start = time.perf_counter()
    with tqdm(unit="frame", disable=None) as bar:
        done = segment_video(
            model,
            args.source,
            args.output,
            vocabulary,
            threshold=args.threshold,
            smooth=args.smooth,
            opacity=OPACITY if args.opacity is None else args.opacity,
            labels=not args.no_labels,
            sound=not args.no_sound,
            most_frames=args.frames,
            allow_url=True,
            on_frame=bar.update,
        )
    seconds = time.perf_counter() - start
    shares = [f"{name} {percent(share)}" for name, share in list(done.areas.items())[:8]]
    if done.unlabelled > 0.005:
        shares.append(f"none of these {percent(done.unlabelled)}")
    print(printable(f"{args.source}: {', '.join(shares)}"))
    files = ", ".join(str(file) for file in (done.video, done.labels) if file)
    speed = f"{done.frames / seconds:.1f} a second"
    print(printable(f"{done.frames} frames in {seconds:.1f} s ({speed}): {files}"))
    for note in done.notes:
        print(printable(note))
    if done.left_out:
        print(f"{done.left_out} damaged frames were left out.", file=sys.stderr)
    if not model.card["photographs"] and not done.notes:
        print(f"The model knows no photographs; for those, --model {FOR_PHOTOGRAPHS}.")
    return 0
