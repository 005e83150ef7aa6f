"""CLIP's text encoder, for many texts that begin alike; other text encoders text by text.

N texts, L tokens of the longest, M distinct beginnings, C channels of the encoder, D embedding
width.

Attention is causal: what the encoder makes of a token depends on the tokens before it and on no
other. So texts end with their end token instead of being filled up to 77 tokens, and a beginning
that several texts share ("a photo of a") is computed once: the linear layers see every distinct
beginning (a node of the prefix tree) once, and only attention sees texts.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import open_clip
import torch
from open_clip.tokenizer import HFTokenizer
from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor, nn
from tqdm import tqdm

from cat_seg.errors import CATSegError
from cat_seg.modeling.chunks import checkpointed
from cat_seg.modeling.clip import blocks

logger = logging.getLogger(__name__)

_CONTEXT_LENGTH = 77  # tokens
_VOCABULARY_SIZE = 49408
# Linear layers see multiples of so many rows: oneDNN keeps what it builds for every size.
_ROWS = 64


def set_tokenizer(clip: open_clip.CLIP, text_config: Mapping[str, Any]) -> None:
    """Note on a model which tokenizer its text encoder has, for `tokenize`."""
    name = text_config.get("hf_tokenizer_name") or ""
    clip.tokenizer_settings = name, tuple(sorted(text_config.get("tokenizer_kwargs", {}).items()))


def tokenize(texts: list[str], clip: open_clip.CLIP | None = None) -> Tensor:
    """Texts to tokens (N, L).

    Args:
        texts: N of them.
        clip: whose tokenizer and context length L are taken; None for those of OpenAI's CLIP: a
            start token, at most 75 tokens, an end token, and zeros up to 77.

    Raises:
        CATSegError: if the model needs a tokenizer that is not here and cannot be fetched.
    """
    length = clip.context_length if clip is not None else _CONTEXT_LENGTH
    name, settings = getattr(clip, "tokenizer_settings", ("", ()))
    if name:
        return _tokenizer(name, length, settings)(texts)
    tokens = open_clip.tokenize(texts, length)
    full = tokens[:, -1].nonzero().flatten().tolist()
    if full:
        logger.warning(
            "%d texts may have been cut to %d tokens, such as %r.",
            len(full),
            length,
            texts[full[0]],
        )
    return tokens


@cache
def _tokenizer(name: str, length: int, settings: tuple[tuple[str, Any], ...]) -> HFTokenizer:
    """A tokenizer of the hub, made once."""
    try:
        return HFTokenizer(name, context_length=length, **dict(settings))
    except ImportError as error:
        raise CATSegError(
            f"This CLIP's tokenizer {name!r} needs transformers: pip install transformers "
            f"sentencepiece ({error})."
        ) from error
    except (OSError, ValueError) as error:
        raise CATSegError(f"The tokenizer {name!r} cannot be had ({error}).") from error


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
        tokens: (N, L), in any order, with repetitions; see `tokenize`.
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
    alike = shares_beginnings(clip)
    lengths = texts.argmax(dim=1) + 1 if alike else torch.full((len(texts),), texts.shape[1])
    for batch in _batches(texts, lengths, batch_tokens):
        if alike:
            features.append(_encode_sorted(clip, batch, recompute))
        else:
            features.append(clip.encode_text(batch.to(clip.token_embedding.weight.device)))
        if progress is not None:
            progress.update(len(batch))
    if progress is not None:
        progress.update(len(tokens) - len(texts))  # the same texts once more
    return torch.cat(features)[where.to(features[0].device)]


def text_traits(clip: open_clip.CLIP) -> list[object]:
    """What features of a text depend on besides weights; nothing where all is as in CLIP."""
    if not isinstance(clip, open_clip.CLIP):
        return [f"{type(clip).__module__}.{type(clip).__qualname__}"]
    settings = getattr(clip, "tokenizer_settings", ("", ()))
    if shares_beginnings(clip) and not settings[0] and clip.context_length == _CONTEXT_LENGTH:
        return []
    return [clip.context_length, clip.text_pool_type, clip.attn_mask is not None, *settings]


def shares_beginnings(clip: open_clip.CLIP) -> bool:
    """Whether texts that begin alike are alike up to there: causal attention, the end pooled."""
    return (
        isinstance(clip, open_clip.CLIP)
        and clip.attn_mask is not None
        and clip.text_pool_type == "argmax"  # the end token has the highest number
        and clip.text_projection is not None
        and clip.vocab_size == _VOCABULARY_SIZE
        and all(type(b) is ResidualAttentionBlock for b in clip.transformer.resblocks)
    )


def _batches(texts: Tensor, lengths: Tensor, batch_tokens: int) -> Iterator[Tensor]:
    """Cut texts (N, L) into runs of n texts, as long as n * L stays within `batch_tokens`."""
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
