"""Plots time over classes: python -m docs.tools.plot_benchmark OUT.svg NAME=bench.json ...

Each file is one of `docs.tools.benchmark --classes ... --json`; the axes are logarithmic.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path

from cat_seg.utils.files import atomic_write

WIDTH, HEIGHT = 640, 400
LEFT, RIGHT, TOP, BOTTOM = 64, 24, 24, 56
COLORS = ("#0b6e99", "#c4502b", "#5b7f2b", "#7a4fa3")
Points = list[tuple[float, float]]


def draw(series: dict[str, Points]) -> str:
    """An SVG of named series of (classes, seconds)."""
    low_x, high_x, low_y, high_y = limits([p for points in series.values() for p in points])

    def x(value: float) -> float:
        share = math.log(value / low_x) / math.log(high_x / low_x)
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        share = math.log(value / low_y) / math.log(high_y / low_y)
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="13" fill="#333">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
    ]
    for tick in decades(low_x, high_x):
        parts += [
            _line(x(tick), TOP, x(tick), HEIGHT - BOTTOM),
            _text(x(tick), HEIGHT - BOTTOM + 20, f"{tick:,.0f}", "middle"),
        ]
    for tick in decades(low_y, high_y):
        parts += [
            _line(LEFT, y(tick), WIDTH - RIGHT, y(tick)),
            _text(LEFT - 8, y(tick) + 4, f"{tick:g}", "end"),
        ]
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 12, "classes", "middle"))
    parts.append(_text(LEFT, TOP - 8, "seconds", "end"))
    for i, (name, points) in enumerate(series.items()):
        color = COLORS[i % len(COLORS)]
        path = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2"/>')
        parts += [
            f'<circle cx="{x(a):.1f}" cy="{y(b):.1f}" r="4" fill="{color}"/>' for a, b in points
        ]
        parts.append(
            f'<text x="{LEFT + 16}" y="{TOP + 20 + 20 * i}" fill="{color}">{_escaped(name)}</text>'
        )
    return "\n".join([*parts, "</svg>", ""])


def limits(points: Points) -> tuple[float, float, float, float]:
    """Whole decades around the points, of x and of y."""
    spans = []
    for values in zip(*points, strict=True):
        spans += [
            10 ** math.floor(math.log10(min(values))),
            10 ** math.ceil(math.log10(max(values))),
        ]
        spans[-1] = max(spans[-1], 10 * spans[-2])
    return spans[0], spans[1], spans[2], spans[3]


def decades(low: float, high: float) -> list[float]:
    return [low * 10**i for i in range(round(math.log10(high / low)) + 1)]


def read(argument: str) -> tuple[str, Points]:
    """NAME=FILE -> the name and the points.

    Raises:
        ValueError: if the file is no result of the benchmark.
    """
    name, _, file = argument.partition("=")
    try:
        results = json.loads(Path(file).read_text())["results"]
        return name, [(r["classes"], r["package"]["seconds"]) for r in results]
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{argument}: expected NAME=FILE of the benchmark ({error})") from error


def _line(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="#ddd"/>'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{_escaped(text)}</text>'


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path, metavar="OUT.svg")
    parser.add_argument("series", nargs="+", metavar="NAME=FILE")
    options = parser.parse_args(arguments)
    try:
        picture = draw(dict(read(one) for one in options.series))
    except ValueError as error:
        print(f"plot_benchmark: {error}", file=sys.stderr)
        return 1
    with atomic_write(options.output) as part:
        part.write_text(picture)
    return 0


if __name__ == "__main__":
    sys.exit(main())
