"""An aggregator with more volumes, without guidance, and with parts of others in it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cat_seg.modeling.aggregator import Aggregator
from cat_seg.modeling.aggregator.aggregator import AggregatorLayer

SIZES = {
    **dict(text_dim=12, prompt_dim=2, grid=(4, 4), hidden_dim=16, num_layers=2, window=2),
    **dict(text_guidance_dim=8, guidance_in_dims=(12, 6, 5), guidance_dim=8),
    **dict(decoder_dims=(16, 16), decoder_guidance_dims=(4, 4)),
}


def aggregator(**changes: object) -> Aggregator:
    torch.manual_seed(0)
    return Aggregator(**(SIZES | changes)).eval()


def inputs(channels: int = 12, width: int = 12, T: int = 3) -> tuple[Tensor, Tensor, list[Tensor]]:
    guidance = [torch.randn(2, c, 4 * 2**i, 4 * 2**i) for i, c in enumerate((12, 6, 5))]
    return torch.randn(2, channels, 4, 4), torch.randn(T, 2, width), guidance


def values(model: nn.Module, *arguments: object) -> Tensor:
    with torch.no_grad():
        return torch.stack([image.values for image in model(*arguments)])


def test_more_volumes_stand_beside_the_first():
    model = aggregator(volumes=[(12, 0), (7, 7)])
    features, text, guidance = inputs(12 + 12 + 7, 12 + 7)
    seen = []
    model.conv1.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    values(model, features, text, guidance)
    parts = [(slice(0, 12), slice(0, 12)), (slice(12, 24), slice(0, 12))]
    parts.append((slice(24, 31), slice(12, 19)))
    volumes = [
        torch.einsum(
            "bdhw,tpd->btphw", F.normalize(features[:, f], dim=1), F.normalize(text[..., t], dim=-1)
        )
        for f, t in parts
    ]
    expected = torch.cat(volumes, dim=2).flatten(0, 1)
    torch.testing.assert_close(torch.cat(seen), expected, atol=1e-5, rtol=1e-5)


def test_the_first_volume_selects_classes():
    model = aggregator(volumes=[(7, 7)], max_classes=2)
    features, text, guidance = inputs(12 + 7, 12 + 7, T=6)
    with torch.no_grad():
        found = [image.classes.tolist() for image in model(features, text, guidance)]
        alone = aggregator(max_classes=2)
        expected = alone(features[:, :12], text[..., :12], guidance)
    assert found == [image.classes.tolist() for image in expected]


def test_without_guidance_it_is_that_with_all_projections_off():
    features, text, guidance = inputs()
    off = aggregator(guidance_dim=0, decoder_guidance_dims=(0, 0))
    none = aggregator(guidance_in_dims=())
    assert set(none.state_dict()) == set(off.state_dict())
    torch.testing.assert_close(
        values(none, features, text, []), values(off, features, text, guidance)
    )


class Twice(AggregatorLayer):
    def __init__(self, layer: AggregatorLayer) -> None:
        super().__init__(layer.swin_block, layer.attention)

    def forward(self, x: Tensor, *guidance: Tensor | None, **options: object) -> Tensor:
        return super().forward(super().forward(x, *guidance, **options), *guidance, **options)


def test_a_layer_of_another_kind_is_called_and_never_streamed():
    arguments = inputs()
    published = iter(aggregator(num_layers=1).layers)
    model = aggregator(num_layers=1, layer=lambda: Twice(next(published)))
    double = aggregator(num_layers=2)
    state = model.state_dict()
    state |= {k.replace("layers.0", "layers.1"): v for k, v in state.items() if "layers.0" in k}
    double.load_state_dict(state)
    torch.testing.assert_close(values(model, *arguments), values(double, *arguments))
    assert double.streams(3) and not model.streams(3)


class Nearest(nn.Module):
    def forward(self, x: Tensor, guidance: list[Tensor | None]) -> Tensor:
        assert [g.shape[1:] for g in guidance] == [(4, 8, 8), (4, 16, 16)]
        return F.interpolate(x[..., 0], scale_factor=4)


@pytest.mark.parametrize("training", [False, True])
def test_a_decoder_and_a_cost_of_another_kind(training: bool):
    features, text, guidance = inputs()
    ones = lambda f, t: f.new_ones(len(f), len(t), 4, 4, 2)  # noqa: E731
    model = aggregator(decoder=Nearest(), cost=ones, num_layers=0, class_chunk=2)
    assert not any(k.startswith(("decoder1", "decoder2", "head")) for k in model.state_dict())
    expected = F.interpolate(
        model.conv1(torch.ones(2, 2, 4, 4))[:, :1].expand(2, 3, 4, 4), scale_factor=4
    )
    with torch.set_grad_enabled(training):
        actual = torch.stack([image.values for image in model(features, text, guidance)])
    torch.testing.assert_close(actual, expected)


def test_volumes_inside_are_given_to_losses():
    model, inside = aggregator().train(), []
    model(*inputs(), inside=inside)
    assert [volume.shape for volume in inside] == [(2, 3, 4, 4, 16)] * 2
    assert all(volume.requires_grad for volume in inside)
