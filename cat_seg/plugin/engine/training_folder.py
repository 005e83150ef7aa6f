"""Who may train in a folder: a new run in a new one, and a run that goes on in its own."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog

from cat_seg.errors import CATSegError
from cat_seg.plugin.checkpointer import local_weights
from cat_seg.plugin.data.vocabulary import training_vocabulary
from cat_seg.plugin.run_folder import RunFolder, digest_of, refuse, settings
from cat_seg.utils.files import digest

_TEST_ONLY = re.compile(r"INPUT\..*_TEST|MODEL\.SEM_SEG_HEAD\.TEST_CLASS_JSON")


def training_facts(cfg: CfgNode) -> dict[str, Any]:
    """What decides the results of a training: settings, weights, words, and data by their state."""
    facts = settings(cfg, "SEED", "INPUT", "MODEL", "SOLVER", "DATASETS")
    facts = {key: value for key, value in facts.items() if not _TEST_ONLY.fullmatch(key)}
    if cfg.MODEL.WEIGHTS:
        facts["weights"] = digest(local_weights(cfg.MODEL.WEIGHTS))
    names = list(cfg.DATASETS.TRAIN)
    facts["words"] = training_vocabulary(cfg.MODEL.SEM_SEG_HEAD.TRAIN_CLASS_JSON, names).names
    files = []
    for name in names:
        for record in DatasetCatalog.get(name):
            pair = Path(record["file_name"]), Path(record["sem_seg_file_name"])
            files.append([[path.name, *_state(path)] for path in pair])
    facts["data"] = digest_of(files)
    return facts


def check_folder(folder: RunFolder, *, resume: bool, overwrite: bool) -> None:
    """Check that a new training meets no old one.

    Raises:
        CATSegError: if it does.
    """
    found = sorted(path.name for path in folder.folder.glob("model_*.pth"))
    strange = [name for name in found if name not in folder.wrote]
    if resume or not found or (overwrite and not strange):
        return
    some = ", ".join((strange if overwrite else found)[-3:])
    replace = "" if overwrite else "replace it by --overwrite, "
    whose = ", which no record lists" if overwrite else ""
    raise CATSegError(
        f"OUTPUT_DIR {folder.folder} holds an earlier training ({some}{whose}): go on with it by "
        f"--resume, {replace}or choose another OUTPUT_DIR."
    )


def begin_training(
    folder: RunFolder, facts: dict[str, Any], *, resume: bool, overwrite: bool, changed: bool
) -> list[str]:
    """Record a training in its folder, which this process holds.

    Args:
        folder: of the run.
        facts: see `training_facts`.
        resume: whether it goes on with what is there, if something is.
        overwrite: whether a new one replaces what is there.
        changed: whether it may go on though facts differ.

    Returns:
        What is to be told in the log, which is not there yet.

    Raises:
        CATSegError: if another run is there.
    """
    check_folder(folder, resume=resume, overwrite=overwrite)
    notes: list[str] = []
    goes_on = resume and any(folder.folder.glob("model_*.pth"))
    if goes_on and folder.facts is None:
        notes.append(f"{folder.folder} has no record of its run: goes on unchecked")
    elif goes_on:
        differences = folder.differences(facts)
        advice = "Give what it had, or go on with the new by --changed."
        if not changed:
            refuse(folder.folder, differences, advice)
        notes += [f"Goes on with another {difference}" for difference in differences]
    elif overwrite:
        folder.remove(*folder.wrote)
        (folder.folder / "last_checkpoint").unlink(missing_ok=True)
    folder.begin(facts, keep=goes_on)
    return notes


def _state(path: Path) -> list[int]:
    try:
        status = path.stat()
    except OSError:
        return []
    return [status.st_size, status.st_mtime_ns]
