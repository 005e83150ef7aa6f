"""Config: defaults, files, options, construction."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

import cat_seg.compat
from cat_seg.plugin.config import add_cat_seg_config
from tests.compat.implementations import IS_REAL, Implementation

PROJECT = Path(cat_seg.compat.__file__).parents[2]
CONFIGS = sorted((PROJECT / "configs").rglob("*.yaml"))

# As published YAMLs are written: a base file, and a tag that computes a value.
BASE = """
MODEL:
  META_ARCHITECTURE: "CATSeg"
  PIXEL_MEAN: [123.675, 116.280, 103.530]
DATASETS:
  TRAIN: ("coco_2017_train_stuff_all_sem_seg",)
SOLVER:
  BASE_LR: 0.0002
  CLIP_GRADIENTS:
    ENABLED: True
    CLIP_VALUE: 0.01
INPUT:
  MIN_SIZE_TRAIN: !!python/object/apply:eval ["[int(x * 0.1 * 384) for x in range(5, 21)]"]
VERSION: 2
"""
DERIVED = "_BASE_: base.yaml\nSOLVER:\n  BASE_LR: 0.1\nTEST:\n  SLIDING_WINDOW: True\n"


@pytest.fixture
def derived(tmp_path: Path) -> str:
    (tmp_path / "base.yaml").write_text(BASE)
    (tmp_path / "derived.yaml").write_text(DERIVED)
    return str(tmp_path / "derived.yaml")


def project_config(d2: Implementation, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a config with CAT-Seg's keys, all of it of one implementation's type."""
    monkeypatch.setattr("cat_seg.plugin.config.CfgNode", d2("config").CfgNode)
    cfg = d2("config").get_cfg()
    add_cat_seg_config(cfg)
    return cfg


def test_file_inherits_and_computes(d2, derived, monkeypatch):
    cfg = project_config(d2, monkeypatch)
    cfg.merge_from_file(derived, allow_unsafe=True)
    cfg.merge_from_list(["SOLVER.MAX_ITER", "7", "DATASETS.TEST", "('a', 'b')"])
    assert cfg.SOLVER.BASE_LR == 0.1
    assert cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE == 0.01
    assert cfg.INPUT.MIN_SIZE_TRAIN[:2] == (192, 230) and len(cfg.INPUT.MIN_SIZE_TRAIN) == 16
    assert cfg.SOLVER.MAX_ITER == 7 and cfg.DATASETS.TEST == ("a", "b")


def test_tags_run_nothing(d2, derived):
    with pytest.raises(yaml.YAMLError, match="python/object/apply"):
        d2("config").get_cfg().merge_from_file(derived, allow_unsafe=False)
    if d2.name == "stand_in":
        with pytest.raises(yaml.YAMLError, match="python/object/apply"):
            d2("config").get_cfg().merge_from_file(derived)


def test_dump_reads_back(d2, tmp_path):
    cfg = d2("config").get_cfg()
    cfg.MODEL.WEIGHTS = "somewhere"
    (tmp_path / "dump.yaml").write_text(cfg.dump())
    again = d2("config").get_cfg()
    again.merge_from_file(str(tmp_path / "dump.yaml"))
    assert again.MODEL.WEIGHTS == "somewhere" and again.SOLVER == cfg.SOLVER


def test_unknown_key_and_missing_file_are_errors(d2, tmp_path):
    (tmp_path / "wrong.yaml").write_text("MODEL:\n  WEIGHT_FILE: x\nVERSION: 2\n")
    with pytest.raises(KeyError, match=r"MODEL\.WEIGHT_FILE"):
        d2("config").get_cfg().merge_from_file(str(tmp_path / "wrong.yaml"))
    with pytest.raises(AssertionError, match="does not exist"):
        d2("config").get_cfg().merge_from_file(str(tmp_path / "none.yaml"))


def test_configurable_init(d2):
    config = d2("config")

    class Thing:
        @config.configurable
        def __init__(self, depth, *, width=1, name=""):
            self.values = (depth, width, name)

        @classmethod
        def from_config(cls, cfg, width=2):
            return {"depth": cfg.MODEL.RESNETS.DEPTH, "width": width}

    class Special(Thing):
        @classmethod
        def from_config(cls, cfg):
            return {"depth": 7}

    cfg = config.get_cfg()
    assert Thing(3, name="a").values == (3, 1, "a")
    assert Thing(cfg).values == (50, 2, "")
    assert Thing(cfg, width=5, name="b").values == (50, 5, "b")
    assert Thing(cfg=cfg).values == (50, 2, "")
    assert Special(cfg, width=9).values == (7, 9, "")


def test_configurable_function(d2):
    config = d2("config")

    @config.configurable(from_config=lambda cfg, b=2: {"a": cfg.SEED, "b": b})
    def join(a, b, c=3):
        return a, b, c

    assert join(1, b=1) == (1, 1, 3)
    assert join(config.get_cfg(), c=4) == (-1, 2, 4)


def test_config_of_another_version_is_refused_by_the_stand_in(tmp_path):
    d2 = Implementation("stand_in" if IS_REAL else "detectron2")
    (tmp_path / "old.yaml").write_text("VERSION: 1\n")
    with pytest.raises(ValueError, match=r"old\.yaml: expected VERSION 2, got 1"):
        d2("config").get_cfg().merge_from_file(str(tmp_path / "old.yaml"))


needs_both = pytest.mark.skipif(not IS_REAL, reason="needs the real detectron2")


@needs_both
@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_shipped_config_dumps_the_same(file, monkeypatch):
    dumps = []
    for name in ("detectron2", "stand_in"):
        cfg = project_config(Implementation(name), monkeypatch)
        cfg.merge_from_file(str(file))
        dumps.append(cfg.dump())
    assert dumps[0] == dumps[1]


@needs_both
def test_defaults_and_published_yaml_dump_the_same(derived, monkeypatch):
    dumps = []
    for name in ("detectron2", "stand_in"):
        d2 = Implementation(name)
        cfg = project_config(d2, monkeypatch)
        cfg.merge_from_file(derived, allow_unsafe=True)
        dumps.append((d2("config").get_cfg().dump(), cfg.dump()))
    assert dumps[0] == dumps[1]
