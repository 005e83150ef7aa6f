"""The forks of docs/extending.md: files of their own that change nothing of the package."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from cat_seg import CATSeg, registry
from tests.synthetic.test_training import train, write_backgrounds

STEPS = 50
EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
# A name of the tensors that each fork brings.
FORKS = {
    "dino_guidance": "backbone.net.blocks.0.attn.qkv.weight",
    "second_encoder": "predictor.volumes.0.projection.weight",
    "parallel_layer": "transformer.layers.1.gate",
    "gradual_decoder": "transformer.decoder.steps.1.head.weight",
}


def import_fork(name: str) -> None:
    """As CAT_SEG_PLUGINS does."""
    if (file := EXAMPLES / f"{name}.py").exists() and name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        sys.modules[name] = module


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is forgotten after it."""
    monkeypatch.setattr(registry, "_factories", dict(registry._factories))
    for name in FORKS:
        monkeypatch.delitem(sys.modules, name, raising=False)


def test_each_is_a_short_file_and_every_file_is_known():
    assert {file.stem for file in EXAMPLES.glob("*.*")} == set(FORKS)
    for name in FORKS:
        files = EXAMPLES.glob(f"{name}.*")
        lines = [line for file in files for line in file.read_text("utf-8").splitlines()]
        assert 5 < len(lines) <= 150


@pytest.mark.slow
@pytest.mark.parametrize("name", FORKS)
def test_it_learns_and_is_saved_and_loaded(name: str, tmp_path: Path):
    import_fork(name)
    config = str(EXAMPLES / f"{name}.yaml")
    folders = [write_backgrounds(tmp_path)]
    trainer, (before, after) = train(tmp_path, folders, ("backgrounds",), config, STEPS)
    losses = [value for value, _ in trainer.storage.history("total_loss").values()]
    assert np.mean(losses[-5:]) < 0.75 * np.mean(losses[:5])  # measured: 0.04 to 0.63
    assert after > min(before + 25, 90)  # some begin with much of the encoder's knowledge
    model = trainer.model.eval()
    (own,) = (p for key, p in model.named_parameters() if key.endswith(FORKS[name]))
    assert trainer._trainer.optimizer.state[own]["exp_avg_sq"].sum() > 0  # gradients came
    again = CATSeg.from_pretrained(model.save_pretrained(tmp_path / "saved"), "cpu")
    picture = tmp_path / "images/00.png"
    words = list(trainer.model.head.train_names)
    expected = model.predict(picture, words)
    result = again.predict(picture, words)
    np.testing.assert_array_equal(result.labels, expected.labels)
