"""Kernels for NVIDIA GPUs (Triton) that carry the volume across memory once.

What PyTorch does in a dozen operations over the volume (normalisation, projections, attention,
residuals, activations) is bound by memory traffic; here each sub-layer reads and writes it once.
They serve inference under autocast alone: without it, and with gradients, PyTorch's own operations
compute what the published models compute to float32 rounding. Products are in half precision, sums,
normalisation, softmax and residuals in float32.

B images, T classes, N positions, C channels, rows = B T N.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING or importlib.util.find_spec("triton"):
    import triton
    import triton.language as tl

    AVAILABLE = True
else:  # CPU builds, Windows, macOS
    AVAILABLE = False


# Rows and columns of a block, warps, stages of the pipeline.
NORM_LINEAR = (64, 128, 4, 1)
RESIDUAL_MLP = (64, 32, 4, 3)
REGIONS = (64, 32, 4, 3)  # the first is that of `_tiles`
CLASSES = (64, 4, 2)
PIXELS = 128  # of a block of the decoder's maps


def applies(x: Tensor, heads: int) -> bool:
    """Whether a volume of (..., C) is worked off by these kernels."""
    C = x.shape[-1]
    return (
        AVAILABLE
        and not torch.compiler.is_compiling()
        and x.device.type == "cuda"
        and not torch.is_grad_enabled()
        and torch.is_autocast_enabled("cuda")
        and torch.cuda.get_device_capability(x.device) >= (8, 0)
        and C in (64, 128)
        and C // heads in (16, 32, 64)
    )


def half_on_cuda(x: Tensor) -> bool:
    """Whether a tensor can be overwritten by these kernels."""
    return (
        AVAILABLE
        and x.device.type == "cuda"
        and x.dtype in (torch.float16, torch.bfloat16)
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
    )


def applies_to_map(x: Tensor) -> bool:
    """Whether a map of the decoder, (n, M, h, w), is worked off by these kernels."""
    channels_last = x.is_contiguous(memory_format=torch.channels_last)
    return half_on_cuda(x) and x.shape[1] in (16, 32, 64, 128) and channels_last


def autocast_dtype(device: torch.device) -> torch.dtype:
    """The half precision that autocast asks for."""
    return torch.get_autocast_dtype(device.type)


def norm_linear(
    x: Tensor, norm: nn.LayerNorm, weight: Tensor, guided: Tensor, dtype: torch.dtype
) -> Tensor:
    """norm(x) @ weight.T + guided.

    Args:
        x: (B, T, N, C), of any type; positions must follow one another in memory.
        norm: over C.
        weight: (O, C), O a multiple of 64.
        guided: broadcast to (B, T, N, width), its last dimension contiguous.
        dtype: of the products and the result.

    Returns:
        (B, T, N, width)
    """
    B, T, N, C = x.shape
    width = weight.shape[0]
    assert x.stride()[2:] == (C, 1)
    guided = guided.to(dtype).expand(B, T, N, width)
    out = torch.empty(B, T, N, width, dtype=dtype, device=x.device)
    rows, columns, warps, stages = NORM_LINEAR
    columns = columns if width % columns == 0 else 64
    _norm_linear[(triton.cdiv(B * T * N, rows),)](
        x, norm.weight, norm.bias, weight.to(dtype), guided, out, B * T * N, T, N,
        *x.stride()[:2], *guided.stride()[:3], norm.eps, C=C, WIDTH=width, ROWS=rows,
        COLUMNS=columns, num_warps=warps, num_stages=stages,
    )  # fmt: skip
    return out


def region_attention(
    qkv: Tensor, regions: Sequence[tuple[slice, slice]], grid: tuple[int, int], heads: int
) -> Tensor:
    """Multi-head attention within rectangles: (B, T, N, 3 C) -> (B, T, N, C)."""
    B, T, N, C = (*qkv.shape[:3], qkv.shape[3] // 3)
    out = torch.empty(B, T, N, C, dtype=qkv.dtype, device=qkv.device)
    tiles = _tiles(tuple((r.start, c.start, r.stop, c.stop) for r, c in regions), qkv.device)
    D = C // heads
    queries, keys, warps, stages = REGIONS
    _region_attention[(B * T * len(tiles), heads)](
        qkv, out, tiles, len(tiles), N, grid[1], D**-0.5, C=C, D=D, QUERIES=queries, KEYS=keys,
        num_warps=warps, num_stages=stages,
    )  # fmt: skip
    return out


def class_attention(
    qkv: Tensor, heads: int, pad: tuple[Tensor, Tensor] | None, copies: int
) -> Tensor:
    """Linear attention over the classes of each position: (B, T, N, 3 C) -> (B, T, N, C).

    Args:
        qkv: projected, before the feature map elu + 1.
        heads: of the attention.
        pad: key and value, (C,) each, of a token that stands in the sequence another `copies`
            times.
        copies: see `pad`.
    """
    B, T, N, C = (*qkv.shape[:3], qkv.shape[3] // 3)
    out = torch.empty(B, T, N, C, dtype=qkv.dtype, device=qkv.device)
    if pad is None:
        pad = (torch.zeros(C, device=qkv.device),) * 2
        copies = 0
    key, value = (one.float().contiguous() for one in pad)
    classes, warps, stages = CLASSES
    _class_attention[(B * N,)](
        qkv, out, key, value, float(copies), T, N, C=C, D=C // heads, CLASSES=classes,
        num_warps=warps, num_stages=stages,
    )  # fmt: skip
    return out


def residual_mlp(
    x: Tensor,
    attended: Tensor,
    norm: nn.LayerNorm,
    fc1: nn.Linear,
    fc2: nn.Linear,
    *,
    proj: nn.Linear | None = None,
) -> Tensor:
    """Residuals and MLP behind an attention, into x.

    With a projection (spatial aggregation), y = x + proj(attended), and the result is
    y + fc2(gelu(fc1(norm(y)))). Without (class aggregation), y = x + attended, and it is
    x + y + fc2(relu(fc1(norm(y)))).

    Args:
        x: (B, T, N, C), of any type; positions must follow one another in memory.
        attended: the same shape, in half precision.
        norm: over C.
        fc1, fc2: C -> hidden -> C.
        proj: the attention's last projection.
    """
    B, T, N, C = x.shape
    assert x.stride()[2:] == (C, 1) and attended.is_contiguous()
    dtype = attended.dtype
    rows, columns, warps, stages = RESIDUAL_MLP
    projection = fc1 if proj is None else proj
    _residual_mlp[(triton.cdiv(B * T * N, rows),)](
        x, attended, projection.weight.to(dtype), projection.bias, norm.weight, norm.bias,
        fc1.weight.to(dtype), fc1.bias, fc2.weight.to(dtype), fc2.bias, B * T * N, T, N,
        *x.stride()[:2], norm.eps, C=C, HIDDEN=fc1.weight.shape[0], PROJECT=proj is not None,
        ROWS=rows, COLUMNS=columns, num_warps=warps, num_stages=stages,
    )  # fmt: skip
    return x


def group_norm_relu(x: Tensor, norm: nn.GroupNorm, guided: Tensor | None = None) -> Tensor:
    """relu(norm(x + guided)), into x.

    Args:
        x: (B T, M, h, w), channels-last, in half precision.
        norm: of groups of 16 channels.
        guided: (B or 1, M, h, w), channels-last; None for nothing.
    """
    n, M, h, w = x.shape
    scales = _scales(x, norm, guided)
    each = 1 if guided is None else n // len(guided)
    _normalise[(triton.cdiv(h * w, PIXELS), n)](
        x, x if guided is None else guided, scales, h * w, each, M=M, GUIDED=guided is not None,
        PIXELS=PIXELS, num_warps=4,
    )  # fmt: skip
    return x


def head(x: Tensor, norm: nn.GroupNorm, conv: nn.Conv2d) -> Tensor:
    """conv(relu(norm(x))) in float32: (n, M, h, w) -> (n, 1, h, w).

    What each pixel gives to its nine neighbours is computed first, and gathered then.

    Args:
        x: the decoder's last map, channels-last, in half precision.
        norm: of groups of 16 channels.
        conv: 3 x 3, M -> 1.
    """
    n, M, h, w = x.shape
    scales = _scales(x, norm, None)
    weight = F.pad(conv.weight[0].float().flatten(1), (0, 7)).contiguous()  # (M, 16)
    shares = torch.empty(n, 9, h * w, device=x.device)
    _head[(triton.cdiv(h * w, PIXELS), n)](
        x, scales, weight, shares, h * w, M=M, PIXELS=PIXELS, num_warps=4
    )
    out = torch.empty(n, 1, h, w, device=x.device)
    _gather[(triton.cdiv(h * w, 1024), n)](shares, conv.bias, out, h, w, PIXELS=1024, num_warps=4)
    return out


def add_norm(x: Tensor, y: Tensor, norm: nn.LayerNorm) -> tuple[Tensor, Tensor]:
    """x + y, and norm(x + y) in y's type.

    Args:
        x: (..., C) float32.
        y: the same shape, in half precision.
        norm: over C.
    """
    C = x.shape[-1]
    x, y = x.contiguous(), y.contiguous()
    total, out = torch.empty_like(x), torch.empty_like(y)
    _add_norm[(x.numel() // C,)](
        x, y, total, out, norm.weight, norm.bias, norm.eps, C=C,
        BLOCK=triton.next_power_of_2(C), num_warps=4,
    )  # fmt: skip
    return total, out


def quick_gelu(x: Tensor) -> Tensor:
    """x sigmoid(1.702 x), into x."""
    assert x.is_contiguous()
    _quick_gelu[(triton.cdiv(x.numel(), 4096),)](x, x.numel(), BLOCK=4096, num_warps=8)
    return x


def merge_applies(logits: Tensor) -> bool:
    """Whether `merge` can be used; it is float32 throughout."""
    return AVAILABLE and logits.device.type == "cuda" and not logits.requires_grad


def merge(logits: Tensor, corners: Sequence[tuple[int, int]], kernel: int, side: int) -> Tensor:
    """The probabilities of tiles, merged: `TileGrid.merge(resize(logits, kernel).sigmoid())`.

    Args:
        logits: (L + 1, T, h, w) float32, that of the whole image last.
        corners: top and left of the L tiles, in pixels.
        kernel: K, side of a tile in pixels.
        side: of the result, in pixels.

    Returns:
        (T, side, side)
    """
    logits = logits.contiguous()
    _, T, h, w = logits.shape
    whole = F.interpolate(logits[-1:], (kernel, kernel), mode="bilinear").sigmoid_()
    out = torch.empty(T, side, side, device=logits.device)
    rows, columns = 16, 32
    _merge[(triton.cdiv(side, rows), triton.cdiv(side, columns), T)](
        logits, whole, _places(tuple(corners), logits.device), out, T, h, w, side, h / kernel,
        w / kernel, kernel / side, K=kernel, L=len(corners), ROWS=rows, COLUMNS=columns,
        num_warps=4,
    )  # fmt: skip
    return out


def _scales(x: Tensor, norm: nn.GroupNorm, guided: Tensor | None) -> Tensor:
    """What GroupNorm multiplies each channel of x + guided by, and adds: (n, 2, M) float32."""
    n, M, h, w = x.shape
    assert x.is_contiguous(memory_format=torch.channels_last)
    assert norm.num_channels == M == 16 * norm.num_groups
    if guided is not None:
        assert guided.is_contiguous(memory_format=torch.channels_last)
    each = 1 if guided is None else n // len(guided)
    splits = triton.cdiv(h * w, 1024)
    sums = torch.empty(n, splits, 2, M, device=x.device)  # and sums of squares
    _sums[(splits, n)](
        x, x if guided is None else guided, sums, h * w, each, M=M, SPLITS=splits,
        GUIDED=guided is not None, PIXELS=64, num_warps=4,
    )  # fmt: skip
    scales = torch.empty(n, 2, M, device=x.device)
    _scale_and_shift[(n,)](
        sums, norm.weight, norm.bias, scales, h * w, norm.eps, M=M, SPLITS=splits, num_warps=1
    )
    return scales


@functools.lru_cache(maxsize=64)
def _places(corners: tuple[tuple[int, int], ...], device: torch.device) -> Tensor:
    return torch.tensor(corners, dtype=torch.int32, device=device)


@functools.lru_cache(maxsize=64)
def _tiles(regions: tuple[tuple[int, int, int, int], ...], device: torch.device) -> Tensor:
    """Queries of a region, 64 at a time: (tiles, 5) of top, left, height, width, first query."""
    rows = [
        (top, left, bottom - top, right - left, start)
        for top, left, bottom, right in regions
        for start in range(0, (bottom - top) * (right - left), 64)
    ]
    return torch.tensor(rows, dtype=torch.int32, device=device)


if AVAILABLE:

    @triton.jit
    def _layer_norm(x, weight, bias, eps, C: tl.constexpr):  # type: ignore[no-untyped-def]
        mean = tl.sum(x, 1)[:, None] / C
        x = x - mean
        variance = tl.sum(x * x, 1)[:, None] / C
        return x * tl.rsqrt(variance + eps) * weight[None, :] + bias[None, :]

    @triton.jit
    def _norm_linear(  # type: ignore[no-untyped-def]
        x, norm_weight, norm_bias, weight, guided, out, rows, T, N, x_b, x_t, guided_b, guided_t,
        guided_n, eps, C: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr,
        COLUMNS: tl.constexpr,
    ):  # fmt: skip
        row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
        inside = (row < rows)[:, None]
        channel = tl.arange(0, C)
        image, term, position = row // (T * N), row // N % T, row % N
        at = image * x_b + term * x_t + position * C
        value = tl.load(x + at[:, None] + channel[None, :], mask=inside, other=0.0)
        y = _layer_norm(
            value.to(tl.float32), tl.load(norm_weight + channel), tl.load(norm_bias + channel),
            eps, C,
        ).to(out.dtype.element_ty)  # fmt: skip
        start = image * guided_b + term * guided_t + position * guided_n
        for first in range(0, WIDTH, COLUMNS):
            column = first + tl.arange(0, COLUMNS)
            w = tl.load(weight + column[None, :] * C + channel[:, None])  # (C, COLUMNS)
            result = tl.dot(y, w)
            result += tl.load(guided + start[:, None] + column[None, :], mask=inside, other=0.0)
            tl.store(out + row[:, None] * WIDTH + column[None, :], result, mask=inside)

    @triton.jit
    def _region_attention(  # type: ignore[no-untyped-def]
        qkv, out, tiles, num_tiles, N, W, scale, C: tl.constexpr, D: tl.constexpr,
        QUERIES: tl.constexpr, KEYS: tl.constexpr,
    ):  # fmt: skip
        program, head = tl.program_id(0), tl.program_id(1)
        volume, tile = (program // num_tiles).to(tl.int64), program % num_tiles
        top, left = tl.load(tiles + tile * 5), tl.load(tiles + tile * 5 + 1)
        height, width = tl.load(tiles + tile * 5 + 2), tl.load(tiles + tile * 5 + 3)
        length = height * width
        channel = head * D + tl.arange(0, D)

        query = tl.load(tiles + tile * 5 + 4) + tl.arange(0, QUERIES)
        here = (query < length)[:, None]
        row = volume * N + (top + query // width) * W + left + query % width
        q = tl.load(qkv + row[:, None] * (3 * C) + channel[None, :], mask=here, other=0.0)

        largest = tl.full([QUERIES], float("-inf"), tl.float32)
        total = tl.zeros([QUERIES], tl.float32)
        result = tl.zeros([QUERIES, D], tl.float32)
        for start in range(0, length, KEYS):
            key = start + tl.arange(0, KEYS)
            there = key < length
            at = volume * N + (top + key // width) * W + left + key % width
            place = qkv + at * (3 * C)
            k = tl.load(place[None, :] + C + channel[:, None], mask=there[None, :], other=0.0)
            v = tl.load(place[:, None] + 2 * C + channel[None, :], mask=there[:, None], other=0.0)
            scores = tl.dot(q, k) * (scale * 1.4426950408889634)  # log2(e)
            scores = tl.where(there[None, :], scores, float("-inf"))
            new = tl.maximum(largest, tl.max(scores, 1))
            weights = tl.exp2(scores - new[:, None])
            shrink = tl.exp2(largest - new)
            total = total * shrink + tl.sum(weights, 1)
            result = result * shrink[:, None] + tl.dot(weights.to(v.dtype), v)
            largest = new
        result = result / total[:, None]
        tl.store(out + row[:, None] * C + channel[None, :], result, mask=here)

    @triton.jit
    def _feature_map(x):  # type: ignore[no-untyped-def]
        return tl.where(x > 0, x + 1.0, tl.exp(tl.minimum(x, 0.0)))

    @triton.jit
    def _class_attention(  # type: ignore[no-untyped-def]
        qkv, out, pad_key, pad_value, copies, T, N, C: tl.constexpr, D: tl.constexpr,
        CLASSES: tl.constexpr,
    ):  # fmt: skip
        program = tl.program_id(0).to(tl.int64)
        first = program // N * T * N + program % N  # the row of class 0; the next is N further
        channel = tl.arange(0, C)
        same_head = channel[:, None] // D == channel[None, :] // D
        length = T + copies

        pad = _feature_map(tl.load(pad_key + channel))
        key_sum = copies * pad
        key_value = copies * pad[:, None] * tl.load(pad_value + channel)[None, :]
        for start in range(0, T, CLASSES):
            term = start + tl.arange(0, CLASSES)
            inside = (term < T)[:, None]
            place = qkv + (first + term.to(tl.int64) * N)[:, None] * (3 * C) + channel[None, :]
            k = _feature_map(tl.load(place + C, mask=inside, other=0.0).to(tl.float32))
            k = tl.where(inside, k, 0.0)
            v = tl.load(place + 2 * C, mask=inside, other=0.0)
            key_sum += tl.sum(k, 0)
            key_value += tl.dot(tl.trans(k.to(v.dtype)), v)
        # One matrix holds all heads: blocks on its diagonal.
        dtype = out.dtype.element_ty
        key_value = tl.where(same_head, key_value / length, 0.0).to(dtype)
        normaliser = tl.where(same_head, key_sum[:, None] / length, 0.0).to(dtype)
        for start in range(0, T, CLASSES):
            term = start + tl.arange(0, CLASSES)
            inside = (term < T)[:, None]
            row = (first + term.to(tl.int64) * N)[:, None]
            q = tl.load(qkv + row * (3 * C) + channel[None, :], mask=inside, other=0.0)
            q = _feature_map(q.to(tl.float32)).to(dtype)
            result = tl.dot(q, key_value) / (tl.dot(q, normaliser) + 1e-6 / length)
            tl.store(out + row * C + channel[None, :], result, mask=inside)

    @triton.jit
    def _erf(x):  # type: ignore[no-untyped-def]
        """To 1.5e-7 (Abramowitz and Stegun, 7.1.26), for less than the library's."""
        t = 1.0 / (1.0 + 0.3275911 * tl.abs(x))
        series = 1.061405429 * t - 1.453152027
        series = ((series * t + 1.421413741) * t - 0.284496736) * t + 0.254829592
        y = 1.0 - series * t * tl.exp(-x * x)
        return tl.where(x < 0, -y, y)

    @triton.jit
    def _add_norm(  # type: ignore[no-untyped-def]
        x, y, total, out, weight, bias, eps, C: tl.constexpr, BLOCK: tl.constexpr
    ):
        channel = tl.arange(0, BLOCK)
        inside = channel < C
        at = tl.program_id(0).to(tl.int64) * C + channel
        value = tl.load(x + at, mask=inside, other=0.0)
        value += tl.load(y + at, mask=inside, other=0.0).to(tl.float32)
        tl.store(total + at, value, mask=inside)
        mean = tl.sum(value, 0) / C
        value = tl.where(inside, value - mean, 0.0)
        scale = tl.rsqrt(tl.sum(value * value, 0) / C + eps)
        w, b = tl.load(weight + channel, mask=inside), tl.load(bias + channel, mask=inside)
        tl.store(out + at, value * scale * w + b, mask=inside)

    @triton.jit
    def _residual_mlp(  # type: ignore[no-untyped-def]
        x, attended, proj_weight, proj_bias, norm_weight, norm_bias, weight1, bias1, weight2, bias2,
        rows, T, N, x_b, x_t, eps, C: tl.constexpr, HIDDEN: tl.constexpr, PROJECT: tl.constexpr,
        ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    ):  # fmt: skip
        row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
        inside = (row < rows)[:, None]
        channel = tl.arange(0, C)
        at = row // (T * N) * x_b + row // N % T * x_t + row % N * C
        place = x + at[:, None] + channel[None, :]
        before = tl.load(place, mask=inside, other=0.0).to(tl.float32)
        change = tl.load(attended + row[:, None] * C + channel[None, :], mask=inside, other=0.0)
        dtype = attended.dtype.element_ty
        if PROJECT:
            w = tl.load(proj_weight + channel[None, :] * C + channel[:, None])
            y = before + tl.dot(change, w) + tl.load(proj_bias + channel)[None, :]
        else:
            y = before + change.to(tl.float32)
        normed = _layer_norm(
            y, tl.load(norm_weight + channel), tl.load(norm_bias + channel), eps, C
        ).to(dtype)
        result = y + tl.load(bias2 + channel)[None, :]
        if not PROJECT:
            result += before
        for first in range(0, HIDDEN, COLUMNS):
            column = first + tl.arange(0, COLUMNS)
            w1 = tl.load(weight1 + column[None, :] * C + channel[:, None])  # (C, COLUMNS)
            hidden = tl.dot(normed, w1) + tl.load(bias1 + column)[None, :]
            if PROJECT:
                hidden = 0.5 * hidden * (1.0 + _erf(hidden * 0.7071067811865476))
            else:
                hidden = tl.maximum(hidden, 0.0)
            w2 = tl.load(weight2 + channel[None, :] * HIDDEN + column[:, None])  # (COLUMNS, C)
            result = tl.dot(hidden.to(dtype), w2, acc=result)
        tl.store(place, result, mask=inside)

    @triton.jit
    def _sums(  # type: ignore[no-untyped-def]
        x, guided, sums, pixels, each, M: tl.constexpr, SPLITS: tl.constexpr, GUIDED: tl.constexpr,
        PIXELS: tl.constexpr,
    ):  # fmt: skip
        split, image = tl.program_id(0), tl.program_id(1).to(tl.int64)
        channel = tl.arange(0, M)
        first = split * 1024
        total = tl.zeros([PIXELS, M], tl.float32)
        squares = tl.zeros([PIXELS, M], tl.float32)
        for start in range(first, tl.minimum(first + 1024, pixels), PIXELS):
            pixel = start + tl.arange(0, PIXELS)
            inside = (pixel < pixels)[:, None]
            at = pixel[:, None] * M + channel[None, :]
            y = tl.load(x + image * pixels * M + at, mask=inside, other=0.0).to(tl.float32)
            if GUIDED:
                y += tl.load(guided + image // each * pixels * M + at, mask=inside, other=0.0)
            total += y
            squares += y * y
        place = sums + (image * SPLITS + split) * 2 * M + channel
        tl.store(place, tl.sum(total, 0))
        tl.store(place + M, tl.sum(squares, 0))

    @triton.jit
    def _scale_and_shift(  # type: ignore[no-untyped-def]
        sums, weight, bias, scales, pixels, eps, M: tl.constexpr, SPLITS: tl.constexpr
    ):
        image = tl.program_id(0).to(tl.int64)
        channel = tl.arange(0, M)
        total = tl.zeros([M], tl.float32)
        squares = tl.zeros([M], tl.float32)
        for split in range(SPLITS):
            place = sums + (image * SPLITS + split) * 2 * M + channel
            total += tl.load(place)
            squares += tl.load(place + M)
        same_group = channel[:, None] // 16 == channel[None, :] // 16
        count = pixels * 16.0
        mean = tl.sum(tl.where(same_group, total[:, None], 0.0), 0) / count
        mean_square = tl.sum(tl.where(same_group, squares[:, None], 0.0), 0) / count
        variance = tl.maximum(mean_square - mean * mean, 0.0)
        scale = tl.rsqrt(variance + eps) * tl.load(weight + channel)
        tl.store(scales + image * 2 * M + channel, scale)
        tl.store(scales + (image * 2 + 1) * M + channel, tl.load(bias + channel) - mean * scale)

    @triton.jit
    def _normalise(  # type: ignore[no-untyped-def]
        x, guided, scales, pixels, each, M: tl.constexpr, GUIDED: tl.constexpr,
        PIXELS: tl.constexpr,
    ):  # fmt: skip
        image = tl.program_id(1).to(tl.int64)
        channel = tl.arange(0, M)
        scale = tl.load(scales + image * 2 * M + channel)
        shift = tl.load(scales + (image * 2 + 1) * M + channel)
        pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
        inside = (pixel < pixels)[:, None]
        at = pixel[:, None] * M + channel[None, :]
        place = x + image * pixels * M + at
        y = tl.load(place, mask=inside, other=0.0).to(tl.float32)
        if GUIDED:
            y += tl.load(guided + image // each * pixels * M + at, mask=inside, other=0.0)
        tl.store(place, tl.maximum(y * scale[None, :] + shift[None, :], 0.0), mask=inside)

    @triton.jit
    def _head(  # type: ignore[no-untyped-def]
        x, scales, weight, shares, pixels, M: tl.constexpr, PIXELS: tl.constexpr
    ):
        image = tl.program_id(1).to(tl.int64)
        channel, tap = tl.arange(0, M), tl.arange(0, 16)
        scale = tl.load(scales + image * 2 * M + channel)
        shift = tl.load(scales + (image * 2 + 1) * M + channel)
        pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
        inside = pixel < pixels
        place = x + (image * pixels + pixel)[:, None] * M + channel[None, :]
        y = tl.load(place, mask=inside[:, None], other=0.0).to(tl.float32)
        y = tl.maximum(y * scale[None, :] + shift[None, :], 0.0)
        w = tl.load(weight + channel[:, None] * 16 + tap[None, :])
        share = tl.dot(y, w, input_precision="tf32x3")  # (PIXELS, 16), the last 7 of nothing
        at = shares + (image * 9 + tap[None, :]) * pixels + pixel[:, None]
        tl.store(at, share, mask=inside[:, None] & (tap[None, :] < 9))

    @triton.jit
    def _gather(shares, bias, out, h, w, PIXELS: tl.constexpr):  # type: ignore[no-untyped-def]
        image = tl.program_id(1).to(tl.int64)
        pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
        row, column = pixel // w, pixel % w
        total = tl.zeros([PIXELS], tl.float32) + tl.load(bias)
        for tap in tl.static_range(9):
            r, c = row + tap // 3 - 1, column + tap % 3 - 1
            inside = (r >= 0) & (r < h) & (c >= 0) & (c < w)
            total += tl.load(shares + (image * 9 + tap) * h * w + r * w + c, mask=inside, other=0.0)
        tl.store(out + image * h * w + pixel, total, mask=pixel < h * w)

    @triton.jit
    def _quick_gelu(x, count, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
        at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        value = tl.load(x + at, mask=at < count).to(tl.float32)
        tl.store(x + at, value * tl.sigmoid(1.702 * value), mask=at < count)

    @triton.jit
    def _sources(position, scale, size):  # type: ignore[no-untyped-def]
        """The two positions of a map that a position of the resized map lies between."""
        source = tl.maximum((position + 0.5) * scale - 0.5, 0.0)
        low = tl.minimum(source.to(tl.int32), size - 1)
        return low, tl.minimum(low + 1, size - 1), source - low

    @triton.jit
    def _resized(place, row, column, h, w, scale_h, scale_w, inside):  # type: ignore[no-untyped-def]
        """A map of (h, w), resized, at row and column."""
        top, bottom, down = _sources(row, scale_h, h)
        left, right, across = _sources(column, scale_w, w)
        a = tl.load(place + top * w + left, mask=inside, other=0.0)
        b = tl.load(place + top * w + right, mask=inside, other=0.0)
        c = tl.load(place + bottom * w + left, mask=inside, other=0.0)
        d = tl.load(place + bottom * w + right, mask=inside, other=0.0)
        upper, lower = a + (b - a) * across, c + (d - c) * across
        return upper + (lower - upper) * down

    @triton.jit
    def _merge(  # type: ignore[no-untyped-def]
        logits, whole, corners, out, T, h, w, side, scale_h, scale_w, scale_whole, K: tl.constexpr,
        L: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    ):  # fmt: skip
        term = tl.program_id(2).to(tl.int64)
        first_row, first_column = tl.program_id(0) * ROWS, tl.program_id(1) * COLUMNS
        row = (first_row + tl.arange(0, ROWS))[:, None]
        column = (first_column + tl.arange(0, COLUMNS))[None, :]
        here = (row < side) & (column < side)
        total = tl.zeros([ROWS, COLUMNS], tl.float32)
        count = tl.zeros([ROWS, COLUMNS], tl.float32)
        for tile in range(L):
            top, left = tl.load(corners + 2 * tile), tl.load(corners + 2 * tile + 1)
            below, beside = first_row + ROWS > top, first_column + COLUMNS > left
            if below and beside and first_row < top + K and first_column < left + K:
                r, c = row - top, column - left
                inside = (r >= 0) & (r < K) & (c >= 0) & (c < K)
                place = logits + (tile * T + term) * h * w
                value = tl.sigmoid(_resized(place, r, c, h, w, scale_h, scale_w, inside))
                total += tl.where(inside, value, 0.0)
                count += tl.where(inside, 1.0, 0.0)
        last = _resized(whole + term * K * K, row, column, K, K, scale_whole, scale_whole, here)
        at = out + term * side * side + row * side + column
        tl.store(at, (total / tl.maximum(count, 1.0) + last) / 2, mask=here)
