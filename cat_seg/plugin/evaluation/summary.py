"""The results of several datasets beside the published ones: as a table and as files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tabulate import tabulate

from cat_seg.plugin.evaluation.metrics import MIOU_DEFINITIONS
from cat_seg.plugin.evaluation.result import EvaluationResult, write_csv, write_json


@dataclass(frozen=True)
class BenchmarkResult:
    """The result of one dataset beside the published one."""

    title: str
    result: EvaluationResult
    published: float | None  # mIoU in percent
    baseline: float | None = None  # mIoU of the same CLIP without an aggregator, in percent

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
        """Return the entry of results.json."""
        entry = {"title": self.title, **self.figures, "published": self.published}
        return entry if self.baseline is None else entry | {"baseline": self.baseline}


def summary_table(benchmarks: Sequence[BenchmarkResult]) -> str:
    """Format a line for each dataset, in percent."""
    others = ("mIoU_2021", "fwIoU", "mACC", "pACC")
    compared = any(benchmark.baseline is not None for benchmark in benchmarks)
    rows = [
        (
            benchmark.title,
            f"{len(benchmark.result.images)} of {benchmark.result.expected}",
            benchmark.figures["mIoU"],
            benchmark.published,
            benchmark.difference,
            *([benchmark.baseline] if compared else []),
            *(benchmark.figures[key] for key in others),
            benchmark.result.remark,
        )
        for benchmark in benchmarks
    ]
    baseline = ["CLIP alone"] if compared else []
    head = ("", "images", "mIoU", "published", "difference", *baseline, *others, "")
    return tabulate(rows, head, tablefmt="pipe", floatfmt=".2f")


def save_summary(
    folder: Path, about: Mapping[str, Any], benchmarks: Sequence[BenchmarkResult]
) -> None:
    """Write results.json (`about` the run, and all datasets) and per_class.csv."""
    datasets = [benchmark.as_json() for benchmark in benchmarks]
    contents = {**about, "definitions": MIOU_DEFINITIONS, "datasets": datasets}
    write_json(folder / "results.json", contents)
    write_csv(
        folder / "per_class.csv",
        [row for benchmark in benchmarks for row in benchmark.result.classes()],
    )
