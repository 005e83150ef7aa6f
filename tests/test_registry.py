"""Parts by name: registered, found, made, saved with a model and missed when it is loaded."""

import importlib
import json
import sys
from pathlib import Path

import pytest
from torch import nn

from cat_seg import CATSeg, CATSegError, registry
from cat_seg.model_config import ModelConfig

TINY = {
    **dict(clip="tiny-parts", guidance="clip", templates="single", grid=(4, 4), window=2),
    **dict(hidden_dim=16, num_layers=1, text_guidance_dim=8, guidance_dim=8),
    **dict(upsample_dims=(8, 4), decoder_dims=(16, 16), decoder_guidance_dims=(4, 4)),
    **dict(guidance_layers=(1, 2), sliding_window=None, size_divisibility=1, min_size=32),
}
CLIP = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 3, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"width": 32, "heads": 2, "layers": 2},
}
PLUGIN = """
from torch.nn import Conv2d, Module
from cat_seg.registry import register

@register("decoder", "plugged")
class Plugged(Module):
    def __init__(self, config, *, factor=4):
        super().__init__()
        self.head, self.factor = Conv2d(config.hidden_dim, factor**2, 1), factor

    def forward(self, x, guidance):
        y = self.head(x.flatten(0, 1).permute(0, 3, 1, 2))
        from torch.nn.functional import pixel_shuffle
        return pixel_shuffle(y, self.factor).view(*x.shape[:2], 4 * x.shape[2], 4 * x.shape[3])
"""


def config(*parts: dict, **changes: object) -> ModelConfig:
    return ModelConfig(**(TINY | {"clip": CLIP, "parts": parts} | changes))


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is forgotten after it."""
    monkeypatch.setattr(registry, "_factories", dict(registry._factories))
    registry._import_plugins.cache_clear()


def test_a_part_is_made_of_config_and_settings(known: None):
    registry.register("loss", "pair")(lambda config, *, weight: (config.hidden_dim, weight))
    made = config({"loss": "pair", "weight": 2}, {"loss": "pair", "weight": 3})
    assert registry.make_all(made, "loss") == [(16, 2), (16, 3)]
    assert registry.names(made.parts, "loss") == ["pair", "pair"]
    with pytest.raises(CATSegError, match="2 of the kind 'loss'"):
        registry.make(made, "loss")
    assert registry.make(made, "decoder") is None


def test_mistakes_are_told(known: None):
    registry.register("layer", "mine")(lambda config: nn.Identity())
    with pytest.raises(CATSegError, match="no kind of part"):
        registry.register("lawyer", "mine")
    with pytest.raises(CATSegError, match="registered by"):
        registry.register("layer", "mine")(CATSeg)
    with pytest.raises(CATSegError, match="did you mean 'mine'"):
        registry.make(config({"layer": "min"}), "layer")
    with pytest.raises(CATSegError, match="unexpected keyword argument 'depth'"):
        registry.make(config({"layer": "mine", "depth": 1}), "layer")
    for part in ({"name": "mine"}, {"layer": "mine", "cost": "other"}, {"layer": 3}):
        with pytest.raises(CATSegError, match="expected one of encoder"):
            registry.make(config(part), "layer")


def test_a_saved_model_remembers_the_module_of_its_parts(
    known: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "my_fork.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("my_fork")
    CATSeg(config({"decoder": "plugged"})).save_pretrained(tmp_path / "saved")
    del registry._factories["decoder", "plugged"]
    about = json.loads((tmp_path / "saved/config.json").read_text())
    assert about["plugins"] == {"decoder plugged": "my_fork"}
    with pytest.raises(
        CATSegError, match=r"no decoder 'plugged' here.*Import the module 'my_fork'"
    ):
        CATSeg.from_pretrained(tmp_path / "saved", "cpu")


@pytest.mark.parametrize("by", ["variable", "entry point"])
def test_plugins_of_the_environment_are_imported_when_a_name_is_missing(
    known: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str
):
    name = f"my_fork_by_{by.split()[0]}"
    (tmp_path / f"{name}.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(tmp_path)
    if by == "variable":
        monkeypatch.setenv(registry.VARIABLE, name)
    else:
        folder = tmp_path / f"{name}-1.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (folder / "entry_points.txt").write_text(f"[cat_seg]\nfork = {name}\n")
    model = CATSeg(config({"decoder": "plugged"}))
    again = CATSeg.from_pretrained(model.save_pretrained(tmp_path / "saved"), "cpu")
    assert set(again.state_dict()) == set(model.state_dict())
    assert any(key.endswith("transformer.decoder.head.weight") for key in again.state_dict())


def test_no_config_names_a_module_to_import(known: None, tmp_path: Path):
    model = CATSeg(config())
    file = model.save_pretrained(tmp_path) / "config.json"
    about = json.loads(file.read_text())
    about["model"]["parts"] = [{"decoder": "evil"}]
    about["plugins"] = {"decoder evil": "antigravity"}
    file.write_text(json.dumps(about))
    with pytest.raises(CATSegError, match="no decoder 'evil'"):
        CATSeg.from_pretrained(tmp_path, "cpu")
    assert "antigravity" not in sys.modules
