"""Every configuration key that CAT-Seg adds to detectron2's, with its meaning.

Keys of the original code keep their names and meaning, so that its YAMLs merge unchanged. Two
generations of the model were published; what differs between them is the table `GENERATIONS`.
"""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode

# Types of autocast, by the names that SOLVER.AMP.DTYPE and TEST.PRECISION take.
AMP_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}

# The two published generations, side by side. Each entry is the value that the config key of the
# same name takes when it is None.
GENERATIONS: dict[int, dict[str, Any]] = {
    2023: {
        "GUIDANCE": "backbone",  # image guidance: maps of MODEL.BACKBONE
        "LAST_RESIDUAL": "token",  # last CLIP block: every token keeps its own residual
        "SYNONYMS": "mean",  # a class is the mean of its synonyms
        "CLASS_PADDING": 0,  # the class sequence is as long as the vocabulary
        "MAX_CLASSES": 0,  # every class is aggregated
        "SPLIT_QKV": False,  # CLIP's attention weights stay fused
        "TRAIN_TEXT": False,  # text features are constants
    },
    2024: {
        "GUIDANCE": "clip",  # image guidance: intermediate layers of CLIP's image encoder
        "LAST_RESIDUAL": "class",  # last CLIP block: every token gets the class token's residual
        "SYNONYMS": "first",  # a class is its first name
        "CLASS_PADDING": 256,  # the class sequence is filled with learned tokens up to this
        "MAX_CLASSES": 256,  # only the most similar classes of a crop are aggregated
        "SPLIT_QKV": True,  # q, k and v of CLIP's attention are separate parameters
        "TRAIN_TEXT": True,  # the text encoder is fine-tuned with the image encoder
    },
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
    # Images are padded to multiples of this, in pixels: in training, and in inference without the
    # sliding window. -1 pads to multiples of 32 in the model and not at all in the mapper.
    cfg.INPUT.SIZE_DIVISIBILITY = -1

    # ---- data --------------------------------------------------------------------------------
    # Kept for YAMLs of the original code; unused.
    cfg.DATASETS.VAL_ALL = ("coco_2017_val_all_stuff_sem_seg",)
    # Your own data: a list of {NAME, IMAGES, LABELS, CLASSES[, IGNORE]}, each registered under
    # NAME for DATASETS.TRAIN and DATASETS.TEST. IMAGES and LABELS are folders, CLASSES a JSON.
    cfg.DATASETS.FOLDERS = []

    # ---- solver ------------------------------------------------------------------------------
    cfg.SOLVER.OPTIMIZER = "ADAMW"  # or "SGD"
    cfg.SOLVER.WEIGHT_DECAY_EMBED = 0.0  # weight decay of embeddings
    cfg.SOLVER.BACKBONE_MULTIPLIER = 0.1  # learning rate factor of `backbone`; 0 freezes it
    cfg.SOLVER.CLIP_MULTIPLIER = 1.0  # learning rate factor of `clip_model`
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
    # JSON lists of class names. Empty: the names of DATASETS.TRAIN[0] and DATASETS.TEST[0].
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
    # generation), "prompt", "full" or "freeze".
    head.CLIP_FINETUNE = "attention"
    head.TEXT_GUIDANCE_DIM = 512  # width of text features; must be CLIP's embedding width
    head.TEXT_GUIDANCE_PROJ_DIM = 128  # of the text guidance; 0 for none
    head.APPEARANCE_GUIDANCE_DIM = 512  # channels of the deepest guidance map
    head.APPEARANCE_GUIDANCE_PROJ_DIM = 128  # of the image guidance; 0 for none
    head.DECODER_DIMS = [64, 32]
    head.DECODER_GUIDANCE_DIMS = [256, 128]  # channels of the shallower guidance maps
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
    head.GUIDANCE = None  # "backbone" or "clip"
    head.LAST_RESIDUAL = None  # "token" or "class"
    head.SYNONYMS = None  # "mean" or "first"
    head.CLASS_PADDING = None  # number of classes, or 0
    head.MAX_CLASSES = None  # number of classes, or 0 for no limit
    head.SPLIT_QKV = None  # True or False
    head.TRAIN_TEXT = None  # True or False
    # GUIDANCE "clip": blocks whose output tokens are the guidance, counted from 1. Empty: those
    # at one and two thirds of the encoder, as published (4 and 8 of 12, 8 and 16 of 24).
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
    # Compile the encoders and the aggregator's pieces with `torch.compile`: a minute at the start,
    # and then what it brings depends on the device.
    cfg.TEST.COMPILE = False
    # Keep the volume of a crop in half precision between the layers. Changes few labels.
    cfg.TEST.HALF_VOLUME = False
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
        ValueError: if MODEL.GENERATION is unknown.
    """
    generation = cfg.MODEL.GENERATION
    if generation == 0:
        generation = 2024 if cfg.MODEL.PROMPT_ENSEMBLE_TYPE == "single" else 2023
    if generation not in GENERATIONS:
        raise ValueError(
            f"MODEL.GENERATION is {generation!r}; expected one of {sorted(GENERATIONS)}, or 0 to "
            "choose by PROMPT_ENSEMBLE_TYPE."
        )
    head = cfg.MODEL.SEM_SEG_HEAD
    published = GENERATIONS[generation]
    return {
        "GENERATION": generation,
        **{key: value if head[key] is None else head[key] for key, value in published.items()},
    }
