"""A model as a file that runs without this package: ONNX, `torch.export`, AOTInductor.

The graph takes crops (B, 3, h, w), RGB in 0..255, and text features (T, P, D), and gives logits
(B, T, 4 H, 4 W); B, T, h and w are free. Cutting tiles and merging them is NumPy,
`cat_seg.export.runner`, which is written beside the file.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cat_seg.errors import CATSegError, MissingPackageError
from cat_seg.export import runner
from cat_seg.model import CATSeg
from cat_seg.modeling.aggregator import Aggregator
from cat_seg.modeling.clip import OpenClip
from cat_seg.utils.files import atomic_write
from cat_seg.vocabulary import Vocabulary

# Name -> what it is written as. All but "pt2" and "aoti" run in onnxruntime.
FORMATS = {
    "onnx": "model.onnx",
    "fp16": "model_fp16.onnx",
    "int8": "model_int8.onnx",
    "pt2": "model.pt2",
    "aoti": "model_aoti.pt2",
}
TOLERANCE = 1e-4  # of probabilities, between PyTorch and a float32 file


@dataclass
class Exported:
    """A file, and how far its probabilities are from PyTorch's.

    Attributes:
        path: of the file.
        difference: the largest; of images of noise and two vocabularies.
    """

    path: Path
    difference: float


class ExportedNetwork(nn.Module):
    """The network as it is exported: logits of crops of any size. It takes the model apart."""

    def __init__(self, model: CATSeg) -> None:
        super().__init__()
        self.model = model
        H, W = model.grid
        patch = model.predictor.clip_model.sizes.patch_size
        self.clip_size = (H * patch, W * patch)
        self.backbone_size = (H * model.stride, W * model.stride)
        # Texts come in encoded.
        clip_model: Any = model.predictor.clip_model
        if isinstance(clip_model, OpenClip):
            clip_model.token_embedding = nn.Embedding(1, clip_model.token_embedding.embedding_dim)
            clip_model.transformer.resblocks = nn.ModuleList(clip_model.transformer.resblocks[:1])

    def forward(self, images: Tensor, text: Tensor) -> Tensor:
        """Compute logits.

        Args:
            images: (B, 3, h, w), RGB in 0..255.
            text: (T, P, D) text features.

        Returns:
            (B, T, 4 H, 4 W)
        """
        model, aggregator = self.model, self.model.predictor.transformer
        assert isinstance(aggregator, Aggregator)  # which `export` checks
        clip = (images - model.clip_pixel_mean) / model.clip_pixel_std
        clip = F.interpolate(clip, self.clip_size, mode="bilinear", align_corners=False)
        backbone = None
        if model.backbone is not None:
            backbone = (images - model.pixel_mean) / model.pixel_std
            backbone = F.interpolate(
                backbone, self.backbone_size, mode="bilinear", align_corners=False
            )
        dense, guidance = model.encode_crops(clip, backbone)
        features = aggregator.unit_features(dense)
        words = aggregator.project_text(text)
        _, logits = aggregator.aggregate(features, text, words, guidance, None, overwrite=False)
        return logits


def most_words(model: CATSeg) -> int | None:
    """Return how many words the file takes at once; None for any number.

    Above, the 2024 models choose words for each crop, which is left to this package.
    """
    limits = [n for n in (model.config.max_classes, model.config.class_padding - 1) if n > 0]
    return min(limits, default=None)


def export(
    model: CATSeg,
    folder: str | Path,
    words: Vocabulary,
    *,
    formats: Sequence[str] = ("onnx", "pt2"),
    threshold: float | None = None,
) -> list[Exported]:
    """Write a model and words as files that run without this package.

    Written are the formats' files (see `FORMATS`), model.json (sizes and tiles), words.npz (text
    features, names and threshold; others by `export_words`) and segment.py, which runs them.

    Args:
        model: on CPU.
        folder: made if missing.
        words: encoded by the model.
        formats: names of `FORMATS`; "fp16" and "int8" change labels.
        threshold: see `CATSeg.predict`.

    Returns:
        a line for each file, checked against PyTorch.

    Raises:
        CATSegError: if the model pads images or is training-free, there are too many words, a
            format is unknown, or a float32 file differs from PyTorch by more than `TOLERANCE`.
        MissingPackageError: if packages are missing.
    """
    if unknown := [name for name in formats if name not in FORMATS]:
        raise CATSegError(f"{unknown[0]!r} is no format; expected of {', '.join(FORMATS)}.")
    if model.config.training_free:
        raise CATSegError("A training-free model cannot be exported; take one with an aggregator.")
    tiles = model.plan.sliding_window
    if tiles is None and model.config.size_divisibility > 1:
        raise CATSegError(
            "Without sliding window this model pads images, which an exported one cannot; "
            "give it its sliding_window."
        )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    network = ExportedNetwork(copy.deepcopy(model).cpu().requires_grad_(False)).eval()
    with _quiet(), tempfile.TemporaryDirectory(dir=folder) as place:
        made = _write(formats, network, words, Path(place))
        for file in Path(place).iterdir():
            if file.name.startswith(tuple(Path(FORMATS[name]).stem for name in formats)):
                os.replace(file, folder / file.name)
    runs = [FORMATS[name] for name in ("onnx", "fp16", "int8") if name in formats]
    about = {
        "file": next(iter(runs), None),
        "model": model.card["name"],
        "tile": tiles.kernel if tiles else 0,
        "resolution": tiles.resolution if tiles else 0,
        "corners": tiles.corners if tiles else [],
        "min_size": model.config.min_size,
        "max_size": model.config.max_size,
        "most_words": most_words(model),
    }
    with atomic_write(folder / "model.json") as part:
        part.write_text(json.dumps(about, indent=2) + "\n", "utf-8")
    with atomic_write(folder / "segment.py") as part:
        shutil.copyfile(runner.__file__, part)
    export_words(model, folder, words, threshold=threshold)
    return [Exported(folder / FORMATS[name], made[name]) for name in formats]


def export_words(
    model: CATSeg, folder: str | Path, words: Vocabulary, *, threshold: float | None = None
) -> Path:
    """Write words for an exported model: words.npz with features, names and threshold.

    Raises:
        CATSegError: if there are more than the file takes.
    """
    most = most_words(model)
    names = [*words.names, *words.background]
    if most is not None and len(names) > most:
        raise CATSegError(f"{len(names)} words; an export of this model takes at most {most}.")
    assert words.features is not None, "encode the words with model.vocabulary"
    path = Path(folder) / "words.npz"
    with atomic_write(path) as part:
        np.savez(
            part,
            features=words.features.float().cpu().numpy(),
            names=np.array(names),
            threshold=model.threshold if threshold is None else threshold,
        )
    return path


def _program(network: ExportedNetwork) -> torch.export.ExportedProgram:
    images, text = _example(network, classes=3, images=2, size=(96, 112))
    free = torch.export.Dim.DYNAMIC
    with torch.no_grad():
        return torch.export.export(
            network, (images, text), dynamic_shapes=({0: free, 2: free, 3: free}, {0: free})
        )


def _example(
    network: ExportedNetwork, *, classes: int, images: int, size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Return images of noise, and random text features."""
    generator = torch.Generator().manual_seed(classes)
    predictor = network.model.predictor
    shape = (classes, len(predictor.templates), predictor.text_dim)
    text = F.normalize(torch.randn(shape, generator=generator), dim=-1)
    return 255 * torch.rand(images, 3, *size, generator=generator), text


def _write(
    formats: Sequence[str], network: ExportedNetwork, words: Vocabulary, folder: Path
) -> dict[str, float]:
    """Write files into a folder of their own, and return each one's difference from PyTorch.

    The weights of a large ONNX model lie in a file beside it, whose name is written into it.
    """
    program = _program(network)
    if set(formats) & {"onnx", "fp16", "int8"}:
        _write_onnx(formats, program, folder)
    differences = {}
    for name in formats:
        path = folder / FORMATS[name]
        run: Callable[..., Any]
        if name == "pt2":
            torch.export.save(program, path)
            run = program.module()
        elif name == "aoti":
            torch._inductor.aoti_compile_and_package(program, package_path=str(path))
            run = torch._inductor.aoti_load_package(str(path))
        else:
            run = _session(path)
        differences[name] = _difference(network, run, words)
        if name not in ("fp16", "int8") and not differences[name] < TOLERANCE:
            raise CATSegError(
                f"{path.name} was not written: its probabilities are up to "
                f"{differences[name]:.2g} from PyTorch's; expected less than {TOLERANCE:g}. The "
                "versions of torch and onnx may not fit together."
            )
    return differences


def _write_onnx(
    formats: Sequence[str], program: torch.export.ExportedProgram, folder: Path
) -> None:
    onnx, _ = _packages()
    exported = torch.onnx.export(
        program, dynamo=True, input_names=["images", "text"], output_names=["logits"]
    )
    assert exported is not None
    plain = folder / FORMATS["onnx"]
    exported.save(str(plain))
    if "fp16" in formats:
        from onnxruntime.transformers.float16 import convert_float_to_float16

        half = convert_float_to_float16(onnx.load(plain), keep_io_types=True)
        onnx.save(half, folder / FORMATS["fp16"])
    if "int8" in formats:
        from onnxruntime.quantization import QuantType, quantize_dynamic

        quantize_dynamic(
            plain,
            folder / FORMATS["int8"],
            weight_type=QuantType.QInt8,
            op_types_to_quantize=["MatMul"],
        )
    if "onnx" not in formats:
        plain.unlink()


def _session(path: Path) -> Callable[[Tensor, Tensor], Tensor]:
    _, onnxruntime = _packages()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])

    def run(images: Tensor, text: Tensor) -> Tensor:
        (logits,) = session.run(None, {"images": images.numpy(), "text": text.numpy()})
        return torch.from_numpy(logits)

    return run


@torch.no_grad()
def _difference(network: ExportedNetwork, run: Callable[..., Tensor], words: Vocabulary) -> float:
    """Return the largest difference of probabilities of what two calls return."""
    assert words.features is not None
    found = []
    one, many = (_example(network, classes=n, images=i, size=(n, 130)) for n, i in ((2, 3), (9, 1)))
    for images, text in (one, (many[0], words.features.float().cpu())):
        images = F.interpolate(images, (128, 150))
        expected, got = network(images, text).sigmoid(), run(images, text).sigmoid()
        found.append((expected - got).abs().max().item())
    return float(max(found))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep exporters from telling their progress."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        before = logging.root.manager.disable
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(before)


def _packages() -> tuple[Any, Any]:
    """Import onnx and onnxruntime, and what PyTorch's exporter needs."""
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        missing = error.name or "onnx"
        raise MissingPackageError.of_extra("Exports to ONNX", missing, "export") from error
    return onnx, onnxruntime
