"""CAT-Seg: label every pixel of an image with one of any set of words (arXiv 2303.11797).

    from cat_seg import CATSeg

    model = CATSeg.from_pretrained("synthetic")
    result = model.predict("scene.jpg", ["grass", ["brick wall", "bricks"], "blue dotted circle"])

This is the library, on torch, open_clip and timm. The Detectron2 project on top of it is
`cat_seg.plugin`; its names are found here too, and importing one imports the plugin.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

# Name -> the module that defines it, imported when the name is first asked for (PEP 562).
_LIBRARY = {
    "CATSeg": "cat_seg.model",
    "CATSegError": "cat_seg.errors",
    "InferencePlan": "cat_seg.inference",
    "Segmentation": "cat_seg.segmentation",
    "Vocabulary": "cat_seg.vocabulary",
    "list_models": "cat_seg.hub",
}
_PLUGIN = {
    "CATSegHead": "cat_seg.plugin",
    "D2SwinTransformer": "cat_seg.plugin",
    "add_cat_seg_config": "cat_seg.plugin",
}

# Without the names of the plugin, which `from cat_seg import *` would import.
__all__ = [
    "CATSeg",
    "CATSegError",
    "InferencePlan",
    "Segmentation",
    "Vocabulary",
    "__version__",
    "list_models",
]

if TYPE_CHECKING:
    from cat_seg.errors import CATSegError
    from cat_seg.hub import list_models
    from cat_seg.inference import InferencePlan
    from cat_seg.model import CATSeg
    from cat_seg.plugin import CATSegHead as CATSegHead
    from cat_seg.plugin import D2SwinTransformer as D2SwinTransformer
    from cat_seg.plugin import add_cat_seg_config as add_cat_seg_config
    from cat_seg.segmentation import Segmentation
    from cat_seg.vocabulary import Vocabulary


def __getattr__(name: str) -> Any:
    if module := _LIBRARY.get(name) or _PLUGIN.get(name):
        value = getattr(importlib.import_module(module), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_PLUGIN})
