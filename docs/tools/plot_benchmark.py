"""Plot time over classes: python docs/tools/plot_benchmark.py OUT.svg NAME=bench.json ...

Each file is one of `docs/tools/benchmark.py --classes ... --json`; both axes are logarithmic.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure

from cat_seg.utils.files import atomic_write

Points = list[tuple[float, float]]
# Text stays text, and the same figures give the same file.
STYLE = {"svg.fonttype": "none", "svg.hashsalt": "cat_seg", "font.size": 11}


def draw(series: dict[str, Points]) -> Figure:
    """Draw named series of (classes, seconds)."""
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.add_subplot()
    for name, points in series.items():
        axes.plot(*zip(*points, strict=True), marker="o", label=name)
    axes.set(xscale="log", yscale="log", xlabel="classes", ylabel="seconds")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.grid(color="#ddd")
    axes.legend(frameon=False)
    return figure


def read(argument: str) -> tuple[str, Points]:
    """Read NAME=FILE as the name and the points.

    Raises:
        ValueError: if the file is no result of the benchmark.
    """
    name, _, file = argument.partition("=")
    try:
        results = json.loads(Path(file).read_text())["results"]
        return name, [(r["classes"], r["package"]["seconds"]) for r in results]
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{argument}: expected NAME=FILE of the benchmark ({error})") from error


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path, metavar="OUT.svg")
    parser.add_argument("series", nargs="+", metavar="NAME=FILE")
    options = parser.parse_args(arguments)
    try:
        series = dict(read(one) for one in options.series)
    except ValueError as error:
        print(f"plot_benchmark: {error}", file=sys.stderr)
        return 1
    with rc_context(STYLE), atomic_write(options.output) as part:
        draw(series).savefig(part, format="svg", metadata={"Date": None})
    return 0


if __name__ == "__main__":
    sys.exit(main())
