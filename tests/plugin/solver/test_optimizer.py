"""Groups, multipliers, weight decay and clipping of the optimiser."""

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from torch import nn

from cat_seg.plugin.config import add_cat_seg_config
from cat_seg.plugin.solver import build_optimizer
from tests.golden import GOLDEN, load_golden


class Toy(nn.Module):
    """Parameters of each kind that is treated in its own way."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Module()
        self.backbone.attention = nn.Linear(2, 2)
        self.backbone.attention.relative_position_bias_table = nn.Parameter(torch.ones(2))
        self.clip_model = nn.Module()
        self.clip_model.positional_embedding = nn.Parameter(torch.ones(3))
        self.clip_model.token_embedding = nn.Embedding(2, 2)
        self.head = nn.Sequential(nn.Linear(2, 2), nn.GroupNorm(1, 2))
        self.shared = self.head[0]
        self.frozen = nn.Linear(2, 2).requires_grad_(False)


def config(*opts: object) -> CfgNode:
    cfg = get_cfg()
    add_cat_seg_config(cfg)
    cfg.merge_from_list(["SOLVER.BASE_LR", 0.1, "SOLVER.WEIGHT_DECAY", 0.2, *opts])
    return cfg


def test_every_trainable_parameter_has_its_group() -> None:
    model = Toy()
    optimizer = build_optimizer(
        config(
            *("SOLVER.BACKBONE_MULTIPLIER", 0.5),
            *("SOLVER.CLIP_MULTIPLIER", 0.01),
            *("SOLVER.WEIGHT_DECAY_NORM", 0.3),
            *("SOLVER.WEIGHT_DECAY_EMBED", 0.4),
        ),
        model,
    )
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = {
        names[parameter]: (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    assert all(len(group["params"]) == 1 for group in optimizer.param_groups)
    assert groups == {
        "backbone.attention.weight": (0.05, 0.2),
        "backbone.attention.bias": (0.05, 0.2),
        "backbone.attention.relative_position_bias_table": (0.05, 0.0),
        "clip_model.positional_embedding": (0.001, 0.2),
        "clip_model.token_embedding.weight": (0.001, 0.4),
        "head.0.weight": (0.1, 0.2),
        "head.0.bias": (0.1, 0.2),
        "head.1.weight": (0.1, 0.3),
        "head.1.bias": (0.1, 0.3),
    }


def test_the_full_model_is_clipped_by_one_factor() -> None:
    model = Toy()
    optimizer = build_optimizer(
        config(
            *("SOLVER.OPTIMIZER", "SGD", "SOLVER.MOMENTUM", 0.0),
            *("SOLVER.WEIGHT_DECAY", 0.0, "SOLVER.CLIP_MULTIPLIER", 1.0),
            *("SOLVER.CLIP_GRADIENTS.ENABLED", True),
            *("SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "full_model"),
            *("SOLVER.CLIP_GRADIENTS.CLIP_VALUE", 0.5),
        ),
        model,
    )
    assert [kind.__name__ for kind in type(optimizer).__mro__[:2]] == [
        "FullModelGradientClippingOptimizer",
        "SGD",
    ]
    trained = [p for p in model.parameters() if p.requires_grad]
    before = [p.detach().clone() for p in trained]
    for parameter in trained:
        parameter.grad = torch.randn_like(parameter)
    gradients = [p.grad.clone() for p in trained]
    norm = torch.cat([g.flatten() for g in gradients]).norm()
    optimizer.step()

    torch.testing.assert_close(optimizer.gradient_norm, norm)
    for parameter, old, gradient, group in zip(
        trained, before, gradients, optimizer.param_groups, strict=True
    ):
        torch.testing.assert_close(parameter, old - group["lr"] * gradient * 0.5 / norm)


@pytest.mark.parametrize("kind", ["value", "norm"])
def test_each_parameter_is_clipped_by_itself(kind: str) -> None:
    model = nn.Linear(4, 1, bias=False)
    optimizer = build_optimizer(
        config(
            *("SOLVER.OPTIMIZER", "SGD", "SOLVER.MOMENTUM", 0.0, "SOLVER.WEIGHT_DECAY", 0.0),
            *("SOLVER.CLIP_GRADIENTS.ENABLED", True, "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", kind),
        ),
        model,
    )
    before = model.weight.detach().clone()
    model.weight.grad = torch.full_like(model.weight, 3.0)
    optimizer.step()
    clipped = {"value": 1.0, "norm": 0.5}[kind]  # 1 each, or 3 / |(3, 3, 3, 3)|
    torch.testing.assert_close(model.weight.detach(), before - 0.1 * clipped)


@pytest.mark.parametrize(
    ("key", "value"),
    [("SOLVER.OPTIMIZER", "LION"), ("SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "percentile")],
)
def test_unknown_settings_are_errors(key: str, value: str) -> None:
    with pytest.raises(ValueError, match=f"{key} is '{value}'; expected"):
        build_optimizer(config("SOLVER.CLIP_GRADIENTS.ENABLED", True, key, value), Toy())


def test_a_model_that_does_not_train_is_an_error() -> None:
    with pytest.raises(ValueError, match="No parameter"):
        build_optimizer(config(), Toy().requires_grad_(False))


@pytest.mark.parametrize("name", GOLDEN)
def test_defaults_are_those_of_the_published_optimizer(name: str) -> None:
    published = load_golden(name).facts["optimizer"]
    clip = published["clip_gradients"]
    optimizer = build_optimizer(
        config(
            *("SOLVER.CLIP_GRADIENTS.ENABLED", clip["enabled"]),
            *("SOLVER.CLIP_GRADIENTS.CLIP_TYPE", clip["type"]),
            *("SOLVER.CLIP_GRADIENTS.CLIP_VALUE", clip["value"]),
        ),
        Toy(),
    )
    assert [kind.__name__ for kind in type(optimizer).__mro__[:2]] == published["class"]
    assert list(optimizer.defaults["betas"]) == published["betas"]
    assert optimizer.defaults["eps"] == published["eps"]
    assert optimizer.defaults["amsgrad"] == published["amsgrad"]
