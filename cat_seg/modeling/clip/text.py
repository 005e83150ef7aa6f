"""CLIP's text encoder, for many texts that begin alike.

N texts, L tokens of the longest, M distinct beginnings, C channels of the encoder, D embedding
width.

Attention is causal: what the encoder makes of a token depends on the tokens before it and on no
other. So texts end with their end token instead of being filled up to 77 tokens, and a beginning
that several texts share ("a photo of a") is computed once: the linear layers see every distinct
beginning (a node of the prefix tree) once, and only attention sees texts.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

import open_clip
import torch
from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor, nn
from tqdm import tqdm

from cat_seg.errors import CATSegError
from cat_seg.modeling.chunks import checkpointed
from cat_seg.modeling.clip import blocks

logger = logging.getLogger(__name__)

CONTEXT_LENGTH = 77  # tokens
_VOCABULARY_SIZE = 49408
# Linear layers see multiples of so many rows: oneDNN keeps what it builds for every size.
_ROWS = 64


def tokenize(texts: list[str]) -> Tensor:
    """Texts to tokens (N, 77): start token, at most 75 tokens, end token, zeros."""
    tokens = open_clip.tokenize(texts, CONTEXT_LENGTH)
    full = tokens[:, -1].nonzero().flatten().tolist()
    if full:
        logger.warning(
            "%d texts may have been cut to %d tokens, such as %r.",
            len(full),
            CONTEXT_LENGTH,
            texts[full[0]],
        )
    return tokens


def encode_text(
    clip: open_clip.CLIP,
    tokens: Tensor,
    *,
    batch_tokens: int = 8192,
    recompute: bool = False,
    progress: tqdm | None = None,
) -> Tensor:
    """Encode texts. Equal to `clip.encode_text` to rounding, with gradients if they are enabled.

    Args:
        clip: the model; its text tower is used.
        tokens: (N, 77), in any order, with repetitions; each text ends with the end token.
        batch_tokens: bounds memory: so many tokens at once (but at least one text).
        recompute: in training, trade time for memory: recompute a block's activations in the
            backward pass.
        progress: a bar that is moved by the texts that are done.

    Returns:
        (N, D), not normalised.
    """
    # Sorted, so that texts which begin alike are neighbours.
    texts, where = torch.unique(tokens.cpu(), dim=0, return_inverse=True)
    features = []
    for batch in _batches(texts, texts.argmax(dim=1) + 1, batch_tokens):
        features.append(_encode_sorted(clip, batch, recompute))
        if progress is not None:
            progress.update(len(batch))
    if progress is not None:
        progress.update(len(tokens) - len(texts))  # the same texts once more
    return torch.cat(features)[where.to(features[0].device)]


def check_text_encoder(clip: open_clip.CLIP) -> None:
    """Raise a CATSegError that names what is missing if `encode_text` cannot run this encoder."""
    if clip.attn_mask is None:
        raise CATSegError(
            "The text encoder has no causal mask, as in SigLIP and CLIPA; encode_text needs causal "
            "attention and a text's feature at its end token. Choose a CLIP-style text tower."
        )
    if clip.text_pool_type != "argmax" or clip.text_projection is None:
        raise CATSegError(
            f"The text encoder pools by {clip.text_pool_type!r} or has no projection; expected the "
            "feature at the end token ('argmax', the highest number) and a linear projection."
        )
    if clip.vocab_size != _VOCABULARY_SIZE or clip.context_length < CONTEXT_LENGTH:
        raise CATSegError(
            f"The text encoder has {clip.vocab_size} tokens and a context of "
            f"{clip.context_length}; expected CLIP's own tokenizer, {_VOCABULARY_SIZE} tokens and "
            f"a context of {CONTEXT_LENGTH}."
        )
    blocks.check_blocks(clip.transformer, "text")


def _batches(texts: Tensor, lengths: Tensor, batch_tokens: int) -> Iterator[Tensor]:
    """Cut texts (N, 77) into runs of n texts, as long as n * L stays within `batch_tokens`."""
    start, longest = 0, 0
    for i, length in enumerate(lengths.tolist()):
        if i > start and (i + 1 - start) * max(longest, length) > batch_tokens:
            yield texts[start:i, :longest]
            start, longest = i, 0
        longest = max(longest, length)
    yield texts[start:, :longest]


def _encode_sorted(clip: open_clip.CLIP, texts: Tensor, recompute: bool) -> Tensor:
    """Encode sorted, distinct texts (N, L), tokens on CPU, to (N, D)."""
    width = texts.shape[1]
    end = texts.argmax(dim=1) + width * torch.arange(len(texts))
    node, first = _prefix_tree(texts)  # (N, L), (M,)
    device = clip.token_embedding.weight.device
    first, end = _whole(first), _whole(end)
    tokens, positions = texts.flatten()[first].to(device), (first % width).to(device)
    node, first, end = node.to(device), first.to(device), end.to(device)

    x = clip.token_embedding(tokens) + clip.positional_embedding[positions]  # (M, C)
    *body, last = clip.transformer.resblocks
    for block in body:
        x = checkpointed(_block, block, x, node, first, recompute=recompute)
    x = clip.ln_final(_block(last, x, node, end))  # no other token of it is needed
    x = x[: len(texts)]  # (N, C)
    projection = clip.text_projection
    return projection(x) if isinstance(projection, nn.Module) else x @ projection


def _whole(index: Tensor) -> Tensor:
    """Repeat the first index until their number is a multiple of `_ROWS`."""
    return torch.cat([index, index[:1].expand(-len(index) % _ROWS)])


def _block(block: ResidualAttentionBlock, x: Tensor, node: Tensor, wanted: Tensor) -> Tensor:
    """One block over the nodes of a prefix tree.

    Args:
        x: (M, C) tokens of the nodes.
        node: (N, L) the node of each token of each text.
        wanted: (K,) where to evaluate the block, as indices into the flattened (N, L).

    Returns:
        (K, C)
    """
    nodes = node.flatten()
    q, k, v = (
        t.index_select(0, nodes).view(*node.shape, -1)  # (N, L, C)
        for t in blocks.query_key_value(block.attn, block.ln_1(x))
    )
    attended = blocks.attend(q, k, v, block.attn.num_heads, causal=True).flatten(0, 1)
    return blocks.add_attention_and_mlp(block, x[nodes[wanted]], attended[wanted])


def _prefix_tree(texts: Tensor) -> tuple[Tensor, Tensor]:
    """Number the distinct beginnings of sorted texts.

    Args:
        texts: (N, L) tokens, rows sorted. What follows an end token belongs to no beginning; it
            gets any number.

    Returns:
        The node of each token, (N, L), and for each of the M nodes where it first occurs, as an
        index into the flattened (N, L), ascending.
    """
    new = torch.arange(texts.shape[1]) <= texts.argmax(dim=1, keepdim=True)
    new[1:] &= (texts[1:] != texts[:-1]).cummax(dim=1).values  # its predecessor lacks it
    number = torch.where(new, new.flatten().cumsum(0).view_as(texts) - 1, 0)
    return number.cummax(dim=0).values, new.flatten().nonzero().squeeze(1)
