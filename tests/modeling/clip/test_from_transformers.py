"""CLIP and SigLIP of transformers: the same network in open_clip's form, on tiny random ones.

Those that need transformers are slow: it is in the extra "all", with which CI runs the slow tests.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from cat_seg import CATSeg, CATSegError
from cat_seg.modeling.clip import (
    build,
    build_clip,
    clip_normalization,
    clip_sizes,
    encode_dense,
    encode_text,
    from_transformers,
    load_clip_weights,
)
from cat_seg.modeling.clip.from_transformers import _DEFAULTS, open_clip_config
from tests.test_registry import config

SIZES = dict(hidden_size=32, intermediate_size=96, num_hidden_layers=3, num_attention_heads=2)
VISION = SIZES | {"image_size": 32, "patch_size": 8}
KINDS = ("clip", "siglip")


def published(kind: str, **changes: object) -> torch.nn.Module:
    """A tiny one of transformers' class whose every parameter matters."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    text = SIZES | {"bos_token_id": 1, "eos_token_id": 2} | changes
    if kind == "clip":
        of = transformers.CLIPConfig(vision_config=VISION, text_config=text, projection_dim=24)
        model = transformers.CLIPModel(of)
    else:
        text |= {"vocab_size": 64, "projection_size": 32}
        model = transformers.SiglipModel(
            transformers.SiglipConfig(vision_config=VISION, text_config=text)
        )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_pooled_features_are_the_published_ones(kind: str):
    model = published(kind)
    clip = from_transformers(model).eval()
    image = torch.randn(2, 3, 32, 32)
    close(clip.encode_image(image), model.get_image_features(image).pooler_output)
    tokens = torch.randint(3, 60, (3, 77 if kind == "clip" else 64))
    tokens[:, -1] = 2 if kind == "siglip" else 49407
    if kind == "clip":
        model.text_model.eos_token_id = 49407
    expected = model.get_text_features(tokens).pooler_output
    close(encode_text(clip, tokens), expected)


@pytest.mark.slow
@torch.no_grad()
def test_the_dense_path_of_clip_is_the_plain_one():
    model = published("clip")
    image, vision = torch.randn(2, 3, 32, 48), model.vision_model
    x = vision.pre_layrnorm(vision.embeddings(image, interpolate_pos_encoding=True))
    *body, last = vision.encoder.layers
    for layer in body:
        x = layer(x, attention_mask=None)
    y = last.layer_norm1(x)
    x = x + last.self_attn.out_proj(last.self_attn.v_proj(y))
    x = x + last.mlp(last.layer_norm2(x))
    expected = model.visual_projection(vision.post_layernorm(x))[:, 1:]
    found = encode_dense(from_transformers(model).visual, image, last_residual="token")
    close(found.final.flatten(2).mT, expected)


@pytest.mark.slow
@torch.no_grad()
def test_the_dense_path_of_siglip_is_the_plain_one():
    model = published("siglip")
    # Of the native size: for others timm resizes the positions otherwise than transformers.
    image, vision = torch.randn(2, 3, 32, 32), model.vision_model
    x = vision(image).last_hidden_state  # (2, 16, 32)
    pool = vision.head
    weight, bias = pool.attention.in_proj_weight.chunk(3)[2], pool.attention.in_proj_bias.chunk(3)
    x = pool.attention.out_proj(F.linear(x, weight, bias[2]))
    expected = x + pool.mlp(pool.layernorm(x))
    clip = from_transformers(model)
    close(encode_dense(clip.visual, image, last_residual="token").final.flatten(2).mT, expected)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_what_config_json_leaves_out_is_as_in_transformers(kind: str):
    transformers = pytest.importorskip("transformers")
    whole = {"clip": transformers.CLIPConfig, "siglip": transformers.SiglipConfig}[kind]()
    for defaults, of in zip(_DEFAULTS[kind], (whole.vision_config, whole.text_config), strict=True):
        assert {key: getattr(of, key) for key in defaults} == defaults
    assert open_clip_config({"model_type": kind}) == open_clip_config(whole.to_dict())


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_repository_of_the_hub_is_a_name(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    model = published(kind)
    (tmp_path / "config.json").write_text(json.dumps(model.config.to_dict()))
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    monkeypatch.setattr(build, "fetch", lambda name: tmp_path / name.rpartition("/")[2])
    clip = build_clip("hf://somebody/something")
    load_clip_weights(clip, "hf://somebody/something")
    torch.testing.assert_close(clip.state_dict(), from_transformers(model).state_dict())
    mean, _ = clip_normalization("hf://somebody/something")
    assert mean == ((127.5,) * 3 if kind == "siglip" else clip_normalization("ViT-B/16")[0])
    name, _ = clip.tokenizer_settings
    assert name == ("somebody/something" if kind == "siglip" else "")
    made = config(clip="hf://somebody/something", guidance_layers=(1, 2))
    assert clip_sizes(clip).grid == (4, 4)
    assert clip_sizes(CATSeg(made).predictor.clip_model) == clip_sizes(clip)


def test_other_models_are_told():
    with pytest.raises(CATSegError, match="'altclip' cannot be used; expected 'clip' or 'siglip'"):
        build_clip({"model_type": "altclip"})
    other = {"model_type": "clip", "vision_config": {"hidden_act": "relu"}}
    with pytest.raises(CATSegError, match="Activations"):
        build_clip(other)
