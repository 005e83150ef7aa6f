"""The text encoder against open_clip's, which encodes every text at 77 tokens."""

import pytest
import torch

from cat_seg.modeling.clip import blocks, encode_text, split_in_proj, text, tokenize
from cat_seg.modeling.clip.text import _prefix_tree
from tests.modeling.clip.tiny import tiny_clip

TEXTS = [
    "a photo of a cat.",
    "a photo of a traffic light.",
    "a photo of a cat.",
    "a photo of a cat",
    "",
    "the dog",
    " ".join(["supercalifragilistic"] * 40),
    "a photo",
]


@pytest.mark.parametrize("batch_tokens", [1, 40, 100000])
@pytest.mark.parametrize("quick_gelu", [True, False])
def test_equals_open_clip_in_any_batch(batch_tokens, quick_gelu):
    clip = tiny_clip(quick_gelu=quick_gelu)
    tokens = tokenize(TEXTS)
    with torch.no_grad():
        actual = encode_text(clip, tokens, batch_tokens=batch_tokens)
        torch.testing.assert_close(actual, clip.encode_text(tokens), atol=1e-5, rtol=1e-4)


def test_gradients_equal_open_clips():
    clip = tiny_clip()
    tokens = tokenize(TEXTS)
    gradients = []
    for encode in (
        clip.encode_text,
        lambda tokens: encode_text(clip, tokens, batch_tokens=40),
        lambda tokens: encode_text(clip, tokens, recompute=True),
    ):
        clip.zero_grad()
        encode(tokens).square().mean().backward()
        gradients.append(
            {n: p.grad.clone() for n, p in clip.named_parameters() if p.grad is not None}
        )
    for other in gradients[1:]:
        torch.testing.assert_close(other, gradients[0], atol=1e-5, rtol=1e-3)
    assert "transformer.resblocks.0.attn.in_proj_weight" in gradients[0]


def test_split_projections_give_the_same():
    clip = tiny_clip()
    tokens = tokenize(TEXTS)
    with torch.no_grad():
        fused = encode_text(clip, tokens)
        split_in_proj(clip)
        torch.testing.assert_close(encode_text(clip, tokens), fused)
        torch.testing.assert_close(clip.encode_text(tokens), fused, atol=1e-5, rtol=1e-4)


def test_prefix_tree_numbers_each_beginning_once():
    end = 9
    texts = torch.tensor([[5, 1, 2, end], [5, 1, end, 0], [5, 2, 2, end], [5, 2, 3, end]])
    node, first = _prefix_tree(texts)
    beginnings = {
        tuple(row[: j + 1].tolist()) for row in texts for j in range(int(row.argmax()) + 1)
    }
    assert len(first) == len(beginnings)
    for i, row in enumerate(texts.tolist()):
        for j in range(row.index(end) + 1):
            k = int(first[node[i, j]])
            assert texts[k // 4, : k % 4 + 1].tolist() == row[: j + 1]


def test_every_beginning_is_computed_once(monkeypatch):
    clip = tiny_clip()
    rows = []
    finish = blocks.add_attention_and_mlp

    def counted(block: object, x: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        rows.append(len(x))
        return finish(block, x, attended)

    monkeypatch.setattr(blocks, "add_attention_and_mlp", counted)
    tokens = tokenize(["a photo of a cat", "a photo of a dog"] * 3)
    in_whole_rows = encode_text(clip, tokens)
    assert rows == [64, 64]
    monkeypatch.setattr(text, "_ROWS", 1)
    torch.testing.assert_close(encode_text(clip, tokens), in_whole_rows)
    # Start, a, photo, of, a; cat, end; dog, end. In the last block, the two ends.
    assert rows[2:] == [9, 2]


def test_texts_that_are_cut_are_reported(caplog):
    tokenize(["a cat", "cat " * 74])
    assert not caplog.text
    tokenize(["a cat", "cat " * 80])
    assert "1 texts may have been cut to 77 tokens, such as 'cat cat" in caplog.text


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda_agrees_with_cpu():
    clip = tiny_clip()
    tokens = tokenize(TEXTS)
    with torch.no_grad():
        expected = encode_text(clip, tokens)
        actual = encode_text(clip.cuda(), tokens)
    torch.testing.assert_close(actual.cpu(), expected, atol=1e-3, rtol=1e-3)
