"""Which training image comes next, where several data sets are mixed."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import torch
from detectron2.utils import comm
from torch.utils.data import Sampler


class MixedSampler(Sampler[int]):
    """Draws data sets by weight, and of each one image after another in shuffled rounds.

    Endless, and the same for the same seed, so that a stream can go on from any position. Each
    rank takes every so many-th index, as detectron2's TrainingSampler does.
    """

    def __init__(self, sizes: Sequence[int], weights: Sequence[float], seed: int) -> None:
        """Set up the stream.

        Args:
            sizes: images of each data set, which lie one behind the other.
            weights: share of the samples of each, up to a common factor.
            seed: of the order; the same on all ranks.
        """
        self.sizes = tuple(sizes)
        self.weights = torch.tensor(weights, dtype=torch.float64)
        self.seed = seed

    def __iter__(self) -> Iterator[int]:
        """Yield this rank's indices."""
        return itertools.islice(self._all(), comm.get_rank(), None, comm.get_world_size())

    def _all(self) -> Iterator[int]:
        choice = torch.Generator().manual_seed(self.seed)
        starts = itertools.accumulate(self.sizes, initial=0)
        rounds = [
            _rounds(start, size, self.seed + 1 + i)
            for i, (start, size) in enumerate(zip(starts, self.sizes, strict=False))
        ]
        while True:
            for i in torch.multinomial(self.weights, 1024, True, generator=choice).tolist():
                yield next(rounds[i])


def _rounds(start: int, size: int, seed: int) -> Iterator[int]:
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield from (start + torch.randperm(size, generator=generator)).tolist()
