"""The loss against its definition."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from cat_seg.label_rules import NOTHING
from cat_seg.modeling.losses import mask_bce


def test_loss_is_binary_cross_entropy_over_every_entry():
    torch.manual_seed(0)
    logits = (3 * torch.randn(2, 4, 6, 6)).requires_grad_()
    targets = torch.randint(0, 4, (2, 9, 11))
    targets[0, :3] = 255
    one_hot = F.one_hot(targets.clamp(max=4), 5)[..., :4].permute(0, 3, 1, 2).float()
    resized = F.interpolate(logits, (9, 11), mode="bilinear", align_corners=False)
    expected = F.binary_cross_entropy_with_logits(resized, one_hot)
    loss = mask_bce(logits, targets)
    torch.testing.assert_close(loss, expected)
    actual = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(actual, torch.autograd.grad(expected, logits))


def test_pixels_that_teach_nothing_are_left_out():
    logits = torch.randn(1, 4, 3, 6).requires_grad_()
    targets = torch.randint(0, 4, (1, 3, 6))
    targets[..., 0] = 255
    expected = mask_bce(logits[..., :4], targets[..., :4])
    targets[..., 4:] = NOTHING
    torch.testing.assert_close(mask_bce(logits, targets), expected)
    assert mask_bce(logits, torch.full_like(targets, NOTHING)) == 0


@pytest.mark.parametrize("wrong", [4, -1])
def test_labels_outside_the_vocabulary_are_named(wrong: int):
    with pytest.raises(ValueError, match=str(wrong)):
        mask_bce(torch.zeros(1, 4, 2, 2), torch.tensor([[[0, wrong], [255, 1]]]))
