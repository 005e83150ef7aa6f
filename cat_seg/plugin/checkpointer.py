"""CATSegCheckpointer: detectron2's, reading safely, reporting exactly and writing whole files."""

import logging
from pathlib import Path
from typing import Any

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils.file_io import PathManager

from cat_seg.errors import CATSegError
from cat_seg.loading import load_clip, load_state
from cat_seg.resources import project_file
from cat_seg.trust.weights import find_tensors, read_file, write_weights
from cat_seg.utils.files import FetchError, atomic_write, fetch, remove_parts

logger = logging.getLogger(__name__)


class UnreadableError(CATSegError):
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
            CATSegError: The file cannot be had, is damaged, or does not fit the model.
        """
        if not path:
            load_clip(self.model, self._clip_weights)
            return {}
        self._parsed_url_during_load = None  # detectron2's, left behind by a load that failed
        return super().load(str(local_weights(path)), *args, **kwargs)

    @property
    def _clip_weights(self) -> str:
        head = getattr(self.model, "sem_seg_head", None)
        return getattr(head, "clip_weights", "")

    def _load_file(self, filename: str) -> dict[str, Any]:
        try:
            content = read_file(filename)
        except CATSegError as error:
            raise UnreadableError(str(error)) from error
        try:
            tensors = find_tensors(content)
        except CATSegError as error:
            raise UnreadableError(f"{filename}: {error}") from error
        rest = {k: v for k, v in content.items() if k != "model"} if "model" in content else {}
        return {**rest, "model": tensors, "file": filename}

    def _load_model(self, checkpoint: dict[str, Any]) -> None:
        file, state = checkpoint.pop("file"), checkpoint.pop("model")
        try:
            load_state(self.model, state, self._clip_weights)
        except CATSegError as error:
            raise CATSegError(f"{file}: {error}") from error

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """Resumes from the last readable checkpoint in `save_dir`, if any, else loads `path`.

        Raises:
            CATSegError: There are checkpoints, but none can be read; or see `load`.
        """
        files = self._saved() if resume else []
        for file in files:
            try:
                return self.load(str(file))
            except UnreadableError as error:
                logger.warning("%s; going back to the checkpoint before it", error)
        if files:
            raise CATSegError(
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
        """Checkpoints in `save_dir`: the one that `last_checkpoint` names, then by iteration.

        Times of files tell nothing: copying and unpacking changes their order.
        """
        if not self.save_dir:
            return []
        files = Path(self.save_dir).glob("model_*.pth")
        try:
            last = (Path(self.save_dir) / "last_checkpoint").read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            last = ""
        # "model_final" sorts behind all numbers, which have seven digits.
        return sorted(files, key=lambda f: (f.name == last, f.name), reverse=True)

    def save(self, name: str, **kwargs: Any) -> None:
        """Writes `save_dir`/`name`.pth, which appears there only when it is complete."""
        if not self.save_dir or not self.save_to_disk:
            return
        states = {key: value.state_dict() for key, value in self.checkpointables.items()}
        path = Path(self.save_dir) / f"{name}.pth"
        remove_parts(path.parent)
        write_weights({"model": self.model.state_dict(), **states, **kwargs}, path)
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
        CATSegError: The file cannot be had.
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
