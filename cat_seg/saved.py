"""Models as files: folders that `save_pretrained` writes, and released checkpoints."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cat_seg import registry
from cat_seg.certificate import Certificate
from cat_seg.conversion import CLIP, describe, published_name
from cat_seg.errors import CATSegError
from cat_seg.hub import MODELS, Source, resolve
from cat_seg.loading import load_clip, load_state
from cat_seg.model_config import ModelConfig, published_config
from cat_seg.modeling import training_free
from cat_seg.modeling.clip import clip_normalization
from cat_seg.trust.text import read_json
from cat_seg.trust.weights import read_weights, without_zero_rows, write_weights
from cat_seg.utils.files import atomic_write, digest

if TYPE_CHECKING:
    from cat_seg.model import CATSeg

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"


def load_folder(build: Callable[[ModelConfig], CATSeg], source: Source) -> CATSeg:
    """Load a folder that `save_pretrained` wrote.

    Args:
        build: makes a model of an architecture.
        source: the folder.

    Raises:
        CATSegError: naming the file that is missing, damaged, or does not fit.
    """
    file, weights = source.path / CONFIG, source.path / WEIGHTS
    try:
        about = read_json(file)
        config = ModelConfig.from_dict(about["model"])
        registry.check(config.parts, about.get("plugins"))
        model = build(config)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CATSegError(
            f"{file}: cannot be read as the description of a saved model ({error})."
        ) from error
    state = read_weights(weights)
    check_digest(weights, about)
    try:
        load_state(model, state)
        apply_description(model, about)
    except CATSegError as error:
        raise CATSegError(f"{weights}: {error}") from error
    return model


def check_digest(weights: Path, about: dict[str, Any]) -> None:
    """Hold weights against what config.json says of them, if it does.

    The format itself has no checksum: a flipped bit, or a square that is transposed, is weights
    like others.

    Raises:
        CATSegError: if they are others.
    """
    if isinstance(about.get("sha256"), str) and about["sha256"] != digest(weights):
        raise CATSegError(
            f"{weights}: is not the file that {CONFIG} was written with (its SHA-256 differs): get "
            f'both again, or, if you changed the weights yourself, take "sha256" out of {CONFIG}.'
        )


def apply_description(model: CATSeg, about: dict[str, Any]) -> None:
    """Give a model the words, threshold and card of a config.json."""
    words, threshold, card = (about.get(key) for key in ("words", "threshold", "card"))
    if isinstance(words, list) and all(isinstance(word, str) for word in words):
        model.default_words = tuple(words)
    if isinstance(threshold, int | float) and 0 <= threshold <= 1:
        model.threshold = float(threshold)
    if isinstance(card, dict):
        model.card |= card
    model.certificate = Certificate.parse(about.get("certificate"))


def load_checkpoint(build: Callable[[ModelConfig], CATSeg], source: Source) -> CATSeg:
    """Load a released checkpoint, or one of our own of the same architecture.

    Raises:
        CATSegError: if the file is damaged or belongs to no published model.
    """
    state = read_weights(source.path)
    name = source.name or published_name(state)
    if name is None:
        raise CATSegError(
            f"{source.path}: holds {describe(state)}, which is none of the published models; build "
            "it from its YAML (--config-file), or save it by `save_pretrained`."
        )
    model = build(published_config(name))
    try:
        load_state(model, state, str(model.config.clip))
    except CATSegError as error:
        raise CATSegError(f"{source.path}: {error}") from error
    model.card |= {"name": name}
    return model


def load_training_free(build: Callable[[ModelConfig], CATSeg], variant: str, name: str) -> CATSeg:
    """Build a training-free model, see `cat_seg.modeling.training_free`.

    Args:
        build: makes a model of an architecture.
        variant: of the last block.
        name: of a CLIP with the tag of its weights, or of a model whose CLIP is taken.

    Raises:
        CATSegError: if there is no such CLIP, or it cannot be had.
    """
    if name in MODELS or Path(name).exists():
        found = resolve(name)
        load = load_folder if found.kind == "folder" else load_checkpoint
        return load(build, found).without_aggregator(variant)
    mean, std = clip_normalization(name)
    config = ModelConfig(clip=name, clip_pixel_mean=mean, clip_pixel_std=std)
    model = build(training_free.without_aggregator(config, variant))
    load_clip(model, name)
    model.card |= {"name": f"{training_free.PREFIX}-{variant}:{name}"}
    return model


def save_weights(model: CATSeg, folder: Path) -> None:
    """Write model.safetensors; of the token table, the rows that are not zero where few are."""
    state = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    if (table := CLIP + "token_embedding.weight") in state:
        state = without_zero_rows(state, table)
    write_weights(state, folder / WEIGHTS)


def save_description(model: CATSeg, folder: Path) -> None:
    """Write config.json, with the digest of the weights that are there, and README.md."""
    about = {
        "library": "cat-seg",
        "model": model.config.to_dict(),
        "words": list(model.default_words),
        "threshold": model.threshold,
        "card": model.card,
        "sha256": digest(folder / WEIGHTS),
    }
    if plugins := registry.origins(model.config.parts):
        about["plugins"] = plugins
    if model.certificate is not None:
        about["certificate"] = asdict(model.certificate)
    with atomic_write(folder / CONFIG) as part:
        text = json.dumps(about, indent=1, ensure_ascii=False, default=list)
        part.write_text(text + "\n", encoding="utf-8")
    with atomic_write(folder / CARD) as part:
        part.write_text(_card(model), encoding="utf-8")


def _card(model: CATSeg) -> str:
    """Return the model card, in Markdown."""
    lines = [f"# {model.card['name'] or 'CAT-Seg'}", ""]
    kind = training_free.NOTE if model.config.training_free else ""
    lines += [kind or "A CAT-Seg model (https://arxiv.org/abs/2303.11797).", ""]
    for key, value in model.card.items():
        if isinstance(value, dict):
            value = ", ".join(f"{name} {figure}" for name, figure in value.items())
        if key != "name":
            lines.append(f"* {key.replace('_', ' ')}: {value}")
    lines.append(f"* threshold of 'none of these': {model.threshold}")
    if model.certificate is not None:
        lines.append(f"* certificate: {model.certificate}")
    lines.append("")
    lines += ["```python", "from cat_seg import CATSeg", "", 'CATSeg.from_pretrained("FOLDER")']
    return "\n".join([*lines, "```", ""])
