"""The whole path with real models: two vocabularies of the synthetic world, interrupted.

The models are the one that ships and a tiny one of the 2024 generation with random weights.
"""

import json
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode

from cat_seg.cli import evaluate
from cat_seg.plugin import CATSeg
from cat_seg.plugin.engine import load_config
from cat_seg.synthetic.dataset import write_dataset
from tests.golden import load_golden
from tests.golden_model import golden_cfg

IMAGES = 2


def shipped(folder: Path) -> CfgNode:
    cfg = load_config(device="cpu").clone()
    cfg.defrost()
    return cfg


def tiny(folder: Path) -> CfgNode:
    torch.save({"model": load_golden("clip_tiny").weights}, folder / "model.pth")
    small = ["FEATURE_RESOLUTION", [4, 4], "WINDOW_SIZES", 2, "CLASS_PADDING", 64]
    cfg = golden_cfg("clip_tiny", folder, "TEST.SLIDING_WINDOW", False)
    cfg.MODEL.SEM_SEG_HEAD.merge_from_list(small)
    cfg.MODEL.WEIGHTS = str(folder / "model.pth")
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.INPUT.MIN_SIZE_TEST = 128
    return cfg


@pytest.fixture(params=[shipped, tiny], ids=lambda model: model.__name__)
def config(request, tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.setenv("CAT_SEG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(evaluate, "_is_there", lambda name: False)
    world = tmp_path / "world"
    write_dataset(world, train=0, val=IMAGES)
    names = json.loads((world / "names.json").read_text())
    (world / "other_names.json").write_text(json.dumps([f"a {name}" for name in names]))
    cfg = request.param(tmp_path)
    cfg.DATASETS.FOLDERS = [
        {
            "NAME": name,
            "IMAGES": str(world / "val/images"),
            "LABELS": str(world / "val/labels"),
            "CLASSES": str(world / f"{name}.json"),
        }
        for name in ("names", "other_names")
    ]
    cfg.DATASETS.TEST = ("names", "other_names")
    (tmp_path / "config.yaml").write_text(cfg.dump())
    return tmp_path / "config.yaml"


def run(config: Path, output: Path) -> dict:
    arguments = ["--config-file", str(config), "--output", str(output)]
    assert evaluate.main(arguments) == 0
    return json.loads((output / "results.json").read_text())


@pytest.mark.slow
def test_two_vocabularies_whole_and_interrupted(config, tmp_path, monkeypatch):
    whole = run(config, tmp_path / "whole")
    assert [data["dataset"] for data in whole["datasets"]] == ["names", "other_names"]
    assert all(data["images"] == IMAGES and data["comparable"] for data in whole["datasets"])

    segmented = []
    segment = CATSeg.segment

    def counted(self, images):
        segmented.extend(one["file_name"] for one in images)
        if len(segmented) == IMAGES + 2:  # the second of the second vocabulary
            raise KeyboardInterrupt
        return segment(self, images)

    monkeypatch.setattr(CATSeg, "segment", counted)
    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path / "resumed")
    assert run(config, tmp_path / "resumed") == whole
    assert len(segmented) == 2 * IMAGES + 1
    for file in ("per_class.csv", "report.html"):
        contents = [(tmp_path / folder / file).read_bytes() for folder in ("whole", "resumed")]
        assert contents[0] == contents[1]


@pytest.mark.parametrize("config", [shipped], indirect=True)
def test_a_baseline_stands_beside_the_model(config, tmp_path):
    arguments = ["--config-file", str(config), "--benchmark", "names"]
    both = [*arguments, "--output", str(tmp_path / "both"), "--baseline"]
    assert evaluate.main(both) == 0
    (data,) = json.loads((tmp_path / "both/results.json").read_text())["datasets"]
    assert 0 < data["baseline"] < data["mIoU"]
    assert "without aggregator" in (tmp_path / "both/report.html").read_text()

    # The same by the key alone, from the same checkpoint.
    alone = [*arguments, "--output", str(tmp_path / "alone"), "MODEL.TRAINING_FREE", "maskclip"]
    assert evaluate.main(alone) == 0
    results = json.loads((tmp_path / "alone/results.json").read_text())
    assert results["datasets"][0]["mIoU"] == data["baseline"]
    assert "training-free (maskclip)" in results["model"]
    assert any("MODEL.TRAINING_FREE" in text for text in results["warnings"])
