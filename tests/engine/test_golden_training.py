"""Three steps of training the real model, against what the published models did."""

from pathlib import Path

import pytest
import torch

from cat_seg.solver import build_lr_scheduler, build_optimizer
from tests.golden import GOLDEN, load_golden
from tests.golden_model import golden_cfg, golden_model


@pytest.mark.parametrize("name", GOLDEN)
def test_three_steps_of_the_published_training(name: str, tmp_path: Path) -> None:
    golden = load_golden(name)
    run, published = golden.training, golden.facts["optimizer"]
    clip = published["clip_gradients"]
    cfg = golden_cfg(
        name,
        tmp_path,
        *("SOLVER.CLIP_GRADIENTS.ENABLED", clip["enabled"]),
        *("SOLVER.CLIP_GRADIENTS.CLIP_TYPE", clip["type"]),
        *("SOLVER.CLIP_GRADIENTS.CLIP_VALUE", clip["value"]),
        *("SOLVER.CLIP_GRADIENTS.NORM_TYPE", clip["norm"]),
    )
    model = golden_model(name, tmp_path).train()
    parameters = dict(model.named_parameters())
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}

    optimizer = build_optimizer(cfg, model)
    scheduler = build_lr_scheduler(cfg, optimizer)
    names = {parameter: name for name, parameter in parameters.items()}
    groups = {
        names[parameter]: {"lr": group["lr"], "weight_decay": group["weight_decay"]}
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    assert groups == {key: pytest.approx(value) for key, value in published["params"].items()}

    batch = [
        {"image": image, "sem_seg": labels.long()}
        for image, labels in zip(run["images"], run["labels"], strict=True)
    ]
    losses = []
    for _ in range(3):
        loss = model(batch)["loss_sem_seg"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        losses.append(loss.detach())
    run.assert_matches(torch.stack(losses), "losses_of_three_steps")
    for key, norm in golden.facts["update_norms_after_three_steps"].items():
        update = (parameters[key].detach() - before[key]).norm().item()
        assert update == pytest.approx(norm, rel=5e-3, abs=1e-7), key
