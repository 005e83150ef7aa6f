"""Reading images for evaluation, where one damaged file must not end the run."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper

_STAND_IN_SIZE = 64  # pixels


class EvaluationMapper:
    """detectron2's test mapper, which lets a grey image stand in for one that cannot be read.

    The stand-in keeps every process's batches in step. It carries the reason as "error", by which
    the evaluator names it and leaves it out. Label maps are the evaluator's business alone.
    """

    def __init__(self, cfg: CfgNode) -> None:
        self._mapper = DatasetMapper(cfg, False)

    def __call__(self, record: dict[str, Any]) -> dict[str, Any]:
        record = {key: value for key, value in record.items() if key != "sem_seg_file_name"}
        try:
            return self._mapper(record)
        except Exception as error:  # decoders report damage by whatever they run into
            size = _STAND_IN_SIZE
            grey = torch.full((3, size, size), 128, dtype=torch.uint8)
            reason = f"{type(error).__name__}: {error}"
            return {**record, "image": grey, "height": size, "width": size, "error": reason}
