"""Every shipped YAML builds, full size, with the shapes and tensors of the published models."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import cat_seg
from cat_seg import add_cat_seg_config

# isort: split
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model

from cat_seg.class_lists import class_names
from cat_seg.modeling.aggregator.correlation import correlate
from cat_seg.plugin.config import generation_settings, load_config, swin_arguments
from cat_seg.plugin.data.datasets.builtin import BENCHMARKS, benchmark_splits

CONFIGS = Path(cat_seg.__file__).parents[1] / "configs"
MODELS = ("vitb", "vitl", "vith", "vitg", "vitb_2024", "vitl_2024")


def config(name: str, *opts: object) -> CfgNode:
    cfg = get_cfg()
    add_cat_seg_config(cfg)
    cfg.merge_from_file(str(CONFIGS / name))
    cfg.merge_from_list(["MODEL.DEVICE", "meta", "TEST.TEXT_CACHE", "none", *opts])
    return cfg


def on_meta(cfg: CfgNode) -> torch.nn.Module:
    with torch.device("meta"):
        return build_model(cfg).eval()


@pytest.mark.parametrize("model", MODELS)
def test_published_protocol(model: str):
    cfg = config(f"{model}.yaml")
    assert cfg.TEST.SLIDING_WINDOW and cfg.TEST.POOLING_SIZES == [1, 1]
    assert (cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.FORMAT) == (640, "RGB")
    assert (cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.CROP.SIZE) == ((384,), [384, 384])
    assert generation_settings(cfg)["GENERATION"] == (2024 if "2024" in model else 2023)


@pytest.mark.parametrize("model", ["vitl", "vitl_2024"])
@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_a_file_of_a_benchmark_is_the_option_written_down(model: str, benchmark: str):
    option = config(f"{model}.yaml", "DATASETS.TEST", benchmark_splits(benchmark))
    assert config(f"{model}_{benchmark}.yaml") == option


def test_activation_checkpointing_reaches_the_swin_transformer():
    assert not swin_arguments(config("vitb.yaml"))["use_checkpoint"]
    cfg = config("vitb.yaml", "MODEL.ACTIVATION_CHECKPOINTING", True)
    assert swin_arguments(cfg)["use_checkpoint"]


def test_every_config_is_listed():
    listed = (CONFIGS / "README.md").read_text()
    for file in CONFIGS.glob("*.yaml"):
        if not file.stem.endswith(tuple(BENCHMARKS)):
            assert f"`{file.name}`" in listed


# One benchmark with a vocabulary of its own for each model: 20, 150 and 847 classes among them.
@pytest.mark.parametrize(
    "name, benchmark, T",
    [
        ("vitb", "pc59", 59), ("vitl", "ade150", 150), ("vitl", "voc20b", 59),
        ("vith", "voc20", 20), ("vitg", "pc459", 459), ("vitb_2024", "coco", 171),
        ("vitl_2024", "ade847", 847),
    ],
)  # fmt: skip
def test_full_size_shapes(name: str, benchmark: str, T: int):
    model = on_meta(config(f"{name}.yaml", "DATASETS.TEST", benchmark_splits(benchmark)))
    assert len(model.class_names) == T
    predictor = model.sem_seg_head.predictor
    transformer = predictor.transformer
    P, D = (1 if "2024" in name else 80), transformer.text_guidance_projection[0].in_features
    with torch.no_grad():
        image = torch.empty(3, 640, 854, device="meta")
        crops = [*model.plan.sliding_window.cut(image)]
        assert len(crops) == 5 and crops[0].shape == (3, 384, 384)
        features, guidance = model.encode_crops(*model.normalize(crops))
        assert features.shape == (5, D, 24, 24)
        assert [tuple(g.shape[2:]) for g in guidance] == [(24, 24), (48, 48), (96, 96)]
        text = torch.empty(min(T, 150), P, D, device="meta")
        rows = features.permute(0, 2, 3, 1)
        cost = correlate(rows, text)
        assert cost.shape == (5, len(text), 24, 24, P)
        embedded = transformer.embed(rows, text)
        assert embedded.shape == (5, len(text), 24, 24, 128)
        for layer in transformer.layers:
            appearance = transformer.guidance_projection(guidance[0]).permute(0, 2, 3, 1)
            assert appearance.shape == (5, 24, 24, 128)
            guided = layer.swin_block.guide(appearance)
            embedded = layer.swin_block(embedded, guided)
            words = transformer.text_guidance_projection(text.mean(1))
            assert words.shape == (len(text), 128)
            embedded = layer.attention(embedded, words)
            assert embedded.shape == (5, len(text), 24, 24, 128)
        logits = transformer.decode(embedded, guidance[1:], 50, overwrite=True)
        assert logits.shape == (5, len(text), 96, 96)
        logits = torch.empty(5, len(text), 384, 384, device="meta")
        assert model.plan.sliding_window.merge(logits).shape == (len(text), 640, 640)
    assert len(transformer.layers) == 2


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_vocabulary_of_the_benchmark(benchmark: str):
    from cat_seg.plugin.data.vocabulary import vocabulary_of

    cfg = config("vitl.yaml", "DATASETS.TEST", benchmark_splits(benchmark))
    head = cfg.MODEL.SEM_SEG_HEAD
    assert vocabulary_of(head.TEST_CLASS_JSON, cfg.DATASETS.TEST) == class_names(benchmark)
    assert vocabulary_of(head.TRAIN_CLASS_JSON, cfg.DATASETS.TRAIN) == class_names("coco")


ORIGINAL_2024 = """
MODEL:
  META_ARCHITECTURE: "CATSeg"
  SEM_SEG_HEAD:
    NAME: "CATSegHead"
    IN_FEATURES: ["res2", "res3", "res4"]
    IGNORE_VALUE: 255
    NUM_CLASSES: 171
    TRAIN_CLASS_JSON: "datasets/coco.json"
    TEST_CLASS_JSON: "datasets/coco.json"
    CLIP_PRETRAINED: "ViT-L/14@336px"
    PROMPT_DEPTH: 0
    PROMPT_LENGTH: 0
    TEXT_GUIDANCE_DIM: 768
    TEXT_GUIDANCE_PROJ_DIM: 128
    APPEARANCE_GUIDANCE_DIM: 768
    APPEARANCE_GUIDANCE_PROJ_DIM: 128
    DECODER_DIMS: [64, 32]
    DECODER_GUIDANCE_DIMS: [256, 128]
    DECODER_GUIDANCE_PROJ_DIMS: [32, 16]
    NUM_LAYERS: 2
    NUM_HEADS: 4
    HIDDEN_DIMS: 128
    POOLING_SIZES: [2, 2]
    FEATURE_RESOLUTION: [24, 24]
    WINDOW_SIZES: 12
    ATTENTION_TYPE: "linear"
    CLIP_FINETUNE: "attention"
  PROMPT_ENSEMBLE_TYPE: "single"
  CLIP_PIXEL_MEAN: [122.7709383, 116.7460125, 104.09373615]
  CLIP_PIXEL_STD: [68.5005327, 66.6321579, 70.3231630]
DATASETS:
  TRAIN: ("coco_2017_train_stuff_all_sem_seg",)
  TEST: ("coco_2017_test_stuff_all_sem_seg",)
SOLVER:
  OPTIMIZER: "ADAMW"
  BACKBONE_MULTIPLIER: 0.0
  CLIP_MULTIPLIER: 0.01
INPUT:
  MIN_SIZE_TRAIN: !!python/object/apply:eval ["[int(x * 0.1 * 384) for x in range(5, 21)]"]
  CROP:
    ENABLED: True
    SINGLE_CATEGORY_MAX_AREA: 1.0
  COLOR_AUG_SSD: True
  SIZE_DIVISIBILITY: 384
  DATASET_MAPPER_NAME: "mask_former_semantic"
TEST:
  SLIDING_WINDOW: True
VERSION: 2
"""


ORIGINAL_2023 = """
MODEL:
  META_ARCHITECTURE: "CATSeg"
  WEIGHTS: "swin_base_patch4_window12_384_22k.pkl"
  PIXEL_MEAN: [123.675, 116.280, 103.530]
  PIXEL_STD: [58.395, 57.120, 57.375]
  BACKBONE:
    FREEZE_AT: 0
    NAME: "D2SwinTransformer"
  SWIN:
    EMBED_DIM: 128
    DEPTHS: [2, 2, 18]
    NUM_HEADS: [4, 8, 16]
    WINDOW_SIZE: 12
    APE: False
    DROP_PATH_RATE: 0.3
    PATCH_NORM: True
    PRETRAIN_IMG_SIZE: 384
    OUT_FEATURES: ["res2", "res3", "res4"]
  MASK_FORMER:
    SIZE_DIVISIBILITY: 32
  SEM_SEG_HEAD:
    NAME: "CATSegHead"
    IN_FEATURES: ["res2", "res3", "res4"]
    IGNORE_VALUE: 255
    NUM_CLASSES: 171
    TRAIN_CLASS_JSON: "datasets/coco.json"
    TEST_CLASS_JSON: "datasets/coco.json"
    CLIP_PRETRAINED: "ViT-L/14@336px"
    PROMPT_DEPTH: 0
    PROMPT_LENGTH: 0
    TEXT_GUIDANCE_DIM: 768
    TEXT_GUIDANCE_PROJ_DIM: 128
    APPEARANCE_GUIDANCE_DIM: 512
    APPEARANCE_GUIDANCE_PROJ_DIM: 128
    DECODER_DIMS: [64, 32]
    DECODER_GUIDANCE_DIMS: [256, 128]
    DECODER_GUIDANCE_PROJ_DIMS: [32, 16]
    NUM_LAYERS: 2
    NUM_HEADS: 4
    HIDDEN_DIMS: 128
    POOLING_SIZES: [2, 2]
    FEATURE_RESOLUTION: [24, 24]
    WINDOW_SIZES: 12
    ATTENTION_TYPE: "linear"
    CLIP_FINETUNE: "attention"
  PROMPT_ENSEMBLE_TYPE: "imagenet"
TEST:
  SLIDING_WINDOW: True
SOLVER:
  BACKBONE_MULTIPLIER: 0.01
  CLIP_MULTIPLIER: 0.01
VERSION: 2
"""


def test_a_yaml_of_the_original_2023_code_builds_the_2023_model(tmp_path: Path):
    file = tmp_path / "vitl_swinb_384.yaml"
    file.write_text(ORIGINAL_2023)
    cfg = get_cfg()
    add_cat_seg_config(cfg)
    cfg.merge_from_file(str(file))
    cfg.merge_from_list(["MODEL.DEVICE", "meta", "TEST.TEXT_CACHE", "none"])
    model, ours = on_meta(cfg), on_meta(config("vitl_coco.yaml"))
    assert model.config.text_guidance_dim == 128 and model.config.size_divisibility == 32
    assert {k: v.shape for k, v in model.state_dict().items()} == {
        k: v.shape for k, v in ours.state_dict().items()
    }


def test_a_yaml_of_the_original_2024_code_builds_the_2024_model(tmp_path: Path):
    file = tmp_path / "vitl_336.yaml"
    file.write_text(ORIGINAL_2024)
    cfg = get_cfg()
    add_cat_seg_config(cfg)
    cfg.merge_from_file(str(file), allow_unsafe=True)
    cfg.MODEL.DEVICE = "meta"
    assert load_config(file, device="meta").dump() == cfg.dump()  # which runs nothing
    assert cfg.INPUT.MIN_SIZE_TRAIN[0] == 192
    model = on_meta(cfg)
    ours = on_meta(config("vitl_2024_coco.yaml"))
    assert model.backbone is None
    assert {k: v.shape for k, v in model.state_dict().items()} == {
        k: v.shape for k, v in ours.state_dict().items()
    }


@pytest.mark.parametrize(
    "opts, message",
    [
        (["MODEL.SEM_SEG_HEAD.TEXT_GUIDANCE_DIM", 512], "TEXT_GUIDANCE_DIM is 512.*768"),
        (["MODEL.SEM_SEG_HEAD.APPEARANCE_GUIDANCE_DIM", 7], "APPEARANCE_GUIDANCE_DIM"),
        (["MODEL.SEM_SEG_HEAD.WINDOW_SIZES", 7], "WINDOW_SIZES"),
        (["MODEL.SEM_SEG_HEAD.HIDDEN_DIMS", 126], "HIDDEN_DIMS"),
        (["MODEL.SEM_SEG_HEAD.CLIP_PRETRAINED", "ViT-L/15"], "ViT-L/15"),
        (["MODEL.GENERATION", 2025], "GENERATION"),
        (["TEST.SLIDING_RESOLUTION", 600], "SLIDING_RESOLUTION"),
        (["MODEL.SEM_SEG_HEAD.TEST_CLASS_JSON", "none.json"], "none.json"),
        (["DATASETS.TEST", ()], "TEST_CLASS_JSON"),
        (["MODEL.PROMPT_ENSEMBLE_TYPE", "many"], "many"),
    ],
)
def test_settings_that_cannot_work_are_explained(opts: list[object], message: str):
    with pytest.raises(ValueError, match=message):
        on_meta(config("vitl_ade150.yaml", *opts))


def test_another_grid_and_window():
    opts = ["MODEL.SEM_SEG_HEAD.FEATURE_RESOLUTION", [16, 16], "MODEL.SEM_SEG_HEAD.WINDOW_SIZES", 8]
    tiles = [
        "TEST.SLIDING_KERNEL",
        100,
        "TEST.SLIDING_OVERLAP",
        0.5,
        "TEST.SLIDING_RESOLUTION",
        150,
    ]
    model = on_meta(config("vitl_ade150.yaml", *opts, *tiles))
    with torch.no_grad():
        crops = [*model.plan.sliding_window.cut(torch.empty(3, 100, 100, device="meta"))]
        images = model.normalize(crops)
        assert images[0].shape == (5, 3, 100, 100)  # tiles are not padded
        features, guidance = model.encode_crops(*images)
    assert [g.shape[-1] for g in (features, *guidance)] == [16, 16, 32, 64]
