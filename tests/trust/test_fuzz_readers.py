"""Damaged and forged files of every other kind by the hundred: only CATSegError leaves a reader.

With tests/trust/test_fuzz_weights.py, more than 2000 mutations from fixed seeds. `python -m
tests.campaign` goes on with others.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cat_seg.cli.ledger import Ledger
from cat_seg.errors import CATSegError
from cat_seg.images import read
from cat_seg.label_maps import read_colors, read_label_map
from cat_seg.modeling.text_embedding import _read_cache, _write_cache
from cat_seg.plugin.run_folder import RunFolder
from cat_seg.segmentation import Segmentation, save_label_map
from cat_seg.trust.text import read_config, read_json
from cat_seg.vocabulary import Vocabulary
from tests.trust.test_fuzz_weights import mutated

MUTATIONS = 100  # of each kind of file

LABELS = np.arange(60).reshape(6, 10) % 4
PIXELS = np.random.default_rng(0).integers(0, 256, (12, 10, 3), dtype=np.uint8)
NAMES = ["cat", "sofa, couch", "window", "tree"]
YAML = """_BASE_: [base.yaml]
MODEL: &a
  WEIGHTS: "x"
  PIXEL_MEAN: [1.0, 2e3, .5]
  DATE: 2024-01-02
OTHER: {<<: *a, ON: yes, NONE: ~}
TEXT: |
  two
  lines
"""


@dataclass(frozen=True)
class Kind:
    """A kind of file: how a whole one is written, and who reads it."""

    name: str
    suffix: str
    write: Callable[[Path], Any]
    read: Callable[[Path], Any]


def picture(format_: str, mode: str = "RGB") -> Callable[[Path], None]:
    def write(path: Path) -> None:
        exif = Image.Exif()
        exif[0x0112] = 6
        options = {"exif": exif} if format_ in ("JPEG", "PNG", "WEBP", "TIFF") else {}
        Image.fromarray(PIXELS).convert(mode).save(path, format_, **options)

    return write


def text(content: str, encoding: str = "utf-8") -> Callable[[Path], None]:
    return lambda path: path.write_bytes(content.encode(encoding))


def config(path: Path) -> None:
    path.with_name("base.yaml").write_text("A: 1\n")
    path.write_text(YAML)


def vocabulary(path: Path) -> None:
    Vocabulary.parse(NAMES).save(path)


def ledger(path: Path) -> None:
    picture_ = path.with_name("a.png")
    with Ledger(path.parent) as record:
        record.begin(Path("a"), [picture_])
        picture_.write_bytes(b"1")
        record.finish(Path("a"), [picture_], {"settings": "x"}, {"areas": {}})


def use_ledger(path: Path) -> None:
    record = Ledger(path.parent)
    record.result(Path("a"), {"settings": "x"})
    record.wrote(path.with_name("a.png"))


def run_record(path: Path) -> None:
    RunFolder(path.parent, path.stem).begin({"SOLVER.BASE_LR": 0.1}, keep=False)


def use_run_record(path: Path) -> None:
    RunFolder(path.parent, path.stem).differences({"SOLVER.BASE_LR": 0.2})


KINDS = [
    *(Kind(f.lower(), f".{f.lower()}", picture(f), read) for f in
      ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "TGA")),
    Kind("png of 16 bits", ".png", lambda p: Image.fromarray(PIXELS[..., 0].astype(np.uint16))
         .save(p), read),
    Kind("png with a palette", ".png", picture("PNG", "P"), read),
    Kind("label map", ".png", lambda p: save_label_map(p, LABELS, NAMES), read_label_map),
    Kind("colours", ".png", picture("PNG"), read_colors),
    Kind("names inside", ".png", lambda p: save_label_map(p, LABELS, NAMES), Segmentation.load),
    Kind("yaml", ".yaml", config, read_config),
    Kind("words as yaml", ".yaml", text("names:\n  0: cat\n  1: sofa\n"), Vocabulary.read),
    Kind("words as json", ".json", text(json.dumps(NAMES)), Vocabulary.read),
    Kind("words in utf-16", ".txt", text("\n".join(NAMES), "utf-16"), Vocabulary.read),
    Kind("words as a table", ".csv", text("id,name\n0,cat\n1,dog\n2,sofa\n"), Vocabulary.read),
    Kind("words as a dict of Python", ".txt", text("{0: 'cat', 1: ('a', 'b'), }"), Vocabulary.read),
    Kind("words with features", ".safetensors", vocabulary, Vocabulary.read),
    Kind("json", ".json", text(json.dumps({"a": [1, 2.5, None, "é"]})), read_json),
    Kind("text features", ".safetensors", lambda p: _write_cache(p, torch.ones(2, 3, 4)),
         _read_cache),
    Kind("ledger", ".jsonl", ledger, use_ledger),
    Kind("record of a run", ".json", run_record, use_run_record),
]  # fmt: skip


def try_kind(kind: Kind, folder: Path, rng: np.random.Generator, count: int) -> tuple[int, int]:
    """Read `count` mutations; anything but a result or a CATSegError passes on.

    Returns:
        How many were read, and how many told.
    """
    path = folder / f"{'cat-seg' if kind.name == 'ledger' else 'file'}{kind.suffix}"
    kind.write(path)
    content = path.read_bytes()
    kind.read(path)  # whole, it is read
    told = 0
    for _ in range(count):
        path.write_bytes(mutated(content, rng))
        try:
            kind.read(path)
        except CATSegError as error:
            told += 1
            assert "\n" not in str(error)[:80]
    return count - told, told


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_only_our_error_leaves_the_reader(tmp_path, kind):
    rng = np.random.default_rng(sum(kind.name.encode()))
    read_, told = try_kind(kind, tmp_path, rng, MUTATIONS)
    assert read_ + told == MUTATIONS


def test_a_changed_cache_is_never_believed(tmp_path):
    path = tmp_path / "file.safetensors"
    features = torch.rand(2, 3, 4)
    _write_cache(path, features)
    content, rng = path.read_bytes(), np.random.default_rng(0)
    for _ in range(MUTATIONS):
        path.write_bytes(mutated(content, rng))
        found = _read_cache(path)
        assert found is None or torch.equal(found, features)


def test_a_label_map_comes_back_or_is_told(tmp_path):
    """Its pixels are kept by zlib's sum, its text by a CRC-32."""
    path = tmp_path / "file.png"
    save_label_map(path, LABELS, NAMES)
    content = path.read_bytes()
    flipped = 0
    for at in range(8, len(content), 3):
        path.write_bytes(content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :])
        try:
            found = Segmentation.load(path)
        except CATSegError:
            continue
        flipped += not np.array_equal(found.labels, LABELS)
    assert flipped == 0


def test_a_picture_in_memory_is_read_like_a_file():
    rng, file = np.random.default_rng(0), io.BytesIO()
    Image.fromarray(PIXELS).save(file, "PNG")
    for _ in range(MUTATIONS):
        try:
            assert read(mutated(file.getvalue(), rng)).dtype == np.uint8
        except CATSegError as error:
            assert str(error).startswith("The picture (bytes)")
