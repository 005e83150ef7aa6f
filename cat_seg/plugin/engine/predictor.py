"""Image and words in, label map out: the model behind four lines of Python and the demo."""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.data import transforms as T
from detectron2.modeling import build_model

from cat_seg.plugin.checkpointer import CATSegCheckpointer, local_weights
from cat_seg.plugin.config import add_cat_seg_config
from cat_seg.plugin.data.datasets.folders import register_folders
from cat_seg.plugin.meta_arch import CATSeg
from cat_seg.resources import project_file

logger = logging.getLogger(__name__)

DEFAULT_CONFIG = "configs/synthetic.yaml"  # the model that ships


def load_config(
    config_file: str | Path = DEFAULT_CONFIG, opts: Sequence[str] = (), device: str = ""
) -> CfgNode:
    """Read a config, of the project or your own, and register the data that it brings.

    Args:
        config_file: a YAML, looked for as `project_file` does.
        opts: KEY VALUE pairs that override it.
        device: "cuda", "mps", "cpu" or the like. If empty, MODEL.DEVICE, or the best that this
            machine has where that is "cuda", the default, and there is none.

    Raises:
        ValueError: if the file is missing or malformed, a key unknown, its value of another type,
            or the device not there.
    """
    cfg = get_cfg()
    add_cat_seg_config(cfg)
    if len(opts) % 2:
        raise ValueError(f"Options come in pairs of KEY VALUE; got {' '.join(opts)}.")
    path = project_file(config_file)
    source = f"Config {path}"
    try:
        cfg.merge_from_file(str(path))
        source = "Options"
        cfg.merge_from_list(list(opts))
    except (AssertionError, KeyError, OSError, ValueError, yaml.YAMLError) as error:
        problem = " ".join(str(error.args[0] if len(error.args) == 1 else error).split())
        raise ValueError(f"{source}: {problem}{_like_it(problem, cfg)}") from error
    except (AttributeError, RecursionError, TypeError) as error:  # fvcore's, of other contents
        raise ValueError(
            f"{source}: expected keys and values in the tree of the config, and a _BASE_, if there "
            "is one, that is another file."
        ) from error
    cfg.MODEL.DEVICE = _usable_device(device, cfg.MODEL.DEVICE)
    register_folders(cfg)
    cfg.freeze()
    return cfg


def _like_it(problem: str, cfg: CfgNode) -> str:
    """A hint where the problem is a key that does not exist: the one most like it."""
    if not (unknown := re.search(r"Non-existent (?:config )?key: (\S+)", problem)):
        return ""
    near = difflib.get_close_matches(unknown[1], _keys(cfg), n=1)
    return f"; did you mean {near[0]}?" if near else "; cat_seg/config.py explains our keys."


def _keys(cfg: CfgNode, prefix: str = "") -> Iterator[str]:
    for key, value in cfg.items():
        yield prefix + key
        if isinstance(value, CfgNode):
            yield from _keys(value, f"{prefix}{key}.")


def _usable_device(asked: str, default: str) -> str:
    try:
        kind = torch.device(asked or default).type
    except RuntimeError as error:
        problem = str(error).splitlines()[0]
        raise ValueError(f"{asked or default!r} is not a device: {problem}") from error
    if kind == "cuda" and not torch.cuda.is_available():
        if asked:
            raise ValueError(f"Device {asked!r} cannot be used: torch finds no CUDA here.")
        best = "mps" if torch.backends.mps.is_available() else "cpu"
        logger.info("torch finds no CUDA here: running on %s", best)
        return best
    return asked or default


class Predictor:
    """Segments one image at a time by the words of a vocabulary, which may change at any time."""

    def __init__(self, cfg: CfgNode, class_names: Sequence[str] | None = None) -> None:
        """Build the model and load its weights (MODEL.WEIGHTS).

        Args:
            cfg: see `load_config`.
            class_names: the vocabulary; synonyms of a class are parted by ", ". None takes the
                config's.

        Raises:
            ValueError: if no weights are named, or they cannot be had or do not fit.
        """
        if not cfg.MODEL.WEIGHTS:
            raise ValueError(
                "MODEL.WEIGHTS is empty; give a file, a URL or hf://owner/repo/file, such as "
                "hf://hamacojr/CAT-Seg/model_final_base.pth."
            )
        weights = local_weights(cfg.MODEL.WEIGHTS)  # whatever is wrong with them shows at once
        self.model: CATSeg = build_model(cfg).eval()
        self.model.labels_only = True  # a large image with many classes need not fit in memory
        CATSegCheckpointer(self.model).load(str(weights))
        if class_names is not None:
            self.set_vocabulary(class_names)
        smallest = cfg.INPUT.MIN_SIZE_TEST
        self.resize = T.ResizeShortestEdge([smallest, smallest], cfg.INPUT.MAX_SIZE_TEST)

    @property
    def class_names(self) -> list[str]:
        """The names in use; a label is an index into them."""
        return list(self.model.class_names)

    def set_vocabulary(self, class_names: Sequence[str]) -> None:
        """Segment by these T names from now on."""
        self.model.set_vocabulary(list(class_names))

    @torch.no_grad()
    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Segment an image.

        Args:
            image: (H, W, 3) uint8, RGB.

        Returns:
            (H, W) int64, the class of each pixel: an index into `class_names`.
        """
        height, width = image.shape[:2]
        resized = self.resize.get_transform(image).apply_image(image)
        tensor = torch.from_numpy(np.ascontiguousarray(resized.transpose(2, 0, 1)))  # (3, h, w)
        result = self.model([{"image": tensor, "height": height, "width": width}])[0]
        return result["labels"].cpu().numpy()
