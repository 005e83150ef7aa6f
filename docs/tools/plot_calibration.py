"""Plot how right the small model's scores are: python docs/tools/plot_calibration.py OUT.svg.

Bars are the share of right pixels among those of a range of scores, all names in the vocabulary, on
validation scenes that nothing was fitted to; the line is where they would be if a score were the
chance of being right.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from cat_seg import CATSeg
from cat_seg.synthetic.calibrate import Reliability, reliability
from cat_seg.utils.files import atomic_write
from docs.tools.plot_benchmark import STYLE


def draw(found: Reliability) -> Figure:
    """Draw the shares of right pixels over the scores, and below them how many pixels those are."""
    figure = Figure(figsize=(5.2, 5), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    bins = len(found.share)
    left = np.arange(bins) / bins
    upper.bar(left, np.nan_to_num(found.right), 1 / bins, align="edge", edgecolor="white")
    upper.plot([0, 1], [0, 1], color="black", linestyle="--")
    upper.set(ylabel="right", xlim=(0, 1), ylim=(0, 1))
    upper.set_title(f"expected calibration error {found.error:.3f}", fontsize=11)
    lower.bar(left, found.share, 1 / bins, align="edge", edgecolor="white", color="#999")
    lower.set(xlabel="score", ylabel="pixels", yscale="log")
    return figure


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("output", type=Path, metavar="OUT.svg")
    parser.add_argument("--model", default="synthetic", help="name or folder of a model")
    parser.add_argument("--scenes", type=int, default=100)
    options = parser.parse_args(arguments)
    found = reliability(CATSeg.from_pretrained(options.model), scenes=options.scenes)
    with rc_context(STYLE), atomic_write(options.output) as part:
        draw(found).savefig(part, format="svg", metadata={"Date": None})
    return 0


if __name__ == "__main__":
    sys.exit(main())
