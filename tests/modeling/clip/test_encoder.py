"""The protocol of an encoder: all adapters satisfy it, and one of your own is a part."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cat_seg import CATSeg, registry
from cat_seg.loading import load_clip
from cat_seg.model_config import ModelConfig
from cat_seg.modeling.clip import ClipSizes, DenseFeatures, Encoder, build_clip, clip_normalization
from cat_seg.modeling.clip.towers import Layer
from tests.modeling.clip.test_towers import TEXT, TIMM, TOWERS, eva_tower
from tests.test_registry import CLIP, config

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION = SIZES | {"image_size": 32, "patch_size": 8, "intermediate_size": 64}
ADAPTERS = {
    "open_clip": CLIP,
    **{
        f"timm, {kind}": {
            "embed_dim": 64,
            "vision_cfg": tower if kind == "resnet" else TIMM | tower,
            "text_cfg": TEXT,
        }
        for kind, tower in TOWERS.items()
    },
    **{
        f"transformers, {kind}": {
            "model_type": kind,
            "vision_config": VISION,
            "text_config": SIZES | {"intermediate_size": 64},
            "projection_dim": 24,
        }
        for kind in ("clip", "siglip")
    },
    "eva": None,
}


@pytest.mark.parametrize("kind", ADAPTERS)
@torch.no_grad()
def test_every_adapter_is_an_encoder(kind: str):
    made = ADAPTERS[kind]
    encoder = eva_tower() if made is None else build_clip(made).eval()
    assert isinstance(encoder, Encoder)
    sizes = encoder.sizes
    D, side = sizes.embed_dim, sizes.patch_size
    images = torch.randn(1, 3, 2 * side, 3 * side)
    layers = [1, len(sizes.layers) - 1]
    dense = encoder.encode_dense(images, last_residual="token", intermediate_layers=layers)
    assert dense.final.shape == (1, D, 2, 3)
    for one, number in zip(dense.intermediates, layers, strict=True):
        assert one.shape[1] == sizes.layers[number - 1].channels
    mean, std = encoder.normalization
    assert len(mean) == len(std) == 3
    if kind != "eva":  # which has few tokens
        tokens = torch.ones(2, 16, dtype=torch.long) if "siglip" in kind else None
        tokens = encoder.tokenize(["a cat", "a dog"]) if tokens is None else F.pad(tokens, (0, 48))
        assert encoder.encode_tokens(tokens).shape == (2, D)
    assert isinstance(copy.deepcopy(encoder), Encoder)


def test_normalization_is_that_of_the_name():
    with torch.device("meta"):
        encoder = build_clip("ViT-B-16-SigLIP")
    assert encoder.normalization == clip_normalization("ViT-B-16-SigLIP")


class Letters(nn.Module):
    """Pictures by a convolution, texts by the sum of their letters."""

    normalization = ((127.5,) * 3, (127.5,) * 3)

    def __init__(self, config: ModelConfig, *, width: int) -> None:
        super().__init__()
        self.visual = nn.ModuleList([nn.Conv2d(3, 8, 8, 8), nn.Conv2d(8, width, 1)])
        self.letters = nn.EmbeddingBag(128, width)
        self.begun = False

    @property
    def sizes(self) -> ClipSizes:
        width, layers = self.letters.embedding_dim, (Layer(8, 8),) * 3
        return ClipSizes(8, 8, 3, width, (4, 4), layers)

    def encode_dense(
        self, images: Tensor, *, intermediate_layers: tuple[int, ...] = (), **_: object
    ) -> DenseFeatures:
        x = self.visual[0](images)
        return DenseFeatures(self.visual[1](x), (x,) * len(intermediate_layers))

    def tokenize(self, texts: list[str]) -> Tensor:
        return torch.tensor([[ord(c) % 128 for c in t.ljust(40)[:40]] for t in texts])

    def encode_tokens(self, tokens: Tensor, **_: object) -> Tensor:
        return self.letters(tokens.to(self.letters.weight.device))

    def load_initial_weights(self) -> None:
        self.begun = True


def test_an_encoder_of_ones_own_is_a_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(registry, "_factories", dict(registry._factories))
    monkeypatch.setenv("CAT_SEG_CACHE", str(tmp_path / "cache"))
    registry.register("encoder", "letters")(Letters)
    made = config({"encoder": "letters", "width": 12}, split_qkv=True)
    model = CATSeg(made).eval()
    encoder = model.predictor.clip_model
    assert isinstance(encoder, Letters) and isinstance(encoder, Encoder)
    load_clip(model, "ViT-B/16")  # the default of a YAML, which is not its own
    assert encoder.begun
    words = ["cat", "dog"]
    text = model.predictor.encode_text(words)
    assert text.shape == (2, 1, 12)
    model(torch.rand(1, 3, 32, 32), text).square().mean().backward()
    assert all(p.grad is not None for p in encoder.parameters())
    picture = np.full((40, 50, 3), 200, np.uint8)
    expected = model.predict(picture, words)
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 1  # its text features
    again = CATSeg.from_pretrained(model.save_pretrained(tmp_path / "saved"), "cpu")
    np.testing.assert_array_equal(again.predict(picture, words).scores, expected.scores)
    with torch.no_grad():
        encoder.letters.weight.neg_()
    assert not np.array_equal(model.predict(picture, words).scores, expected.scores)
