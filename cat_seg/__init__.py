"""CAT-Seg: cost aggregation for open-vocabulary semantic segmentation (arXiv 2303.11797)."""

from cat_seg.compat import ensure_detectron2

ensure_detectron2()

# isort: split
# Importing these registers data sets, backbone, head and meta-architecture with detectron2.
from cat_seg import data  # noqa: E402
from cat_seg.cat_seg_model import CATSeg  # noqa: E402
from cat_seg.config import add_cat_seg_config  # noqa: E402
from cat_seg.modeling.backbone import D2SwinTransformer  # noqa: E402
from cat_seg.modeling.heads import CATSegHead  # noqa: E402

__all__ = ["CATSeg", "CATSegHead", "D2SwinTransformer", "add_cat_seg_config", "data"]
