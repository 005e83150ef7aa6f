"""CATSegCheckpointer: detectron2's, reading safely, reporting exactly and writing whole files."""

import logging
import re
from pathlib import Path
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils.file_io import PathManager
from torch import Tensor, nn

from cat_seg.conversion import BACKBONE, CLIP, describe, generation, holds_clip, to_model
from cat_seg.modeling.clip.build import load_clip_weights
from cat_seg.resources import project_file
from cat_seg.trust.weights import find_tensors, read_file
from cat_seg.utils.files import FetchError, atomic_write, fetch

logger = logging.getLogger(__name__)


class UnreadableError(ValueError):
    """A checkpoint is damaged, or no checkpoint."""


class CATSegCheckpointer(DetectionCheckpointer):
    """Loads released checkpoints, our own, and the pretrained weights that a training starts from.

    Where a checkpoint holds no CLIP, CLIP's own weights are loaded (the head's `clip_weights`).
    Files have detectron2's layout: {"model", the checkpointables' states, "iteration"}.
    """

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Loads weights, and the checkpointables' states that come with them.

        Args:
            path: A file (also of the project), a URL, or hf://owner/repo/file; empty for nothing
                but CLIP's weights.
            args: As of detectron2's.
            kwargs: As of detectron2's.

        Returns:
            What else the file holds.

        Raises:
            ValueError: The file cannot be had, is damaged, or does not fit the model.
        """
        if not path:
            _load_clip(self.model)
            return {}
        self._parsed_url_during_load = None  # detectron2's, left behind by a load that failed
        return super().load(str(local_weights(path)), *args, **kwargs)

    def _load_file(self, filename: str) -> dict[str, Any]:
        try:
            content = read_file(filename)
        except ValueError as error:
            raise UnreadableError(str(error)) from error
        try:
            tensors = find_tensors(content)
        except ValueError as error:
            raise UnreadableError(f"{filename}: {error}") from error
        rest = {k: v for k, v in content.items() if k != "model"} if "model" in content else {}
        return {**rest, "model": tensors, "file": filename}

    def _load_model(self, checkpoint: dict[str, Any]) -> None:
        file, state = checkpoint.pop("file"), checkpoint.pop("model")
        try:
            load_state(self.model, state)
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """Resumes from the newest readable checkpoint in `save_dir`, if any, else loads `path`.

        Raises:
            ValueError: There are checkpoints, but none can be read; or see `load`.
        """
        files = self._saved() if resume else []
        for file in files:
            try:
                return self.load(str(file))
            except UnreadableError as error:
                logger.warning("%s; going back to the checkpoint before it", error)
        if files:
            raise ValueError(
                f"{self.save_dir}: none of the {len(files)} checkpoints can be read; remove them "
                "to start anew"
            )
        return self.load(path, checkpointables=[])

    def has_checkpoint(self) -> bool:
        """Whether there is anything to resume from."""
        return bool(self._saved())

    def get_checkpoint_file(self) -> str:
        """The newest checkpoint in `save_dir`, or an empty string."""
        return str(next(iter(self._saved()), ""))

    def _saved(self) -> list[Path]:
        """Checkpoints in `save_dir`, the last written first."""
        files = Path(self.save_dir).glob("model_*.pth") if self.save_dir else []
        return sorted(files, key=lambda file: (file.stat().st_mtime_ns, file.name), reverse=True)

    def save(self, name: str, **kwargs: Any) -> None:
        """Writes `save_dir`/`name`.pth, which appears there only when it is complete."""
        if not self.save_dir or not self.save_to_disk:
            return
        states = {key: value.state_dict() for key, value in self.checkpointables.items()}
        path = Path(self.save_dir) / f"{name}.pth"
        for left in path.parent.glob(".model_*.pth"):  # by a run that was killed
            left.unlink()
        with atomic_write(path) as part:
            torch.save({"model": self.model.state_dict(), **states, **kwargs}, part)
        self.tag_last_checkpoint(path.name)
        logger.info("Saved checkpoint %s", path)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Notes the last checkpoint's name, for detectron2's tools."""
        with atomic_write(Path(self.save_dir) / "last_checkpoint") as part:
            part.write_text(last_filename_basename)


def local_weights(uri: str | Path) -> Path:
    """A local file for what MODEL.WEIGHTS names, fetched if need be.

    Args:
        uri: A file (also of the project), a URL, hf://owner/repo/file, or an address that
            detectron2 knows, such as detectron2://ImageNetPretrained/torchvision/R-101.pkl.

    Raises:
        ValueError: The file cannot be had.
    """
    uri = str(uri)
    if "://" not in uri:
        return fetch(project_file(uri))
    if uri.startswith(("http://", "https://", "hf://")):
        return fetch(uri)
    try:
        return fetch(PathManager.get_local_path(uri))
    except Exception as error:  # whatever the handler of such an address raises
        raise FetchError(
            f"Cannot fetch {uri} ({error}): give a local file's path instead"
        ) from error


def load_state(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Loads the tensors of a weight file into a CATSeg, and CLIP's where they are not among them.

    The report (log) names what the file lacks of the model, what the model has no place for, and
    what has another shape.

    Raises:
        ValueError: The file belongs to another generation, or a tensor is missing that is neither
            derivable nor meant to be trained from its start. The model is then as before.
    """
    expected = model.state_dict()
    state = to_model(state, expected)
    has, wants = generation(state), generation(expected)
    if has and wants and has != wants:
        raise ValueError(
            f"holds {describe(state)}, but the config builds {describe(expected)}. "
            "Choose a config of the checkpoint's generation"
        )
    misshaped = [
        f"{key} {tuple(state[key].shape)}, expected {tuple(expected[key].shape)}"
        for key in state
        if key in expected and state[key].shape != expected[key].shape
    ]
    unexpected = [key for key in state if key not in expected]
    missing = [key for key in expected if key not in state]
    fresh = [key for key in missing if _may_be_fresh(key, state)]
    lacking = [key for key in missing if key not in fresh]
    if misshaped or lacking:
        problems = _list("missing", lacking) + _list("of another shape", misshaped)
        problems += _list("unexpected", unexpected)
        belongs = ""
        if has:
            belongs = f" It holds {describe(state)}; the config builds {describe(expected)}."
        raise ValueError(f"does not fit the model.{belongs} " + "; ".join(problems))
    if not holds_clip(state):
        _load_clip(model, required=has is not None)
    model.load_state_dict(state, strict=False)
    loaded = len(state) - len(unexpected)
    logger.info("Loaded %d of the model's %d tensors", loaded, len(expected))
    for problem in _list("not in the file, left as they were", fresh):
        logger.info("Tensors %s", problem)
    for problem in _list("unexpected, not loaded", unexpected):
        logger.warning("Tensors %s", problem)


def _may_be_fresh(key: str, state: dict[str, Tensor]) -> bool:
    """Whether a missing tensor may keep its initial value: another part of the model's than the
    file's, or the norm of an output, which pretrained backbones do not have."""
    if key.startswith(CLIP):
        return not holds_clip(state)
    if generation(state):
        return False
    if key.startswith(BACKBONE):
        return holds_clip(state) or re.match(rf"{BACKBONE}norm\d+\.", key) is not None
    return True


def _load_clip(model: nn.Module, *, required: bool = False) -> None:
    """Loads CLIP's own weights."""
    predictor = getattr(getattr(model, "sem_seg_head", None), "predictor", None)
    if predictor is None:
        return  # a model without CLIP
    if source := getattr(predictor, "clip_weights", ""):
        load_clip_weights(predictor.clip_model, source)
    elif required:
        raise ValueError("holds no CLIP; name its weights by MODEL.SEM_SEG_HEAD.CLIP_WEIGHTS")
    else:
        logger.warning("No weights of CLIP are named (MODEL.SEM_SEG_HEAD.CLIP_WEIGHTS)")


def _list(what: str, names: list[str]) -> list[str]:
    return [f"{len(names)} {what}: {', '.join(names)}"] if names else []
