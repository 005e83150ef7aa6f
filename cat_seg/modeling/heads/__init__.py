"""Semantic segmentation heads, as detectron2 knows them."""

from .cat_seg_head import CATSegHead, CATSegPredictor

__all__ = ["CATSegHead", "CATSegPredictor"]
