"""From the tensors of a weight file to a model, with an exact report."""

from __future__ import annotations

import logging
import re

from torch import Tensor, nn

from cat_seg.conversion import (
    BACKBONE,
    CLIP,
    describe,
    generation,
    holds_clip,
    to_model,
)
from cat_seg.errors import CATSegError
from cat_seg.modeling.clip import OpenClip, load_clip_weights
from cat_seg.trust.weights import check_weights

logger = logging.getLogger(__name__)


def load_state(model: nn.Module, state: dict[str, Tensor], clip_weights: str = "") -> None:
    """Load the tensors of a weight file into a CATSeg, and CLIP's where they are not among them.

    The report (log) names what the file lacks of the model, what the model has no place for, and
    what has another shape.

    Args:
        model: a CATSeg.
        state: the tensors, by the names of any file that `to_model` knows.
        clip_weights: where CLIP's weights come from if they are not among them.

    Raises:
        CATSegError: The file belongs to another generation, a tensor is missing that is neither
            derivable nor meant to be trained from its start, or one holds NaN, infinity or
            integers for a floating type. The model is then as before.
    """
    expected = model.state_dict()
    state = to_model(state, expected)
    if getattr(getattr(model, "config", None), "training_free", ""):  # the file's CLIP alone
        state = {key: value for key, value in state.items() if key in expected}
        load_initial_weights(model)
    has, wants = generation(state), generation(expected)
    if has and wants and has != wants:
        raise CATSegError(
            f"holds {describe(state)}, but the config builds {describe(expected)}. "
            "Choose a config of the checkpoint's generation"
        )
    misshaped = [
        f"{key} {tuple(state[key].shape)}, expected {tuple(expected[key].shape)}"
        for key in state
        if key in expected and state[key].shape != expected[key].shape
    ]
    unexpected = [key for key in state if key not in expected]
    missing = [key for key in expected if key not in state]
    fresh = [key for key in missing if _may_be_fresh(key, state)]
    lacking = [key for key in missing if key not in fresh]
    if misshaped or lacking:
        problems = _list("missing", lacking) + _list("of another shape", misshaped)
        problems += _list("unexpected", unexpected)
        belongs = ""
        if has:
            belongs = f" It holds {describe(state)}; the config builds {describe(expected)}."
        raise CATSegError(f"does not fit the model.{belongs} " + "; ".join(problems))
    check_weights(state, expected)
    if not holds_clip(state):
        load_clip(model, clip_weights, required=has is not None)
    model.load_state_dict(state, strict=False)
    loaded = len(state) - len(unexpected)
    logger.info("Loaded %d of the model's %d tensors", loaded, len(expected))
    for problem in _list("not in the file, left as they were", fresh):
        logger.info("Tensors %s", problem)
    for problem in _list("unexpected, not loaded", unexpected):
        logger.warning("Tensors %s", problem)


def _may_be_fresh(key: str, state: dict[str, Tensor]) -> bool:
    """Tell whether a missing tensor may keep its initial value.

    It belongs to another part of the model than the file does, or to the norm of an output, which
    pretrained backbones do not have.
    """
    if ".parametrizations." in key:  # a change of a weight, nothing at the start
        return True
    if key.startswith(CLIP):
        return not holds_clip(state)
    if generation(state):
        return False
    if key.startswith(BACKBONE):
        return holds_clip(state) or re.match(rf"{BACKBONE}norm\d+\.", key) is not None
    return True


def load_clip(model: nn.Module, source: str, *, required: bool = False) -> None:
    """Load CLIP's own weights, see `load_clip_weights`, and those that parts begin with.

    Raises:
        CATSegError: if they are required, and no source is named.
    """
    predictor = getattr(getattr(model, "sem_seg_head", None), "predictor", None)
    load_initial_weights(model)
    if predictor is None or not hasattr(predictor, "clip_model"):
        return  # a model without CLIP
    if not isinstance(predictor.clip_model, OpenClip):
        return  # an encoder of another kind has begun by itself
    if source:
        load_clip_weights(predictor.clip_model, source)
    elif required:
        raise CATSegError("holds no CLIP; name its weights by MODEL.SEM_SEG_HEAD.CLIP_WEIGHTS")
    else:
        logger.warning("No weights of CLIP are named (MODEL.SEM_SEG_HEAD.CLIP_WEIGHTS)")


def load_initial_weights(model: nn.Module) -> None:
    """Load the weights that parts of a model begin with, such as those of a timm backbone."""
    for module in model.modules():  # timm's have a `load_pretrained` of other arguments
        if callable(begin := getattr(module, "load_initial_weights", None)):
            begin()


def _list(what: str, names: list[str]) -> list[str]:
    return [f"{len(names)} {what}: {', '.join(names)}"] if names else []
