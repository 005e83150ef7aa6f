"""Exported files compute what PyTorch computes, with any words, and without this package."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from cat_seg import CATSeg, CATSegError, Vocabulary
from cat_seg.cli.main import main
from cat_seg.export import export, export_words, most_words, runner
from cat_seg.model_config import GENERATIONS
from cat_seg.resources import resource
from cat_seg.synthetic.dataset import split_scene

WORDS = ["sky", "water", "grass", "red plain circle", "brick wall", "sand", "snow"]


def small_model(year: int) -> CATSeg:
    """A model of a generation as large as the one that ships, but less deep; random weights."""
    torch.manual_seed(1)
    layers = {2023: 1, 2024: 3}[year]
    clip = json.loads(resource("cat_seg/synthetic/clip.json").read_text())
    clip["vision_cfg"]["layers"] = layers
    swin = {"embed_dim": 32, "num_heads": [2, 4, 8], "window_size": 8, "patch_size": 2}
    config = dataclasses.replace(
        CATSeg.from_pretrained("synthetic", "cpu").config,
        **GENERATIONS[year],
        **{"clip": clip, "grid": (16, 16), "guidance_layers": ()},
        swin={**swin, "depths": [1, 1, 1]} if year == 2023 else None,
    )
    if year == 2024:
        config = dataclasses.replace(config, min_size=160, sliding_window=(128, 0.5, 192))
    model = CATSeg(config).eval()
    for parameter in model.parameters():  # so that classes differ
        parameter.data.add_(0.02 * torch.randn_like(parameter))
    return model


@pytest.mark.slow
@pytest.mark.parametrize("year", [2023, 2024])
def test_files_compute_what_pytorch_computes(tmp_path: Path, year: int):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model = small_model(year)
    picture = split_scene("val", 3, seed=5, size=150).image[:, :130]
    formats = ["onnx", "fp16", "int8"] if year == 2023 else ["onnx", "pt2"]
    made = export(model, tmp_path, model.vocabulary(WORDS[:3]), formats=formats)
    differences = {one.path.name: one.difference for one in made}
    assert differences["model.onnx"] < 1e-4
    about = json.loads((tmp_path / "model.json").read_text())
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    for count in (1, 2, 7):
        words = model.vocabulary(WORDS[:count])
        result = model.predict(picture, words)
        expected = np.stack([result.probabilities(name) for name in result.classes])
        got = runner.probabilities(session, about, picture, words.features.numpy())
        assert got.shape == expected.shape == (count, 150, 130)
        assert np.abs(got - expected).max() < 1e-4
    if year == 2024:
        assert differences["model.pt2"] < 1e-4
        program = torch.export.load(tmp_path / "model.pt2").module()
        with torch.no_grad():
            images = 255 * torch.rand(1, 3, 128, 128)
            expected = model(images, words.features)
            got = program(images, words.features)
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)
    else:
        assert 0 < differences["model_fp16.onnx"] < 0.05 and differences["model_int8.onnx"] > 0
        sizes = [(tmp_path / f"model{end}.onnx").stat().st_size for end in ("", "_fp16", "_int8")]
        assert sizes[1] < 0.8 * sizes[0] and sizes[2] < 0.8 * sizes[0]
    Image.fromarray(picture).save(tmp_path / "photo.png")
    export_words(model, tmp_path, words, threshold=0.2)
    command = [sys.executable, "-I", "-c", _ALONE, "photo.png", "labels.png"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    expected = model.predict(picture, words, threshold=0.2).labels
    found = np.asarray(Image.open(tmp_path / "labels.png")).astype(int)
    found[found == 255] = -1
    assert (found != expected).mean() < 0.001


_ALONE = """
import runpy, sys
sys.modules["torch"] = sys.modules["cat_seg"] = None  # none of them can be imported
sys.argv = ["segment.py", *sys.argv[1:]]
runpy.run_path("segment.py", run_name="__main__")
"""


@pytest.mark.parametrize(("count", "none"), [(255, 255), (300, 65535)])
def test_no_label_of_the_runner_wraps_round(count: int, none: int):
    maps = np.zeros((count, 1, 2), np.float32)
    maps[count - 1, 0, 0] = 0.9
    assert runner.best(maps, 0.5).tolist() == [[count - 1, none]]
    with pytest.raises(ValueError, match="65536 words"):
        runner.best(np.zeros((65536, 1, 1), np.float32), 0.5)


@pytest.mark.parametrize("size", [(13, 40), (64, 7), (20, 20)])
def test_the_runner_resizes_as_pytorch_does(size: tuple[int, int]):
    maps = np.random.default_rng(0).random((3, 20, 20), np.float32)
    expected = F.interpolate(torch.from_numpy(maps)[None], size, mode="bilinear")[0]
    np.testing.assert_allclose(runner.resize(maps, size), expected, atol=1e-5)


def test_mistakes_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    model = small_model(2024)
    assert most_words(model) == 255 and most_words(small_model(2023)) is None
    parsed = Vocabulary.parse([f"word {i}" for i in range(256)])
    words = dataclasses.replace(parsed, features=torch.zeros(256, 8, 64))
    with pytest.raises(CATSegError, match="256 words; an export of this model takes at most 255"):
        export_words(model, tmp_path, words)
    with pytest.raises(CATSegError, match="'tflite' is no format; expected of onnx, fp16"):
        export(model, tmp_path, words, formats=["tflite"])
    model.plan = dataclasses.replace(model.plan, sliding_window=None)
    model.config = dataclasses.replace(model.config, size_divisibility=32)
    with pytest.raises(CATSegError, match="pads images"):
        export(model, tmp_path, words)
    assert main(["export", "-o", str(tmp_path), "--words", "a, b", "--words-only"]) == 0
    assert "words.npz: 2 words" in capsys.readouterr().out
    assert np.load(tmp_path / "words.npz")["names"].tolist() == ["a", "b"]


def test_what_is_missing_is_named_with_the_command(monkeypatch: pytest.MonkeyPatch):
    from cat_seg.export import _packages

    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(CATSegError, match=r"onnxscript, .* pip install 'cat-seg\[export\]'"):
        _packages()
