"""A data set on one page: as text, and as a web page with pictures that needs nothing else."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
from jinja2 import Environment, PackageLoader, StrictUndefined
from tabulate import tabulate

from cat_seg.drawing import draw_segmentation
from cat_seg.errors import CATSegError
from cat_seg.images import read_image
from cat_seg.label_rules import LabelRule
from cat_seg.palette import name_colors
from cat_seg.plugin.data.datasets.census import Census
from cat_seg.plugin.data.datasets.pairs import Pair
from cat_seg.utils.files import atomic_write

EXAMPLES = 6
_SIDE = 480  # pixels of an example
_LISTED = 20  # mistakes of a data set


@dataclass
class DataPage:
    """What is shown of a data set: its counts, what its labels mean, and where its files are."""

    census: Census
    rule: LabelRule
    pairs: Sequence[Pair] = field(default_factory=list)

    @property
    def smells(self) -> list[str]:
        """See `Census.smells`."""
        return self.census.smells(self.rule)

    @property
    def problems(self) -> list[str]:
        """The first mistakes, and how many more there are."""
        every = self.census.problems
        more = [f"... and {len(every) - _LISTED} more"] if len(every) > _LISTED else []
        return every[:_LISTED] + more

    @property
    def facts(self) -> list[tuple[str, str]]:
        """What there is, each with its name."""
        census = self.census
        sizes = [f"{width} x {height}" for height, width in (census.smallest, census.largest)]
        facts = [
            ("images with label maps", f"{census.images:,}"),
            ("sizes (width x height)", sizes[0] if sizes[0] == sizes[1] else " to ".join(sizes)),
            ("pixels ignored", f"{census.ignored_share:.1%}"),
            ("images without any class", f"{census.blank:,}"),
            ("values in the label maps", self.rule.shown(sorted(census.values))),
        ]
        if census.unknown:
            facts.append(("values that no name covers", self.rule.shown(sorted(census.unknown))))
        return facts

    @property
    def classes(self) -> list[dict[str, Any]]:
        """A row of each class: index, name, pixels, their share, images."""
        census = self.census
        total = max(1, sum(census.pixels))
        rows = zip(census.classes, census.pixels, census.images_of, strict=True)
        return [
            {"index": k, "name": name, "pixels": pixels, "share": pixels / total, "images": images}
            for k, (name, pixels, images) in enumerate(rows)
        ]

    def text(self) -> str:
        """Write the page as text."""
        head = f"{self.census.name}\n{'=' * len(self.census.name)}"
        facts = tabulate(self.facts, tablefmt="plain", disable_numparse=True)
        classes = tabulate(
            [
                (c["index"], c["name"], f"{c['pixels']:,}", f"{c['share']:.2%}", c["images"])
                for c in self.classes
            ],
            ("", "class", "pixels", "share", "images"),
            tablefmt="simple",
            colalign=("right", "left", "right", "right", "right"),
        )
        notes = [f"SMELLS: {text}" for text in self.smells]
        notes += [f"WRONG: {text}" for text in self.problems]
        return "\n".join([head, facts, "", classes, *([""] if notes else []), *notes])

    def examples(self) -> list[dict[str, str]]:
        """Draw some pairs, evenly spread over the data set: picture beside labels."""
        step = max(1, len(self.pairs) / EXAMPLES)
        chosen = [self.pairs[int(i * step)] for i in range(min(EXAMPLES, len(self.pairs)))]
        return [{"name": str(pair.image), **self._drawn(pair)} for pair in chosen]

    def _drawn(self, pair: Pair) -> dict[str, str]:
        try:
            photo, labels = read_image(pair.image), self.rule.read(pair.label)
        except CATSegError as error:
            return {"problem": str(error)}
        if photo.shape[:2] != labels.shape:
            return {"problem": f"image {photo.shape[:2]}, labels {labels.shape} (height, width)"}
        scale = min(1.0, _SIDE / max(labels.shape))
        size = tuple(max(1, round(side * scale)) for side in reversed(labels.shape))
        photo = cv2.resize(photo, size, interpolation=cv2.INTER_AREA)
        labels = cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST)
        drawn = draw_segmentation(photo, labels, self.census.classes, original=True)
        buffer = io.BytesIO()
        drawn.save(buffer, "JPEG", quality=85)
        return {"picture": f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"}

    def colors(self) -> list[str]:
        """Return the colour of each class, for a style sheet."""
        colors = name_colors(self.census.classes).tolist()
        return [f"rgb{tuple(color)}" for color in colors]


def write_page(path: Path, pages: Sequence[DataPage]) -> None:
    """Write the web page of several data sets, whole or not at all."""
    environment = Environment(
        loader=PackageLoader("cat_seg.plugin.data.datasets", "."),
        autoescape=True,  # names of classes and files may hold anything
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("page.html.jinja").render(pages=pages)
    with atomic_write(path) as part:
        part.write_text(page, encoding="utf-8")
