"""The key conversion between weight files and our state dicts.

| file                         | its keys                        | ours                            |
| ---------------------------- | ------------------------------- | ------------------------------- |
| released CAT-Seg, 2023, 2024 | the names of our state dict     | the same, without the constants |
|                              | and two constants (below)       | (derived from the config)       |
| Swin, official, MaskFormer's | `layers.0.downsample.*`, ...    | `backbone.layers.0.downsample.*`|
| Swin, timm                   | `layers.1.downsample.*`         | `backbone.layers.0.downsample.*`|
| other backbones              | `stem.*`, `res2.*`, ...         | `backbone.stem.*`, ...          |
| visual prompts               | `{CLIP}visual.transformer.`     | `{PROMPTS}`                     |
|                              | `prompt_tokens`                 |                                 |
| CLIP                         | `visual.*`, `transformer.*`, ...| `{CLIP}visual.*`, ... with      |
|                              |                                 | q, k, v fused or split          |

The constants are `relative_position_index` of the Swin backbone and `attn_mask` of the
aggregator's shifted windows. `from_released` drops them and `to_released` computes them, so that
nothing is lost either way.
"""

from collections.abc import Collection
from math import isqrt

import torch
from einops import rearrange
from timm.models.swin_transformer import get_relative_position_index
from torch import Tensor

from cat_seg.errors import CATSegError
from cat_seg.modeling.clip.finetune import fuse_projections, split_projections

CLIP = "sem_seg_head.predictor.clip_model."
TRANSFORMER = "sem_seg_head.predictor.transformer."
BACKBONE = "backbone."
PROMPTS = "sem_seg_head.predictor.prompt_tokens"
_RELEASED_PROMPTS = CLIP + "visual.transformer.prompt_tokens"
_CONSTANTS = ("relative_position_index", "attn_mask")
_TABLE = ".relative_position_bias_table"
_SHIFTED = ".swin_block.block_2.norm1.weight"  # a key of every shifted block
_CLIP_SIZES = ("input_resolution", "context_length", "vocab_size")  # numbers in OpenAI's archives
_CONFIGS = {768: "vitb", 1024: "vitl", 1280: "vith", 1664: "vitg"}  # by the width of CLIP's ViT


def from_released(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict from a released one (or from ours): constants and `module.` are dropped."""
    ours = {
        key.removeprefix("module."): value
        for key, value in state.items()
        if not key.endswith(_CONSTANTS)
    }
    if _RELEASED_PROMPTS in ours:
        ours[PROMPTS] = ours.pop(_RELEASED_PROMPTS)
    return ours


def to_released(
    state: dict[str, Tensor], *, grid: tuple[int, int] = (24, 24), window: int = 12
) -> dict[str, Tensor]:
    """Return a released state dict from ours.

    Args:
        state: Our state dict.
        grid: MODEL.SEM_SEG_HEAD.FEATURE_RESOLUTION, positions of the cost volume.
        window: MODEL.SEM_SEG_HEAD.WINDOW_SIZES.
    """
    state = {_RELEASED_PROMPTS if key == PROMPTS else key: v for key, v in state.items()}
    constants = {}
    for key, value in state.items():
        if key.endswith(_TABLE):
            side = (
                isqrt(len(value)) + 1
            ) // 2  # of a window; the table has (2 * side - 1) ** 2 rows
            index = get_relative_position_index(side, side, device=value.device)
            constants[key.removesuffix(_TABLE) + ".relative_position_index"] = index
        elif key.endswith(_SHIFTED) and min(grid) > window:
            mask = _shift_mask(grid, window).to(value.device)
            constants[key.removesuffix(".norm1.weight") + ".attn_mask"] = mask
    return state | constants


def _shift_mask(grid: tuple[int, int], window: int) -> Tensor:
    """(windows, N, N) of 0, and -100 where the shift of half a window made far positions meet."""

    def region(size: int) -> Tensor:
        at = torch.arange(size)
        return (at >= size - window).long() + (at >= size - window // 2).long()

    regions = 3 * region(grid[0])[:, None] + region(grid[1])  # (H, W)
    regions = rearrange(regions, "(y i) (x j) -> (y x) (i j)", i=window, j=window)
    return (regions[:, None] != regions[:, :, None]) * -100.0


def to_model(state: dict[str, Tensor], names: Collection[str]) -> dict[str, Tensor]:
    """Our state dict from a weight file of any kind, told by its content.

    Args:
        state: The file's tensors.
        names: Keys of the model's state dict.

    Returns:
        With the model's names where they correspond. Of a pretrained backbone or CLIP, only what
        the model has a place for: not the classifier, nor stages beyond the model's.

    Raises:
        CATSegError: The file is of no known kind.
    """
    state = from_released(state)
    if any(key.startswith((TRANSFORMER, CLIP)) or key in names for key in state):
        return state
    if any(key.endswith("visual.conv1.weight") for key in state):
        return _from_clip(state, split=any(key.endswith("q_proj_weight") for key in names))
    state = _from_backbone(state)
    if found := {key: value for key, value in state.items() if key in names}:
        return found
    examples = ", ".join(key.removeprefix(BACKBONE) for key in list(state)[:3])
    raise CATSegError(
        "neither a checkpoint of CAT-Seg, nor CLIP's weights, nor of this model's backbone; its "
        f"tensors are {examples}, ..."
    )


def _from_clip(state: dict[str, Tensor], *, split: bool) -> dict[str, Tensor]:
    state = split_projections(state) if split else fuse_projections(state)
    return {
        CLIP + key.removeprefix("text."): value
        for key, value in state.items()
        if key not in _CLIP_SIZES
    }


def _from_backbone(state: dict[str, Tensor]) -> dict[str, Tensor]:
    state = {key.removeprefix(BACKBONE): value for key, value in state.items()}
    reduction = "layers.{}.downsample.reduction.weight"
    # timm has the step between two stages at the start of the second, the others at the end of
    # the first.
    back = int(reduction.format(1) in state and reduction.format(0) not in state)
    converted = {}
    for key, value in state.items():
        match key.split("."):
            case ["layers", stage, "downsample", *rest]:
                key = ".".join(["layers", str(int(stage) - back), "downsample", *rest])
        converted[BACKBONE + key] = value
    return converted


def holds_clip(state: Collection[str]) -> bool:
    """Tell whether a state dict, or its keys, bring CLIP's weights (then none need be fetched)."""
    # Of open_clip's own image encoders, and of timm's.
    return any(key.endswith("visual.conv1.weight") or "visual.trunk." in key for key in state)


def generation(state: Collection[str]) -> int | None:
    """Return the generation of a whole CAT-Seg state dict, or of its keys; None if it is none."""
    if not any(key.startswith(TRANSFORMER) for key in state):
        return None
    return 2024 if "upsample1.weight" in state else 2023


def describe(state: dict[str, Tensor]) -> str:
    """Return which model a CAT-Seg state dict belongs to, in words, with its configs."""
    year = generation(state)
    proj = state.get(CLIP + "visual.proj")
    if proj is None:
        return f"the {year} generation"
    width = len(proj)
    model = f"the {year} generation with a CLIP of width {width}"
    if width not in _CONFIGS:
        return model
    return f"{model} (configs/{_CONFIGS[width]}{'_2024' if year == 2024 else ''}.yaml)"


def published_name(state: dict[str, Tensor]) -> str | None:
    """Return the published model of the same sizes as a state dict, such as "large-2024"."""
    state = from_released(state)
    year, proj = generation(state), state.get(CLIP + "visual.proj")
    if year is None or proj is None:
        return None
    size = {768: "base", 1024: "large", 1280: "huge", 1664: "giant"}.get(len(proj))
    return f"{size}-{year}" if size else None
