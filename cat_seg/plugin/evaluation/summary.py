"""The results of several data sets beside the published ones: as a table and as files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tabulate import tabulate

from cat_seg.plugin.evaluation.metrics import MIOU_DEFINITIONS
from cat_seg.plugin.evaluation.result import EvaluationResult, write_csv, write_json


@dataclass(frozen=True)
class Outcome:
    """What one data set came to, and where its label maps are."""

    title: str
    result: EvaluationResult
    published: float | None  # mIoU in percent
    label_maps: Mapping[str, tuple[str, str]]  # image file -> ground truth, prediction

    @property
    def figures(self) -> dict[str, Any]:
        """See `EvaluationResult.summary`."""
        return self.result.summary()

    @property
    def difference(self) -> float | None:
        """mIoU less the published one; None where they are not to be compared."""
        if self.published is None or self.result.remark:
            return None
        return self.figures["mIoU"] - self.published

    def as_json(self) -> dict[str, Any]:
        """The entry of results.json."""
        return {"title": self.title, **self.figures, "published": self.published}


def summary_table(outcomes: Sequence[Outcome]) -> str:
    """A line for each data set, in percent."""
    before, after = ("mIoU",), ("mIoU_2021", "fwIoU", "mACC", "pACC")
    rows = [
        (
            outcome.title,
            f"{len(outcome.result.images)} of {outcome.result.expected}",
            *(outcome.figures[key] for key in before),
            outcome.published,
            outcome.difference,
            *(outcome.figures[key] for key in after),
            outcome.result.remark,
        )
        for outcome in outcomes
    ]
    head = ("", "images", *before, "published", "difference", *after, "")
    return tabulate(rows, head, tablefmt="pipe", floatfmt=".2f")


def save_summary(folder: Path, about: Mapping[str, Any], outcomes: Sequence[Outcome]) -> None:
    """Write results.json (`about` the run, and all data sets) and per_class.csv."""
    datasets = [outcome.as_json() for outcome in outcomes]
    contents = {**about, "definitions": MIOU_DEFINITIONS, "datasets": datasets}
    write_json(folder / "results.json", contents)
    write_csv(
        folder / "per_class.csv", [row for outcome in outcomes for row in outcome.result.classes()]
    )
