"""The parts that ship: guidance by timm, more volumes, low-rank changes, learned prompts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from cat_seg import CATSeg, CATSegError
from cat_seg.modeling.class_sampling import present, present_and_random, restrict
from cat_seg.modeling.clip import (
    encode_dense,
    encode_text,
    load_clip_weights,
    set_trainable,
    tokenize,
)
from cat_seg.modeling.guidance.timm_backbone import TimmBackbone
from cat_seg.modeling.predictor import CATSegPredictor
from tests.test_registry import CLIP, config

WORDS = ["cat", "dog", "sofa"]
VIT = {  # as DINOv2's, but small
    **dict(guidance="timm", model="vit_small_patch14_dinov2"),
    **dict(settings={"embed_dim": 24, "depth": 3, "num_heads": 2, "img_size": 56}),
}


def model_of(*parts: dict, **changes: object) -> CATSeg:
    torch.manual_seed(0)
    return CATSeg(config(*parts, **changes)).eval()


def run(model: CATSeg, words: list[str] = WORDS) -> Tensor:
    text = model.predictor.encode_text(words)
    return model(torch.linspace(0, 255, 2 * 3 * 32 * 32).view(2, 3, 32, 32), text)


@pytest.mark.parametrize("guidance", ["backbone", "both"])
def test_a_backbone_of_timm_guides(guidance: str, tmp_path: Path):
    model = model_of(VIT, guidance=guidance)
    channels = [24, 24, 24] if guidance == "backbone" else [48, 32, 28]
    assert list(model.predictor.guidance_channels) == channels
    logits = run(model)
    assert logits.shape == (2, 3, 16, 16)
    logits.square().mean().backward()
    used = [p.grad is not None for n, p in model.backbone.named_parameters() if "blocks" in n]
    assert all(used)
    again = CATSeg.from_pretrained(model.save_pretrained(tmp_path), "cpu")
    torch.testing.assert_close(run(again), logits)


def test_maps_of_a_vit_are_its_layers_upsampled():
    backbone = TimmBackbone(config(), **{k: v for k, v in VIT.items() if k != "guidance"}).eval()
    image = torch.randn(1, 3, 56, 56)
    maps = backbone(image)
    assert backbone.strides == {"res2": 3, "res3": 7, "res4": 14}
    assert [maps[n].shape[2:] for n in backbone.out_features] == [(16, 16), (8, 8), (4, 4)]
    layers = backbone.net.get_intermediate_layers(image, n=[0, 1, 2], reshape=True)
    torch.testing.assert_close(maps["res4"], layers[2])
    torch.testing.assert_close(
        maps["res2"], F.interpolate(layers[0], (16, 16), mode="bilinear", align_corners=False)
    )


@pytest.mark.parametrize("name", ["convnext_atto", "resnet18", "swin_s3_tiny_224"])
def test_maps_that_shrink_have_strides_of_4_8_and_16(name: str):
    with torch.device("meta" if name == "resnet18" else "cpu"):
        backbone = TimmBackbone(config(grid=(14, 14)), model=name)
        maps = backbone(torch.zeros(1, 3, 224, 224))
    assert backbone.strides == {"res2": 4, "res3": 8, "res4": 16}
    for name, size in zip(backbone.out_features, (56, 28, 14), strict=True):
        assert maps[name].shape == (1, backbone.channels[name], size, size)


def test_published_weights_of_timm_are_loaded_at_the_beginning(monkeypatch: pytest.MonkeyPatch):
    backbone = TimmBackbone(config(), **{k: v for k, v in VIT.items() if k != "guidance"})
    other = backbone._create()
    asked = {}
    monkeypatch.setattr(backbone, "_create", lambda **options: asked.update(options) or other)
    backbone.load_initial_weights()
    assert asked["pretrained"] is True
    torch.testing.assert_close(backbone.net.blocks[1].norm1.weight, other.blocks[1].norm1.weight)
    torch.testing.assert_close(backbone.net.patch_embed.proj.weight, other.patch_embed.proj.weight)


def test_backbones_that_cannot_guide_are_told():
    with pytest.raises(CATSegError, match="timm cannot make 'no_such_net'"):
        TimmBackbone(config(), model="no_such_net")
    with pytest.raises(CATSegError, match="expected three numbers"):
        TimmBackbone(config(), model="convnext_atto", layers=(0, 1, 9))
    with pytest.raises(CATSegError, match="set it to 'backbone' or 'both'"):
        model_of(VIT, guidance="clip")


def test_without_guidance_nothing_but_clip_is_seen():
    model = model_of(guidance="none")
    assert model.backbone is None and not any("upsample" in k for k in model.state_dict())
    assert run(model).shape == (2, 3, 16, 16)
    picture = np.zeros((40, 50, 3), np.uint8)
    assert model.predict(model.encode(picture), WORDS).labels.shape == (40, 50)


@pytest.mark.parametrize("turn", ["flip", "90", "180", "270"])
def test_a_view_of_a_turned_picture_is_turned_back(turn: str):
    model = model_of({"volume": "view", "turn": turn})
    images = torch.randn(1, 3, 32, 32)
    turned = images.flip(-1) if turn == "flip" else images.rot90(int(turn) // 90, (-2, -1))
    with torch.no_grad():
        features = model.predictor.beside(model.predictor.encode_image(images).final, images)
        expected = model.predictor.encode_image(turned).final
    assert features.shape == (1, 48, 4, 4)
    back = features[:, 24:]
    back = back.flip(-1) if turn == "flip" else back.rot90(int(turn) // 90, (-2, -1))
    torch.testing.assert_close(back, expected)
    assert run(model).isfinite().all()
    with pytest.raises(CATSegError, match="expected one of flip"):
        model_of({"volume": "view", "turn": "45"})


def test_a_second_clip_brings_features_and_texts(tmp_path: Path):
    other = CLIP | {"embed_dim": 20}
    model = model_of({"volume": "clip", "clip": other}, {"volume": "view", "turn": "flip"})
    second = model.predictor.volumes[0]
    text = model.predictor.encode_text(WORDS)
    assert text.shape == (3, 1, 24 + 20)
    texts = [model.predictor.templates[0].format(word) for word in WORDS]
    own = encode_text(second.clip_model, tokenize(texts))
    torch.testing.assert_close(text[:, 0, 24:], F.normalize(own, dim=-1))
    logits = run(model)
    logits.square().mean().backward()
    assert not any(p.requires_grad for p in second.parameters())
    again = CATSeg.from_pretrained(model.save_pretrained(tmp_path), "cpu")
    torch.testing.assert_close(run(again), logits)
    result = again.predict(np.zeros((40, 50, 3), np.uint8), WORDS)
    assert result.labels.shape == (40, 50)


def test_low_rank_changes_are_trained_and_weights_keep_their_names(tmp_path: Path):
    plain = model_of(guidance="none")
    model = model_of({"adapter": "low_rank", "rank": 2}, guidance="none", split_qkv=True)
    clip = model.predictor.clip_model
    torch.save(plain.predictor.clip_model.state_dict(), tmp_path / "clip.pt")
    load_clip_weights(clip, tmp_path / "clip.pt")
    added = {k for k in clip.state_dict() if "low_rank" in k}
    assert len(added) == 3 * 4 * 2  # of q, k, v and output of three blocks
    assert "visual.transformer.resblocks.0.attn.q_proj_weight" in clip.state_dict()
    image = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        expected = plain.predictor.encode_image(image).final
        torch.testing.assert_close(model.predictor.encode_image(image).final, expected)
    set_trainable(clip, "low_rank")
    trained = [p for p in clip.parameters() if p.requires_grad]
    assert len(trained) == len(added)
    run(model).square().mean().backward()
    reached = [p for p in trained if p.grad is not None]
    assert len(reached) == len(trained) - 4  # the last block has neither queries nor keys
    assert all(p.grad.isfinite().all() for p in reached)
    with torch.no_grad():
        for parameter in trained:
            parameter.add_(0.1)
        assert (model.predictor.encode_image(image).final - expected).abs().max() > 0.01
    again = CATSeg.from_pretrained(model.save_pretrained(tmp_path / "saved"), "cpu")
    torch.testing.assert_close(run(again), run(model))
    with pytest.raises(CATSegError, match="no matrix of this CLIP"):
        model_of({"adapter": "low_rank", "names": "nothing"})


def test_recomputing_an_encoder_of_timm_changes_no_gradient():
    tower = dict(timm_model_name="test_vit", timm_pool="map", timm_proj="none", image_size=160)
    clip = CLIP | {"embed_dim": 64, "vision_cfg": tower}
    made = config(clip=clip, guidance="none", size_divisibility=16)
    image, gradients = torch.randn(1, 3, 64, 64), []
    for recompute in (False, True):
        torch.manual_seed(0)
        visual = CATSegPredictor(made, recompute=recompute).train().clip_model.visual
        assert visual.trunk.grad_checkpointing == recompute
        encode_dense(visual, image, last_residual="token").final.square().sum().backward()
        gradients.append(visual.trunk.blocks[0].attn.qkv.weight.grad)
    torch.testing.assert_close(gradients[0], gradients[1])


def test_clip_trains_by_names():
    clip = model_of().predictor.clip_model
    set_trainable(clip, r"names:visual\.transformer\.resblocks\.[12]\.mlp\..*")
    trained = {n.rsplit(".", 2)[0] for n, p in clip.named_parameters() if p.requires_grad}
    assert trained == {f"visual.transformer.resblocks.{i}.mlp" for i in (1, 2)}
    with pytest.raises(CATSegError, match="regular expression"):
        set_trainable(clip, "names:(")


def test_learned_prompts_equal_words_whose_embeddings_they_are(tmp_path: Path):
    model = model_of({"text": "learned_context", "length": 3, "width": 32})
    clip, text = model.predictor.clip_model, model.predictor.text
    with torch.no_grad():
        words = tokenize(["a photo of"])[0, 1:4]
        text.context.copy_(clip.token_embedding(words)[None])
        expected = F.normalize(clip.encode_text(tokenize([f"a photo of {w}" for w in WORDS])))
    actual = model.predictor.encode_text(WORDS)
    torch.testing.assert_close(actual[:, 0], expected, atol=1e-5, rtol=1e-5)
    run(model).square().mean().backward()
    assert text.context.grad.abs().sum() > 0
    first = model.vocabulary(WORDS).features
    with torch.no_grad():
        text.context.add_(torch.randn_like(text.context))
    assert (model.vocabulary(WORDS).features - first).abs().max() > 1e-3
    again = CATSeg.from_pretrained(model.save_pretrained(tmp_path), "cpu")
    torch.testing.assert_close(again.vocabulary(WORDS).features, model.vocabulary(WORDS).features)


def test_class_sampling_keeps_what_is_there():
    targets = torch.tensor([[[7, 255], [-1000, 2]], [[0, 0], [1, 255]]])
    classes = [None, torch.tensor([5, 9, 3])]
    shown = present(targets, classes, 255)
    assert shown.tolist() == [2, 5, 7, 9]
    taught = present_and_random(config(), count=6)(shown, 12)
    assert len(taught) == 6 and set(shown.tolist()) <= set(taught.tolist())
    assert taught.tolist() == sorted(taught.tolist())
    assert present_and_random(config(), count=2)(shown, 12).tolist() == [2, 5, 7, 9]
    labels, lists = restrict(targets, classes, torch.tensor([2, 3, 5, 7, 9]), 255)
    assert labels[0].tolist() == [[3, 255], [-1000, 0]] and lists[0] is None
    assert lists[1].tolist() == [2, 4, 1] and labels[1].tolist() == [[0, 0], [1, 255]]
    labels, lists = restrict(targets, classes, torch.tensor([2, 5, 7, 9]), 255)
    assert lists[1].tolist() == [1, 3] and labels[1].tolist() == [[0, 0], [1, 255]]
    assert labels[0].tolist() == [[2, 255], [-1000, 0]]
