"""CAT-Seg straight from the formulas of the paper and the released models, nothing optimised.

The tests compare the package with it, and the benchmark times both. Weights are read from a state
dict by their released names; every function is told its prefix.

B images, T classes, P prompts, C channels, H and W positions, D text width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from einops import rearrange, repeat
from torch import Tensor, nn
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


def window_mask(H: int, W: int, window: int, shift: int, like: Tensor) -> Tensor:
    """-100 between positions that a shifted window joins but the map does not: (windows, L, L)"""
    region = torch.zeros(H, W, device=like.device)
    if shift:
        spans = (slice(0, -window), slice(-window, -shift), slice(-shift, None))
        for i, rows in enumerate(spans):
            for j, columns in enumerate(spans):
                region[rows, columns] = 3 * i + j
    region = rearrange(region, "(y r) (x c) -> (y x) (r c)", r=window, c=window)
    return (region[:, :, None] != region[:, None, :]) * -100.0


def window_attention(w: Weights, name: str, x: Tensor, guidance: Tensor | None, heads: int,
                     window: int, shift: int) -> Tensor:  # fmt: skip
    """(N, H, W, C) -> the same, by rolling, windows and a mask of -100."""
    H, W = x.shape[1:3]
    mask = window_mask(H, W, window, shift, x)
    if shift:
        x = x.roll((-shift, -shift), (1, 2))
        guidance = None if guidance is None else guidance.roll((-shift, -shift), (1, 2))
    cut = "n (y r) (x c) d -> n (y x) (r c) d"
    x = rearrange(x, cut, r=window, c=window)
    qk = x
    if guidance is not None:
        qk = torch.cat([x, rearrange(guidance, cut, r=window, c=window)], dim=-1)
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


# ---- encoders ------------------------------------------------------------------------------------
def attention(q: Tensor, k: Tensor, v: Tensor, heads: int, bias: Tensor | float = 0.0) -> Tensor:
    """(B, L, C) three times, bias (B, heads, L, L) or broadcasting -> (B, L, C)"""
    q, k, v = (rearrange(t, "b l (h d) -> b h l d", h=heads) for t in (q, k, v))
    scores = q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2) + bias
    return rearrange(scores.softmax(-1) @ v, "b h l d -> b l (h d)")


def projections(w: Weights, name: str) -> tuple[Tensor, Tensor]:
    """Weight and bias of CLIP's q, k, v in one, (3 C, C) and (3 C,)."""
    fused = w.get(name + ".in_proj_weight")
    split = [w.get(f"{name}.{i}_proj_weight") for i in "qkv"]
    return torch.cat(split) if fused is None else fused, w[name + ".in_proj_bias"]


def clip_mlp(w: Weights, name: str, x: Tensor, quick: bool) -> Tensor:
    y = linear(w, name + ".mlp.c_fc", norm(w, name + ".ln_2", x))
    y = y * torch.sigmoid(1.702 * y) if quick else F.gelu(y)
    return x + linear(w, name + ".mlp.c_proj", y)


def clip_block(w: Weights, name: str, x: Tensor, heads: int, quick: bool,
               mask: Tensor | float = 0.0) -> Tensor:  # fmt: skip
    """(B, L, C) -> (B, L, C)"""
    weight, bias = projections(w, name + ".attn")
    q, k, v = F.linear(norm(w, name + ".ln_1", x), weight, bias).chunk(3, -1)
    x = x + linear(w, name + ".attn.out_proj", attention(q, k, v, heads, mask))
    return clip_mlp(w, name, x, quick)


def clip_image(w: Weights, prefix: str, images: Tensor, heads: int, *, residual: str,
               quick: bool = True, wanted: Sequence[int] = ()) -> list[Tensor]:  # fmt: skip
    """(B, 3, K, K) -> (B, D, H, W), and the tokens of the wanted blocks, each (B, C, H, W)"""
    x = F.conv2d(images, w[prefix + "conv1.weight"], stride=w[prefix + "conv1.weight"].shape[-1])
    H, W = x.shape[-2:]
    positions = w[prefix + "positional_embedding"]
    side = int((len(positions) - 1) ** 0.5)
    if (side, side) != (H, W):
        grid = rearrange(positions[None, 1:], "1 (y x) c -> 1 c y x", y=side)
        grid = F.interpolate(grid, (H, W), mode="bicubic", align_corners=False)
        positions = torch.cat([positions[:1], rearrange(grid, "1 c y x -> (y x) c")])
    x = rearrange(x, "b c y x -> b (y x) c")
    x = torch.cat([w[prefix + "class_embedding"].expand(len(x), 1, -1), x], 1) + positions
    x = norm(w, prefix + "ln_pre", x)
    depth = 1 + max(int(k.split(".")[-4]) for k in w if k.startswith(prefix + "transformer") and
                    k.endswith("mlp.c_fc.weight"))  # fmt: skip
    kept = []
    for i in range(depth - 1):
        x = clip_block(w, f"{prefix}transformer.resblocks.{i}", x, heads, quick)
        if i + 1 in wanted:
            kept.append(x)
    last = f"{prefix}transformer.resblocks.{depth - 1}"
    weight, bias = projections(w, last + ".attn")
    v = F.linear(norm(w, last + ".ln_1", x), weight.chunk(3)[2], bias.chunk(3)[2])
    o = linear(w, last + ".attn.out_proj", v)
    x = clip_mlp(w, last, o + (x if residual == "token" else x[:, :1]), quick)
    x = norm(w, prefix + "ln_post", x) @ w[prefix + "proj"]
    return [rearrange(t[:, 1:], "b (y x) c -> b c y x", y=H) for t in (x, *kept)]


def clip_text(w: Weights, prefix: str, tokens: Tensor, heads: int, quick: bool = True) -> Tensor:
    """(N, 77) -> (N, D), not normalised"""
    x = w[prefix + "token_embedding.weight"][tokens] + w[prefix + "positional_embedding"]
    mask = torch.full((x.shape[1], x.shape[1]), -torch.inf, device=x.device).triu(1)
    blocks = [k for k in w if k.startswith(prefix + "transformer") and "mlp.c_fc.weight" in k]
    for i in range(len(blocks)):
        x = clip_block(w, f"{prefix}transformer.resblocks.{i}", x, heads, quick, mask)
    x = norm(w, prefix + "ln_final", x)
    return x[torch.arange(len(x)), tokens.argmax(1)] @ w[prefix + "text_projection"]


def swin_block(w: Weights, name: str, x: Tensor, heads: int, window: int,
               shift: int) -> Tensor:  # fmt: skip
    """(B, H, W, C) -> the same"""
    B, H, W, _ = x.shape
    y = norm(w, name + ".norm1", x)
    y = F.pad(y, (0, 0, 0, -W % window, 0, -H % window))
    height, width = y.shape[1:3]
    mask = window_mask(height, width, window, shift, x)
    y = y.roll((-shift, -shift), (1, 2))
    cut = "b (y r) (x c) d -> (b y x) (r c) d"
    y = rearrange(y, cut, r=window, c=window)
    at = torch.cartesian_prod(torch.arange(window), torch.arange(window)).to(x.device)
    apart = at[:, None] - at[None] + window - 1
    index = apart[..., 0] * (2 * window - 1) + apart[..., 1]
    bias = w[name + ".attn.relative_position_bias_table"][index].permute(2, 0, 1)
    q, k, v = linear(w, name + ".attn.qkv", y).chunk(3, -1)
    y = attention(q, k, v, heads, bias + mask.repeat(B, 1, 1)[:, None])
    y = linear(w, name + ".attn.proj", y)
    back = "(b y x) (r c) d -> b (y r) (x c) d"
    y = rearrange(y, back, y=height // window, x=width // window, r=window)
    x = x + y.roll((shift, shift), (1, 2))[:, :H, :W]
    y = F.gelu(linear(w, name + ".mlp.fc1", norm(w, name + ".norm2", x)))
    return x + linear(w, name + ".mlp.fc2", y)


def swin(w: Weights, prefix: str, images: Tensor, depths: Sequence[int], heads: Sequence[int],
         window: int) -> list[Tensor]:  # fmt: skip
    """(B, 3, h, w) -> maps of the stages, deepest first. Sides are even at every stage."""
    weight = w[prefix + "patch_embed.proj.weight"]
    x = F.conv2d(images, weight, w[prefix + "patch_embed.proj.bias"], stride=weight.shape[-1])
    x = norm(w, prefix + "patch_embed.norm", rearrange(x, "b c h w -> b h w c"))
    maps = []
    for i, depth in enumerate(depths):
        for j in range(depth):
            name = f"{prefix}layers.{i}.blocks.{j}"
            x = swin_block(w, name, x, heads[i], window, window // 2 if j % 2 else 0)
        if f"{prefix}norm{i}.weight" in w:
            maps.append(rearrange(norm(w, f"{prefix}norm{i}", x), "b h w c -> b c h w"))
        if i + 1 < len(depths):
            x = torch.cat([x[:, a::2, b::2] for b in (0, 1) for a in (0, 1)], -1)
            name = f"{prefix}layers.{i}.downsample"
            x = linear(w, name + ".reduction", norm(w, name + ".norm", x))
    return maps[::-1]


# ---- sliding window ------------------------------------------------------------------------------
def bilinear(x: Tensor, size: int | tuple[int, int]) -> Tensor:
    size = (size, size) if isinstance(size, int) else size
    return F.interpolate(x, size, mode="bilinear", align_corners=False)


def cut(image: Tensor, kernel: int = 384, stride: int = 256, side: int = 640) -> Tensor:
    """(3, h, w) -> (5, 3, kernel, kernel): four windows, and the image as a whole"""
    tiles = F.unfold(bilinear(image[None], side), kernel, stride=stride)
    tiles = rearrange(tiles, "1 (c y x) n -> n c y x", c=3, y=kernel)
    return torch.cat([tiles, bilinear(image[None], kernel)])


def merge(logits: Tensor, height: int, width: int, kernel: int = 384, stride: int = 256,
          side: int = 640) -> Tensor:  # fmt: skip
    """(5, T, 4 H, 4 W) -> probabilities (T, height, width)"""
    maps = bilinear(logits, kernel).sigmoid()
    columns = rearrange(maps[:-1], "n t y x -> t (y x) n")
    total = F.fold(columns, side, kernel, stride=stride)
    count = F.fold(torch.ones_like(columns[:1]), side, kernel, stride=stride)
    mean = (total / count + bilinear(maps[-1][:, None], side)) / 2
    return bilinear(mean, (height, width))[:, 0]


# ---- whole model ---------------------------------------------------------------------------------
HEAD = "sem_seg_head.predictor."
CLIP_NORM = ((122.7709383, 116.7460125, 104.09373615), (68.5005327, 66.6321579, 70.3231630))
IMAGE_NORM = ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))


def normalised(images: Tensor, values: tuple[tuple[float, ...], tuple[float, ...]]) -> Tensor:
    mean, std = (images.new_tensor(v)[:, None, None] for v in values)
    return (images - mean) / std


def encode(w: Weights, crops: Tensor, *, clip_heads: int, clip_side: int, quick: bool,
           residual: str, wanted: Sequence[int] = (), depths: Sequence[int] = (),
           heads: Sequence[int] = (), window: int = 12, side: int = 384,
           ) -> tuple[Tensor, list[Tensor]]:  # fmt: skip
    """Crops -> dense features and guidance, deepest first: of Swin, or of CLIP's wanted blocks."""
    x = bilinear(normalised(crops, CLIP_NORM), clip_side)
    visual = HEAD + "clip_model.visual."
    features, *tokens = clip_image(
        w, visual, x, clip_heads, residual=residual, quick=quick, wanted=wanted
    )
    if not wanted:
        images = bilinear(normalised(crops, IMAGE_NORM), side)
        return features, swin(w, "backbone.", images, depths, heads, window)
    up = [
        F.conv_transpose2d(t, w[f"upsample{i}.weight"], w[f"upsample{i}.bias"], stride=2 * i)
        for i, t in enumerate(tokens, 1)
    ]
    return features, [features, *up]


def segment(w: Weights, image: Tensor, text: Tensor, height: int, width: int, *,
            encoders: dict[str, Any], aggregation: dict[str, Any], tiles: tuple[int, int, int],
            crop_batch: int = 5) -> Tensor:  # fmt: skip
    """(3, h, w) in 0..255 and text (T, P, D) -> probabilities (T, height, width)"""
    logits = []
    for crops in cut(image, *tiles).split(crop_batch):
        features, guidance = encode(w, crops, **encoders)
        logits.append(aggregator(w, HEAD + "transformer.", features, text, guidance, **aggregation))
    return merge(torch.cat(logits), height, width, *tiles)


def loss(w: Weights, images: Tensor, labels: Tensor, text: Tensor, *,
         encoders: dict[str, Any], aggregation: dict[str, Any], **_: Any) -> Tensor:  # fmt: skip
    """(B, 3, h, w) in 0..255, (B, h, w), (T, P, D) -> the training loss"""
    features, guidance = encode(w, images, **encoders)
    logits = aggregator(w, HEAD + "transformer.", features, text, guidance, **aggregation)
    logits = bilinear(logits, tuple(labels.shape[-2:]))
    target = labels[:, None] == torch.arange(len(text), device=labels.device)[:, None, None]
    return F.binary_cross_entropy_with_logits(logits, target.float())


def settings(cfg: Any, model: nn.Module) -> dict[str, Any]:
    """What `segment` and `loss` have to be told of a config and the model built from it."""
    predictor: Any = model.sem_seg_head.predictor
    head, visual = cfg.MODEL.SEM_SEG_HEAD, predictor.clip_model.visual
    block = visual.transformer.resblocks[0]
    encoders = {
        "clip_heads": block.attn.num_heads,
        "clip_side": head.FEATURE_RESOLUTION[0] * visual.patch_size[0],
        "quick": type(block.mlp.gelu).__name__ == "QuickGELU",
        "residual": predictor.config.last_residual,
        "wanted": predictor.guidance_layers,
    }
    if not predictor.guidance_layers:
        names = ("depths", "DEPTHS"), ("heads", "NUM_HEADS"), ("window", "WINDOW_SIZE")
        encoders |= {ours: cfg.MODEL.SWIN[key] for ours, key in names}
        deepest = cfg.MODEL.SWIN.PATCH_SIZE * 2 ** (len(head.IN_FEATURES) - 1)
        encoders["side"] = deepest * head.FEATURE_RESOLUTION[0]
    aggregation = {
        "layers": head.NUM_LAYERS,
        "heads": head.NUM_HEADS,
        "window": head.WINDOW_SIZES,
        "kind": head.ATTENTION_TYPE,
        "pooling": tuple(
            head.POOLING_SIZES if model.training else cfg.TEST.POOLING_SIZES or head.POOLING_SIZES
        ),
        "padding": predictor.transformer.layers[0].attention.padding,
        "max_classes": predictor.transformer.max_classes,
    }
    kernel = cfg.TEST.SLIDING_KERNEL
    stride = int(kernel * (1 - cfg.TEST.SLIDING_OVERLAP))
    tiles = (kernel, stride, cfg.TEST.SLIDING_RESOLUTION)
    return {"encoders": encoders, "aggregation": aggregation, "tiles": tiles}
