"""CAT-Seg straight from the formulas of the paper and the released models, nothing optimised.

The tests compare the package with it, and the benchmark times both. Weights are read from a state
dict by their released names; every function is told its prefix.

B images, T classes, P prompts, C channels, H and W positions, D text width.
"""

from __future__ import annotations

import torch
from einops import rearrange, repeat
from torch import Tensor
from torch.nn import functional as F

Weights = dict[str, Tensor]


def linear(w: Weights, name: str, x: Tensor) -> Tensor:
    return F.linear(x, w[name + ".weight"], w.get(name + ".bias"))


def norm(w: Weights, name: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], w[name + ".weight"], w[name + ".bias"])


def conv(w: Weights, name: str, x: Tensor, padding: int) -> Tensor:
    return F.conv2d(x, w[name + ".weight"], w.get(name + ".bias"), padding=padding)


# ---- aggregator ----------------------------------------------------------------------------------
def cost_volume(features: Tensor, text: Tensor) -> Tensor:
    """(B, D, H, W), (T, P, D) -> (B, P, T, H, W)"""
    features, text = F.normalize(features, dim=1), F.normalize(text, dim=-1)
    return torch.einsum("bdhw,tpd->bpthw", features, text)


def window_attention(w: Weights, name: str, x: Tensor, guidance: Tensor | None, heads: int,
                     window: int, shift: int) -> Tensor:  # fmt: skip
    """(N, H, W, C) -> the same, by rolling, windows and a mask of -100."""
    H, W = x.shape[1:3]
    region = torch.zeros(H, W)
    if shift:
        x = x.roll((-shift, -shift), (1, 2))
        guidance = None if guidance is None else guidance.roll((-shift, -shift), (1, 2))
        spans = (slice(0, -window), slice(-window, -shift), slice(-shift, None))
        for i, rows in enumerate(spans):
            for j, columns in enumerate(spans):
                region[rows, columns] = 3 * i + j
    cut = "n (y r) (x c) d -> n (y x) (r c) d"
    x = rearrange(x, cut, r=window, c=window)
    qk = x
    if guidance is not None:
        qk = torch.cat([x, rearrange(guidance, cut, r=window, c=window)], dim=-1)
    region = rearrange(region, "(y r) (x c) -> (y x) (r c)", r=window, c=window)
    mask = (region[:, :, None] != region[:, None, :]) * -100.0
    split = "n m l (h d) -> n m h l d"
    q, k = (rearrange(linear(w, f"{name}.{i}", qk), split, h=heads) for i in "qk")
    v = rearrange(linear(w, name + ".v", x), split, h=heads)
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5 + mask[:, None]
    out = rearrange(scores.softmax(-1) @ v, "n m h l d -> n m l (h d)")
    out = linear(w, name + ".proj", out)
    out = rearrange(out, "n (y x) (r c) d -> n (y r) (x c) d", y=H // window, r=window, c=window)
    return out.roll((shift, shift), (1, 2))


def spatial_aggregation(w: Weights, name: str, x: Tensor, guidance: Tensor | None, heads: int,
                        window: int) -> Tensor:  # fmt: skip
    """(B, C, T, H, W), (B, G, H, W) -> (B, C, T, H, W)"""
    B, _, T, H, W = x.shape
    shifts = (0, window // 2) if min(H, W) > window else (0, 0)
    window = min(window, H, W)
    x = rearrange(x, "B C T H W -> (B T) H W C")
    if guidance is not None:
        guidance = repeat(guidance, "B G H W -> (B T) H W G", T=T)
        guidance = norm(w, name + ".guidance_norm", guidance)
    for block, shift in zip(("block_1", "block_2"), shifts, strict=True):
        b = f"{name}.{block}"
        y = norm(w, b + ".norm1", x)
        x = x + window_attention(w, b + ".attn", y, guidance, heads, window, shift)
        y = F.gelu(linear(w, b + ".mlp.fc1", norm(w, b + ".norm2", x)))
        x = x + linear(w, b + ".mlp.fc2", y)
    return rearrange(x, "(B T) H W C -> B C T H W", B=B)


def class_aggregation(w: Weights, name: str, x: Tensor, text: Tensor | None, heads: int,
                      kind: str, pooling: tuple[int, int], padding: int = 0) -> Tensor:  # fmt: skip
    """(B, C, T, H, W), (B, T, G) -> (B, C, T, H, W)"""
    B, _, T, H, W = x.shape
    y = F.avg_pool2d(rearrange(x, "B C T H W -> (B T) C H W"), pooling)
    h, wide = y.shape[-2:]
    y = rearrange(y, "(B T) C h w -> (B h w) T C", B=B)
    if text is not None:
        text = repeat(text, "B T G -> (B n) T G", n=h * wide)
    if padding > T:
        y = torch.cat([y, w[name + ".padding_tokens"].expand(len(y), padding - T, -1)], 1)
        if text is not None:
            pad = w[name + ".padding_guidance"].expand(len(y), padding - T, -1)
            text = torch.cat([text, pad], 1)
    z = norm(w, name + ".norm1", y)
    qk = z if text is None else torch.cat([z, text], -1)
    q, k = (
        rearrange(linear(w, f"{name}.attention.{i}", qk), "n t (h d) -> n t h d", h=heads)
        for i in "qk"
    )
    v = rearrange(linear(w, name + ".attention.v", z), "n t (h d) -> n t h d", h=heads)
    if kind == "linear":
        q, k, length = F.elu(q) + 1, F.elu(k) + 1, v.shape[1]
        kv = torch.einsum("nthd,nthe->nhde", k, v / length)
        z = 1 / (torch.einsum("nthd,nhd->nth", q, k.sum(1)) + 1e-6)
        out = torch.einsum("nthd,nhde,nth->nthe", q, kv, z) * length
    else:
        scores = torch.einsum("nthd,nshd->nhts", q, k) * q.shape[-1] ** -0.5
        out = torch.einsum("nhts,nshd->nthd", scores.softmax(-1), v)
    y = y + out.flatten(2)
    z = linear(w, name + ".MLP.0", norm(w, name + ".norm2", y)).relu()
    y = (y + linear(w, name + ".MLP.2", z))[:, :T]
    y = rearrange(y, "(B h w) T C -> (B T) C h w", B=B, h=h, w=wide)
    if (h, wide) != (H, W):
        y = F.interpolate(y, (H, W), mode="bilinear", align_corners=True)
    return x + rearrange(y, "(B T) C H W -> B C T H W", B=B)


def decoder_block(w: Weights, name: str, x: Tensor, guidance: Tensor | None) -> Tensor:
    """(B T, C, H, W), (B, G, 2 H, 2 W) -> (B T, M, 2 H, 2 W)"""
    y = F.conv_transpose2d(x, w[name + ".up.weight"], w[name + ".up.bias"], stride=2)
    if guidance is not None:
        y = torch.cat([y, guidance.repeat_interleave(len(x) // len(guidance), 0)], 1)
    for c, n in ((0, 1), (3, 4)):
        y = conv(w, f"{name}.conv.double_conv.{c}", y, 1)
        g = f"{name}.conv.double_conv.{n}"
        y = F.group_norm(y, y.shape[1] // 16, w[g + ".weight"], w[g + ".bias"]).relu()
    return y


def aggregator(w: Weights, prefix: str, features: Tensor, text: Tensor, guidance: list[Tensor], *,
               layers: int = 2, heads: int = 4, window: int = 12, kind: str = "linear",
               pooling: tuple[int, int] = (1, 1), padding: int = 0, max_classes: int = 0,
               ) -> Tensor:  # fmt: skip
    """(B, D, H, W), (T, P, D), maps deepest first -> logits (B, T, 4 H, 4 W)"""
    if 0 < max_classes < len(text):
        logits = []
        for b in range(len(features)):
            f, g = features[b : b + 1], [g[b : b + 1] for g in guidance]
            keep = cost_volume(f, text).amax((0, 1, 3, 4)).topk(max_classes).indices
            some = aggregator(w, prefix, f, text[keep], g, layers=layers, heads=heads,
                              window=window, kind=kind, pooling=pooling,
                              padding=padding)  # fmt: skip
            out = some.new_full((len(text), *some.shape[2:]), -100.0)
            out[keep] = some[0]
            logits.append(out)
        return torch.stack(logits)
    B, T = len(features), len(text)
    cost = cost_volume(features, text)
    x = conv(w, prefix + "conv1", rearrange(cost, "B P T H W -> (B T) P H W"), 3)
    x = rearrange(x, "(B T) C H W -> B C T H W", B=B)
    appearance = words = None
    maps: list[Tensor | None] = [None, None]
    if prefix + "guidance_projection.0.weight" in w:
        appearance = conv(w, prefix + "guidance_projection.0", guidance[0], 1).relu()
    if prefix + "text_guidance_projection.0.weight" in w:
        mean = F.normalize(F.normalize(text, dim=-1).mean(1), dim=-1)
        words = linear(w, prefix + "text_guidance_projection.0", mean).relu().expand(B, T, -1)
    if prefix + "decoder_guidance_projection.0.0.weight" in w:
        maps = [
            conv(w, f"{prefix}decoder_guidance_projection.{i}.0", g, 1).relu()
            for i, g in enumerate(guidance[1:])
        ]
    for i in range(layers):
        name = f"{prefix}layers.{i}"
        x = spatial_aggregation(w, name + ".swin_block", x, appearance, heads, window)
        x = class_aggregation(w, name + ".attention", x, words, heads, kind, pooling, padding)
    x = rearrange(x, "B C T H W -> (B T) C H W")
    x = decoder_block(w, prefix + "decoder1", x, maps[0])
    x = decoder_block(w, prefix + "decoder2", x, maps[1])
    return rearrange(conv(w, prefix + "head", x, 1), "(B T) 1 h w -> B T h w", B=B)
