"""The table of published models, and how any model is found by what a person calls it."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from huggingface_hub import snapshot_download
from huggingface_hub.utils import RepositoryNotFoundError, RevisionNotFoundError

from cat_seg.class_lists import published_results
from cat_seg.errors import CATSegError
from cat_seg.resources import resource, user_path
from cat_seg.utils.files import fetch

SAVED_FILES = ("config.json", "model.safetensors")  # of a folder that `save_pretrained` wrote
_ADE150 = "ade20k_150_test_sem_seg"  # the benchmark that the table shows
_REPOSITORY = re.compile(  # of models on the hub: by name, as hf://, or copied from the browser
    r"(?P<scheme>hf://|https://huggingface\.co/)?"
    r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)"
    r"(?:(?:@|/tree/)(?P<revision>[^/?#@]+))?/?",
    re.ASCII,
)
_EXPECTED = "a folder of `save_pretrained`, a checkpoint file, a URL, hf://... or owner/repo"
_FILE_SUFFIXES = (".pth", ".pt", ".ckpt", ".bin", ".pkl", ".safetensors", ".json", ".yaml")


@dataclass(frozen=True)
class PublishedModel:
    """One row of `list_models`.

    Attributes:
        name: for `CATSeg.from_pretrained`.
        year: of the generation.
        encoder: CLIP.
        guidance: what guides the aggregation.
        parameters: of the whole model, CLIP's text encoder included; None where unknown.
        address: where the weights come from; empty for those that ship.
        download_bytes: size of the file at that address; None where unknown.
        photographs: whether it knows photographs.
        licence: what is known of the weights' terms.
    """

    name: str
    year: int
    encoder: str
    guidance: str
    parameters: int | None = None
    address: str = ""
    download_bytes: int | None = None
    photographs: bool = True
    licence: str = "the authors' terms, see the address"

    @cached_property
    def miou(self) -> dict[str, float]:
        """The published mIoU by registered dataset, in percent; empty where none is published."""
        for row in published_results():
            if row["generation"] == str(self.year) and row["clip"] == self.encoder:
                return dict(row["mIoU"])
        return {}

    def __str__(self) -> str:
        return "  ".join(cell for cell in self._cells() if cell != "-")

    def _cells(self) -> tuple[str, ...]:
        """Return what the table shows, in the order of `_HEADER`."""
        ade = self.miou.get(_ADE150)
        return (
            self.name,
            str(self.year),
            self.encoder,
            self.guidance,
            f"{self.parameters / 1e6:.0f} M" if self.parameters else "-",
            f"{self.download_bytes / 1e6:.0f} MB" if self.download_bytes else "-",
            f"{ade:.1f}" if ade else "-",
            "photographs" if self.photographs else "its synthetic world",
            self.address or "ships",
        )


_HEADER = (
    *("name", "year", "CLIP", "guidance", "parameters"),
    *("download", "A-150", "knows", "weights"),
)


class ModelList(list[PublishedModel]):
    """Models, shown as a table."""

    def __repr__(self) -> str:
        rows = [_HEADER, *(model._cells() for model in self)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


_2023 = "hf://hamacojr/CAT-Seg/model_final_{}.pth"
_2024 = "hf://spaces/hamacojr/CAT-Seg-weights/model_{}.pth"

MODELS: dict[str, PublishedModel] = {
    model.name: model
    for model in (
        PublishedModel(
            "synthetic",
            2023,
            "small ViT",
            "CLIP",
            5_849_554,
            photographs=False,
            licence="MIT, as the code",
        ),
        PublishedModel("base-2024", 2024, "ViT-B/16", "CLIP", 154_289_378, _2024.format("base")),
        PublishedModel(
            "large-2024", 2024, "ViT-L/14@336", "CLIP", 433_726_946, _2024.format("large")
        ),
        PublishedModel(
            "base-2023", 2023, "ViT-B/16", "ResNet-101", 180_559_266, _2023.format("base")
        ),
        PublishedModel(
            "large-2023", 2023, "ViT-L/14@336", "Swin-B", 490_331_674, _2023.format("large")
        ),
        PublishedModel(
            "huge-2023", 2023, "ViT-H/14", "Swin-B", 1_048_529_690, _2023.format("huge")
        ),
        PublishedModel(
            "giant-2023", 2023, "ViT-bigG/14", "Swin-B", 2_602_020_122, _2023.format("giant")
        ),
    )
}


@dataclass(frozen=True)
class Source:
    """Where a model lies on this machine.

    Attributes:
        kind: a "folder" that `save_pretrained` wrote, or a checkpoint "file".
        path: of the folder or file.
        name: of the published model, if it was asked for by name.
    """

    kind: Literal["folder", "file"]
    path: Path
    name: str | None = None


def list_models() -> ModelList:
    """List the published models, and the small one that ships; printed, it is a table."""
    return ModelList(MODELS.values())


def resolve(source: str | Path) -> Source:
    """Find a model, and fetch it if need be.

    Args:
        source: a name of `list_models` (for a folder of that name, write `./name`), a folder that
            `save_pretrained` wrote or a file in it, a checkpoint file, "owner/repo" on the hub
            ("owner/repo@revision" for another than the main one), an hf:// address, or a URL. What
            is here goes before what is on the hub.

    Raises:
        CATSegError: if there is no such model, or it cannot be fetched.
    """
    if not isinstance(source, str | Path) or not str(source).strip():
        raise CATSegError(f"{source!r} is no model: expected a name, {_EXPECTED}.")
    name = str(source)
    if name in MODELS:
        model = MODELS[name]
        if not model.address:
            return Source("folder", resource(f"cat_seg/models/{name}"), name)
        return Source("file", fetch(model.address), name)
    repository = _REPOSITORY.fullmatch(name) if isinstance(source, str) else None
    if repository and repository["scheme"]:
        return Source("folder", _snapshot(repository["repo"], repository["revision"]))
    if isinstance(source, str) and re.match(r"hf://|https?://", name):
        return Source("file", fetch(name))
    if here := _local(Path(source)):
        return here
    if repository and not name.lower().endswith(_FILE_SUFFIXES):
        return Source("folder", _snapshot(repository["repo"], repository["revision"]))
    near = difflib.get_close_matches(name.lower(), MODELS)
    hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
    raise CATSegError(
        f"{name!r} is no model, and no file or folder here: {hint}Expected one of "
        f"{', '.join(MODELS)}, {_EXPECTED}."
    )


def _local(path: Path) -> Source | None:
    """Return the model of a path on this machine; None if there is nothing."""
    try:
        path = user_path(path)
        if path.is_dir():
            if lacking := _lacking(path):
                raise CATSegError(
                    f"{path}: no {lacking} in this folder; expected one that `save_pretrained` "
                    "wrote."
                )
            return Source("folder", path)
        if path.name in SAVED_FILES and not _lacking(path.parent):
            return Source("folder", path.parent)
        if path.is_file():
            return Source("file", path)
        if path.exists():
            raise CATSegError(f"{path} is neither a file nor a folder; expected a model.")
    except OSError as error:  # no permission, too long a name
        raise CATSegError(f"{path}: cannot be looked at ({error}).") from error
    return None


def _lacking(folder: Path) -> str:
    return " and no ".join(file for file in SAVED_FILES if not (folder / file).is_file())


def _snapshot(repository: str, revision: str | None) -> Path:
    """Return the saved model of a repository on the hub, in the hub's cache."""
    try:
        files = [*SAVED_FILES, "README.md"]
        folder = Path(snapshot_download(repository, revision=revision, allow_patterns=files))
    except Exception as error:  # the hub's client, its HTTP library and the file system raise many
        if isinstance(error, RepositoryNotFoundError):
            problem = "no such repository, or a private one: log in by `hf auth login`"
        elif isinstance(error, RevisionNotFoundError):
            problem = f"no revision {revision!r}"
        else:
            problem = str(error).strip().partition("\n")[0] or type(error).__name__
        raise CATSegError(
            f"{repository}: no folder here, and cannot be fetched from the hub ({problem}). "
            f"Without a network, download {' and '.join(SAVED_FILES)} by other means and give "
            "their folder."
        ) from error
    if lacking := _lacking(folder):
        raise CATSegError(
            f"{repository}: no {lacking} in this repository of the hub; expected what "
            "`save_pretrained` writes. A checkpoint file is hf://owner/repo/file."
        )
    return folder
