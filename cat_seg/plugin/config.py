"""Every configuration key that CAT-Seg adds to detectron2's, with its meaning.

Keys of the original code keep their names and meaning, so that its YAMLs merge unchanged. Two
generations of the model were published; what differs between them is the table `GENERATIONS`.
"""

from __future__ import annotations

import difflib
import logging
import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from detectron2.config import CfgNode, get_cfg

from cat_seg.errors import CATSegError
from cat_seg.inference import InferencePlan
from cat_seg.model_config import GENERATIONS as ARCHITECTURES
from cat_seg.model_config import ModelConfig
from cat_seg.modeling import training_free
from cat_seg.modeling.sliding_window import TileGrid
from cat_seg.registry import names
from cat_seg.resources import resource, user_file
from cat_seg.trust.text import read_config, read_json

logger = logging.getLogger(__name__)

DEFAULT_CONFIG = "configs/synthetic.yaml"  # the model that ships

# The two published generations: each entry is the value that the config key of the same name takes
# when it is None. What they mean is told in `cat_seg.model_config`.
GENERATIONS: dict[int, dict[str, Any]] = {
    year: {
        **{key.upper(): value for key, value in settings.items()},
        "TRAIN_TEXT": year == 2024,  # the text encoder is fine-tuned with the image encoder
    }
    for year, settings in ARCHITECTURES.items()
}


def add_cat_seg_config(cfg: CfgNode) -> None:
    """Add CAT-Seg's keys, with the published values as defaults, to a detectron2 config."""
    # ---- input -------------------------------------------------------------------------------
    # Training mapper; "mask_former_semantic" is the name that published YAMLs use.
    cfg.INPUT.DATASET_MAPPER_NAME = "mask_former_semantic"
    # Colour jitter of SSD (brightness, contrast, saturation, hue) in training.
    cfg.INPUT.COLOR_AUG_SSD = False
    # A random crop is drawn again (10 times) while one class fills more than this share of it.
    cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA = 1.0
    # The training mapper pads crops to multiples of this, in pixels; -1 for not at all.
    cfg.INPUT.SIZE_DIVISIBILITY = -1

    # ---- data --------------------------------------------------------------------------------
    # Kept for YAMLs of the original code; unused.
    cfg.DATASETS.VAL_ALL = ("coco_2017_val_all_stuff_sem_seg",)
    # Your own data: a list of {NAME, IMAGES, LABELS, CLASSES}, each registered under NAME for
    # DATASETS.TRAIN and DATASETS.TEST. docs/data.md explains these keys and the optional ones:
    # IMAGE_SUFFIX, LABEL_SUFFIX, LIST, IGNORE, OFFSET, MAP, PALETTE, UNLABELLED.
    cfg.DATASETS.FOLDERS = []
    # Several sets in DATASETS.TRAIN are trained on together, their classes united by name: how many
    # samples each gives, up to a common factor. Empty: as many as it has images.
    cfg.DATASETS.TRAIN_WEIGHTS = []

    # detectron2's key: exact convolutions on NVIDIA cards. "" leaves PyTorch's default,
    # TF32 in convolutions, and "high" takes it everywhere: faster, and some labels change.
    cfg.FLOAT32_PRECISION = "highest"

    # ---- solver ------------------------------------------------------------------------------
    cfg.SOLVER.OPTIMIZER = "ADAMW"  # or "SGD"
    cfg.SOLVER.WEIGHT_DECAY_EMBED = 0.0  # weight decay of embeddings
    cfg.SOLVER.BACKBONE_MULTIPLIER = 0.1  # learning rate factor of `backbone`; 0 freezes it
    cfg.SOLVER.CLIP_MULTIPLIER = 1.0  # learning rate factor of `clip_model`
    # Further factors: a list of [regular expression, factor], for parameters in whose whole name
    # the expression is found. 0 trains them not at all.
    cfg.SOLVER.LR_FACTORS = []
    cfg.SOLVER.POLY_LR_POWER = 0.9
    cfg.SOLVER.POLY_LR_CONSTANT_ENDING = 0.0
    cfg.SOLVER.ACCUMULATE_STEPS = 1  # batches whose gradients are averaged for one step
    cfg.SOLVER.CHECKPOINT_KEEP = 0  # newest checkpoints kept; 0 keeps all
    cfg.SOLVER.MAX_BAD_IMAGES = 10  # unreadable training images skipped before the run stops
    cfg.SOLVER.AMP.DTYPE = "bf16"  # autocast type when SOLVER.AMP.ENABLED: "bf16" or "fp16"

    # ---- model -------------------------------------------------------------------------------
    # Which published model: 2023, 2024, or 0, which takes 2024 for PROMPT_ENSEMBLE_TYPE "single"
    # (as YAMLs of the 2024 code have it) and 2023 otherwise.
    cfg.MODEL.GENERATION = 0
    # Text templates: "imagenet" (80, the 2023 model), "imagenet_select" (8), "single" (2024).
    cfg.MODEL.PROMPT_ENSEMBLE_TYPE = "imagenet"
    # CLIP's normalisation of RGB values in 0..255.
    cfg.MODEL.CLIP_PIXEL_MEAN = [122.7709383, 116.7460125, 104.09373615]
    cfg.MODEL.CLIP_PIXEL_STD = [68.5005327, 66.6321579, 70.3231630]
    # Recompute activations of the encoders and the aggregator in the backward pass: less memory,
    # more time, the same gradients.
    cfg.MODEL.ACTIVATION_CHECKPOINTING = False
    # Parts in place of, or beside, the published ones: a list of {KIND: NAME} and settings, such as
    # {layer: parallel, dropout: 0.1}. docs/extending.md.
    cfg.MODEL.PARTS = []
    # CLIP alone in place of the aggregator, as a baseline: "maskclip", "sclip", "clearclip",
    # "naclip" or "proxyclip". MODEL.WEIGHTS is then a checkpoint whose CLIP is taken, or empty for
    # the published CLIP. docs/training_free.md.
    cfg.MODEL.TRAINING_FREE = ""

    # The model pads images to multiples of this, in pixels: in training, and in inference without
    # the sliding window. The key's place is that of the original code.
    cfg.MODEL.MASK_FORMER = CfgNode({"SIZE_DIVISIBILITY": 32})

    # Swin Transformer, when MODEL.BACKBONE.NAME is "D2SwinTransformer".
    cfg.MODEL.SWIN = CfgNode()
    cfg.MODEL.SWIN.PRETRAIN_IMG_SIZE = 224  # pixels; sizes the absolute position embedding
    cfg.MODEL.SWIN.PATCH_SIZE = 4  # pixels
    cfg.MODEL.SWIN.EMBED_DIM = 96
    cfg.MODEL.SWIN.DEPTHS = [2, 2, 6, 2]
    cfg.MODEL.SWIN.NUM_HEADS = [3, 6, 12, 24]
    cfg.MODEL.SWIN.WINDOW_SIZE = 7  # positions
    cfg.MODEL.SWIN.MLP_RATIO = 4.0
    cfg.MODEL.SWIN.QKV_BIAS = True
    cfg.MODEL.SWIN.QK_SCALE = None  # None for head width ** -0.5
    cfg.MODEL.SWIN.DROP_RATE = 0.0
    cfg.MODEL.SWIN.ATTN_DROP_RATE = 0.0
    cfg.MODEL.SWIN.DROP_PATH_RATE = 0.3  # of the last block; rises linearly from 0
    cfg.MODEL.SWIN.APE = False  # absolute position embedding
    cfg.MODEL.SWIN.PATCH_NORM = True
    cfg.MODEL.SWIN.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.SWIN.USE_CHECKPOINT = False  # recompute activations in the backward pass

    # Keys of detectron2's DeepLab project that YAMLs of the original code may set; unused.
    cfg.MODEL.RESNETS.STEM_TYPE = "basic"
    cfg.MODEL.RESNETS.RES4_DILATION = 1
    cfg.MODEL.RESNETS.RES5_MULTI_GRID = [1, 1, 1]
    cfg.MODEL.SEM_SEG_HEAD.LOSS_TYPE = "hard_pixel_loss"

    # ---- head --------------------------------------------------------------------------------
    head = cfg.MODEL.SEM_SEG_HEAD
    # JSON lists of class names. Empty: the names of DATASETS.TRAIN together, and of
    # DATASETS.TEST[0].
    head.TRAIN_CLASS_JSON = ""
    head.TEST_CLASS_JSON = ""
    # CLIP: "ViT-B/16", "ViT-L/14@336px", "ViT-H", "ViT-G", any open_clip name, or a path to a
    # JSON model configuration of open_clip.
    head.CLIP_PRETRAINED = "ViT-B/16"
    # Its weights, when no checkpoint brings them: empty for the published ones of that name, or
    # a file.
    head.CLIP_WEIGHTS = ""
    # Visual prompt tokens: so many in each of the first PROMPT_DEPTH layers of CLIP.
    head.PROMPT_DEPTH = 0
    head.PROMPT_LENGTH = 0
    # Which CLIP parameters train: "attention" (published; what it means is a matter of the
    # generation), "prompt", "full" (2024: of both transformers' blocks), "low_rank" (what the part
    # {adapter: low_rank} adds), "freeze", or "names:" and a regular expression for whole names.
    head.CLIP_FINETUNE = "attention"
    head.TEXT_GUIDANCE_DIM = None  # width of text features; known from CLIP. 0: no text guidance
    head.TEXT_GUIDANCE_PROJ_DIM = 128  # of the text guidance; 0 for none
    head.APPEARANCE_GUIDANCE_DIM = None  # channels of the deepest guidance map; known from it
    head.APPEARANCE_GUIDANCE_PROJ_DIM = 128  # of the image guidance; 0 for none
    head.DECODER_DIMS = [64, 32]
    # Channels of the shallower guidance maps: known from a backbone; of CLIP's upsampled layers 256
    # and 128 if None.
    head.DECODER_GUIDANCE_DIMS = None
    head.DECODER_GUIDANCE_PROJ_DIMS = [32, 16]
    head.NUM_LAYERS = 4
    head.NUM_HEADS = 4
    head.HIDDEN_DIMS = 128  # channels of the aggregated cost volume; a number or a list of one
    # Average pooling of the map before class aggregation; see TEST.POOLING_SIZES.
    head.POOLING_SIZES = [1, 1]
    head.FEATURE_RESOLUTION = [24, 24]  # positions of the cost volume, rows and columns
    head.WINDOW_SIZES = 12  # positions of a window of spatial aggregation
    head.ATTENTION_TYPE = "linear"  # class attention: "linear" or "full"
    head.CORRELATION_LAYERS = []  # kept for YAMLs of the original code; unused

    # What follows tells the generations apart; None takes the value of `GENERATIONS`.
    head.GUIDANCE = None  # "backbone", "clip", "both" or "none"
    head.LAST_RESIDUAL = None  # "token" or "class"
    head.SYNONYMS = None  # "mean" or "first"
    head.CLASS_PADDING = None  # number of classes, or 0
    head.MAX_CLASSES = None  # number of classes, or 0 for no limit
    head.SPLIT_QKV = None  # True or False
    head.TRAIN_TEXT = None  # True or False
    # GUIDANCE "clip" or "both": blocks whose output tokens are the guidance, counted from 1. Empty:
    # those at one and two thirds of the encoder, as published (4 and 8 of 12, 8 and 16 of 24).
    head.CLIP_GUIDANCE_LAYERS = []

    # Bounds of the working set; they do not change a result.
    head.CLASS_CHUNK = 0  # classes that spatial blocks and decoder take at once; 0 chooses
    head.TEXT_BATCH = 4096  # tokens of a batch of texts

    # ---- evaluation --------------------------------------------------------------------------
    # Published protocol: SLIDING_WINDOW True. The image is resized to SLIDING_RESOLUTION squared,
    # cut into windows of SLIDING_KERNEL with SLIDING_OVERLAP, and seen once as a whole.
    cfg.TEST.SLIDING_WINDOW = False
    cfg.TEST.SLIDING_KERNEL = 384  # pixels
    cfg.TEST.SLIDING_OVERLAP = 0.333  # share of the kernel
    cfg.TEST.SLIDING_RESOLUTION = 640  # pixels
    # Crops taken at once, of several images where they come in a batch and fit. 0: all of an image,
    # but on CPU three by the encoders and one by the aggregator.
    cfg.TEST.CROP_BATCH = 0
    # Type of autocast in inference: "float32" for none, "bf16" or "fp16". Faster where the hardware
    # is, and changes some labels (docs/performance.md).
    cfg.TEST.PRECISION = "float32"
    # Quantise the encoders' linear layers to 8 bits. On CPU; changes some labels.
    cfg.TEST.INT8_ENCODERS = False
    # Compile the encoders and the aggregator's chunks with `torch.compile`: a minute at the start,
    # and then what it brings depends on the device.
    cfg.TEST.COMPILE = False
    # Record the network as CUDA graphs and replay them, so that the processor keeps up with the
    # card. Changes no result; takes memory of its own.
    cfg.TEST.CUDA_GRAPHS = False
    # Keep the volume of a crop in half precision between the layers. Changes few labels.
    cfg.TEST.HALF_VOLUME = False
    # Megabytes that may be kept of what grows with the vocabulary (volume and logits); 0 is half of
    # what is free. Where it does not suffice, classes are streamed: slower, and equal to rounding.
    cfg.TEST.MEMORY = 0
    # Return each pixel's class and its probability instead of every class's probability.
    cfg.TEST.LABELS_ONLY = False
    # Pooling before class aggregation in inference; None for the POOLING_SIZES of the head. The
    # released models were trained with [2, 2] and are evaluated with [1, 1].
    cfg.TEST.POOLING_SIZES = None
    # Text features are cached here; "" for the default cache folder, "none" for no cache on disk.
    cfg.TEST.TEXT_CACHE = ""


def generation_settings(cfg: CfgNode) -> dict[str, Any]:
    """Resolve the keys of `GENERATIONS`.

    Returns:
        The generation ("GENERATION") and a value for each key of its table.

    Raises:
        CATSegError: if MODEL.GENERATION is unknown.
    """
    generation = cfg.MODEL.GENERATION
    if generation == 0:
        generation = 2024 if cfg.MODEL.PROMPT_ENSEMBLE_TYPE == "single" else 2023
    if generation not in GENERATIONS:
        raise CATSegError(
            f"MODEL.GENERATION is {generation!r}; expected one of {sorted(GENERATIONS)}, or 0 to "
            "choose by PROMPT_ENSEMBLE_TYPE."
        )
    head = cfg.MODEL.SEM_SEG_HEAD
    published = GENERATIONS[generation]
    return {
        "GENERATION": generation,
        **{key: value if head[key] is None else head[key] for key, value in published.items()},
    }


def model_config(cfg: CfgNode) -> ModelConfig:
    """The architecture that a config describes: the one mapping from keys to the library.

    Raises:
        CATSegError: if a value is none that the library knows.
    """
    head = cfg.MODEL.SEM_SEG_HEAD
    choice = generation_settings(cfg)
    clip: str | dict[str, Any] = head.CLIP_PRETRAINED
    if head.CLIP_PRETRAINED.endswith(".json"):
        clip = read_json(user_file(head.CLIP_PRETRAINED))
        clip = clip.get("model_cfg", clip) if isinstance(clip, dict) else clip
    swin_settings = resnet_settings = None
    parts = tuple(dict(part) for part in cfg.MODEL.PARTS)
    of_detectron2 = choice["GUIDANCE"] in ("backbone", "both") and not names(parts, "guidance")
    if of_detectron2 and cfg.MODEL.BACKBONE.NAME == "D2SwinTransformer":
        swin_settings = {k: _plain(v) for k, v in swin_arguments(cfg).items()}
    elif of_detectron2 and cfg.MODEL.BACKBONE.NAME == "build_resnet_backbone":
        resnet_settings = {"depth": cfg.MODEL.RESNETS.DEPTH}
    hidden = head.HIDDEN_DIMS
    tiles = (cfg.TEST.SLIDING_KERNEL, cfg.TEST.SLIDING_OVERLAP, cfg.TEST.SLIDING_RESOLUTION)
    config = ModelConfig(
        clip=clip,
        templates=cfg.MODEL.PROMPT_ENSEMBLE_TYPE,
        guidance=choice["GUIDANCE"],
        last_residual=choice["LAST_RESIDUAL"],
        synonyms=choice["SYNONYMS"],
        class_padding=choice["CLASS_PADDING"],
        max_classes=choice["MAX_CLASSES"],
        split_qkv=choice["SPLIT_QKV"],
        swin=swin_settings,
        resnet=resnet_settings,
        guidance_layers=tuple(head.CLIP_GUIDANCE_LAYERS),
        upsample_dims=tuple(head.DECODER_GUIDANCE_DIMS or (256, 128)),
        prompt_tokens=(head.PROMPT_DEPTH, head.PROMPT_LENGTH),
        grid=tuple(head.FEATURE_RESOLUTION),
        window=head.WINDOW_SIZES,
        hidden_dim=hidden if isinstance(hidden, int) else hidden[0],
        num_layers=head.NUM_LAYERS,
        num_heads=head.NUM_HEADS,
        attention_type=head.ATTENTION_TYPE,
        pooling=tuple(head.POOLING_SIZES),
        test_pooling=tuple(cfg.TEST.POOLING_SIZES) if cfg.TEST.POOLING_SIZES else None,
        text_guidance_dim=0 if head.TEXT_GUIDANCE_DIM == 0 else head.TEXT_GUIDANCE_PROJ_DIM,
        guidance_dim=head.APPEARANCE_GUIDANCE_PROJ_DIM,
        decoder_dims=tuple(head.DECODER_DIMS),
        decoder_guidance_dims=tuple(head.DECODER_GUIDANCE_PROJ_DIMS),
        pixel_mean=tuple(cfg.MODEL.PIXEL_MEAN),
        pixel_std=tuple(cfg.MODEL.PIXEL_STD),
        clip_pixel_mean=tuple(cfg.MODEL.CLIP_PIXEL_MEAN),
        clip_pixel_std=tuple(cfg.MODEL.CLIP_PIXEL_STD),
        size_divisibility=max(1, cfg.MODEL.MASK_FORMER.SIZE_DIVISIBILITY),
        min_size=cfg.INPUT.MIN_SIZE_TEST,
        max_size=cfg.INPUT.MAX_SIZE_TEST,
        sliding_window=tiles if cfg.TEST.SLIDING_WINDOW else None,
        parts=parts,
    )
    variant = cfg.MODEL.TRAINING_FREE
    return training_free.without_aggregator(config, variant) if variant else config


def inference_plan(cfg: CfgNode) -> InferencePlan:
    """How a config asks for inference to be done.

    Raises:
        CATSegError: if the tiles do not fit, or the precision is unknown.
    """
    tiles = None
    if cfg.TEST.SLIDING_WINDOW:
        tiles = TileGrid(
            cfg.TEST.SLIDING_KERNEL, cfg.TEST.SLIDING_OVERLAP, cfg.TEST.SLIDING_RESOLUTION
        )
    return InferencePlan(
        sliding_window=tiles,
        crop_batch=cfg.TEST.CROP_BATCH,
        precision=cfg.TEST.PRECISION,
        int8_encoders=cfg.TEST.INT8_ENCODERS,
        compiled=cfg.TEST.COMPILE,
        cuda_graphs=cfg.TEST.CUDA_GRAPHS,
        memory=cfg.TEST.MEMORY * 1_000_000,
    )


def swin_arguments(cfg: CfgNode) -> dict[str, Any]:
    """The arguments of `SwinTransformer` in MODEL.SWIN."""
    swin = cfg.MODEL.SWIN
    return {
        "embed_dim": swin.EMBED_DIM,
        "depths": swin.DEPTHS,
        "num_heads": swin.NUM_HEADS,
        "window_size": swin.WINDOW_SIZE,
        "mlp_ratio": swin.MLP_RATIO,
        "qkv_bias": swin.QKV_BIAS,
        "qk_scale": swin.QK_SCALE,
        "drop_rate": swin.DROP_RATE,
        "attn_drop_rate": swin.ATTN_DROP_RATE,
        "drop_path_rate": swin.DROP_PATH_RATE,
        "absolute_positions": swin.APE,
        "patch_norm": swin.PATCH_NORM,
        "pretrain_image_size": swin.PRETRAIN_IMG_SIZE,
        "patch_size": swin.PATCH_SIZE,
        "out_features": swin.OUT_FEATURES,
        "use_checkpoint": swin.USE_CHECKPOINT or cfg.MODEL.ACTIVATION_CHECKPOINTING,
    }


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def load_config(
    config_file: str | Path = DEFAULT_CONFIG, opts: Sequence[str] = (), device: str = ""
) -> CfgNode:
    """Read a config, of the project or your own, and register the data that it brings.

    Args:
        config_file: a YAML, looked for as `user_file` does.
        opts: KEY VALUE pairs that override it.
        device: "cuda", "mps", "cpu" or the like. If empty, MODEL.DEVICE, or the best that this
            machine has where that is "cuda", the default, and there is none.

    Raises:
        CATSegError: if the file is missing or malformed, a key unknown, its value of another type,
            or the device not there.
    """
    from cat_seg.plugin.data.datasets.folders import register_folders

    cfg = get_cfg()
    add_cat_seg_config(cfg)
    if len(opts) % 2:
        raise CATSegError(f"Options come in pairs of KEY VALUE; got {' '.join(opts)}.")
    # The name of the model that ships is no file in the working directory.
    path = resource(DEFAULT_CONFIG) if config_file == DEFAULT_CONFIG else user_file(config_file)
    tree = read_config(path)
    source = f"Config {path}"
    try:
        with tempfile.TemporaryDirectory() as folder:
            plain = Path(folder, path.name)
            plain.write_text(yaml.safe_dump(tree), encoding="utf-8")
            # Without being told, detectron2 runs what tags such as !!python/object/apply ask for.
            cfg.merge_from_file(str(plain), allow_unsafe=False)
        source = "Options"
        cfg.merge_from_list(list(opts))
    except OSError as error:
        raise CATSegError(
            f"{source}: its plain copy cannot be written for detectron2 to read, in "
            f"{tempfile.gettempdir()} ({error.strerror or error}); TMPDIR names another folder."
        ) from error
    except (AssertionError, KeyError, ValueError, yaml.YAMLError) as error:
        problem = " ".join(str(error.args[0] if len(error.args) == 1 else error).split())
        raise CATSegError(f"{source}: {problem}{_like_it(problem, cfg)}") from error
    except (AttributeError, RecursionError, TypeError) as error:  # fvcore's, of other contents
        raise CATSegError(
            f"{source}: expected keys and values in the tree of the config, and a _BASE_, if there "
            "is one, that is another file."
        ) from error
    cfg.MODEL.DEVICE = _usable_device(device, cfg.MODEL.DEVICE)
    register_folders(cfg, path.parent)
    cfg.freeze()
    return cfg


def _like_it(problem: str, cfg: CfgNode) -> str:
    """A hint where the problem is a key that does not exist: the one most like it."""
    if not (unknown := re.search(r"Non-existent (?:config )?key: (\S+)", problem)):
        return ""
    near = difflib.get_close_matches(unknown[1], _keys(cfg), n=1)
    return f"; did you mean {near[0]}?" if near else "; cat_seg/config.py explains our keys."


def _keys(cfg: CfgNode, prefix: str = "") -> Iterator[str]:
    for key, value in cfg.items():
        yield prefix + key
        if isinstance(value, CfgNode):
            yield from _keys(value, f"{prefix}{key}.")


def _usable_device(asked: str, default: str) -> str:
    try:
        kind = torch.device(asked or default).type
    except RuntimeError as error:
        problem = str(error).splitlines()[0]
        raise CATSegError(f"{asked or default!r} is not a device: {problem}") from error
    if kind == "cuda" and not torch.cuda.is_available():
        if asked:
            raise CATSegError(f"Device {asked!r} cannot be used: torch finds no CUDA here.")
        best = "mps" if torch.backends.mps.is_available() else "cpu"
        logger.info("torch finds no CUDA here: running on %s", best)
        return best
    return asked or default
