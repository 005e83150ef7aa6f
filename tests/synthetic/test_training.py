"""Less than a minute of training, all but CLIP from scratch: the loss falls and the mIoU rises."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from cat_seg.plugin.engine import Trainer, load_config
from cat_seg.resources import resource
from cat_seg.synthetic.names import BACKGROUNDS
from cat_seg.synthetic.world import draw_scene

SIDE = 64  # pixels
SCENES = 40


def write_backgrounds(folder: Path) -> dict[str, str]:
    """A data set of scenes without objects; its entry in DATASETS.FOLDERS."""
    rng = np.random.default_rng(0)
    for kind in ("images", "labels"):
        (folder / kind).mkdir()
    for index in range(SCENES):
        shown = rng.choice(BACKGROUNDS, int(rng.integers(1, 4)), replace=False).tolist()
        scene = draw_scene(rng, SIDE, [], shown)
        cv2.imwrite(str(folder / f"images/{index}.png"), scene.image[..., ::-1])
        cv2.imwrite(str(folder / f"labels/{index}.png"), scene.labels)
    (folder / "names.json").write_text(json.dumps(BACKGROUNDS))
    paths = {"IMAGES": "images", "LABELS": "labels", "CLASSES": "names.json"}
    return {"NAME": "backgrounds"} | {key: str(folder / path) for key, path in paths.items()}


@pytest.mark.slow
def test_a_minute_of_training_lowers_the_loss_and_raises_the_miou(tmp_path: Path):
    shipped = load_file(resource("cat_seg/models/synthetic/model.safetensors"))
    part = "sem_seg_head.predictor.clip_model."
    clip = {key.removeprefix(part): value for key, value in shipped.items() if part in key}
    save_file(clip, tmp_path / "clip.safetensors")
    changes = {
        "MODEL.WEIGHTS": "",
        "MODEL.SEM_SEG_HEAD.CLIP_WEIGHTS": str(tmp_path / "clip.safetensors"),
        "MODEL.SEM_SEG_HEAD.NUM_CLASSES": len(BACKGROUNDS),
        "MODEL.SEM_SEG_HEAD.FEATURE_RESOLUTION": [SIDE // 8, SIDE // 8],
        "INPUT.MIN_SIZE_TRAIN": [SIDE],
        "INPUT.MIN_SIZE_TEST": SIDE,
        "INPUT.CROP.SIZE": [SIDE, SIDE],
        "INPUT.SIZE_DIVISIBILITY": SIDE,
        "DATASETS.FOLDERS": [write_backgrounds(tmp_path)],
        "DATASETS.TRAIN": ("backgrounds",),
        "DATASETS.TEST": ("backgrounds",),
        "SOLVER.MAX_ITER": 120,
        "SOLVER.WARMUP_ITERS": 10,
        "SOLVER.CHECKPOINT_PERIOD": 120,
        "OUTPUT_DIR": str(tmp_path / "output"),
    }
    options = [part for key, value in changes.items() for part in (key, value)]
    trainer = Trainer(load_config("configs/synthetic.yaml", options, device="cpu"))
    trainer.resume_or_load(resume=False)

    def miou() -> float:
        trainer.model.eval()
        result = Trainer.test(trainer.cfg, trainer.model)
        trainer.model.train()
        return result["sem_seg"]["mIoU"]

    before = miou()
    trainer.train()
    losses = [value for value, _ in trainer.storage.history("total_loss").values()]
    after = miou()
    assert np.mean(losses[-10:]) < 0.2 * np.mean(losses[:10])
    assert after > before + 50
