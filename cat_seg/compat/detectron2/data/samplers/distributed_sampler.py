"""Samplers that share a dataset among processes."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import torch
from torch.utils.data import Sampler

from cat_seg.errors import CATSegError

from ...utils import comm


class TrainingSampler(Sampler[int]):
    """Samples without end: pass after pass over the data, each shuffled anew.

    All processes draw the same stream, of which each takes every `world size`-th sample.
    """

    def __init__(self, size: int, shuffle: bool = True, seed: int | None = None):
        """Make a sampler of `size` samples.

        Args:
            size: number of samples.
            shuffle: False for the order of the dataset.
            seed: of the order; must be the same in all processes. None draws one for all.
        """
        if size < 1:
            raise CATSegError(
                f"TrainingSampler: expected a positive number of samples, got {size}."
            )
        self._size = size
        self._shuffle = shuffle
        self._seed = int(comm.shared_random_seed() if seed is None else seed)
        self._rank = comm.get_rank()
        self._world_size = comm.get_world_size()

    def __iter__(self) -> Iterator[int]:
        return islice(self._infinite_indices(), self._rank, None, self._world_size)

    def _infinite_indices(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self._seed)
        while True:
            if self._shuffle:
                yield from torch.randperm(self._size, generator=generator).tolist()
            else:
                yield from range(self._size)


class InferenceSampler(Sampler[int]):
    """Every sample once: each process takes one contiguous part, of which the first are longer."""

    def __init__(self, size: int):
        assert size > 0, size
        share, rest = divmod(size, comm.get_world_size())
        rank = comm.get_rank()
        begin = rank * share + min(rank, rest)
        self._local_indices = range(begin, begin + share + (rank < rest))

    def __iter__(self) -> Iterator[int]:
        return iter(self._local_indices)

    def __len__(self) -> int:
        return len(self._local_indices)
