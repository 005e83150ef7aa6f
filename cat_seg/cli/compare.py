"""Put evaluations of the same data beside each other, as a web page with all images.

    cat-seg compare results/vitb results/vitl --output comparison.html

Two models, two lists of words, two settings: differences of each class and of each image, and a
slider between picture, truth and predictions. One evaluation alone is shown in the same way.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from cat_seg.utils.text import printable


def main(arguments: Sequence[str]) -> int:
    """Write the page."""
    args = build_parser().parse_args(arguments)
    import cat_seg.plugin  # noqa: F401  (before any import of detectron2)

    # isort: split
    from cat_seg.plugin.evaluation.compare import write_comparison

    write_comparison(args.output, args.runs, args.names)
    print(f"Comparison: {printable(str(args.output.absolute()))}")
    return 0


def build_parser() -> argparse.ArgumentParser:
    """Parse folders of runs, and where the page goes."""
    parser = argparse.ArgumentParser(
        prog="cat-seg compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "runs",
        nargs="+",
        type=Path,
        metavar="RUN",
        help="what `cat-seg evaluate --output RUN` wrote; differences are to the first",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("comparison.html"),
        metavar="FILE",
        help="the page; its pictures go into a folder beside it",
    )
    parser.add_argument(
        "--names", nargs="+", default=[], metavar="NAME", help="what to call the runs"
    )
    return parser
