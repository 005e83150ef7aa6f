"""DetectionCheckpointer."""

from __future__ import annotations

import logging
from typing import Any

import torch
from fvcore.common.checkpoint import Checkpointer
from torch import nn

from cat_seg.trust.weights import read_file

from ..utils import comm
from ..utils.file_io import PathManager


class DetectionCheckpointer(Checkpointer):
    """fvcore's checkpointer, which writes on the main process only, and also reads .pkl files."""

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        save_to_disk: bool | None = None,
        **checkpointables: Any,
    ):
        """Keep what is to be saved.

        Args:
            model: the model, or one wrapped for several processes.
            save_dir: folder of the checkpoints.
            save_to_disk: whether this process writes; None lets the main process write.
            **checkpointables: other objects with `state_dict` and `load_state_dict`.
        """
        if save_to_disk is None:
            save_to_disk = comm.is_main_process()
        super().__init__(model, save_dir, save_to_disk=save_to_disk, **checkpointables)
        self.path_manager = PathManager

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Load a path or URL; "" for nothing. Arguments and result are those of `Checkpointer`."""
        logging.getLogger(__name__).info(f"[DetectionCheckpointer] Loading from {path} ...")
        return super().load(path, *args, **kwargs)

    def _load_file(self, filename: str) -> dict[str, Any]:
        """Read {"model": weights by name, ...}, executing nothing that the file may hold."""
        if filename.endswith(".pkl"):
            content = read_file(filename)
        else:
            content = torch.load(filename, map_location="cpu", weights_only=True)
        return content if "model" in content else {"model": content}

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        incompatible = super()._load_model(checkpoint)
        # Normalisation comes from the config; checkpoints need not hold it.
        derived = {"pixel_mean", "pixel_std"} & dict(self.model.named_buffers()).keys()
        for name in derived & set(incompatible.missing_keys):
            incompatible.missing_keys.remove(name)
        return incompatible
