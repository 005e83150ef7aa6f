"""Loaders."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import Any

from fvcore.common.config import CfgNode
from torch.utils.data import DataLoader, Sampler

from ..config import configurable
from .catalog import DatasetCatalog
from .common import DatasetFromList, MapDataset
from .samplers import InferenceSampler

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


def _test_loader_from_config(
    cfg: CfgNode, dataset_name: str | list[str], mapper: Mapper
) -> dict[str, Any]:
    dataset = get_detection_dataset_dicts(dataset_name)
    return {
        "dataset": dataset,
        "mapper": mapper,
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
    if isinstance(dataset, list):
        dataset = DatasetFromList(dataset)
    if mapper is not None:
        dataset = MapDataset(dataset, mapper)
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=InferenceSampler(len(dataset)) if sampler is None else sampler,
        num_workers=num_workers,
        collate_fn=collate_fn or trivial_batch_collator,
    )


def trivial_batch_collator(batch: list[Any]) -> list[Any]:
    """Leave a batch a list."""
    return batch
