"""The dense image encoder, against the golden runs, open_clip and a reference."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from cat_seg.modeling.clip import encode_dense, encode_dense_tokens, split_in_proj
from cat_seg.modeling.clip.vision import resize_position_embedding
from tests.golden import GOLDEN, load_golden
from tests.modeling.clip.tiny import golden_clip, tiny_clip

LAST_RESIDUAL = {"2023": "token", "2024": "class"}
PIXEL_MEAN = torch.tensor([122.7709383, 116.7460125, 104.09373615])[:, None, None]
PIXEL_STD = torch.tensor([68.5005327, 66.6321579, 70.3231630])[:, None, None]


def plain_encoder(visual, image, last_residual):
    """The dense encoder straight from the formulas, with open_clip's own blocks."""
    x = visual.conv1(image).flatten(2).transpose(1, 2)
    x = torch.cat([visual.class_embedding.expand(len(x), 1, -1), x], 1)
    side = int((x.shape[1] - 1) ** 0.5)
    x = x + resize_position_embedding(visual.positional_embedding, visual.grid_size, (side, side))
    x = visual.ln_pre(x)
    outputs = []
    for block in visual.transformer.resblocks[:-1]:
        x = block(x)
        outputs.append(x)
    last = visual.transformer.resblocks[-1]
    y = last.ln_1(x) @ last.attn.in_proj_weight.chunk(3)[2].T + last.attn.in_proj_bias.chunk(3)[2]
    z = last.attn.out_proj(y) + (x if last_residual == "token" else x[:, :1])
    z = z + last.mlp(last.ln_2(z))
    return visual.ln_post(z) @ visual.proj, outputs


def golden_crops(golden):
    """The five crops of the golden image as CLIP sees them, (5, 3, H, W)."""
    image = Image.fromarray(golden.inference["image_hwc"].numpy())
    image = image.resize((853, 640), Image.Resampling.BILINEAR)  # the test mapper
    image = torch.tensor(np.array(image)).permute(2, 0, 1)
    golden.assert_matches(image, "mapped_image")
    image = image.float()
    square = F.interpolate(image[None], (640, 640), mode="bilinear")
    crops = [square[..., y : y + 384, x : x + 384] for y in (0, 256) for x in (0, 256)]
    crops.append(F.interpolate(image[None], (384, 384), mode="bilinear"))
    size = golden.recipe["clip"]["input_resolution_of_the_crops"]
    crops = F.interpolate((torch.cat(crops) - PIXEL_MEAN) / PIXEL_STD, size, mode="bilinear")
    return crops


@pytest.mark.parametrize("name", GOLDEN)
def test_matches_the_golden_runs(name):
    golden, clip = load_golden(name), golden_clip(name)
    residual = LAST_RESIDUAL[golden.recipe["generation"]]
    with torch.inference_mode():
        image = golden_crops(golden)
        tokens, _ = encode_dense_tokens(clip.visual, image, last_residual=residual)
        golden.assert_matches(tokens, "clip_features")
        one, _ = encode_dense_tokens(clip.visual, image[3:4], last_residual=residual)
    torch.testing.assert_close(one, tokens[3:4], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("last_residual", ["token", "class"])
def test_equals_the_plain_formulation(last_residual):
    clip = tiny_clip()
    image = torch.randn(2, 3, 40, 40)
    tokens, intermediates = encode_dense_tokens(
        clip.visual, image, last_residual=last_residual, intermediate_layers=[2, 1]
    )
    expected, outputs = plain_encoder(clip.visual, image, last_residual)
    torch.testing.assert_close(tokens, expected)
    torch.testing.assert_close(intermediates, (outputs[1], outputs[0]))


@pytest.mark.parametrize("split", [False, True])
def test_maps_are_the_tokens_in_rows(split):
    clip = tiny_clip()
    if split:
        split_in_proj(clip)
    image = torch.randn(2, 3, 24, 48)
    tokens, (middle,) = encode_dense_tokens(
        clip.visual, image, last_residual="token", intermediate_layers=[1]
    )
    dense = encode_dense(clip.visual, image, last_residual="token", intermediate_layers=[1])
    assert dense.final.shape == (2, 24, 3, 6)
    assert dense.intermediates[0].shape == (2, 32, 3, 6)
    torch.testing.assert_close(dense.final[:, :, 1, 2], tokens[:, 1 + 6 + 2])
    torch.testing.assert_close(dense.intermediates[0][:, :, 2, 0], middle[:, 1 + 12])


def test_position_embedding_is_resized_as_an_image_and_keeps_the_class():
    embedding = torch.randn(1 + 4 * 4, 8)
    resized = resize_position_embedding(embedding, (4, 4), (6, 5))
    expected = F.interpolate(
        embedding[1:].T.reshape(1, 8, 4, 4), (6, 5), mode="bicubic", align_corners=False
    )
    torch.testing.assert_close(resized[0], embedding[0])
    torch.testing.assert_close(resized[1:], expected.flatten(2)[0].T)
    assert resize_position_embedding(embedding, (4, 4), (4, 4)) is embedding


def test_prompts_are_seen_in_their_layers_and_dropped_behind_them():
    clip = tiny_clip()
    image = torch.randn(2, 3, 32, 32)
    prompts = torch.randn(1, 5, 32, requires_grad=True)
    tokens, (first, second) = encode_dense_tokens(
        clip.visual, image, last_residual="token", intermediate_layers=[1, 2], prompts=prompts
    )
    x = clip.visual._embeds(image)
    x = torch.cat([x, prompts[0].expand(2, -1, -1)], dim=1)  # attention knows no order
    x = clip.visual.transformer.resblocks[0](x)[:, :17]
    torch.testing.assert_close(first, x)
    torch.testing.assert_close(second, clip.visual.transformer.resblocks[1](x))
    tokens.sum().backward()
    assert prompts.grad.abs().sum(-1).min() > 0


@pytest.mark.parametrize("last_residual", ["token", "class"])
def test_recomputed_activations_give_the_same_gradients(last_residual):
    clip = tiny_clip()
    image = torch.randn(1, 3, 24, 24)
    gradients = []
    for recompute in (False, True):
        clip.zero_grad()
        dense = encode_dense(
            clip.visual,
            image,
            last_residual=last_residual,
            intermediate_layers=[1],
            recompute=recompute,
        )
        (dense.final.square().mean() + dense.intermediates[0].square().mean()).backward()
        gradients.append([p.grad.clone() for _, p in sorted(clip.visual.named_parameters())])
    torch.testing.assert_close(*gradients)
    assert all(g.abs().max() > 0 for g in gradients[0])


def test_sizes_that_do_not_fit_are_explained():
    clip = tiny_clip()
    with pytest.raises(ValueError, match="30 x 32 pixels is not made of CLIP's 8 x 8 patches"):
        encode_dense(clip.visual, torch.randn(1, 3, 30, 32), last_residual="token")
    with pytest.raises(ValueError, match="'cls'; expected 'token' or 'class'"):
        encode_dense(clip.visual, torch.randn(1, 3, 32, 32), last_residual="cls")
    with pytest.raises(ValueError, match=r"layers \[3\].*from 1 to 2"):
        encode_dense(
            clip.visual, torch.randn(1, 3, 32, 32), last_residual="token", intermediate_layers=[3]
        )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_cuda_agrees_with_cpu(dtype):
    clip = tiny_clip()
    image = torch.randn(2, 3, 40, 40)
    with torch.no_grad():
        expected = encode_dense(clip.visual, image, last_residual="token").final
        clip.cuda()
        with torch.autocast("cuda", dtype or torch.bfloat16, enabled=dtype is not None):
            actual = encode_dense(clip.visual, image.cuda(), last_residual="token").final
    tolerance = 1e-3 if dtype is None else 0.1 * float(expected.abs().max())
    torch.testing.assert_close(actual.cpu().float(), expected, atol=tolerance, rtol=0)


def test_autocast_keeps_the_residual_stream_in_float32():
    clip = tiny_clip()
    image = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        exact = encode_dense(clip.visual, image, last_residual="class", intermediate_layers=[2])
        with torch.autocast("cpu", torch.bfloat16):
            dense = encode_dense(clip.visual, image, last_residual="class", intermediate_layers=[2])
    assert dense.intermediates[0].dtype == torch.float32
    scale = float(exact.final.abs().max())
    torch.testing.assert_close(dense.final.float(), exact.final, atol=0.1 * scale, rtol=0)
