"""Dense features of image encoders that are no ViT of open_clip, on tiny random ones."""

from pathlib import Path

import open_clip
import pytest
import torch
from timm.models.eva import Eva
from torch.nn import functional as F

from cat_seg.errors import CATSegError
from cat_seg.modeling.clip import (
    build_clip,
    clip_normalization,
    clip_sizes,
    encode_dense,
    encode_text,
    load_clip_weights,
    register_clip,
    set_trainable,
    tokenize,
)
from cat_seg.modeling.clip import text as text_module
from cat_seg.modeling.clip.towers import take_any_size

TEXT = {"width": 32, "heads": 2, "layers": 2}
FEW_TOKENS = {"vocab_size": 64}  # where no text is encoded
TIMM = {"image_size": 160, "timm_proj": "none"}
TOWERS = {
    "token": {"timm_model_name": "test_vit", "timm_pool": "token"},  # as MobileCLIP-B
    "map": {"timm_model_name": "test_vit", "timm_pool": "map"},  # as SigLIP
    "avg": {"timm_model_name": "test_convnext", "timm_pool": "", "timm_proj": "mlp"},
    "resnet": {"layers": [1, 1, 1, 1], "width": 8, "head_width": 8, "image_size": 64},
}


def tiny_tower(kind):
    """A tiny CLIP whose every parameter matters."""
    vision = TOWERS[kind] if kind == "resnet" else TIMM | TOWERS[kind]
    register_clip("tower", {"embed_dim": 64, "vision_cfg": vision, "text_cfg": TEXT | FEW_TOKENS})
    return randomized(build_clip("tower"))


def randomized(clip):
    with torch.no_grad():
        for parameter in clip.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return clip.eval()


def eva_tower(**settings):
    """A tiny CLIP with an EVA as EVA02 and PE have it: rotary positions, a class token."""
    clip = tiny_tower("token")
    clip.visual.trunk = Eva(
        img_size=64, patch_size=16, embed_dim=32, depth=2, num_heads=2, num_classes=64,
        global_pool="token", use_rot_pos_emb=True, ref_feat_shape=(4, 4), **settings,
    )  # fmt: skip
    take_any_size(clip.visual)
    return randomized(clip)


def dense(clip, image, layers=(), residual="token"):
    with torch.no_grad():
        return encode_dense(
            clip.visual, image, last_residual=residual, intermediate_layers=list(layers)
        )


@pytest.mark.parametrize("residual", ["token", "class"])
def test_a_class_token_leaves_the_values_of_the_last_attention(residual):
    clip = tiny_tower("token")
    trunk, image = clip.visual.trunk, torch.randn(2, 3, 160, 160)
    with torch.no_grad():
        x = trunk._pos_embed(trunk.patch_embed(image))
        for block in trunk.blocks[:-1]:
            x = block(x)
        last = trunk.blocks[-1]
        weight, bias = last.attn.qkv.weight.chunk(3)[2], last.attn.qkv.bias.chunk(3)[2]
        values = last.attn.proj(F.linear(last.norm1(x), weight, bias))
        x = last.ls1(values) + (x if residual == "token" else x[:, :1])
        x = trunk.head(trunk.norm(x + last.ls2(last.mlp(last.norm2(x)))))[:, 1:]
    actual = dense(clip, image, residual=residual).final
    torch.testing.assert_close(actual.flatten(2).mT, x, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("post_norm", [False, True])
@pytest.mark.parametrize("swiglu", [False, True])
def test_eva_leaves_the_values_of_the_last_attention(post_norm, swiglu):
    clip = eva_tower(use_post_norm=post_norm, swiglu_mlp=swiglu)
    trunk, image = clip.visual.trunk, torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        x, rope = trunk._pos_embed(trunk.patch_embed(image))
        x = trunk.blocks[0](x, rope=rope)
        last = trunk.blocks[1]
        y = x if post_norm else last.norm1(x)
        values = last.attn.proj(F.linear(y, last.attn.qkv.weight.chunk(3)[2], last.attn.v_bias))
        if post_norm:
            x = x + last.norm1(values)
            x = x + last.norm2(last.mlp(x))
        else:
            x = x + values
            x = x + last.mlp(last.norm2(x))
        expected = trunk.head(trunk.norm(x))[:, 1:]
    actual = dense(clip, image).final
    torch.testing.assert_close(actual.flatten(2).mT, expected, atol=1e-5, rtol=1e-5)


def test_attention_pooling_leaves_its_values():
    clip = tiny_tower("map")
    trunk, image = clip.visual.trunk, torch.randn(2, 3, 160, 160)
    with torch.no_grad():
        tokens = trunk.forward_features(image)[:, trunk.num_prefix_tokens :]
        pool = trunk.attn_pool
        x = pool.proj(pool.kv(tokens).chunk(2, dim=-1)[1])
        x = trunk.head(trunk.fc_norm(x + pool.mlp(pool.norm(x))))
    actual = dense(clip, image).final
    torch.testing.assert_close(actual.flatten(2).mT, x, atol=1e-5, rtol=1e-5)


def test_average_pooling_leaves_the_head_at_each_position():
    clip = tiny_tower("avg")
    trunk, image = clip.visual.trunk, torch.randn(2, 3, 128, 160)
    with torch.no_grad():
        x = trunk.head.norm(trunk.forward_features(image)).permute(0, 2, 3, 1)
        x = clip.visual.head(x)
    actual = dense(clip, image).final
    torch.testing.assert_close(actual, x.permute(0, 3, 1, 2), atol=1e-5, rtol=1e-5)


def test_a_resnet_leaves_the_values_of_its_pooling():
    clip = tiny_tower("resnet")
    visual, image = clip.visual, torch.randn(2, 3, 96, 64)
    with torch.no_grad():
        maps = visual.forward_intermediates(image[..., :64, :64])["image_intermediates"]
        values = F.conv2d(maps[-1], visual.attnpool.v_proj.weight[..., None, None])
        values = values + visual.attnpool.v_proj.bias[:, None, None]
        expected = F.conv2d(values, visual.attnpool.c_proj.weight[..., None, None])
        expected = expected + visual.attnpool.c_proj.bias[:, None, None]
    actual = dense(clip, image[..., :64, :64], layers=[2, 4])
    torch.testing.assert_close(actual.final, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(actual.intermediates, (maps[2], maps[4]))
    assert dense(clip, image).final.shape == (2, 64, 3, 2)


@pytest.mark.parametrize("kind", ["map", "avg", "resnet"])
def test_pooling_the_dense_features_gives_the_published_feature(kind):
    """Where attention is uniform; of what follows the pooling, only what is linear."""
    clip = tiny_tower(kind)
    side = 64 if kind == "resnet" else 160
    with torch.no_grad():
        if kind == "map":
            pool = clip.visual.trunk.attn_pool
            pool.q.weight.zero_(), pool.q.bias.zero_(), pool.mlp.fc2.weight.zero_()
            clip.visual.trunk.fc_norm = torch.nn.Identity()
        elif kind == "avg":
            clip.visual.trunk.head.norm = torch.nn.Identity()
            clip.visual.head.mlp.act = torch.nn.Identity()
        else:
            pool = clip.visual.attnpool
            pool.q_proj.weight.zero_(), pool.q_proj.bias.zero_(), pool.positional_embedding.zero_()
        image = torch.randn(2, 3, side, side)
        expected = clip.encode_image(image)
    actual = dense(clip, image).final.mean(dim=(2, 3))
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["map", "avg"])
def test_of_a_picture_of_one_position_it_is_the_published_feature(kind):
    clip = tiny_tower(kind)
    side = clip_sizes(clip).patch_size
    image = torch.randn(2, 3, side, side)
    with torch.no_grad():
        expected = clip.encode_image(image)
    actual = dense(clip, image).final[..., 0, 0]
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", TOWERS)
def test_images_of_any_size_maps_in_order_and_gradients(kind):
    clip = tiny_tower(kind)
    sizes = clip_sizes(clip)
    side, count = sizes.patch_size, sizes.vision_layers
    image = torch.randn(1, 3, 4 * side, 6 * side)
    found = encode_dense(clip.visual, image, last_residual="token", intermediate_layers=[count, 1])
    assert found.final.shape == (1, 64, 4, 6)
    for one, number in zip(found.intermediates, (count, 1), strict=True):
        layer = sizes.layers[number - 1]
        grid = (4 * side // layer.stride, 6 * side // layer.stride)
        assert one.shape == (1, layer.channels, *grid)
    found.final.square().sum().backward()
    touched = [p.grad is not None for n, p in clip.visual.named_parameters()]
    assert sum(touched) > 0.7 * len(touched)


def test_rotary_positions_follow_the_image():
    clip = eva_tower()
    wide, native = torch.randn(1, 3, 64, 96), torch.randn(1, 3, 64, 64)
    before = dense(clip, native).final
    assert dense(clip, wide).final.shape == (1, 64, 4, 6)
    torch.testing.assert_close(dense(clip, native).final, before)


def test_layers_that_are_not_there_and_prompts_are_refused():
    clip = tiny_tower("avg")
    image = torch.randn(1, 3, 64, 64)
    with pytest.raises(ValueError, match="expected numbers from 1 to 4"):
        dense(clip, image, layers=[5])
    with pytest.raises(ValueError, match="need open_clip's VisionTransformer"):
        encode_dense(clip.visual, image, last_residual="token", prompts=torch.zeros(1, 1, 8))


def test_the_guiding_layers_have_the_resolutions_of_the_decoder():
    assert clip_sizes(tiny_tower("resnet")).guidance_layers == (3, 2)
    assert clip_sizes(tiny_tower("avg")).guidance_layers == (3, 2)
    with torch.device("meta"):
        assert clip_sizes(build_clip("ViT-L/14@336px")).guidance_layers == (8, 16)


def test_attention_trains_where_there_is_any():
    clip = tiny_tower("map")
    set_trainable(clip, "attention")
    trained = [name for name, p in clip.named_parameters() if p.requires_grad]
    assert trained
    assert all(".attn." in name or name.endswith("pos_embed") for name in trained)
    with pytest.raises(ValueError, match="needs an image encoder of attention blocks"):
        set_trainable(tiny_tower("avg"), "attention")


@pytest.mark.parametrize("kind", ["avg", "resnet"])
def test_weights_load_by_the_names_of_open_clip(tmp_path, kind):
    stored, clip = tiny_tower(kind), tiny_tower(kind)
    state = {
        key if key.startswith(("visual.", "logit_")) else f"text.{key}": value
        for key, value in stored.state_dict().items()
        if not key.endswith("num_batches_tracked")
    }
    torch.save(state, tmp_path / "clip.pt")
    load_clip_weights(clip, tmp_path / "clip.pt")
    torch.testing.assert_close(dict(clip.state_dict()), dict(stored.state_dict()))


@pytest.mark.parametrize(
    "settings",
    [
        {"no_causal_mask": True, "pool_type": "last", "proj_bias": True, "context_length": 16},
        {"no_causal_mask": True, "context_length": 40},
        {"context_length": 32},
        {"pool_type": "eos", "eos_id": 7},
    ],
)
def test_other_text_encoders_equal_open_clips(settings):
    config = {"embed_dim": 64, "vision_cfg": TOWERS["resnet"], "text_cfg": TEXT | settings}
    register_clip("tower", config)
    clip = randomized(build_clip("tower"))
    tokens = tokenize(["a cat", "a dog", "", "a cat", "the green dog"], clip)
    assert tokens.shape == (5, settings.get("context_length", 77))
    with torch.no_grad():
        actual = encode_text(clip, tokens, batch_tokens=100)
        torch.testing.assert_close(actual, clip.encode_text(tokens), atol=1e-5, rtol=1e-4)


def test_a_tokenizer_of_the_hub_is_made_once_with_its_settings(monkeypatch):
    made = []

    def tokenizer(name, context_length, **settings):
        made.append((name, context_length, settings))
        return lambda texts: torch.zeros(len(texts), context_length, dtype=torch.long)

    monkeypatch.setattr(text_module, "HFTokenizer", tokenizer)
    text_module._tokenizer.cache_clear()
    with torch.device("meta"):
        clip = build_clip("ViT-B-16-SigLIP")
        assert tokenize(["a", "b"], clip).shape == (2, 64)
        tokenize(["c"], clip)
    text_module._tokenizer.cache_clear()
    assert made == [("timm/ViT-B-16-SigLIP", 64, {"clean": "canonicalize"})]


def test_a_tokenizer_that_is_missing_is_told(monkeypatch):
    def tokenizer(*_, **__):
        raise ImportError("No module named 'transformers'")

    monkeypatch.setattr(text_module, "HFTokenizer", tokenizer)
    text_module._tokenizer.cache_clear()
    with torch.device("meta"):
        clip = build_clip("ViT-B-16-SigLIP")
    with pytest.raises(CATSegError, match="pip install transformers"):
        tokenize(["a cat"], clip)


def test_normalization_is_that_of_the_weights():
    mean, std = clip_normalization("ViT-B-16-SigLIP")
    assert mean == std == (127.5, 127.5, 127.5)
    assert clip_normalization("MobileCLIP-S1")[0] == (0.0, 0.0, 0.0)
    assert clip_normalization("RN50:openai") == clip_normalization("ViT-B/16")


LEFT_OUT = {  # name -> why, as docs/encoders.md says it
    **dict.fromkeys(("coca_base", "coca_ViT-B-32", "coca_ViT-L-14"), "that of CoCa"),
    **dict.fromkeys(("coca_roberta-ViT-B-32", "roberta-ViT-B-32"), "roberta-base"),
    "mt5-base-ViT-B-32": "google/mt5-base",
    "mt5-xl-ViT-H-14": "google/mt5-xl",
    "nllb-clip-base": "facebook/nllb",
    "nllb-clip-base-siglip": "facebook/nllb",
    "nllb-clip-large": "facebook/nllb",
    "nllb-clip-large-siglip": "facebook/nllb",
    "xlm-roberta-base-ViT-B-32": "xlm-roberta-base",
    "xlm-roberta-large-ViT-H-14": "xlm-roberta-large",
    "swin_base_patch4_window7_224": "windows are made for one size",
    "vit_relpos_medium_patch16_cls_224": "no value path of it is known",
}


def test_the_page_says_how_many_are_built():
    if not open_clip.__version__.startswith("3.3."):
        pytest.skip("the page counts those of open_clip 3.3")
    page = (Path(__file__).parents[3] / "docs/encoders.md").read_text("utf-8")
    every = set(open_clip.list_models())
    built = len(every - set(LEFT_OUT))
    assert built >= 120
    assert f"{built} of the {len(every)} names that open_clip 3.3 lists are built" in page
    assert all(f"`{name}`" in page for name in LEFT_OUT)


FEW = ("EVA02-L-14-336", "MobileCLIP2-S3", "PE-Core-B-16", "ViTamin-S", "convnext_base_w", "RN50x4")


@pytest.mark.parametrize("name", FEW)
def test_published_architectures_have_dense_features(name):
    _check_dense(name)


@pytest.mark.slow
def test_every_architecture_of_open_clip_is_built_or_left_out_for_a_reason():
    for name in open_clip.list_models():
        if name in LEFT_OUT:
            with torch.device("meta"), pytest.raises(ValueError, match=LEFT_OUT[name]):
                build_clip(name)
        elif name not in FEW:
            _check_dense(name)


def _check_dense(name):
    with torch.device("meta"):
        clip = build_clip(name)
        sizes = clip_sizes(clip)
        side = sizes.patch_size
        image = torch.empty(1, 3, 4 * side, 6 * side)
        first, second = sizes.guidance_layers
        found = encode_dense(
            clip.visual.eval(), image, last_residual="token", intermediate_layers=[first, second]
        )
    assert found.final.shape == (1, sizes.embed_dim, 4, 6), name
    for one, number in zip(found.intermediates, (first, second), strict=True):
        layer = sizes.layers[number - 1]
        assert one.shape[1] == layer.channels, name
        assert one.shape[2] == 4 * side // layer.stride, name
