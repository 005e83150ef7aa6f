"""cat-seg convert."""

import pytest
import torch

from cat_seg.cli.main import main
from cat_seg.conversion import to_released
from cat_seg.trust.weights import read_file, read_weights
from tests.golden import load_golden


def run(*args: object) -> int:
    return main(["convert", *map(str, args)])


@pytest.mark.parametrize("name", ["swin_tiny", "clip_tiny"])
def test_there_and_back(tmp_path, name):
    weights = load_golden(name).weights
    released = to_released(weights)
    torch.save({"model": released, "optimizer": {}}, tmp_path / "released.pth")
    assert run(tmp_path / "released.pth", tmp_path / "ours.safetensors") == 0
    ours = read_weights(tmp_path / "ours.safetensors")
    assert ours.keys() == weights.keys()
    assert run(tmp_path / "ours.safetensors", tmp_path / "back.pth", "--to", "released") == 0
    back = read_file(tmp_path / "back.pth")["model"]
    assert back.keys() == released.keys()
    assert all(torch.equal(back[key], value) for key, value in released.items())


def test_half_is_half_the_size(tmp_path):
    torch.save(load_golden("clip_tiny").weights, tmp_path / "a.pth")
    assert run(tmp_path / "a.pth", tmp_path / "b.safetensors", "--half") == 0
    assert all(v.dtype == torch.float16 for v in read_weights(tmp_path / "b.safetensors").values())
    assert (tmp_path / "b.safetensors").stat().st_size < 0.55 * (tmp_path / "a.pth").stat().st_size


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        ("absent.pth", "b.pth", "absent.pth: no such file"),
        ("damaged.pth", "b.pth", "damaged.pth: "),
        ("other.pth", "b.pth", "not a checkpoint of CAT-Seg"),
        ("other.pth", "b.txt", "ends in .pth or .safetensors"),
    ],
)
def test_mistakes_end_with_one_sentence(tmp_path, capsys, source, target, message):
    torch.save({"x": torch.zeros(1)}, tmp_path / "other.pth")
    (tmp_path / "damaged.pth").write_bytes(b"PK\3\4 nothing")
    assert run(tmp_path / source, tmp_path / target) == 1
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1
    assert not (tmp_path / target).exists()
