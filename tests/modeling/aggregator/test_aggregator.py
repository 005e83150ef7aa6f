"""Every part of the aggregator against the reference, in chunks and whole."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from cat_seg.modeling.aggregator import Aggregator, ClassLogits
from cat_seg.modeling.aggregator.class_aggregation import ClassAggregation
from cat_seg.modeling.aggregator.correlation import (
    cluster,
    correlate,
    most_similar_classes,
    represent,
)
from cat_seg.modeling.aggregator.decoder import DecoderBlock
from cat_seg.modeling.aggregator.spatial_aggregation import SpatialAggregation, window_regions
from tests import reference

TO_PLAIN, FROM_PLAIN = "B T H W C -> B C T H W", "B C T H W -> B T H W C"


def random_weights(module: nn.Module, std: float = 0.2) -> nn.Module:
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=std)
    return module.eval()


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "grid, window, guidance", [((8, 8), 4, 6), ((8, 12), 4, 6), ((4, 4), 4, 6), ((3, 6), 4, 0)]
)
def test_spatial_aggregation(grid: tuple[int, int], window: int, guidance: int):
    block = random_weights(
        SpatialAggregation(dim=16, guidance_dim=guidance, grid=grid, num_heads=4, window=window)
    )
    x = torch.randn(2, 3, *grid, 16)
    appearance = torch.randn(2, *grid, guidance) if guidance else None
    actual = block(x, block.guide(appearance))
    maps = None if appearance is None else rearrange(appearance, "B H W G -> B G H W")
    expected = reference.spatial_aggregation(
        {f"s.{k}": v for k, v in block.state_dict().items()},
        "s", rearrange(x, TO_PLAIN), maps, 4, window,
    )  # fmt: skip
    close(actual, rearrange(expected, FROM_PLAIN))


def test_regions_are_the_windows_and_the_parts_of_shifted_ones():
    assert len(window_regions((24, 24), 12, 0)) == 4
    sizes = [
        (rows.stop - rows.start) * (columns.stop - columns.start)
        for rows, columns in window_regions((24, 24), 12, 6)
    ]
    assert sorted(sizes) == [36] * 4 + [72] * 4 + [144]
    with pytest.raises(ValueError, match=r"FEATURE_RESOLUTION.*WINDOW_SIZES"):
        window_regions((24, 20), 12, 0)


@pytest.mark.parametrize("kind", ["linear", "full"])
@pytest.mark.parametrize("pooling", [(1, 1), (2, 2), (1, 3)])
@pytest.mark.parametrize("padding, guidance", [(0, 6), (9, 6), (3, 6), (0, 0)])
def test_class_aggregation(kind: str, pooling: tuple[int, int], padding: int, guidance: int):
    block = random_weights(
        ClassAggregation(
            dim=16, guidance_dim=guidance, num_heads=4, attention_type=kind, pooling=pooling,
            padding=padding,
        )
    )  # fmt: skip
    x = torch.randn(2, 5, 4, 6, 16)
    text = torch.randn(5, guidance) if guidance else None
    with torch.no_grad():
        actual = block(x.clone(), text)
    expected = reference.class_aggregation(
        {f"c.{k}": v for k, v in block.state_dict().items()}, "c", rearrange(x, TO_PLAIN),
        None if text is None else text.expand(2, -1, -1), 4, kind, pooling, padding,
    )  # fmt: skip
    close(actual, rearrange(expected, FROM_PLAIN))
    close(block(x.clone(), text), actual)  # with gradients: not in place


def test_pooling_of_training_and_of_evaluation():
    block = random_weights(
        ClassAggregation(dim=16, guidance_dim=0, num_heads=4, pooling=(2, 2), test_pooling=(1, 1))
    )
    same = random_weights(ClassAggregation(dim=16, guidance_dim=0, num_heads=4, pooling=(1, 1)))
    x = torch.randn(1, 3, 4, 4, 16)
    close(block(x, None), same(x, None))
    assert not torch.allclose(block.train()(x, None), same(x, None))


@pytest.mark.parametrize("pooling", [(1, 1), (2, 2)])
def test_a_volume_in_half_precision_stays_so(pooling: tuple[int, int]):
    block = random_weights(
        ClassAggregation(dim=16, guidance_dim=0, num_heads=4, pooling=pooling)
    ).eval()
    x = torch.randn(1, 3, 4, 4, 16).half()
    with torch.no_grad():
        expected = block(x.float(), None)
        actual = block(x.clone(), None)
    assert actual.dtype == torch.float16
    torch.testing.assert_close(actual.float(), expected, atol=0.02, rtol=2e-3)


@pytest.mark.parametrize("guidance", [0, 8])
def test_decoder_block(guidance: int):
    block = random_weights(DecoderBlock(in_dim=32, out_dim=16, guidance_dim=guidance))
    x = torch.randn(6, 32, 5, 7)
    maps = torch.randn(2, guidance, 10, 14) if guidance else None
    actual = block(x, block.guide(maps, (10, 14)), block.kernel())
    weights = {f"d.{k}": v for k, v in block.state_dict().items()}
    close(actual, reference.decoder_block(weights, "d", x, maps))


@pytest.mark.parametrize("sizes", [(60, 1), (10, 16), (32, 32)])
def test_decoder_sizes_that_cannot_fit_are_explained(sizes: tuple[int, int]):
    out, guidance = sizes
    with pytest.raises(ValueError, match="DECODER"):
        DecoderBlock(in_dim=32, out_dim=out, guidance_dim=guidance)


def test_correlation_and_selection():
    unit = nn.functional.normalize
    features, text = unit(torch.randn(2, 3, 5, 8), dim=-1), unit(torch.randn(9, 4, 8), dim=-1)
    cost = reference.cost_volume(rearrange(features, "B H W D -> B D H W"), text)
    close(correlate(features, text), rearrange(cost, "B P T H W -> B T H W P"))
    best = cost[1].amax((0, 2, 3)).topk(4).indices.sort().values
    assert torch.equal(most_similar_classes(features[1], text, 4, length=2), best)


def test_logits_of_classes_that_were_left_out():
    logits = ClassLogits(torch.rand(2, 3, 3), torch.tensor([1, 4]))
    maps = logits.of(torch.tensor([4, 0, 1, 7]))
    assert torch.equal(maps[[0, 2]], logits.values[[1, 0]])
    assert (maps[[1, 3]] == -100).all()


ARGS: dict[str, Any] = {
    "text_dim": 8, "prompt_dim": 3, "grid": (8, 8), "window": 4, "hidden_dim": 32,
    "guidance_in_dims": (9, 7, 5), "guidance_dim": 6, "text_guidance_dim": 6,
    "decoder_dims": (32, 16), "decoder_guidance_dims": (8, 4),
}  # fmt: skip


def inputs(B: int = 2, T: int = 7) -> tuple[Tensor, Tensor, list[Tensor]]:
    torch.manual_seed(1)
    guidance = [torch.randn(B, c, 8 * s, 8 * s) for c, s in ((9, 1), (7, 2), (5, 4))]
    return torch.randn(B, 8, 8, 8), torch.randn(T, 3, 8), guidance


@pytest.mark.parametrize("kind", ["linear", "full"])
def test_a_class_that_stands_for_several(kind: str):
    """Weights are copies, beside the learned padding too."""
    model = random_weights(
        ClassAggregation(dim=8, guidance_dim=3, num_heads=2, attention_type=kind, padding=9)
    )
    x, text = torch.randn(2, 3, 4, 4, 8), torch.randn(3, 3)
    copies = torch.tensor([0, 1, 1, 1, 2, 2])
    with torch.no_grad():
        expected = model(x[:, copies], text[copies])[:, [0, 1, 4]]
        close(model(x, text, weights=torch.tensor([1.0, 3.0, 2.0])), expected)


def test_representatives_of_equal_classes_lose_nothing():
    model = random_weights(Aggregator(**{**ARGS, "class_padding": 16}), std=0.15)
    features, text, guidance = inputs()
    text = text[:1].expand(7, -1, -1)
    with torch.no_grad():
        whole = dense(model(features, text, guidance))
        for image, expected in zip(model(features, text, guidance, 0, 4, 1), whole, strict=True):
            assert image.classes is not None and len(image.values) == 4
            close(image.values, expected[image.classes])
        dropped = model(features, text, guidance, 0, 4)
    assert not torch.allclose(dropped[0].values, whole[0][:4], atol=1e-4)


def test_crops_need_not_have_as_many_representatives():
    """A cluster that is chosen whole needs none: the first crop has one less than the second."""
    torch.manual_seed(0)
    model = random_weights(Aggregator(**ARGS), std=0.15)
    text = torch.randn(2, 1, 8).repeat_interleave(torch.tensor([2, 5]), 0).expand(-1, 3, -1)
    text = text + 1e-3 * torch.randn(7, 3, 8)
    _, _, guidance = inputs()
    features = torch.stack([text[0, 0], text[6, 0]])[..., None, None].expand(-1, -1, 8, 8)
    with torch.no_grad():
        together = model(features, text, guidance, 0, 2, 2)
        for i, crop in enumerate(together):
            alone = model(features[i : i + 1], text, [g[i : i + 1] for g in guidance], 0, 2, 2)[0]
            assert crop.classes is not None and alone.classes is not None
            assert crop.classes.tolist() == alone.classes.tolist()
            close(crop.values, alone.values)
    first, second = (set(crop.classes.tolist()) for crop in together if crop.classes is not None)
    assert first == {0, 1} and second < {2, 3, 4, 5, 6}


def test_clusters_find_what_is_alike_and_the_rest_is_counted():
    torch.manual_seed(0)
    centres = F.normalize(torch.randn(3, 16), dim=-1)
    owner = torch.arange(30) % 3
    means = F.normalize(centres[owner] + 0.05 * torch.randn(30, 16), dim=-1)
    found = cluster(means, 3)
    assert len({(a, b) for a, b in zip(found.tolist(), owner.tolist(), strict=True)}) == 3
    features = F.normalize(means[[4, 7]], dim=-1).view(1, 2, 16)
    kept = represent(features, means, 2, found)
    assert kept.classes.tolist() == [4, 7] and kept.weights is not None
    assert kept.weights.tolist()[:2] == [1, 1] and kept.weights.sum() == 30
    assert sorted(owner[kept.others].tolist()) == [0, 1, 2]
    assert not set(kept.others.tolist()) & {4, 7}


def dense(logits: list[ClassLogits], T: int = 7) -> Tensor:
    return torch.stack([one.of(torch.arange(T)) for one in logits])


@pytest.mark.parametrize(
    "change, plainly",
    [
        ({}, {}),
        ({"attention_type": "full", "pooling": (2, 2)}, {"kind": "full", "pooling": (2, 2)}),
        ({"class_padding": 16}, {"padding": 16}),
        ({"class_padding": 5, "max_classes": 5}, {"padding": 5, "max_classes": 5}),
        ({"guidance_dim": 0, "text_guidance_dim": 0, "decoder_guidance_dims": (0, 0)}, {}),
        ({"num_layers": 3, "window": 8}, {"layers": 3, "window": 8}),
    ],
)
def test_aggregator(change: dict[str, Any], plainly: dict[str, Any]):
    model = random_weights(Aggregator(**{**ARGS, **change}), std=0.15)
    features, text, guidance = inputs()
    options = {"window": 4, **plainly}
    expected = reference.aggregator(
        dict(model.state_dict()), "", features, text, guidance, **options
    )
    with torch.no_grad():
        whole = dense(model(features, text, guidance))
        close(whole, expected)
        model.class_chunk = 3
        close(dense(model(features, text, guidance)), whole)
        one = [g[1:] for g in guidance]
        close(dense(model(features[1:], text, one)), whole[1:])
    model.recompute = True
    dense(model(features, text, guidance)).square().mean().backward()
    got = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    unused = set(dict(model.named_parameters())) - set(got)
    full = change.get("class_padding", 0) <= 7 and "class_padding" in change
    assert all(full and "padding" in name for name in unused), unused
    model.zero_grad()
    model.recompute, model.class_chunk = False, 0
    dense(model(features, text, guidance)).square().mean().backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(got[name], parameter.grad, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"hidden_dim": 30}, "NUM_HEADS"),
        ({"guidance_in_dims": (9, 7)}, "guidance maps"),
        ({"attention_type": "flash"}, "ATTENTION_TYPE"),
        ({"grid": (8, 6)}, "WINDOW_SIZES"),
    ],
)
def test_sizes_that_cannot_fit_are_explained(change: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        Aggregator(**{**ARGS, **change})


def test_inputs_of_another_grid_are_explained():
    model = Aggregator(**ARGS)
    features, text, guidance = inputs()
    with pytest.raises(ValueError, match="FEATURE_RESOLUTION"):
        model(features[..., :6], text, guidance)
    with pytest.raises(ValueError, match="FEATURE_RESOLUTION"):
        model(features, text, [guidance[0], guidance[1][..., :8, :8], guidance[2]])


@pytest.mark.parametrize("change", [{}, {"class_padding": 16}, {"num_layers": 1}])
@torch.no_grad()
def test_streamed_classes_are_the_kept_ones(change: dict[str, Any]):
    """In memory that does not grow with them, and any of them alone."""
    model = random_weights(Aggregator(**ARGS | change, class_chunk=3))
    assert isinstance(model, Aggregator) and model.streams(7)
    features, text, guidance = inputs()
    expected = dense(model(features, text, guidance))
    streamed = model(features, text, guidance, stream=True)
    close(dense(streamed), expected)
    close(streamed[1].of(torch.tensor([5, 0])), expected[1, [5, 0]])


def test_what_cannot_be_streamed():
    for change in ({"attention_type": "full"}, {"pooling": (2, 2)}, {"max_classes": 5}):
        assert not Aggregator(**ARGS | change).streams(7)
