"""A convolutional stem beside the patches: nothing at first, maps of its own, layers in front."""

import pytest
import torch

from cat_seg.errors import CATSegError
from cat_seg.modeling.clip import build_clip, clip_sizes, encode_dense

PLAIN = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 64, "layers": 6, "width": 128, "head_width": 32, "patch_size": 8},
    "text_cfg": {"width": 32, "heads": 2, "layers": 2},
}
STEMMED = PLAIN | {"vision_cfg": PLAIN["vision_cfg"] | {"stem": [32, 64]}}


def test_an_encoder_with_a_fresh_stem_is_that_of_its_patches():
    torch.manual_seed(0)
    plain, stemmed = build_clip(PLAIN), build_clip(STEMMED)
    missing, unexpected = stemmed.load_state_dict(plain.state_dict(), strict=False)
    assert all("conv1.stages" in key or "conv1.tokens" in key for key in missing) and missing
    assert not unexpected
    image = torch.randn(2, 3, 48, 64)
    before, after = (
        encode_dense(clip.visual, image, last_residual="token").final for clip in (plain, stemmed)
    )
    assert torch.equal(before, after)
    torch.nn.init.ones_(stemmed.visual.conv1.tokens.bias)
    assert not torch.equal(encode_dense(stemmed.visual, image, last_residual="token").final, before)


def test_its_stages_are_the_first_layers_and_guide():
    clip = build_clip(STEMMED)
    sizes = clip_sizes(clip)
    assert [layer.stride for layer in sizes.layers[:3]] == [2, 4, 8]
    assert sizes.guidance_layers == (2, 1)  # for maps of twice and four times the positions
    image = torch.randn(1, 3, 64, 32)
    dense = encode_dense(
        clip.visual, image, last_residual="token", intermediate_layers=(2, 1, 3, 7)
    )
    shapes = [tuple(one.shape[1:]) for one in dense.intermediates]
    assert shapes == [(64, 16, 8), (32, 32, 16), (128, 8, 4), (128, 8, 4)]
    torch.testing.assert_close(dense.intermediates[1], clip.visual.conv1.maps(image)[0])
    with pytest.raises(CATSegError, match=r"\[8\].*from 1 to 7"):
        encode_dense(clip.visual, image, last_residual="token", intermediate_layers=(8,))
