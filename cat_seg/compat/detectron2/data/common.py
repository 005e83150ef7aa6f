"""Datasets made of datasets."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

_logger = logging.getLogger(__name__)


class DatasetFromList(Dataset):
    """A list, kept as one tensor of bytes, which worker processes share instead of copying."""

    def __init__(self, lst: list):
        _logger.info(
            f"Serializing {len(lst)} elements to byte tensors and concatenating them all ..."
        )
        chunks = [np.frombuffer(pickle.dumps(x, protocol=-1), dtype=np.uint8) for x in lst]
        self._ends = torch.from_numpy(np.cumsum([len(chunk) for chunk in chunks]))
        self._bytes = torch.from_numpy(np.concatenate(chunks))
        _logger.info(f"Serialized dataset takes {len(self._bytes) / 1024**2:.2f} MiB")

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, idx: int) -> Any:
        begin = self._ends[idx - 1].item() if idx > 0 else 0
        return pickle.loads(self._bytes[begin : self._ends[idx].item()].numpy().data)


class MapDataset(Dataset):
    """A dataset with a function applied to its samples."""

    def __init__(self, dataset: Dataset, map_func: Callable[[Any], Any]):
        self._dataset = dataset
        self._map_func = map_func

    def __len__(self) -> int:
        return len(self._dataset)  # type: ignore[arg-type]

    def __getitem__(self, idx: int) -> Any:
        return self._map_func(self._dataset[idx])
