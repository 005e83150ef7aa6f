"""The kernels for NVIDIA GPUs equal the modules they stand for; without a GPU, interpreted."""

import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cat_seg.modeling import fused
from cat_seg.modeling.aggregator.class_aggregation import ClassAggregation
from cat_seg.modeling.aggregator.decoder import DecoderBlock
from cat_seg.modeling.aggregator.spatial_aggregation import SpatialAggregation
from cat_seg.modeling.sliding_window import TileGrid, resize

pytest.importorskip("triton")
GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
needs_kernels = pytest.mark.skipif(not (GPU or INTERPRETED), reason="needs a GPU, or to interpret")
DTYPES = [torch.float16, torch.bfloat16] if GPU else [torch.float16]
B, T, GRID, C, HEADS = 2, 3, (8, 12), 64, 4
N = GRID[0] * GRID[1]


@pytest.mark.slow
@pytest.mark.skipif(GPU or INTERPRETED, reason="the tests below run by themselves")
def test_interpreted():
    """Triton decides when kernels are defined, so that it takes another process."""
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-x", __file__],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert " passed" in result.stdout and "skipped" not in result.stdout


def random(module: nn.Module) -> nn.Module:
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.2)
    return module.to(DEVICE).eval()


def close(actual: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    error = (actual.float() - expected).norm() / expected.norm()
    assert error < (2e-3 if dtype == torch.float16 else 1.5e-2), error


@needs_kernels
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("grid, window", [((8, 12), 4), ((12, 24), 12)])
@torch.no_grad()
def test_spatial_aggregation(grid: tuple[int, int], window: int, dtype: torch.dtype):
    module = random(SpatialAggregation(
        dim=C, guidance_dim=16, grid=grid, num_heads=HEADS, window=window
    ))  # fmt: skip
    x = torch.randn(B, T, *grid, C, device=DEVICE)
    guided = module.guide(torch.randn(B, *grid, 16, device=DEVICE))
    expected = module(x, guided)
    for block, guide in zip((module.block_1, module.block_2), guided, strict=True):
        x = block.fused(x, guide, dtype)
    close(x, expected, dtype)


@needs_kernels
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("T, padding", [(3, 0), (3, 9), (70, 0)])
@torch.no_grad()
def test_class_aggregation(T: int, padding: int, dtype: torch.dtype):
    module = random(ClassAggregation(dim=C, guidance_dim=16, num_heads=HEADS, padding=padding))
    x, text = torch.randn(B, T, 2, 3, C, device=DEVICE), torch.randn(T, 16, device=DEVICE)
    expected = module(x.clone(), text)
    actual = module.fused(x.flatten(2, 3), module.attention.guide(text), dtype)
    actual = actual.view(x.shape)
    close(actual, expected, dtype)


@needs_kernels
@pytest.mark.parametrize("dtype", DTYPES)
@torch.no_grad()
def test_decoder(dtype: torch.dtype):
    """Group normalisation in place, with and without guidance, and before the head."""
    block = random(DecoderBlock(in_dim=64, out_dim=32, guidance_dim=16))
    norm, last = block.conv.norm(1), block.conv.norm(4)
    x = torch.randn(B * T, 32, *GRID, device=DEVICE).to(dtype)
    x = x.contiguous(memory_format=torch.channels_last)
    guided = torch.randn(B, 32, *GRID, device=DEVICE).contiguous(memory_format=torch.channels_last)
    for g in (guided, None):
        expected = x.float() if g is None else x.float() + g.repeat_interleave(T, dim=0)
        expected = F.relu(norm(expected))
        close(
            fused.group_norm_relu(x.clone(memory_format=torch.channels_last), norm, g),
            expected,
            dtype,
        )
    head = random(nn.Conv2d(32, 1, 3, padding=1))
    close(fused.head(x, last, head), head(F.relu(last(x.float()))), dtype)


@needs_kernels
@torch.no_grad()
def test_merging():
    """In float32, equal to rounding; tiles that overlap, and a map that is not square."""
    tiles = TileGrid(kernel=24, overlap=0.34, resolution=54)
    logits = 3 * torch.randn(tiles.count, 5, 6, 6, device=DEVICE)
    expected = tiles.merge(resize(logits, tiles.kernel).sigmoid())
    actual = fused.merge(logits, tiles.corners, tiles.kernel, tiles.resolution)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-6)


@needs_kernels
@pytest.mark.parametrize("dtype", DTYPES)
def test_quick_gelu(dtype: torch.dtype):
    x = torch.randn(5, 1000, device=DEVICE).to(dtype)
    close(fused.quick_gelu(x.clone()), x.float() * torch.sigmoid(1.702 * x.float()), dtype)


@needs_kernels
@pytest.mark.parametrize("dtype", DTYPES)
@torch.no_grad()
def test_add_norm(dtype: torch.dtype):
    norm = random(nn.LayerNorm(96))
    x, y = torch.randn(7, 96, device=DEVICE), torch.randn(7, 96, device=DEVICE).to(dtype)
    total, normed = fused.add_norm(x, y, norm)
    torch.testing.assert_close(total, x + y.float())
    close(normed, norm(total), dtype)


@needs_kernels
@torch.no_grad()
def test_gelu_of_the_mlp():
    """By zero weights but one: what comes out is GELU of what goes in."""
    norm = nn.LayerNorm(64, elementwise_affine=True).to(DEVICE)
    nn.init.zeros_(norm.weight)
    fc1, fc2, proj = nn.Linear(64, 256), nn.Linear(256, 64), nn.Linear(64, 64)
    for layer in (fc1, fc2, proj):
        nn.init.zeros_(layer.weight), nn.init.zeros_(layer.bias)
        layer.to(DEVICE)
    values = torch.linspace(-6, 6, 64)
    fc1.bias[:64] = values
    fc2.weight[:, :64] = torch.eye(64)
    x = torch.zeros(1, 1, 3, 64, device=DEVICE)
    attended = torch.zeros(1, 1, 3, 64, device=DEVICE, dtype=torch.float16)
    actual = fused.residual_mlp(x, attended, norm, fc1, fc2, proj=proj)[0, 0, 1].cpu()
    torch.testing.assert_close(actual, F.gelu(values), rtol=1e-3, atol=1e-4)
