"""CLIP alone as a segmenter: each variant equals its paper's formula, and all of it is one name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from cat_seg import CATSeg, CATSegError
from cat_seg.model_config import ModelConfig
from cat_seg.modeling import training_free
from cat_seg.modeling.clip import build, build_clip
from cat_seg.plugin.config import load_config, model_config
from cat_seg.synthetic.dataset import split_scene

TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 24, "layers": 3, "head_width": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
SIDE = 4  # positions of an image


@pytest.fixture
def visual():
    visual = build_clip(TINY).visual.eval()
    for parameter in visual.parameters():  # biases and norms too, and far from zero
        torch.nn.init.normal_(parameter, std=0.4)
    return visual.double()


def plain(visual, image: Tensor, variant: str, second: Tensor) -> Tensor:
    """The formulas of the papers, image by image, head by head and row by row."""
    maps = []
    for one, other in zip(image, second, strict=True):
        x = visual.conv1(one[None])[0].flatten(1).T
        x = torch.cat([visual.class_embedding[None], x]) + visual.positional_embedding
        x = visual.ln_pre(x)[None]
        for block in visual.transformer.resblocks[:-1]:
            x = block(x)
        x, last = x[0], visual.transformer.resblocks[-1]
        qkv = last.ln_1(x) @ last.attn.in_proj_weight.T + last.attn.in_proj_bias
        heads = []
        for q, k, v in zip(*(t.split(8, dim=1) for t in qkv.chunk(3, dim=1)), strict=True):
            heads.append(attention(variant, q, k, v, other) @ v)
        y = torch.cat(heads, dim=1) @ last.attn.out_proj.weight.T + last.attn.out_proj.bias
        if variant in ("maskclip", "sclip"):
            y = x + y
            y = y + last.mlp(last.ln_2(y))
        y = visual.ln_post(y) @ visual.proj
        maps.append(y[1:].T.reshape(-1, SIDE, SIDE))
    return torch.stack(maps)


def attention(variant: str, q: Tensor, k: Tensor, v: Tensor, second: Tensor) -> Tensor:
    N, c = q.shape
    if variant == "maskclip":
        return torch.eye(N, dtype=q.dtype)
    if variant == "sclip":
        return (q @ q.T / c**0.5).softmax(1) + (k @ k.T / c**0.5).softmax(1)
    if variant == "clearclip":
        return (q @ q.T / c**0.5).softmax(1)
    weights = torch.zeros(N, N, dtype=q.dtype)
    if variant == "naclip":
        weights += k @ k.T / c**0.5
        for i in range(SIDE * SIDE):
            for j in range(SIDE * SIDE):
                squared = (i // SIDE - j // SIDE) ** 2 + (i % SIDE - j % SIDE) ** 2
                weights[1 + i, 1 + j] += np.exp(-squared / (2 * 5.0**2))
        return weights.softmax(1)
    f = F.normalize(second.flatten(1).T.float(), dim=1)
    alike = f @ f.T
    scores = 3.0 * (alike - 1.2 * alike.mean())
    scores[scores < 0] = -torch.inf
    weights[0, 0] = 1
    weights[1:, 1:] = scores.softmax(1)
    return weights


@pytest.mark.parametrize("variant", training_free.VARIANTS)
def test_each_variant_is_its_papers_formula(visual, variant: str):
    image, second = torch.randn(2, 3, 32, 32).double(), torch.randn(2, 6, SIDE, SIDE)
    with torch.no_grad():
        found = training_free.encode(visual, image, variant, second=second)
        expected = plain(visual, image, variant, second)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_sigmoids_of_the_logits_are_clips_probabilities():
    features, text, scale = torch.randn(2, 8, 3, 3), torch.randn(5, 4, 8), torch.tensor(30.0)
    head = training_free.Similarity((3, 3))
    found = torch.stack([one.values for one in head(features, text, scale)]).sigmoid()
    means = F.normalize(F.normalize(text, dim=-1).mean(1), dim=-1)
    cosines = torch.einsum("bdhw,td->bthw", F.normalize(features, dim=1), means)
    torch.testing.assert_close(found, (30 * cosines).softmax(1), atol=1e-6, rtol=1e-4)
    assert torch.isfinite(head(features, text[:1], scale)[0].values).all()  # certain: p is 1


def test_positions_that_are_all_alike_see_themselves():
    v = torch.randn(1, 2, 9, 4)
    found = training_free.by_affinity(torch.ones(1, 5, 3, 3), v, (3, 3))
    torch.testing.assert_close(found, v)


def test_a_second_encoder_of_another_resolution_is_resized(visual):
    image, second = torch.randn(1, 3, 32, 32).double(), torch.randn(1, 6, 8, 8)
    resized = F.interpolate(second, (SIDE, SIDE), mode="bilinear", align_corners=False)
    found, expected = (
        training_free.encode(visual, image, "proxyclip", second=s) for s in (second, resized)
    )
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", ["RN50", "ViT-B-16-SigLIP"])
def test_other_encoders_have_the_value_path_alone(name: str):
    with torch.device("meta"):
        visual = build_clip(name).visual
        with pytest.raises(CATSegError, match="training-free-maskclip"):
            training_free.encode(visual, torch.zeros(1, 3, 224, 224), "sclip")


def test_the_shipped_models_clip_by_name(tmp_path: Path):
    scene = split_scene("val", 3, seed=5)
    model = CATSeg.from_pretrained("training-free-maskclip:synthetic", "cpu")
    result = model.predict(scene.image, ["sky", "grass", "red plain circle"])
    assert training_free.NOTE in result.notes
    assert (
        model.card["name"] == "training-free-maskclip:synthetic" and not model.card["photographs"]
    )
    again = CATSeg.from_pretrained(model.save_pretrained(tmp_path), "cpu")
    assert training_free.NOTE in (tmp_path / "README.md").read_text()
    other = again.predict(scene.image, ["sky", "grass", "red plain circle"])
    np.testing.assert_array_equal(other.labels, result.labels)


def test_without_aggregator_shares_clip_and_takes_the_models_guidance_as_second_encoder():
    trained = CATSeg(model_config(load_config("configs/synthetic_2023.yaml"))).eval()
    model = trained.without_aggregator("proxyclip")
    assert model.predictor.clip_model is trained.predictor.clip_model
    assert model.backbone is trained.backbone
    result = model.predict(split_scene("val", 0, seed=0).image, ["sky", "grass"])
    assert set(np.unique(result.labels)) <= {0, 1}
    parts = training_free.without_aggregator(ModelConfig(guidance="clip"), "proxyclip").parts
    assert parts == (training_free.SECOND_ENCODER,)


def test_any_clip_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / "tiny.pt"
    torch.save(build_clip(TINY).state_dict(), file)
    monkeypatch.setattr(build, "fetch", lambda source: file)
    monkeypatch.setattr(build, "_registered", {"tiny": TINY})
    model = CATSeg.from_pretrained("training-free-naclip:tiny", "cpu")
    assert model.config.training_free == "naclip" and model.grid == (24, 24)
    torch.testing.assert_close(
        model.predictor.clip_model.visual.proj, torch.load(file)["visual.proj"]
    )


@pytest.mark.parametrize(
    ("name", "told"),
    [("training-free", "names no CLIP"), ("training-free-clip:tiny", "expected one of maskclip")],
)
def test_wrong_names_are_told(name: str, told: str):
    with pytest.raises(CATSegError, match=told):
        CATSeg.from_pretrained(name)
