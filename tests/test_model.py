"""The library's model: by name, by folder, statelessness, copies, export."""

from __future__ import annotations

import copy
import json
import os
import pickle
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from cat_seg import CATSeg, CATSegError, InferencePlan, Vocabulary
from cat_seg.inference import Maps
from cat_seg.model_config import ModelConfig, published_config
from cat_seg.synthetic.dataset import split_scene

WORDS = ["sky", ["water", "sea"], "red plain circle"]


@pytest.fixture(scope="module")
def model() -> CATSeg:
    return CATSeg.from_pretrained("synthetic", device="cpu")


@pytest.fixture(scope="module")
def scene() -> np.ndarray:
    return split_scene("val", 3, seed=5).image


def test_predict_gives_labels_scores_and_probabilities(model: CATSeg, scene: np.ndarray):
    result = model.predict(scene, WORDS, threshold=0)
    assert result.labels.shape == result.scores.shape == scene.shape[:2]
    assert result.classes == ("sky", "water", "red plain circle")
    maps = np.stack([result.probabilities(name) for name in result.classes])
    np.testing.assert_array_equal(maps.argmax(0), result.labels)
    np.testing.assert_allclose(maps.max(0), result.scores, rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(result.mask("sea"), result.labels == 1)
    assert sum(result.areas().values()) == pytest.approx(1)


def test_the_network_alone_gives_the_logits_that_predict_resizes(model: CATSeg, scene: np.ndarray):
    vocabulary = model.vocabulary(WORDS)
    image = torch.from_numpy(scene).permute(2, 0, 1)[None]
    with torch.no_grad():
        logits = model(image, vocabulary.features)
    assert logits.shape == (1, 3, 128, 128)
    expected = torch.nn.functional.interpolate(logits.sigmoid(), scene.shape[:2], mode="bilinear")
    result = model.predict(scene, vocabulary, threshold=0)
    torch.testing.assert_close(
        torch.from_numpy(result.scores), expected[0].amax(0), atol=1e-6, rtol=1e-5
    )


def test_pixels_below_the_threshold_have_no_label(model: CATSeg, scene: np.ndarray):
    result = model.predict(scene, WORDS, threshold=0.9)
    assert ((result.labels == -1) == (result.scores < 0.9)).all() and (result.labels == -1).any()
    nothing = model.predict(np.zeros((40, 50, 3), np.uint8), ["a cat"], threshold=1)
    assert (nothing.labels == -1).all()
    assert "None of the words" in nothing.notes[0] and "photograph" in nothing.notes[1]
    with pytest.raises(CATSegError, match="threshold is 2"):
        model.predict(scene, WORDS, threshold=2)


def test_background_words_compete_and_are_reported_as_such(model: CATSeg, scene: np.ndarray):
    every = model.predict(scene, threshold=0)
    names = [n for n in every.areas() if n][:3]
    result = model.predict(scene, names[:1], background=names[1:], threshold=0)
    assert len(result.classes) == len(names)
    assert result.areas().get("background", 0) > 0


def test_threads_with_different_words_get_what_they_would_alone(model: CATSeg):
    scenes = [split_scene("val", i, seed=5).image for i in range(4)]
    words = [["sky", "sand"], ["water", "grass", "snow"], ["red plain circle"], ["brick wall", "x"]]
    alone = [model.predict(s, w, threshold=0) for s, w in zip(scenes, words, strict=True)]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            jobs = [
                pool.submit(model.predict, s, w, threshold=0)
                for s, w in zip(scenes, words, strict=True)
            ]
            for job, expected in zip(jobs, alone, strict=True):
                assert job.result().classes == expected.classes
                np.testing.assert_array_equal(job.result().labels, expected.labels)


def test_an_encoded_picture_serves_any_words(model: CATSeg, scene: np.ndarray):
    encoded = model.encode(scene)
    for words in (WORDS, ["grass", "sand"]):
        expected = model.predict(scene, words)
        np.testing.assert_array_equal(model.predict(encoded, words).labels, expected.labels)


@pytest.mark.parametrize("encode", [False, True])
def test_memory_that_runs_out_while_maps_are_merged_makes_the_chunks_smaller(
    model: CATSeg, scene: np.ndarray, monkeypatch: pytest.MonkeyPatch, encode: bool
):
    picture = model.encode(scene) if encode else scene
    expected = model.predict(picture, WORDS).labels
    divisors, best = [], Maps.best

    def failing(maps: Maps) -> tuple[torch.Tensor, torch.Tensor]:
        divisors.append(maps.divisor)
        if len(divisors) < 4:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate")
        return best(maps)

    monkeypatch.setattr(Maps, "best", failing)
    np.testing.assert_array_equal(model.predict(picture, WORDS).labels, expected)
    assert divisors == [1, 1, 2, 4]  # first, crops come one by one


def test_stream_takes_a_folder_and_passes_over_bad_files(
    model: CATSeg, scene: np.ndarray, tmp_path: Path
):
    for name in ("a", "b", "c"):
        Image.fromarray(scene).save(tmp_path / f"{name}.png")
    (tmp_path / "b.png").write_bytes(b"no picture")
    bad: list[object] = []
    results = list(model.stream(tmp_path, WORDS, batch_size=2, on_error=lambda p, e: bad.append(p)))
    assert [Path(r.path or "").name for r in results] == ["a.png", "c.png"]
    assert bad == [tmp_path / "b.png"]
    with pytest.raises(CATSegError, match=r"b\.png"):
        list(model.stream(tmp_path, WORDS))
    assert len(list(model.stream([scene, scene], WORDS))) == 2


def test_a_saved_model_is_the_same_anywhere(model: CATSeg, scene: np.ndarray, tmp_path: Path):
    model.save_pretrained(tmp_path / "saved")
    names = {path.name for path in (tmp_path / "saved").iterdir()}
    assert names == {"config.json", "model.safetensors", "README.md"}
    again = CATSeg.from_pretrained(tmp_path / "saved", device="cpu")
    assert again.default_words == model.default_words and again.threshold == model.threshold
    expected = model.predict(scene, WORDS)
    np.testing.assert_array_equal(again.predict(scene, WORDS).labels, expected.labels)
    about = json.loads((tmp_path / "saved/config.json").read_text())
    about["model"]["window"] = "eight"
    (tmp_path / "saved/config.json").write_text(json.dumps(about))
    with pytest.raises(CATSegError, match=r"config\.json.*window is 'eight'"):
        CATSeg.from_pretrained(tmp_path / "saved")


def test_weights_other_than_those_that_were_saved_are_told(model: CATSeg, tmp_path: Path):
    model.save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    state = load_file(weights)
    name = next(n for n, x in state.items() if x.dim() == 2 and x.shape[0] == x.shape[1])
    save_file(state | {name: state[name].T.contiguous()}, weights, {"format": "pt"})
    with pytest.raises(CATSegError, match=r"model\.safetensors: is not the file that config\.json"):
        CATSeg.from_pretrained(tmp_path, device="cpu")
    save_file(state, weights, {"format": "pt"})
    CATSeg.from_pretrained(tmp_path, device="cpu")
    content = bytearray(weights.read_bytes())
    content[-1000] ^= 1
    weights.write_bytes(content)
    with pytest.raises(CATSegError, match="its SHA-256 differs"):
        CATSeg.from_pretrained(tmp_path, device="cpu")


def test_copies_and_pickles_are_whole_and_independent(model: CATSeg, scene: np.ndarray):
    expected = model.predict(scene, WORDS).labels
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        np.testing.assert_array_equal(again.predict(scene, WORDS).labels, expected)
        with torch.no_grad():
            again.predictor.transformer.head.bias.add_(100)
    np.testing.assert_array_equal(model.predict(scene, WORDS).labels, expected)


def test_the_network_exports(model: CATSeg, scene: np.ndarray):
    vocabulary = model.vocabulary(WORDS)
    image = torch.from_numpy(scene).permute(2, 0, 1)[None].float()
    with torch.no_grad():
        program = torch.export.export(model, (image, vocabulary.features))
        torch.testing.assert_close(
            program.module()(image, vocabulary.features),
            model(image, vocabulary.features),
            atol=1e-5,
            rtol=1e-5,
        )


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("larg-2024", "did you mean 'large-2024'"),
        ("no/such/file.pth", "is no model"),
        (".", "no config.json and no model.safetensors"),
    ],
)
def test_models_that_are_not_there_are_told(source: str, message: str, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CATSegError, match=message):
        CATSeg.from_pretrained(source)


def test_words_may_be_forgotten_only_where_the_model_brings_some(model: CATSeg, scene: np.ndarray):
    assert len(model.predict(scene).classes) == len(model.default_words) > 50
    wordless = CATSeg(ModelConfig.from_dict(model.config.to_dict())).eval()
    with pytest.raises(CATSegError, match="brings no words"):
        wordless.predict(scene)


def test_a_vocabulary_is_kept_and_shared(model: CATSeg):
    vocabulary = model.vocabulary(WORDS)
    assert isinstance(vocabulary, Vocabulary) and vocabulary.features is not None
    assert vocabulary.features.shape[0] == 3
    assert model.vocabulary(WORDS).features is vocabulary.features


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("large-2024", "cvpr24_vitl336"),
        ("base-2024", "cvpr24_vitb16"),
        ("large-2023", "swinb_vitl336"),
        ("base-2023", "r101_vitb16"),
    ],
)
def test_a_model_built_by_name_has_the_published_tensors(name: str, keys: str):
    from cat_seg.conversion import from_released
    from tests.golden import checkpoint_rows

    with torch.device("meta"):
        built = CATSeg(published_config(name))
    rows = {row["key"]: torch.empty(row["shape"], device="meta") for row in checkpoint_rows(keys)}
    expected = {key: tuple(value.shape) for key, value in from_released(rows).items()}
    assert {key: tuple(value.shape) for key, value in built.state_dict().items()} == expected


def test_the_library_runs_where_detectron2_may_not_even_be_named():
    script = """
        import importlib.util, sys, warnings
        warnings.simplefilter("error", ImportWarning)
        before = [*sys.meta_path], importlib.util.find_spec("detectron2")

        class Refuse:
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] == "detectron2" or name.startswith("cat_seg.plugin"):
                    raise AssertionError(f"the library imports {name}")

        import cat_seg
        assert ([*sys.meta_path], importlib.util.find_spec("detectron2")) == before
        sys.meta_path.insert(0, Refuse())
        import numpy as np
        from cat_seg import CATSeg, list_models
        assert len(list_models()) == 7
        model = CATSeg.from_pretrained("synthetic", device="cpu")
        result = model.predict(np.zeros((32, 48, 3), np.uint8), ["sky", "sand"])
        assert result.labels.shape == (32, 48)
        assert "detectron2" not in sys.modules
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_process_may_use_the_model_of_its_parent():
    """In a process of its own, because what it tries may hang."""
    script = """
import os, signal, sys, numpy, torch
from cat_seg import CATSeg
torch.set_num_threads(2)
model = CATSeg.from_pretrained("synthetic", "cpu")
picture = numpy.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=numpy.uint8)
before = model.predict(picture, ["grass", "sky"]).labels
child = os.fork()
if not child:
    signal.alarm(60)
    os._exit(not (model.predict(picture, ["grass", "sky"]).labels == before).all())
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    environment = os.environ | {"OMP_NUM_THREADS": "2"}
    assert subprocess.run([sys.executable, "-c", script], env=environment).returncode == 0


def test_a_small_budget_of_memory_changes_no_label(model: CATSeg, scene: np.ndarray):
    """Classes are then streamed, and any map can still be asked for."""
    words = ["red striped circle", "blue plain square", "green dotted star"]
    kept = model.predict(scene, words)
    streamed = model.predict(scene, words, plan=replace(model.plan, memory=1))
    np.testing.assert_allclose(streamed.scores, kept.scores, atol=1e-5)
    assert (streamed.labels == kept.labels).mean() > 0.999
    maps = [one.probabilities(words[1]) for one in (streamed, kept)]
    np.testing.assert_allclose(*maps, atol=1e-5)
    with pytest.raises(CATSegError, match="memory is -1"):
        InferencePlan(memory=-1)


@pytest.mark.parametrize(
    "name", ["token_embedding.weight", "positional_embedding", "ln_final.bias"]
)
def test_words_are_encoded_anew_when_any_part_of_the_text_encoder_changes(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setenv("CAT_SEG_CACHE", str(tmp_path))
    model = CATSeg.from_pretrained("synthetic", "cpu")
    before = model.vocabulary(["grass", "snow"]).features
    assert before is not None and model.vocabulary(["grass", "snow"]).features is before
    with torch.no_grad():
        model.predictor.clip_model.get_parameter(name).normal_()
    after = model.vocabulary(["grass", "snow"]).features
    assert after is not None and not torch.allclose(after, before, atol=1e-3)


@pytest.mark.parametrize("name", ["head.weight", "conv1.weight", "layers.0.attention.attention.v"])
def test_weights_that_overflow_are_told_and_label_nothing(
    name: str, model: CATSeg, scene: np.ndarray
):
    damaged = copy.deepcopy(model)
    found = [p for n, p in damaged.named_parameters() if f"transformer.{name}" in n]
    assert found
    with torch.no_grad():
        found[0].fill_(1e38)
    with pytest.raises(CATSegError, match="hold NaN or infinity"):
        damaged.predict(scene, WORDS)


@pytest.mark.parametrize(
    "vision",
    [
        {"timm_model_name": "test_vit", "timm_pool": "map", "timm_proj": "none", "image_size": 160},
        {"layers": [1, 1, 1, 1], "width": 8, "head_width": 8, "image_size": 64},  # a ResNet
    ],
)
def test_models_with_other_encoders_are_saved_and_predict_the_same(
    vision: dict[str, object], model: CATSeg, scene: np.ndarray, tmp_path: Path
):
    assert isinstance(model.config.clip, dict)
    clip = {**model.config.clip, "vision_cfg": vision}
    config = replace(model.config, clip=clip, grid=(16, 16), guidance_layers=())
    other = CATSeg(config).eval()
    again = CATSeg.from_pretrained(other.save_pretrained(tmp_path / "other"), "cpu")
    expected, actual = (one.predict(scene, WORDS).scores for one in (other, again))
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("size", [(2, 60_000), (60_000, 2), (1, 1)])
def test_pictures_of_extreme_shapes_are_labelled(size: tuple[int, int]):
    model = CATSeg.from_pretrained("synthetic", "cpu")
    labels = model.predict(np.full((*size, 3), 90, np.uint8), ["grass", "sand"]).labels
    assert labels.shape == size
