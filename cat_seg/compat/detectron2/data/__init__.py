"""Datasets by name, augmentation and loaders."""

from . import transforms  # isort: skip  (before the modules that use it)
from .build import build_detection_test_loader, get_detection_dataset_dicts
from .catalog import DatasetCatalog, Metadata, MetadataCatalog
from .dataset_mapper import DatasetMapper

__all__ = [
    "DatasetCatalog",
    "DatasetMapper",
    "Metadata",
    "MetadataCatalog",
    "build_detection_test_loader",
    "get_detection_dataset_dicts",
    "transforms",
]
