"""docs/recipe.md: its commands, at small width; its configs are built at full size elsewhere."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
import torch
import yaml
from detectron2.modeling import build_model

import train_net
from cat_seg.cli.main import main
from cat_seg.modeling.clip import build_clip
from cat_seg.plugin import load_config
from docs.tools.plan_training import Memory, plan
from tests.docs.test_pages import DOCS, ROOT, blocks
from tests.synthetic.test_training import write_backgrounds

PAGE = DOCS / "recipe.md"
CLIP = {
    "embed_dim": 64,
    "vision_cfg": {
        **dict(timm_model_name="test_vit", timm_pool="map", timm_proj="none", image_size=160),
    },
    "text_cfg": {"width": 32, "heads": 2, "layers": 2},
}
DINO = {  # of DINOv2's kind, tiny, from nothing
    **dict(guidance="timm", model="vit_small_patch14_dinov2", weights="none"),
    **dict(settings={"img_size": 56, "embed_dim": 24, "depth": 3, "num_heads": 2}),
}


def small(folder: Path) -> None:
    """The same files with everything small: what the commands then find here."""
    data = write_backgrounds(folder / "data", count=4)
    (folder / "clip.json").write_text(json.dumps(CLIP))
    torch.save(build_clip(CLIP).state_dict(), folder / "clip.pt")
    changes = {
        "_BASE_": str(ROOT / "configs/open.yaml"),
        "MODEL": {
            "PARTS": [DINO],
            "DEVICE": "cpu",
            "SEM_SEG_HEAD": {
                **dict(CLIP_PRETRAINED=str(folder / "clip.json"), FEATURE_RESOLUTION=[4, 4]),
                **dict(CLIP_WEIGHTS=str(folder / "clip.pt"), WINDOW_SIZES=2, HIDDEN_DIMS=16),
                **dict(DECODER_DIMS=[16, 16], DECODER_GUIDANCE_PROJ_DIMS=[4, 4]),
                **dict(DECODER_GUIDANCE_DIMS=[8, 8], TEXT_GUIDANCE_PROJ_DIM=8),
                **dict(APPEARANCE_GUIDANCE_PROJ_DIM=8),
            },
        },
        "INPUT": {
            **dict(MIN_SIZE_TRAIN=[64], MIN_SIZE_TEST=64, SIZE_DIVISIBILITY=64),
            **dict(CROP={"SIZE": [64, 64]}),
        },
        "SOLVER": {"IMS_PER_BATCH": 2, "MAX_ITER": 2},
        "DATASETS": {"FOLDERS": [data], "TRAIN": ["backgrounds"], "TEST": ["backgrounds"]},
        "DATALOADER": {"NUM_WORKERS": 0},
        "TEST": {"SLIDING_KERNEL": 64, "SLIDING_RESOLUTION": 106, "EVAL_PERIOD": 0},
    }
    (folder / "configs").mkdir()
    (folder / "configs/open.yaml").write_text(yaml.safe_dump(changes))
    (folder / "photo.jpg").symlink_to(ROOT / "demo/images/beach.jpg")


def commands() -> list[list[str]]:
    fences = re.findall(r"^```(\w*)\n(.*?)^```", PAGE.read_text("utf-8"), re.M | re.S)
    lines = [line for kind, text in fences if not kind for line in text.splitlines()]
    found = [line.partition(" #")[0] for line in lines]
    return [shlex.split(re.sub(r"--num-gpus \d", "", line)) for line in found]


@pytest.mark.slow
def test_every_command_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    small(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CAT_SEG_CACHE", str(tmp_path / "cache"))
    done = []
    for program, *arguments in commands():
        if arguments[0] == "docs/tools/plan_training.py":
            continue  # below
        if program == "cat-seg":
            if arguments[0] == "predict":
                exec(blocks(PAGE, "python")[0], {})
            arguments = [a.replace("ade150,ade847", "backgrounds") for a in arguments]
            assert main(arguments) == 0
        else:
            assert (program, arguments[0]) == ("python", "train_net.py")
            assert train_net.start(arguments[1:]) == 0
        done.append(arguments[0])
    assert done == ["train_net.py", "train_net.py", "evaluate", "convert", "predict"]
    assert (tmp_path / "results/open/report.html").is_file()
    assert (tmp_path / "output/open/model/model.safetensors").is_file()
    assert list((tmp_path / "output").glob("photo*"))


@pytest.mark.slow
def test_the_full_size_is_as_the_page_counts_it():
    counted = plan("configs/open.yaml", [], 4, 165)
    rows = [r.split("|") for r in PAGE.read_text("utf-8").splitlines() if r.startswith("| ")]
    table = {row[1].strip(): row[2].strip() for row in rows if len(row) == 5}
    for key, value in counted.items():
        if key == "days":
            assert table[key] == "{at best} to {at worst}".format(**value)
        else:
            assert float(table[key]) == pytest.approx(value, rel=0.05), key


def test_that_of_large_cards_is_built_at_full_size():
    cfg = load_config("configs/open_80gb.yaml").clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        model = build_model(cfg)
    assert model.grid == (32, 32) and model.stride == 14
    assert model.predictor.guidance_channels == (1536 + 1024, 256 + 1024, 128 + 1024)
    trained = {n for n, p in model.predictor.clip_model.named_parameters() if p.requires_grad}
    assert len([name for name in trained if ".attn." in name]) == 40 * 4
    kinds = ("blocks.", "attn_pool.", "pos_embed")
    assert all(name.startswith(tuple(f"visual.trunk.{kind}" for kind in kinds)) for name in trained)
    assert model.predictor.clip_model.visual.trunk.grad_checkpointing


def test_memory_is_what_lives_at_once():
    weight = torch.ones(1000)  # 4000 bytes
    with Memory() as memory:
        memory.add(weight.untyped_storage(), counts=False)
        a = weight + 1
        b = a.view(10, 100) * 2  # a view is no memory
        del a
        c = (b + 1) + 1
    assert memory.peak == 3 * 4000
    assert memory.live == 2 * 4000 and c.shape == b.shape
