"""Label many pictures, on one machine or many, each exactly once.

    cat-seg label photos/ --words-file words.txt --out labels --format png coco
    cat-seg label "shards/*.tar" --words-file words.txt --out labels --shard 3/16
    cat-seg label s3://bucket/photos/ --words-file words.txt --out labels --workers 2

What is done stays done: start the same command again after an interruption. Pictures that cannot
be read are counted, and listed in problems.json.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from cat_seg.cli.options import SHIPPED, add_word_options, parse_words
from cat_seg.cli.terminal import percent, printable
from cat_seg.errors import CATSegError

_FORMATS = ("png", "coco", "yolo", "webdataset", "parquet", "labelstudio", "cvat")


def main(arguments: Sequence[str]) -> int:
    """Label the pictures of a source; the exit code is 1 if some could not be read."""
    parser = argparse.ArgumentParser(
        prog="cat-seg label",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="a folder or glob of pictures, tar shards or Parquet files; a list (.txt) of paths; "
        "or a URL of them (s3://, gs://, http://, ...)",
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="the folder of the labels")
    parser.add_argument("--format", nargs="+", choices=_FORMATS, default=["png"])
    parser.add_argument("--column", default="image", help="of Parquet, where the pictures are")
    parser.add_argument(
        "--shard",
        type=_shard,
        default=(0, 1),
        metavar="I/N",
        help="do the I-th of N parts alone, counted from 0, as one task of an array",
    )
    parser.add_argument(
        "--workers", type=int, default=0, metavar="N", help="so many of Ray Data's actors"
    )
    add_word_options(parser)
    parser.add_argument("--model", default=SHIPPED, metavar="NAME", help="as for `cat-seg predict`")
    parser.add_argument("--device", default="", help="cuda, mps or cpu")
    args = parser.parse_args(arguments)
    words, background = parse_words(args)
    if words is None and background:
        raise CATSegError("--background competes with --words: name those, too.")

    from tqdm import tqdm

    from cat_seg.labelling import Job, find_units, label
    from cat_seg.utils.memory import keep_freed_memory

    keep_freed_memory()
    job = Job(
        model=args.model,
        out=args.out,
        words=words,
        formats=tuple(args.format),
        threshold=args.threshold,
        column=args.column,
        device=args.device,
    )
    units = find_units(args.source)
    with tqdm(unit="picture", disable=None) as bar:
        found = label(
            *(job, units),
            shard=args.shard,
            workers=args.workers,
            on_unit=lambda record: bar.update(record["pictures"]),
        )
    state = "all" if found.units == len(units) else f"{found.units} of {len(units)} units"
    print(printable(f"{args.out}: {found.pictures} pictures labelled, {state}"))
    if found.pictures:
        rate = found.pictures / max(found.seconds, 1e-9)
        waited = percent(found.waited / max(found.seconds, 1e-9))
        print(f"{rate:.2f} pictures a second and worker, whose model waited {waited} of the time")
    if found.problems:
        key, reason = next(iter(found.problems.items()))
        print(printable(f"{len(found.problems)} left out (problems.json): {key}: {reason}"))
    return 1 if found.problems else 0


def _shard(text: str) -> tuple[int, int]:
    index, _, count = text.partition("/")
    if not (index.isdigit() and count.isdigit() and int(index) < int(count)):
        raise argparse.ArgumentTypeError(f"{text} is no part, as 0/4 to 3/4 are")
    return int(index), int(count)
