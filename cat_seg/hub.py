"""The published models, and how any model is found by what a person calls it."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from huggingface_hub import snapshot_download

from cat_seg.class_lists import published_results
from cat_seg.errors import CATSegError
from cat_seg.utils.files import FetchError, fetch

SAVED_FILES = ("config.json", "model.safetensors")  # of a folder by `save_pretrained`
_PACKAGE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class PublishedModel:
    """One row of `list_models`.

    Attributes:
        name: for `CATSeg.from_pretrained`.
        year: of the generation.
        encoder: CLIP.
        guidance: what guides the aggregation.
        parameters: of the whole model; None where nobody has counted them.
        address: where the weights come from; empty for those that ship.
        photographs: whether it knows photographs.
        licence: what is known of the weights' terms.
    """

    name: str
    year: int
    encoder: str
    guidance: str
    parameters: int | None = None
    address: str = ""
    photographs: bool = True
    licence: str = "the authors' terms, see the address"

    @cached_property
    def miou(self) -> dict[str, float]:
        """The published mIoU by registered dataset, in percent; empty where none is published."""
        for row in published_results():
            if str(row["generation"]) == str(self.year) and row["clip"] == self.encoder:
                return dict(row["mIoU"]) if self.photographs else {}
        return {}

    def __str__(self) -> str:
        count = f"{self.parameters / 1e6:.0f} M" if self.parameters else "-"
        ade = self.miou.get("ade20k_150_test_sem_seg")
        figure = "-" if ade is None else f"{ade}"
        return (
            f"{self.name:<12} {self.year}  {self.encoder:<14} {self.guidance:<12} {count:>6}  "
            f"A-150 {figure:>5}  {self.address or 'ships'}"
        )


_2023 = "hf://hamacojr/CAT-Seg/model_final_{}.pth"
_2024 = "hf://spaces/hamacojr/CAT-Seg-weights/model_{}.pth"

MODELS: dict[str, PublishedModel] = {
    model.name: model
    for model in (
        PublishedModel(
            "synthetic", 2023, "small ViT", "small Swin", None, "", False, "MIT, as the code"
        ),
        PublishedModel("base-2024", 2024, "ViT-B/16", "CLIP", None, _2024.format("base")),
        PublishedModel("large-2024", 2024, "ViT-L/14@336", "CLIP", None, _2024.format("large")),
        PublishedModel("base-2023", 2023, "ViT-B/16", "ResNet-101", None, _2023.format("base")),
        PublishedModel("large-2023", 2023, "ViT-L/14@336", "Swin-B", None, _2023.format("large")),
        PublishedModel("huge-2023", 2023, "ViT-H/14", "Swin-B", None, _2023.format("huge")),
        PublishedModel("giant-2023", 2023, "ViT-bigG/14", "Swin-B", None, _2023.format("giant")),
    )
}


@dataclass(frozen=True)
class Source:
    """Where a model lies on this machine."""

    kind: str  # "folder" (of `save_pretrained`) or "file" (a checkpoint)
    path: Path
    name: str | None = None  # of the published model, if it is one


def list_models() -> list[PublishedModel]:
    """The published models, and the small one that ships."""
    return list(MODELS.values())


def resolve(source: str | Path) -> Source:
    """Find a model, and fetch it if need be.

    Args:
        source: a name of `list_models`, a folder, a checkpoint file, "owner/repo" on the hub, an
            hf:// address or a URL.

    Raises:
        CATSegError: if there is none, or it cannot be fetched.
    """
    name = str(source)
    if name in MODELS:
        if not MODELS[name].address:
            return Source("folder", _PACKAGE / "models" / name, name)
        return Source("file", _fetched(MODELS[name].address), name)
    if name.startswith(("hf://", "https://", "http://")):
        return Source("file", _fetched(name))
    path = Path(source).expanduser()
    if path.is_dir():
        if lacking := [file for file in SAVED_FILES if not (path / file).is_file()]:
            raise CATSegError(
                f"{path}: no {' and no '.join(lacking)} in this folder; expected one that "
                "`save_pretrained` wrote."
            )
        return Source("folder", path)
    if path.exists():
        return Source("file", path)
    if isinstance(source, str) and re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not path.suffix:
        return Source("folder", _snapshot(name))
    near = difflib.get_close_matches(name, MODELS, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(MODELS)},"
    raise CATSegError(
        f"{name!r} is no model: {hint} or a folder, a checkpoint file, or owner/repo on the hub."
    )


def _fetched(address: str) -> Path:
    try:
        return fetch(address)
    except FetchError as error:
        raise CATSegError(str(error)) from error


def _snapshot(repository: str) -> Path:
    """The saved model of a repository on the hub, fetched once."""
    try:
        return Path(snapshot_download(repository, allow_patterns=[*SAVED_FILES, "README.md"]))
    except Exception as error:  # the hub's client and what lies beneath raise many
        raise CATSegError(
            f"{repository}: cannot be fetched from the hub ({type(error).__name__}: "
            f"{str(error).splitlines()[0]}); download it by other means and give the folder's path."
        ) from error
