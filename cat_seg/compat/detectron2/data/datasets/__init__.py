"""Listings of datasets on disk."""

from .coco import load_sem_seg

__all__ = ["load_sem_seg"]
