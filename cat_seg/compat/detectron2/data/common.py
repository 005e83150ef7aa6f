"""Datasets made of datasets."""

from __future__ import annotations

import copy as _copy
import logging
import pickle
import random
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset, Sampler, get_worker_info

__all__ = ["AspectRatioGroupedDataset", "DatasetFromList", "MapDataset", "ToIterableDataset"]

_logger = logging.getLogger(__name__)


class DatasetFromList(Dataset):
    """A list, kept as one tensor of bytes, which worker processes share instead of copying."""

    def __init__(self, lst: list, copy: bool = True, serialize: bool = True):
        """Keep `lst`.

        Args:
            lst: the samples.
            copy: whether a sample is copied on access, if it is not serialized.
            serialize: whether samples are kept as bytes.
        """
        self._lst, self._copy, self._serialize = lst, copy, serialize
        if serialize:
            _logger.info(
                f"Serializing {len(lst)} elements to byte tensors and concatenating them all ..."
            )
            pieces = [np.frombuffer(pickle.dumps(x, protocol=-1), dtype=np.uint8) for x in lst]
            self._ends = torch.from_numpy(np.cumsum([len(piece) for piece in pieces]))
            self._bytes = torch.from_numpy(np.concatenate(pieces))
            self._lst = []
            _logger.info(f"Serialized dataset takes {len(self._bytes) / 1024**2:.2f} MiB")

    def __len__(self) -> int:
        return len(self._ends) if self._serialize else len(self._lst)

    def __getitem__(self, idx: int) -> Any:
        if not self._serialize:
            return _copy.deepcopy(self._lst[idx]) if self._copy else self._lst[idx]
        begin = self._ends[idx - 1].item() if idx > 0 else 0
        return pickle.loads(self._bytes[begin : self._ends[idx].item()].numpy().data)


class MapDataset(Dataset):
    """Maps the samples of a dataset; where the map gives None, another sample is drawn."""

    def __init__(self, dataset: Dataset, map_func: Callable[[Any], Any]):
        self._dataset = dataset
        self._map_func = map_func
        self._rng = random.Random(42)
        self._candidates = set(range(len(dataset)))  # type: ignore[arg-type]

    def __len__(self) -> int:
        return len(self._dataset)  # type: ignore[arg-type]

    def __getitem__(self, idx: int) -> Any:
        attempts, current = 0, int(idx)
        while (sample := self._map_func(self._dataset[current])) is None:
            attempts += 1
            self._candidates.discard(current)
            current = self._rng.sample(list(self._candidates), k=1)[0]
            if attempts >= 3:
                _logger.warning(
                    f"Failed to apply `_map_func` for idx: {idx}, retry count: {attempts}"
                )
        self._candidates.add(current)
        return sample


class ToIterableDataset(IterableDataset):
    """The samples of a dataset in the order of a sampler.

    Worker processes take turns, `shard_chunk_size` samples each, so that batches of that size
    come in the order that a single process gives them.
    """

    def __init__(
        self,
        dataset: Dataset,
        sampler: Sampler,
        shard_sampler: bool = True,
        shard_chunk_size: int = 1,
    ):
        self.dataset = dataset
        self.sampler = sampler
        self.shard_sampler = shard_sampler
        self.shard_chunk_size = shard_chunk_size

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info() if self.shard_sampler else None
        for i, idx in enumerate(self.sampler):
            if not worker or (i // self.shard_chunk_size) % worker.num_workers == worker.id:
                yield self.dataset[idx]

    def __len__(self) -> int:
        return len(self.sampler)  # type: ignore[arg-type]


class AspectRatioGroupedDataset(IterableDataset):
    """Batches of landscape images, and batches of the others, which thus need less padding."""

    def __init__(self, dataset: Iterable[dict[str, Any]], batch_size: int):
        self.dataset = dataset
        self.batch_size = batch_size
        self._waiting: dict[bool, list[dict[str, Any]]] = {True: [], False: []}

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        for sample in self.dataset:
            landscape = sample["width"] > sample["height"]
            self._waiting[landscape].append(sample)
            if len(self._waiting[landscape]) == self.batch_size:
                batch, self._waiting[landscape] = self._waiting[landscape], []
                yield batch
