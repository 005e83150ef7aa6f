"""Prompts whose words are learned: CoOp (arXiv 2109.01134) as a part of the kind "text".

T classes, P prompts, L tokens of a text, C channels of the text encoder, D embedding width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from open_clip import CLIP
from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor, nn
from torch.nn import functional as F

from cat_seg.errors import CATSegError
from cat_seg.model_config import ModelConfig
from cat_seg.modeling.clip import blocks
from cat_seg.modeling.clip.text import shares_beginnings, tokenize
from cat_seg.modeling.prompt_templates import get_templates
from cat_seg.registry import register
from cat_seg.vocabulary import parse_vocabulary


@register("text", "learned_context")
class LearnedContext(nn.Module):
    """Vectors in the place of a template's words, the same before every class's first name."""

    def __init__(self, config: ModelConfig, *, length: int = 4, width: int = 512) -> None:
        """Draw them at random.

        Args:
            config: of the model; one prompt is learned for each of its templates.
            length: vectors of a prompt.
            width: C.
        """
        super().__init__()
        count = len(get_templates(config.templates))
        self.context = nn.Parameter(0.02 * torch.randn(count, length, width))

    def forward(self, clip: CLIP, names: Sequence[str], templates: Sequence[str]) -> Tensor:
        """(T, P, D) of T names, of unit length.

        Raises:
            CATSegError: if the text encoder is not like CLIP's, or of another width.
        """
        P, length, width = self.context.shape
        if not shares_beginnings(clip) or clip.token_embedding.embedding_dim != width:
            raise CATSegError(
                "learned_context needs a text encoder like CLIP's, and its width: here "
                f"{clip.token_embedding.embedding_dim} channels, but width is {width}."
            )
        blank = " ".join("x" * length)  # a token each, which the vectors replace
        texts = [f"{blank} {of_class[0]}" for of_class in parse_vocabulary(names)]
        tokens = tokenize(texts, clip).to(self.context.device)  # (T, L)
        end = tokens.argmax(dim=1)
        tokens = tokens[:, : int(end.max()) + 1]
        embedded = clip.token_embedding(tokens)[:, None].expand(-1, P, -1, -1)
        context = self.context.expand(len(texts), -1, -1, -1)
        x = torch.cat([embedded[:, :, :1], context, embedded[:, :, 1 + length :]], dim=2)
        x = (x + clip.positional_embedding[: x.shape[2]]).flatten(0, 1)  # (T P, L, C)
        for block in clip.transformer.resblocks:
            assert isinstance(block, ResidualAttentionBlock)
            q, k, v = blocks.query_key_value(block.attn, block.ln_1(x))
            attended = blocks.attend(q, k, v, block.attn.num_heads, causal=True)
            x = blocks.add_attention_and_mlp(block, x, attended)
        last = clip.ln_final(x[torch.arange(len(x), device=x.device), end.repeat_interleave(P)])
        projection = clip.text_projection
        features = projection(last) if isinstance(projection, nn.Module) else last @ projection
        return F.normalize(features, dim=-1).view(len(texts), P, -1)
