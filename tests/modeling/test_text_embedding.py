"""Vocabularies, templates, text embeddings and their cache."""

import logging
import multiprocessing
import os
import signal

import open_clip
import pytest
import torch
from torch.nn import functional as F

from cat_seg.modeling import text_embedding
from cat_seg.modeling.clip import split_in_proj, tokenize
from cat_seg.modeling.clip import text as text_module
from cat_seg.modeling.prompt_templates import get_templates
from cat_seg.modeling.text_embedding import default_cache_dir, embed_text
from tests.golden import GOLDEN, load_golden
from tests.modeling.clip.tiny import golden_clip, tiny_clip

NAMES = ["cat", "person, child", "traffic light"]
TEMPLATES = ("a photo of a {}.", "the {}")


@pytest.fixture
def encoded(monkeypatch):
    """The number of texts given to the encoder, call by call."""
    calls = []
    encode_text = text_module.encode_text

    def counted(clip, tokens, **kwargs):
        calls.append(len(tokens))
        return encode_text(clip, tokens, **kwargs)

    monkeypatch.setattr(text_module, "encode_text", counted)
    return calls


@pytest.mark.parametrize("name", GOLDEN)
def test_matches_the_golden_runs(name):
    golden, clip = load_golden(name), golden_clip(name)
    templates = get_templates(golden.recipe["MODEL.PROMPT_ENSEMBLE_TYPE"])
    synonyms = {"2023": "mean", "2024": "first"}[golden.recipe["generation"]]
    for part in ("test", "train"):
        with torch.inference_mode():
            names = golden.recipe[f"{part}_classes"]
            features = embed_text(clip, names, templates, synonyms=synonyms)
        golden.assert_matches(features, f"text_features_{part}")


def plain_embedding(clip, classes, templates):
    """Template by template, synonym by synonym, at 77 tokens."""
    rows = []
    for synonyms in classes:
        row = []
        for template in templates:
            texts = [template.format(name) for name in synonyms]
            each = F.normalize(clip.encode_text(tokenize(texts)), dim=-1)
            row.append(F.normalize(each.mean(0), dim=-1))
        rows.append(torch.stack(row))
    return torch.stack(rows)


@pytest.mark.parametrize("synonyms", ["mean", "first"])
@pytest.mark.parametrize("batch_size", [1, 4096])
def test_equals_the_plain_formulation(synonyms, batch_size):
    clip = tiny_clip()
    classes = [["cat"], ["person", "child"][: 2 if synonyms == "mean" else 1], ["traffic light"]]
    with torch.no_grad():
        expected = plain_embedding(clip, classes, TEMPLATES)
        actual = embed_text(clip, NAMES, TEMPLATES, synonyms=synonyms, batch_size=batch_size)
    torch.testing.assert_close(actual, expected)


def test_a_trailing_comma_is_no_synonym():
    clip = tiny_clip()
    with torch.no_grad():
        plain, trailing = (
            embed_text(clip, [name], TEMPLATES, synonyms="mean") for name in ("sofa", "sofa, ")
        )
    torch.testing.assert_close(plain, trailing)


@pytest.mark.parametrize("recompute", [False, True])
def test_gradients_reach_every_tuned_projection(recompute):
    clip = tiny_clip()
    split_in_proj(clip)
    features = embed_text(clip, NAMES, TEMPLATES, synonyms="first", recompute=recompute)
    features.sum().backward()
    for name, parameter in clip.transformer.named_parameters():
        if name.endswith(("q_proj_weight", "v_proj_weight")):
            assert parameter.grad.abs().max() > 0, name


def test_a_second_start_encodes_nothing(tmp_path, encoded):
    arguments = {"synonyms": "mean", "cache_dir": tmp_path / "cache"}
    clip = tiny_clip()
    first = embed_text(clip, NAMES, TEMPLATES, **arguments)
    assert encoded == [8] and not first.requires_grad
    torch.manual_seed(0)
    again = tiny_clip()
    again.load_state_dict(clip.state_dict())
    second = embed_text(again, NAMES, TEMPLATES, **arguments)
    assert encoded == [8]
    assert torch.equal(first, second)


def test_whatever_changes_the_features_is_encoded_anew(tmp_path, encoded):
    clip = tiny_clip()
    seen = [embed_text(clip, NAMES, TEMPLATES, synonyms="mean", cache_dir=tmp_path)]
    seen.append(embed_text(clip, NAMES, TEMPLATES, synonyms="first", cache_dir=tmp_path))
    seen.append(embed_text(clip, NAMES[::-1], TEMPLATES, synonyms="mean", cache_dir=tmp_path))
    seen.append(embed_text(clip, NAMES, TEMPLATES[::-1], synonyms="mean", cache_dir=tmp_path))
    with torch.no_grad():
        clip.transformer.resblocks[1].mlp.c_fc.bias[3] += 0.5
    seen.append(embed_text(clip, NAMES, TEMPLATES, synonyms="mean", cache_dir=tmp_path))
    gelu = tiny_clip(quick_gelu=False)
    gelu.load_state_dict(clip.state_dict())
    seen.append(embed_text(gelu, NAMES, TEMPLATES, synonyms="mean", cache_dir=tmp_path))
    assert len(encoded) == len(seen)
    assert all(not torch.equal(a, b) for i, a in enumerate(seen) for b in seen[:i])


def test_a_projection_with_a_bias(tmp_path):
    clip = tiny_clip()
    matrix = clip.text_projection
    expected = embed_text(clip, NAMES, TEMPLATES, synonyms="mean")
    del clip.text_projection
    clip.text_projection = torch.nn.Linear(*matrix.shape)
    with torch.no_grad():
        clip.text_projection.weight.copy_(matrix.T)
        clip.text_projection.bias.zero_()
    for _ in range(2):  # the second from the cache
        actual = embed_text(clip, NAMES, TEMPLATES, synonyms="mean", cache_dir=tmp_path)
        torch.testing.assert_close(actual, expected)


def test_the_image_encoder_does_not_matter_to_the_cache(tmp_path, encoded):
    clip = tiny_clip()
    embed_text(clip, NAMES, TEMPLATES, synonyms="mean", cache_dir=tmp_path)
    with torch.no_grad():
        clip.visual.proj.add_(1)
    embed_text(clip, NAMES, TEMPLATES, synonyms="mean", cache_dir=tmp_path)
    assert len(encoded) == 1


@pytest.mark.parametrize("damage", ["cut", "changed", "empty", "other"])
def test_a_damaged_cache_is_ignored_and_replaced(tmp_path, encoded, damage, caplog):
    clip = tiny_clip()
    features = embed_text(clip, NAMES, TEMPLATES, synonyms="mean", cache_dir=tmp_path)
    (file,) = tmp_path.iterdir()
    content = bytearray(file.read_bytes())
    content[-2] ^= 255
    damaged = {"cut": content[:-20], "changed": content, "empty": b"", "other": b"x" * 500}
    file.write_bytes(damaged[damage])
    with caplog.at_level(logging.WARNING):
        again = embed_text(clip, NAMES, TEMPLATES, synonyms="mean", cache_dir=tmp_path)
    assert torch.equal(again, features) and len(encoded) == 2
    assert f"Ignoring the damaged text cache {file}" in caplog.text
    embed_text(clip, NAMES, TEMPLATES, synonyms="mean", cache_dir=tmp_path)
    assert len(encoded) == 2
    assert [path.name for path in tmp_path.iterdir()] == [file.name]  # nothing is left behind


def test_a_cache_that_cannot_be_written_is_a_warning(tmp_path, caplog):
    (tmp_path / "file").write_text("not a folder")
    with caplog.at_level(logging.WARNING):
        features = embed_text(
            tiny_clip(), NAMES, TEMPLATES, synonyms="mean", cache_dir=tmp_path / "file" / "cache"
        )
    assert features.shape == (3, 2, 24)
    assert "Text features are not kept for next time" in caplog.text


def test_the_cache_is_bounded_and_keeps_what_was_used_last(tmp_path, monkeypatch):
    clip = tiny_clip()

    def embed(name: str):
        return embed_text(clip, [name], TEMPLATES, synonyms="mean", cache_dir=tmp_path)

    embed("cat")
    (cat,) = tmp_path.iterdir()
    monkeypatch.setattr("cat_seg.modeling.text_embedding._CACHE_BYTES", 2 * cat.stat().st_size)
    (tmp_path / "mine.safetensors").write_bytes(b"0" * 10_000)
    embed("dog")
    (dog,) = set(tmp_path.glob("[0-9a-f]*")) - {cat}
    os.utime(cat, (1, 1))
    os.utime(dog, (2, 2))
    embed("cat")  # used now
    embed("sofa")
    left = set(tmp_path.iterdir())
    assert cat in left and dog not in left and tmp_path / "mine.safetensors" in left
    assert len(left) == 3


@pytest.mark.parametrize(
    "name", ["token_embedding.weight", "positional_embedding", "ln_final.weight", "text_projection"]
)
def test_every_weight_of_the_text_encoder_counts(tmp_path, name):
    clip = tiny_clip()
    before = embed_text(clip, NAMES, TEMPLATES, synonyms="mean", cache_dir=tmp_path)
    with torch.no_grad():
        clip.state_dict()[name].mul_(0.5).add_(0.1)
    after = embed_text(clip, NAMES, TEMPLATES, synonyms="mean", cache_dir=tmp_path)
    assert not torch.equal(before, after)


def test_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("CAT_SEG_CACHE", str(tmp_path))
    assert default_cache_dir() == tmp_path / "text"
    monkeypatch.delenv("CAT_SEG_CACHE")
    assert str(default_cache_dir()) == os.path.expanduser("~/.cache/cat_seg/text")


def _killed_in_the_third_group(clip, names, folder):
    calls = []
    encode_text = text_module.encode_text

    def until(*args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return encode_text(*args, **kwargs)

    text_module.encode_text = until
    embed_text(clip, names, TEMPLATES, synonyms="mean", cache_dir=folder)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("torn", [b"", b"half a class"])
def test_a_killed_process_is_gone_on_with(tmp_path, monkeypatch, encoded, torn):
    monkeypatch.setattr(text_embedding, "_TOGETHER", 2 * len(TEMPLATES))
    clip, names = tiny_clip(), [f"thing {i}, object {i}" for i in range(9)]
    with torch.no_grad():
        expected = embed_text(clip, names, TEMPLATES, synonyms="mean")
    process = multiprocessing.get_context("fork").Process(
        target=_killed_in_the_third_group, args=(clip, names, tmp_path)
    )
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    (part,) = tmp_path.glob("*.part.safetensors")
    with part.open("ab") as file:
        file.write(torn)
    encoded.clear()
    actual = embed_text(clip, names, TEMPLATES, synonyms="mean", cache_dir=tmp_path)
    assert sum(encoded) == 2 * len(TEMPLATES) * 5  # of nine classes, four were there
    torch.testing.assert_close(actual, expected)
    again = embed_text(clip, names, TEMPLATES, synonyms="mean", cache_dir=tmp_path)
    assert torch.equal(again, actual) and not part.exists()
    assert sum(encoded) == 2 * len(TEMPLATES) * 5


def test_a_part_that_is_none_is_written_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(text_embedding, "_TOGETHER", len(TEMPLATES))
    clip = tiny_clip()
    with torch.no_grad():
        expected = embed_text(clip, NAMES, TEMPLATES, synonyms="mean")
    embed_text(clip, NAMES, TEMPLATES, synonyms="mean", cache_dir=tmp_path)
    (whole,) = tmp_path.glob("*.safetensors")
    whole.rename(whole.with_suffix(".part.safetensors"))
    whole.with_suffix(".part.safetensors").write_bytes(b"\xff" * 5000)
    actual = embed_text(clip, NAMES, TEMPLATES, synonyms="mean", cache_dir=tmp_path)
    torch.testing.assert_close(actual, expected)


def test_autocast_does_not_reach_the_cache(tmp_path):
    clip = tiny_clip()
    exact = embed_text(clip, NAMES, TEMPLATES, synonyms="mean", cache_dir=tmp_path / "a")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = embed_text(clip, NAMES, TEMPLATES, synonyms="mean", cache_dir=tmp_path / "b")
    assert torch.equal(actual, exact)


def test_templates():
    imagenet = get_templates("imagenet")
    assert len(imagenet) == 80 and len(set(imagenet)) == 80
    assert imagenet[0] == "a bad photo of a {}." and imagenet[-1] == "a tattoo of the {}."
    assert [t.format("cat") for t in imagenet] == [
        template("cat") for template in open_clip.OPENAI_IMAGENET_TEMPLATES
    ]
    assert get_templates("single") == ("A photo of a {} in the scene",)
    assert len(get_templates("imagenet_select")) == 8
    with pytest.raises(ValueError, match="'imagnet'; expected one of imagenet, "):
        get_templates("imagnet")


def test_synonym_rule_is_checked():
    with pytest.raises(ValueError, match="expected 'mean' or 'first'"):
        embed_text(tiny_clip(), ["cat"], TEMPLATES, synonyms="all")
