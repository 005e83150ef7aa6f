"""The benchmark, on the small model: both implementations run, agree and are measured."""

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

from docs.tools import benchmark, plot_benchmark

SIZES = ["--image-size", "96", "128", "--device", "cpu"]
SMALL = ["--config-file", "configs/synthetic_2023.yaml", *SIZES]
SMALL_2024 = ["--config-file", "configs/synthetic_2024.yaml", *SIZES]
TILES = [
    # Of the CLIP without a stem, as the reference has it.
    "--opts", "MODEL.SEM_SEG_HEAD.CLIP_PRETRAINED", "cat_seg/synthetic/clip.json",
    "MODEL.SEM_SEG_HEAD.CLIP_GUIDANCE_LAYERS", "[]",
    "MODEL.SEM_SEG_HEAD.FEATURE_RESOLUTION", "[16, 16]",
    "TEST.SLIDING_WINDOW", "True", "TEST.SLIDING_KERNEL", "128",
    "TEST.SLIDING_RESOLUTION", "213",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("small", [SMALL, SMALL_2024])
def test_both_implementations_are_measured_and_agree(
    small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
):
    file = tmp_path / "out.json"
    options = ["--classes", "5", "--repeat", "2", "--stages", "--flops", "--against-reference"]
    options += ["--allocator", "default", "--json", str(file)]
    assert benchmark.main([*small, *options, *TILES]) == 0
    report = json.loads(file.read_text())
    (result,) = report["results"]
    assert result["classes"] == 5
    assert result["share_of_other_labels"] < 1e-3
    assert result["largest_difference_of_probabilities"] < 1e-5
    for name in ("package", "reference"):
        figures = result[name]
        assert 0 < figures["seconds_least"] <= figures["seconds"] <= figures["seconds_most"]
        assert figures["gflop"] > 0 and figures["gflop_per_second"] > 0
        assert set(figures["stage_seconds"]) == {*benchmark.STAGES, "rest"}
        assert min(figures["stage_seconds"][stage] for stage in benchmark.STAGES) > 0
    assert report["environment"]["peak_gflop_per_second"] > 0
    assert "times as fast" in capsys.readouterr().out


@pytest.mark.slow
def test_training_steps_are_measured_and_agree(tmp_path: Path):
    file = tmp_path / "out.json"
    options = ["--classes", "5", "--repeat", "1", "--training", "3", "--against-reference"]
    options += ["--reference-crop-batch", "2"]  # two, then one
    assert benchmark.main([*SMALL, *options, "--json", str(file), *TILES]) == 0
    (result,) = json.loads(file.read_text())["results"]
    assert result["relative_difference_of_losses"] < 1e-5
    assert result["package"]["seconds"] > 0 and result["reference"]["seconds"] > 0


def test_encoding_texts_is_measured_and_agrees(tmp_path: Path, capsys: pytest.CaptureFixture):
    file = tmp_path / "out.json"
    options = ["--text", "--repeat", "0", "--against-reference", "--json", str(file)]
    assert benchmark.main([*SMALL, "--classes", "3", *options]) == 0
    (result,) = json.loads(file.read_text())["results"]
    assert result["largest_difference_of_features"] < 1e-5
    assert result["reference"]["seconds"] > 0
    assert benchmark.main([*SMALL, "--classes", "300", *options]) == 1
    assert "80 names, not 300" in capsys.readouterr().err


def test_labels_alone_and_what_it_cannot_do(capsys: pytest.CaptureFixture):
    options = ["--classes", "3", "--repeat", "1", "--opts", "TEST.LABELS_ONLY", "True"]
    assert benchmark.main([*SMALL, *options]) == 0
    assert benchmark.main([*SMALL, "--against-reference"]) == 1
    assert "TEST.SLIDING_WINDOW" in capsys.readouterr().err


def test_the_models_own_functions_come_back():
    args = benchmark.build_parser().parse_args(SMALL)
    _, model = benchmark.build(args)
    benchmark.set_classes(model, 3)
    image = torch.rand(3, 96, 128)
    runner = benchmark.package_runner(model, image, (96, 128))
    runner.again(model.device, stages=True)
    assert "encode_crops" not in vars(model) and "forward" not in vars(
        model.predictor.transformer.layers[0].attention
    )


def test_a_plot_has_a_line_for_each_file(tmp_path: Path, capsys: pytest.CaptureFixture):
    results = [{"classes": n, "package": {"seconds": 0.05 * n}} for n in (20, 150, 10000)]
    file = tmp_path / "out.json"
    file.write_text(json.dumps({"results": results}))
    picture = tmp_path / "plot.svg"
    assert plot_benchmark.main([str(picture), f"a < b={file}", f"c={file}"]) == 0
    root = ElementTree.parse(picture).getroot()
    texts = {element.text for element in root.iterfind(".//{*}text")}
    assert {"a < b", "c", "classes", "seconds", "10,000"} <= texts
    markers = [
        element for element in root.iterfind(".//{*}use") if "#1f77b4" in element.get("style", "")
    ]
    assert len(markers) == 3 + 1  # the points of the first file, and its entry of the legend
    assert plot_benchmark.main([str(picture), "nothing"]) == 1
    assert "NAME=FILE" in capsys.readouterr().err
