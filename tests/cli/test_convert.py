"""python -m cat_seg.cli.convert"""

import sys

import pytest
import torch

from cat_seg.cli.convert import main
from cat_seg.conversion import to_released
from cat_seg.trust.weights import read_file, read_weights
from tests.golden import load_golden


def run(monkeypatch, *args):
    monkeypatch.setattr(sys, "argv", ["convert_checkpoint", *map(str, args)])
    main()


@pytest.mark.parametrize("name", ["swin_tiny", "clip_tiny"])
def test_there_and_back(tmp_path, monkeypatch, name):
    weights = load_golden(name).weights
    released = to_released(weights)
    torch.save({"model": released, "optimizer": {}}, tmp_path / "released.pth")
    run(monkeypatch, tmp_path / "released.pth", tmp_path / "ours.safetensors")
    ours = read_weights(tmp_path / "ours.safetensors")
    assert ours.keys() == weights.keys()
    run(monkeypatch, tmp_path / "ours.safetensors", tmp_path / "back.pth", "--to", "released")
    back = read_file(tmp_path / "back.pth")["model"]
    assert back.keys() == released.keys()
    assert all(torch.equal(back[key], value) for key, value in released.items())


def test_half_is_half_the_size(tmp_path, monkeypatch):
    torch.save(load_golden("clip_tiny").weights, tmp_path / "a.pth")
    run(monkeypatch, tmp_path / "a.pth", tmp_path / "b.safetensors", "--half")
    assert all(v.dtype == torch.float16 for v in read_weights(tmp_path / "b.safetensors").values())
    assert (tmp_path / "b.safetensors").stat().st_size < 0.55 * (tmp_path / "a.pth").stat().st_size


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        ("absent.pth", "b.pth", "absent.pth: no such file"),
        ("other.pth", "b.pth", "not a checkpoint of CAT-Seg"),
        ("other.pth", "b.txt", "ends in .pth or .safetensors"),
    ],
)
def test_mistakes_end_with_one_sentence(tmp_path, monkeypatch, source, target, message):
    torch.save({"x": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(SystemExit, match=message):
        run(monkeypatch, tmp_path / source, tmp_path / target)
    assert not (tmp_path / target).exists()
