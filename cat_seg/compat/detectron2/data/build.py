"""Loaders."""

from __future__ import annotations

import logging
import operator
from collections.abc import Callable, Iterable
from itertools import chain
from typing import Any

import torch
from fvcore.common.config import CfgNode
from torch.utils.data import DataLoader, Dataset, Sampler

from ..config import configurable
from ..utils import comm
from ..utils.env import seed_all_rng
from .catalog import DatasetCatalog
from .common import AspectRatioGroupedDataset, DatasetFromList, MapDataset, ToIterableDataset
from .dataset_mapper import DatasetMapper
from .samplers import InferenceSampler, TrainingSampler

_logger = logging.getLogger(__name__)
Mapper = Callable[[dict[str, Any]], Any]


def get_detection_dataset_dicts(names: str | list[str]) -> list[dict[str, Any]]:
    """List the samples of registered datasets, one dataset after the other.

    Raises:
        KeyError: if a name is not registered.
        AssertionError: if a dataset is empty, or there is none.
    """
    names = [names] if isinstance(names, str) else names
    assert len(names), "no dataset is named"
    listings = [DatasetCatalog.get(name) for name in names]
    for name, listing in zip(names, listings, strict=True):
        assert len(listing), f"Dataset '{name}' is empty!"
    return list(chain.from_iterable(listings))


def build_batch_data_loader(
    dataset: Dataset,
    sampler: Sampler,
    total_batch_size: int,
    *,
    aspect_ratio_grouping: bool = False,
    num_workers: int = 0,
    collate_fn: Callable[[list[Any]], Any] | None = None,
    drop_last: bool = True,
    **kwargs: Any,
) -> Iterable[Any]:
    """Build a loader of batches, each a list of samples.

    Args:
        dataset: the samples.
        sampler: their order.
        total_batch_size: samples of a batch over all processes.
        aspect_ratio_grouping: whether landscape and portrait images are kept apart.
        num_workers: loading processes; 0 loads in this one.
        collate_fn: what makes a batch of a list; None leaves it a list.
        drop_last: whether an incomplete batch is left out.
        **kwargs: of `torch.utils.data.DataLoader`.
    """
    world_size = comm.get_world_size()
    assert total_batch_size > 0 and total_batch_size % world_size == 0, (
        f"Total batch size ({total_batch_size}) must be divisible by the number of gpus "
        f"({world_size})."
    )
    batch_size = total_batch_size // world_size
    _logger.info(f"Making batched data loader with batch_size={batch_size}")
    ordered = ToIterableDataset(dataset, sampler, shard_chunk_size=batch_size)
    workers = {"num_workers": num_workers, "worker_init_fn": worker_init_reset_seed, **kwargs}
    if not aspect_ratio_grouping:
        collate = collate_fn or trivial_batch_collator
        return DataLoader(
            ordered, batch_size=batch_size, drop_last=drop_last, collate_fn=collate, **workers
        )
    one_by_one = DataLoader(ordered, collate_fn=operator.itemgetter(0), **workers)
    batches = AspectRatioGroupedDataset(one_by_one, batch_size)
    return batches if collate_fn is None else (collate_fn(batch) for batch in batches)


def _train_loader_from_config(
    cfg: CfgNode,
    mapper: Mapper | None = None,
    *,
    dataset: Any = None,
    sampler: Sampler | None = None,
) -> dict[str, Any]:
    if dataset is None:
        dataset = get_detection_dataset_dicts(cfg.DATASETS.TRAIN)
    mapper = mapper or DatasetMapper(cfg, True)
    if sampler is None:
        name = cfg.DATALOADER.SAMPLER_TRAIN
        if name != "TrainingSampler":
            raise ValueError(f"Unknown training sampler: {name}")
        _logger.info(f"Using training sampler {name}")
        sampler = TrainingSampler(len(dataset), seed=cfg.SEED)
    return {
        "dataset": dataset,
        "sampler": sampler,
        "mapper": mapper,
        "total_batch_size": cfg.SOLVER.IMS_PER_BATCH,
        "aspect_ratio_grouping": cfg.DATALOADER.ASPECT_RATIO_GROUPING,
        "num_workers": cfg.DATALOADER.NUM_WORKERS,
    }


@configurable(from_config=_train_loader_from_config)
def build_detection_train_loader(
    dataset: Any,
    *,
    mapper: Mapper | None,
    sampler: Sampler | None = None,
    total_batch_size: int,
    aspect_ratio_grouping: bool = True,
    num_workers: int = 0,
    collate_fn: Callable[[list[Any]], Any] | None = None,
    **kwargs: Any,
) -> Iterable[Any]:
    """Build an endless loader of shuffled batches, from arguments or from a config.

    Args:
        dataset: a list of samples, or a dataset.
        mapper: called on each sample.
        sampler: their order; by default shuffled without end.
        total_batch_size: see `build_batch_data_loader`, as the rest.
        aspect_ratio_grouping: landscape and portrait images apart.
        num_workers: loading processes.
        collate_fn: makes a batch of a list.
        **kwargs: of `build_batch_data_loader`.
    """
    dataset = _mapped(dataset, mapper)
    return build_batch_data_loader(
        dataset,
        TrainingSampler(len(dataset)) if sampler is None else sampler,
        total_batch_size,
        aspect_ratio_grouping=aspect_ratio_grouping,
        num_workers=num_workers,
        collate_fn=collate_fn,
        **kwargs,
    )


def _test_loader_from_config(
    cfg: CfgNode, dataset_name: str | list[str], mapper: Mapper | None = None
) -> dict[str, Any]:
    dataset = get_detection_dataset_dicts(dataset_name)
    return {
        "dataset": dataset,
        "mapper": mapper or DatasetMapper(cfg, False),
        "num_workers": cfg.DATALOADER.NUM_WORKERS,
        "sampler": InferenceSampler(len(dataset)),
    }


@configurable(from_config=_test_loader_from_config)
def build_detection_test_loader(
    dataset: Any,
    *,
    mapper: Mapper | None,
    sampler: Sampler | None = None,
    batch_size: int = 1,
    num_workers: int = 0,
    collate_fn: Callable[[list[Any]], Any] | None = None,
) -> DataLoader:
    """Build a loader that gives each sample once, from arguments or from a config.

    Args:
        dataset: a list of samples, or a dataset.
        mapper: called on each sample.
        sampler: their order; by default that of the dataset, in parts for processes.
        batch_size: samples of a batch in this process.
        num_workers: loading processes.
        collate_fn: makes a batch of a list; None leaves it a list.
    """
    dataset = _mapped(dataset, mapper)
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=InferenceSampler(len(dataset)) if sampler is None else sampler,
        num_workers=num_workers,
        collate_fn=collate_fn or trivial_batch_collator,
    )


def _mapped(dataset: Any, mapper: Mapper | None) -> Any:
    if isinstance(dataset, list):
        dataset = DatasetFromList(dataset, copy=False)
    return dataset if mapper is None else MapDataset(dataset, mapper)


def trivial_batch_collator(batch: list[Any]) -> list[Any]:
    """Leave a batch a list."""
    return batch


def worker_init_reset_seed(worker_id: int) -> None:
    """Give each loading process its own random state, which follows from torch's."""
    seed_all_rng(torch.initial_seed() % 2**31 + worker_id)
