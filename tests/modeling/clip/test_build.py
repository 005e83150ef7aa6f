"""Building CLIPs by name and loading their weights."""

import json

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from cat_seg.modeling.clip import (
    build,
    build_clip,
    clip_sizes,
    encode_dense,
    load_clip_weights,
    split_in_proj,
)
from tests.modeling.clip.tiny import TINY, tiny_clip


@pytest.mark.parametrize(
    ("name", "image_size", "sizes"),
    [
        ("ViT-B/16", 384, (16, 768, 12, 512, (24, 24))),
        ("ViT-L/14@336px", 336, (14, 1024, 24, 768, (24, 24))),
        ("ViT-H", 336, (14, 1280, 32, 1024, (24, 24))),
        ("ViT-G", (336, 448), (14, 1664, 48, 1280, (24, 32))),
        ("ViT-L-14:laion2b_s32b_b82k", None, (14, 1024, 24, 768, (16, 16))),
        ("ViT-H-14-378-quickgelu:dfn5b", None, (14, 1280, 32, 1024, (27, 27))),
    ],
)
def test_sizes_are_read_from_the_model(name, image_size, sizes):
    with torch.device("meta"):
        clip = build_clip(name, image_size=image_size)
        assert clip_sizes(clip)[:5] == sizes
        image = torch.empty(2, 3, *clip.visual.image_size)
        dense = encode_dense(
            clip.visual, image, last_residual="class", intermediate_layers=[sizes[2] // 3]
        )
    assert dense.final.shape == (2, sizes[3], *sizes[4])
    assert dense.intermediates[0].shape == (2, sizes[1], *sizes[4])


@pytest.mark.parametrize(
    ("name", "quick_gelu"),
    [
        ("ViT-B/16", True),
        ("ViT-H", False),
        ("ViT-B-16:openai", True),
        ("ViT-B-16:laion2b_s34b_b88k", False),
        ("ViT-B-16:dfn2b", True),
    ],
)
def test_the_non_linearity_is_that_of_the_weights(name, quick_gelu):
    with torch.device("meta"):
        clip = build_clip(name)
    activation = clip.visual.transformer.resblocks[0].mlp.gelu
    assert (type(activation).__name__ == "QuickGELU") == quick_gelu


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ViT-B/61", "'ViT-B/61' is not a CLIP that is known here. Similar names: ViT-B/16"),
        ("coca_ViT-B-32", "text encoder is that of CoCa"),
        ("roberta-ViT-B-32", "text encoder is roberta-base"),
        ("swin_base_patch4_window7_224", "windows are made for one size of image"),
    ],
)
def test_unsupported_architectures_say_what_is_missing(name, message):
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        build_clip(name)


def test_sizes_that_do_not_fit_are_explained():
    with torch.device("meta"), pytest.raises(ValueError, match="multiples of its patch size 14"):
        build_clip("ViT-L/14@336px", image_size=384)


def test_other_block_layouts_are_refused():
    with pytest.raises(ValueError, match="made of CustomResidualAttentionBlock"):
        tiny_clip(vision_cfg=TINY["vision_cfg"] | {"qk_norm": True})


def test_json_configuration_and_layer_scale(tmp_path):
    config = TINY | {"vision_cfg": TINY["vision_cfg"] | {"ls_init_value": 0.1}}
    (tmp_path / "small.json").write_text(json.dumps({"model_cfg": config}))
    clip = build_clip(str(tmp_path / "small.json"))
    assert clip_sizes(clip).embed_dim == 24
    image = torch.randn(1, 3, 32, 32)
    before = encode_dense(clip.visual, image, last_residual="token").final
    with torch.no_grad():
        for block in clip.visual.transformer.resblocks:
            block.ls_2.gamma.mul_(2)
    after = encode_dense(clip.visual, image, last_residual="token").final
    assert (before - after).abs().max() > 1e-3


@pytest.mark.parametrize("prefix", ["", "module.", "sem_seg_head.predictor.clip_model."])
@pytest.mark.parametrize("stored_split", [False, True])
@pytest.mark.parametrize("wanted_split", [False, True])
def test_weights_load_from_any_naming(tmp_path, prefix, stored_split, wanted_split):
    stored, clip = tiny_clip(), tiny_clip()
    if wanted_split:
        split_in_proj(clip)
    if stored_split:
        split_in_proj(stored)
    state = {prefix + key: value.half() for key, value in stored.state_dict().items()}
    state["other.weight"] = torch.zeros(1)
    if not prefix:
        del state["other.weight"]
    save_file(state, tmp_path / "clip.safetensors")
    load_clip_weights(clip, tmp_path / "clip.safetensors")
    image = torch.randn(1, 3, 32, 32)
    stored.load_state_dict({k: v.half() for k, v in stored.state_dict().items()})
    with torch.no_grad():
        actual = encode_dense(clip.visual, image, last_residual="token").final
        expected = encode_dense(stored.visual, image, last_residual="token").final
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual, expected)


def test_weights_of_a_custom_text_tower_and_of_openai_archives(tmp_path):
    stored, clip = tiny_clip(), tiny_clip()
    state = {
        key if key.startswith(("visual.", "logit_scale")) else f"text.{key}": value
        for key, value in stored.state_dict().items()
    }
    sizes = {"input_resolution": 32, "context_length": 77, "vocab_size": 49408}
    torch.save(state | {k: torch.tensor(v) for k, v in sizes.items()}, tmp_path / "clip.pt")
    load_clip_weights(clip, tmp_path / "clip.pt")
    torch.testing.assert_close(dict(clip.state_dict()), dict(stored.state_dict()))


def test_weights_that_do_not_fit_are_named(tmp_path):
    clip = tiny_clip()
    state = clip.state_dict()
    del state["ln_final.bias"]
    state["visual.positional_embedding"] = torch.zeros(5, 32)
    state["visual.transformer.resblocks.9.ln_1.bias"] = torch.zeros(32)
    save_file(state, tmp_path / "clip.safetensors")
    with pytest.raises(ValueError) as error:
        load_clip_weights(clip, tmp_path / "clip.safetensors")
    assert "1 missing (ln_final.bias)" in str(error.value)
    assert "1 unexpected (visual.transformer.resblocks.9.ln_1.bias)" in str(error.value)
    assert "visual.positional_embedding (5, 32), expected (17, 32)" in str(error.value)
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="holds 0 CLIPs of this kind"):
        load_clip_weights(clip, tmp_path / "other.safetensors")


def test_published_weights_are_fetched_by_name(tmp_path, monkeypatch):
    asked = []

    def fetch(address):
        asked.append(address)
        if address.endswith(".safetensors"):
            raise build.FetchError(f"Cannot fetch {address}")
        return tmp_path / "clip.pt"

    monkeypatch.setattr(build, "fetch", fetch)
    assert build._weight_file("ViT-L/14@336px") == tmp_path / "clip.pt"
    assert asked.pop().endswith("/ViT-L-14-336px.pt")
    assert build._weight_file("ViT-H") == tmp_path / "clip.pt"
    assert asked == [
        "hf://laion/CLIP-ViT-H-14-laion2B-s32B-b79K/open_clip_model.safetensors",
        "hf://laion/CLIP-ViT-H-14-laion2B-s32B-b79K/open_clip_pytorch_model.bin",
    ]
    with pytest.raises(ValueError, match="Write ViT-L-14:TAG with one of openai, laion400m"):
        build._weight_file("ViT-L-14")
    build._weight_file("weights/my_clip.pt")
    assert asked[-1] == "weights/my_clip.pt"


def test_a_published_archive_is_read_like_open_clip_reads_it(tmp_path):
    """A TorchScript archive as OpenAI's, in half precision, loads through the same function."""

    class Holder(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    def scripted(tree):
        holder = Holder()
        for name, value in tree.items():
            if isinstance(value, dict):
                holder.add_module(name, scripted(value))
            else:
                holder.register_parameter(name, torch.nn.Parameter(value.half()))
        return holder

    stored, clip = tiny_clip(), tiny_clip()
    tree: dict = {}
    for key, value in stored.state_dict().items():
        *path, leaf = key.split(".")
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        node[leaf] = value
    torch.jit.script(scripted(tree)).save(str(tmp_path / "clip.pt"))
    load_clip_weights(clip, tmp_path / "clip.pt")
    for key, value in stored.state_dict().items():
        torch.testing.assert_close(clip.state_dict()[key], value.half().float())


def test_every_name_of_the_table_is_known_to_open_clip():
    for architecture, tag in build._PUBLISHED.values():
        assert (architecture, tag) in open_clip.list_pretrained()
