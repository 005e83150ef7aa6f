"""Linear layers in 8 bits: near float32, only where wanted, and never with stale weights."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cat_seg.modeling.int8 import int8_linears
from cat_seg.modeling.layers import linear


@pytest.fixture()
def layer() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(256, 64)


@torch.no_grad()
def test_near_float32_and_only_within_the_context(layer: nn.Linear):
    x = torch.randn(3, 5, 256) * torch.tensor([1e-3, 1.0, 50.0])[:, None, None]
    exact = linear(x, layer.weight, layer.bias)
    with int8_linears():
        rounded = linear(x, layer.weight, layer.bias)
        without_bias = linear(x, layer.weight)
        assert torch.equal(linear(x[0], layer.weight, layer.bias), rounded[0])  # a row by itself
    assert rounded.shape == exact.shape and not torch.equal(rounded, exact)
    for a, e in zip(rounded, exact, strict=True):  # rows of any size keep their digits
        assert (a - e).norm() < 0.01 * (e - layer.bias).norm()
    torch.testing.assert_close(without_bias + layer.bias, rounded)
    assert torch.equal(linear(x, layer.weight, layer.bias), exact)
    with int8_linears(), int8_linears(False):
        assert torch.equal(linear(x, layer.weight, layer.bias), exact)


@torch.no_grad()
def test_changed_weights_are_rounded_anew(layer: nn.Linear):
    x = torch.randn(4, 256)
    with int8_linears():
        before = linear(x, layer.weight, layer.bias)
        layer.load_state_dict({"weight": 2 * layer.weight, "bias": 2 * layer.bias})
        torch.testing.assert_close(linear(x, layer.weight, layer.bias), 2 * before)


@torch.no_grad()
def test_zeros_stay_zeros():
    weight = nn.Parameter(torch.zeros(8, 256))
    with int8_linears():
        assert not linear(torch.zeros(2, 256), weight).any()


def test_gradients_short_rows_and_passing_weights_stay_float32(layer: nn.Linear):
    x, short = torch.randn(4, 256), nn.Parameter(torch.randn(8, 16))
    with int8_linears():
        assert torch.equal(
            linear(x, layer.weight, layer.bias).detach(), exact(x, layer.weight, layer.bias)
        )
        with torch.no_grad():
            assert torch.equal(linear(x[:, :16], short), exact(x[:, :16], short))
            made_up = layer.weight[:8]
            assert torch.equal(linear(x, made_up), exact(x, made_up))


def exact(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    rows = x.contiguous()[None, :, None].permute(0, 3, 1, 2)
    return F.conv2d(rows, weight.detach()[:, :, None, None], bias)[0, :, :, 0].T.detach()
