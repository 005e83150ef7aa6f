"""The detectron2 project: registered classes, config keys, data, training and evaluation.

Importing this package makes `import detectron2` work (see `cat_seg.compat`), registers the
published data splits, and registers backbone, head and meta-architecture under their names.
"""

import importlib.util

from cat_seg.compat import ensure_detectron2
from cat_seg.errors import MissingPackageError

_NEEDED = (  # modules of the extra [train]
    *("fvcore", "iopath", "jinja2", "pycocotools", "tabulate", "tensorboard", "termcolor", "yacs"),
)
if _missing := [name for name in _NEEDED if importlib.util.find_spec(name) is None]:
    raise MissingPackageError(
        f"Training, evaluation and YAML configs need {', '.join(_missing)}, missing here: "
        "pip install 'cat-seg[train]', or in a clone pip install -e '.[train]'."
    )
ensure_detectron2()

# isort: split
from cat_seg.plugin import data  # noqa: E402
from cat_seg.plugin.backbone import D2SwinTransformer  # noqa: E402
from cat_seg.plugin.config import add_cat_seg_config, load_config  # noqa: E402
from cat_seg.plugin.head import CATSegHead  # noqa: E402
from cat_seg.plugin.meta_arch import CATSeg, load_model  # noqa: E402

__all__ = [
    "CATSeg",
    "CATSegHead",
    "D2SwinTransformer",
    "add_cat_seg_config",
    "data",
    "load_config",
    "load_model",
]
