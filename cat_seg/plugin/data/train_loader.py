"""The endless stream of training batches, which can go on from any position."""

from __future__ import annotations

import logging
import math
import signal
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import get_detection_dataset_dicts
from detectron2.data.detection_utils import SizeMismatchError
from detectron2.data.samplers import TrainingSampler
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from torch.utils.data import DataLoader, IterableDataset, Sampler, get_worker_info

from cat_seg.errors import CATSegError
from cat_seg.plugin.data.dataset_mapper import build_train_mapper
from cat_seg.plugin.data.sampler import MixedSampler
from cat_seg.utils.signals import ENDING

logger = logging.getLogger(__name__)

Sample = dict[str, Any]


class TooManyBadImages(RuntimeError):
    """More images of the training data are unusable than SOLVER.MAX_BAD_IMAGES allows."""


class TrainingStream(IterableDataset):
    """Shuffled training samples without end; each says at which "position" it stands.

    The order depends on the seed alone, so a stream with the same seed and the position after the
    last sample goes on as if it had never stopped. An entry that cannot be made into a sample is
    named in the log and counted; another, which seed and position choose, takes its place.
    """

    def __init__(
        self,
        entries: list[Sample],
        mapper: Callable[[Sample], Sample],
        *,
        batch_size: int,
        seed: int,
        max_bad_images: int,
        shares: Sequence[tuple[int, float]] = (),
    ) -> None:
        """Set up a stream that starts at position 0.

        Args:
            entries: the dataset, in detectron2's format.
            mapper: from an entry to a sample; CATSegError marks a bad entry.
            batch_size: samples that one worker reads for a batch.
            seed: of the order; the same on all ranks.
            max_bad_images: different entries that may be left out.
            shares: of each data set among the entries, in their order, how many there are and the
                weight by which it is drawn; () draws all entries alike.
        """
        self.entries = entries
        self.mapper = mapper
        self.batch_size = batch_size
        self.max_bad_images = max_bad_images
        self.shares = tuple(shares)
        self.seek(seed, 0)
        self.bad = torch.zeros(len(entries), dtype=torch.bool).share_memory_()  # by all workers

    def seek(self, seed: int, start: int) -> None:
        """Go to a position of the order of a seed; takes effect on the next iteration."""
        self.seed = seed
        self.start = start
        self.sampler: Sampler[int] = TrainingSampler(len(self.entries), seed=seed)
        if self.shares:
            sizes, weights = zip(*self.shares, strict=True)
            self.sampler = MixedSampler(sizes, weights, seed)

    def __iter__(self) -> Iterator[Sample]:
        """Yield the samples of this worker.

        Raises:
            TooManyBadImages: if more than `max_bad_images` entries are unusable.
        """
        worker = get_worker_info()
        for position, index in enumerate(islice(self.sampler, self.start, None), self.start):
            # Workers take turns at batches, as the loader asks them for one each in turn.
            turn = (position - self.start) // self.batch_size
            if worker is not None and turn % worker.num_workers != worker.id:
                continue
            yield self._sample_at(position, index) | {"position": position}

    def _sample_at(self, position: int, index: int) -> Sample:
        """Make the sample of a position: of an entry, or of others where it is bad.

        Every position has a sample, so that batches begin where they would without bad entries,
        with any number of workers, and a resumed stream leaves none out.
        """
        place = (self.seed * 1_000_003 + position) * 1_000_003 + index
        others = torch.Generator().manual_seed(place % 2**63)
        while not self.bad.all():
            sample = None if self.bad[index] else self._sample(index)
            if sample is not None:
                return sample
            index = int(torch.randint(len(self.entries), (), generator=others))
        raise TooManyBadImages(f"none of the {len(self.bad)} training images can be used.")

    def _sample(self, index: int) -> Sample | None:
        try:
            return self.mapper(self.entries[index])
        except (CATSegError, SizeMismatchError) as error:
            self.bad[index] = True
            count, limit = int(self.bad.sum()), self.max_bad_images
            logger.warning("Bad training image %d of at most %d: %s", count, limit, error)
            if count == len(self.bad):
                raise TooManyBadImages(
                    f"none of the {count} training images can be used; the last: {error}"
                ) from error
            if count > limit:
                raise TooManyBadImages(
                    f"{count} training images are unusable, more than SOLVER.MAX_BAD_IMAGES "
                    f"{limit}; the last: {error}"
                ) from error
            return None


def build_train_loader(cfg: CfgNode) -> DataLoader:
    """Build the loader of DATASETS.TRAIN; its `dataset` is the `TrainingStream`.

    Images are not grouped by aspect ratio: crops are of one size, and a group holds images back,
    which a resumed run would lose.

    Returns:
        An endless loader of lists of samples, SOLVER.IMS_PER_BATCH over all ranks.

    Raises:
        CATSegError: if the batch cannot be shared by the ranks, or the sampler is unknown.
    """
    world_size = comm.get_world_size()
    batch_size, rest = divmod(cfg.SOLVER.IMS_PER_BATCH, world_size)
    if rest or not batch_size:
        raise CATSegError(
            f"SOLVER.IMS_PER_BATCH is {cfg.SOLVER.IMS_PER_BATCH}; expected a multiple of the "
            f"{world_size} processes."
        )
    if cfg.DATALOADER.SAMPLER_TRAIN != "TrainingSampler":
        raise CATSegError(
            f"DATALOADER.SAMPLER_TRAIN is {cfg.DATALOADER.SAMPLER_TRAIN!r}; only "
            "'TrainingSampler' can resume."
        )
    sets = {name: get_detection_dataset_dicts(name) for name in cfg.DATASETS.TRAIN}
    stream = TrainingStream(
        [entry | {"dataset": name} for name, entries in sets.items() for entry in entries],
        build_train_mapper(cfg),
        batch_size=batch_size,
        seed=cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed(),
        max_bad_images=cfg.SOLVER.MAX_BAD_IMAGES,
        shares=_shares(cfg, [len(entries) for entries in sets.values()]),
    )
    return DataLoader(
        stream,
        batch_size=batch_size,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        collate_fn=list,
        worker_init_fn=_seed_worker,
        # Opening the loader leaves the global random state alone, so that a resumed run keeps it.
        generator=torch.Generator().manual_seed(stream.seed + comm.get_rank()),
    )


def _shares(cfg: CfgNode, sizes: Sequence[int]) -> list[tuple[int, float]]:
    """Pair the sizes of the data sets with DATASETS.TRAIN_WEIGHTS.

    Raises:
        CATSegError: if there is not one positive weight for each of several.
    """
    weights = list(cfg.DATASETS.TRAIN_WEIGHTS)
    if not weights:
        return []
    if len(weights) != len(sizes) or not all(
        isinstance(weight, int | float) and 0 < weight < math.inf for weight in weights
    ):
        raise CATSegError(
            f"DATASETS.TRAIN_WEIGHTS is {weights}; expected a positive number for each of the "
            f"{len(sizes)} data sets of DATASETS.TRAIN."
        )
    return list(zip(sizes, weights, strict=True))


def _seed_worker(worker_id: int) -> None:
    """Give each worker, and each start of it after a resumption, its own random state."""
    worker = get_worker_info()
    assert worker is not None and isinstance(worker.dataset, TrainingStream)
    seed_all_rng((worker.seed + worker.dataset.start) % 2**31)
    for number in ENDING:  # may go to the whole group; the training still needs its last batches
        signal.signal(number, signal.SIG_IGN)
