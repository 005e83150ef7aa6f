"""MODEL.PARTS of a YAML: a training step with parts of every kind that only training needs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from cat_seg import registry
from cat_seg.plugin.solver.optimizer import build_optimizer
from tests.golden_model import golden_cfg
from tests.modeling.test_parts import VIT

# isort: split
from detectron2.modeling import build_model

PARTS = [
    VIT,
    {"volume": "view", "turn": "flip"},
    {"adapter": "low_rank", "rank": 2},
    {"loss": "deep", "weight": 0.5},
    {"sampling": "present", "count": 3},
]


class Deep(nn.Module):
    """The mean of each layer's volume should be small; a channel each has a learned weight."""

    def __init__(self, config, *, weight):
        super().__init__()
        self.weight, self.channels = weight, nn.Parameter(torch.ones(config.hidden_dim))

    def forward(self, inside):
        assert len(inside.volumes) > 0 and inside.logits.shape[1] == len(inside.text) == 3
        assert set(inside.targets.unique().tolist()) <= {0, 1, 2, inside.ignore_value}
        means = [(volume * self.channels).mean().square() for volume in inside.volumes]
        return self.weight * sum(means)


def test_a_training_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(registry, "_factories", dict(registry._factories))
    registry.register("loss", "deep")(Deep)
    head = "MODEL.SEM_SEG_HEAD."
    opts = ["MODEL.PARTS", PARTS, head + "GUIDANCE", "both", head + "CLIP_FINETUNE", "low_rank"]
    opts += [head + "DECODER_GUIDANCE_DIMS", None, head + "APPEARANCE_GUIDANCE_DIM", None]
    opts += ["SOLVER.LR_FACTORS", [[r"backbone.*\.norm", 0.0]], "SOLVER.BACKBONE_MULTIPLIER", 0.5]
    cfg = golden_cfg("clip_tiny", tmp_path, *opts)
    model = build_model(cfg).train()
    assert len(model.head.train_names) > 3
    height, width = (8 * side for side in model.grid)
    labels = torch.zeros(height, width, dtype=torch.long)
    labels[: height // 2] = 2
    batch = [{"image": torch.randint(0, 256, (3, height, width)).byte(), "sem_seg": labels}]
    losses = model(batch)
    assert set(losses) == {"loss_sem_seg", "loss_deep"}
    sum(losses.values()).backward()
    assert model.head.auxiliary_modules[0].channels.grad.abs().sum() > 0
    low_rank = [p for n, p in model.named_parameters() if n.endswith("low_rank_b")]
    assert sum(p.grad is not None and p.grad.abs().sum() > 0 for p in low_rank) > len(low_rank) / 2
    assert all(
        (p.grad is not None) for n, p in model.backbone.named_parameters() if ".blocks." in n
    )
    names = {id(p): n for n, p in model.named_parameters()}
    rates = {names[id(g["params"][0])]: g["lr"] for g in build_optimizer(cfg, model).param_groups}
    assert rates["backbone.net.blocks.0.norm1.weight"] == 0
    assert rates["backbone.net.blocks.0.attn.qkv.weight"] == 0.5 * cfg.SOLVER.BASE_LR
