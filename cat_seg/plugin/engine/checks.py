"""Finding out before anything starts that data or weights are missing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog

from cat_seg.errors import CATSegError
from cat_seg.plugin.checkpointer import local_weights
from cat_seg.plugin.data.vocabulary import vocabulary_of
from cat_seg.plugin.evaluation import build_evaluator


def check_inputs(cfg: CfgNode, *, train: bool, resume: bool = False) -> None:
    """Check that the data sets and weights of a config are there; fetch the weights if need be.

    Args:
        cfg: of the run.
        train: whether it is a training; else it is an evaluation.
        resume: whether weights may come from OUTPUT_DIR instead.

    Raises:
        CATSegError: if something is missing, with what to do about it.
    """
    if cfg.MODEL.WEIGHTS:
        local_weights(cfg.MODEL.WEIGHTS)
    elif not train and not (resume and any(Path(cfg.OUTPUT_DIR).glob("model_*.pth"))):
        raise CATSegError(
            "MODEL.WEIGHTS is empty; name the weights to evaluate: a file, a URL or "
            "hf://owner/repo/file."
        )
    check_settings(cfg)
    head = cfg.MODEL.SEM_SEG_HEAD
    if train:
        _check_data("TRAIN", cfg.DATASETS.TRAIN, head.TRAIN_CLASS_JSON)
    if not train or cfg.DATASETS.TEST:
        _check_data("TEST", cfg.DATASETS.TEST, head.TEST_CLASS_JSON)
        for name in cfg.DATASETS.TEST:
            _check_evaluator(cfg, name)


def check_settings(cfg: CfgNode) -> None:
    """Check that no setting asks for what is not there.

    Raises:
        CATSegError: if one does.
    """
    if cfg.TEST.AUG.ENABLED:
        raise CATSegError(
            "TEST.AUG.ENABLED is True, but images are evaluated at one scale and without flips, as "
            "published; set it to False."
        )


def _check_evaluator(cfg: CfgNode, name: str) -> None:
    """Make the evaluator of a data set once, rather than fail at the first evaluation."""
    try:
        build_evaluator(cfg, name)
    except AttributeError as error:  # detectron2's, of metadata
        raise CATSegError(
            f"DATASETS.TEST names {name!r}, whose metadata lacks what an evaluation needs: "
            f"{' '.join(str(error).split())[:200]}"
        ) from error


def _check_data(key: str, names: Sequence[str], class_json: str) -> None:
    if not names:
        raise CATSegError(f"DATASETS.{key} is empty; name a data set.")
    for name in names:
        if name not in DatasetCatalog.list():
            raise CATSegError(
                f"DATASETS.{key} names {name!r}, which is not registered; expected one of "
                f"{', '.join(sorted(DatasetCatalog.list()))}, or a NAME of DATASETS.FOLDERS."
            )
        DatasetCatalog.get(name)
        expected, found = (len(vocabulary_of(path, [name])) for path in ("", class_json))
        if found != expected:
            raise CATSegError(
                f"MODEL.SEM_SEG_HEAD.{key}_CLASS_JSON {class_json} has {found} names, but {name} "
                f"has {expected} classes; leave it empty to take the data set's own names."
            )
