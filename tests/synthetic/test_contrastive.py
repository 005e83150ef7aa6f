"""The small CLIP's training: scores by a naive formula, tiles kept apart, a loss that falls."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from cat_seg.modeling.clip.text import encode_text, tokenize
from cat_seg.modeling.clip.vision import encode_dense
from cat_seg.synthetic import train_clip
from cat_seg.synthetic.contrastive import (
    PIXEL_MEAN,
    PIXEL_STD,
    SHARPNESS,
    Layout,
    caption_scores,
    contrastive_loss,
    dense_tokens,
    draw_batch,
    groups_loss,
)
from cat_seg.synthetic.names import NAMES


@pytest.fixture
def tiny_clip(monkeypatch):
    """Makes `train_clip.build` build something tiny."""
    tiny = {
        "embed_dim": 16,
        "vision_cfg": train_clip.CONFIG["vision_cfg"] | {"width": 32, "layers": 1},
        "text_cfg": train_clip.CONFIG["text_cfg"] | {"width": 16, "layers": 1},
    }
    monkeypatch.setattr(train_clip, "CONFIG", tiny)


def test_a_batch_says_what_its_tiles_show():
    layout = Layout(canvas=64, tile=32, objects=(1, 1), backgrounds=1, radius=(11, 14))
    images, shown = draw_batch(np.random.default_rng(0), layout, 3)
    assert images.shape == (3, 3, 64, 64) and shown.shape == (12, len(NAMES))
    assert shown.any(1).all() and (shown.sum(1) <= 2).all()
    again, _ = draw_batch(np.random.default_rng(0), layout, 3)
    torch.testing.assert_close(images, again)


def test_training_sees_the_dense_features_that_segmentation_uses():
    visual = train_clip.build(0).visual
    images = torch.rand(1, 3, 128, 128) * 255
    mean, std = torch.tensor(PIXEL_MEAN), torch.tensor(PIXEL_STD)
    normalised = (images - mean[:, None, None]) / std[:, None, None]
    expected = encode_dense(visual, normalised, last_residual="token").final
    dense = dense_tokens(visual, images, (0, 0))
    torch.testing.assert_close(dense.permute(0, 3, 1, 2), expected, atol=1e-5, rtol=1e-4)


def test_scores_are_soft_maxima_over_each_tile():
    dense = F.normalize(torch.randn(2, 4, 4, 5), dim=-1)
    captions = torch.randn(3, 5)
    scores = caption_scores(dense, captions, torch.tensor(2.0), tile=2)
    assert scores.shape == (8, 3)
    tokens = dense[1, 2:, :2].reshape(4, 5)  # second canvas, lower left tile
    similarity = 2 * tokens @ captions.T
    expected = (SHARPNESS * similarity).exp().mean(0).log() / SHARPNESS
    torch.testing.assert_close(scores[6], expected)
    pooled = caption_scores(dense, captions, torch.tensor(2.0), tile=2, pool=True)
    torch.testing.assert_close(pooled[6], 2 * F.normalize(tokens.mean(0), dim=0) @ captions.T)


def test_loss_compares_true_pairs_with_false_ones_only():
    scores = torch.tensor([[2.0, 1.0, -1.0], [0.5, 3.0, 0.0]])
    truth = torch.tensor([[True, False, False], [True, True, False]])
    pairs = []
    for n, u in truth.nonzero().tolist():
        row = scores[n][~truth[n]].exp().sum()
        column = scores[:, u][~truth[:, u]].exp().sum()
        own = scores[n, u].exp()
        pairs += [-(own / (own + row)).log(), -(own / (own + column)).log()]
    torch.testing.assert_close(contrastive_loss(scores, truth), torch.stack(pairs).mean())


def test_a_row_or_column_of_true_captions_alone_has_a_gradient():
    scores = torch.zeros(2, 2, requires_grad=True)
    contrastive_loss(scores, torch.tensor([[True, True], [True, False]])).backward()
    assert scores.grad is not None and scores.grad.isfinite().all()


def test_captions_compete_within_their_group():
    scores, truth = torch.randn(4, 5), torch.eye(4, 5) > 0
    truth[3] = torch.tensor([False, False, False, True, True])
    expected = contrastive_loss(scores[:, :2], truth[:, :2])
    expected = expected + contrastive_loss(scores[:, 2:], truth[:, 2:])
    torch.testing.assert_close(groups_loss(scores, truth, [2, 3]), expected)


def test_attention_starts_near_like_tokens_and_subtracts_values():
    visual = train_clip.build(0).visual
    for block in visual.transformer.resblocks:
        q, k, v = block.attn.in_proj_weight.chunk(3)
        for head_q, head_k in zip(q.split(32), k.split(32), strict=True):
            assert (head_q.T @ head_k).diagonal().mean() > 0.1
        assert (block.attn.out_proj.weight @ v).diagonal().mean() < -0.3


def test_training_repeats_exactly_and_changes_the_weights(tiny_clip):
    losses, weights = [], []
    for _ in range(2):
        clip = train_clip.build(0)
        before = clip.visual.proj.detach().clone()
        losses.append(
            train_clip.train(clip, seed=0, steps=2, batch=4, learning_rate=1e-3, workers=0)
        )
        weights.append(clip.visual.proj.detach())
        assert not torch.equal(before, weights[-1])
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)
    torch.testing.assert_close(weights[0], weights[1])


def test_steps_on_one_batch_lower_its_loss(tiny_clip):
    clip = train_clip.build(0)
    layout = Layout(canvas=32, tile=32, objects=(1, 1), backgrounds=1, radius=(11, 14))
    images, shown = draw_batch(np.random.default_rng(0), layout, 8)
    tokens = tokenize(list(NAMES))
    optimizer = torch.optim.Adam(clip.parameters(), lr=3e-3)
    losses = []
    for _ in range(10):
        dense = dense_tokens(clip.visual, images, (0, 0))
        texts = F.normalize(encode_text(clip, tokens), dim=-1)
        scores = caption_scores(dense, texts, clip.logit_scale.exp(), tile=4)
        loss = contrastive_loss(scores, shown)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_unused_words_stay_zero(tiny_clip):
    clip = train_clip.build(0)
    rows = clip.token_embedding.weight.abs().sum(1) > 0
    assert 50 < int(rows.sum()) < 400
