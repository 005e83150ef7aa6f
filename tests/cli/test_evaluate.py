"""The whole evaluation of a data set, with a stand-in model that segments by brightness."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog

from cat_seg.cli import evaluate
from cat_seg.errors import CATSegError
from cat_seg.label_maps import read_label_map
from cat_seg.plugin.engine import load_config
from cat_seg.plugin.evaluation.protocol import deviations, published_model
from cat_seg.plugin.evaluation.report import most_confused
from cat_seg.plugin.run_folder import RunFolder, digest_of
from tests.brightness import SQUARES, BrightnessSegmenter, write_squares


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return write_squares(tmp_path, 6)


@pytest.fixture(autouse=True)
def no_benchmarks(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("CAT_SEG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(evaluate, "_is_there", lambda name: False)


def run(config: Path, output: Path, *options: str) -> dict:
    arguments = ["--config-file", str(config), "--output", str(output), *options]
    assert evaluate.main(arguments) == 0
    return json.loads((output / "results.json").read_text())


def calls(config: Path, output: Path, *options: str) -> int:
    """How often a run asks the model."""
    before = BrightnessSegmenter.calls
    run(config, output, *options)
    return BrightnessSegmenter.calls - before


def test_whole_and_interrupted_runs_give_the_same_figures(config, tmp_path, monkeypatch):
    whole = run(config, tmp_path / "whole")
    assert whole["datasets"][0]["images"] == 6
    assert 0 < whole["datasets"][0]["mIoU"] < 100

    forward = BrightnessSegmenter.forward
    before = BrightnessSegmenter.calls

    def stopped(self, inputs):
        if BrightnessSegmenter.calls == before + 4:
            raise KeyboardInterrupt
        return forward(self, inputs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(BrightnessSegmenter, "forward", stopped)
        run(config, tmp_path / "resumed")
    resumed = run(config, tmp_path / "resumed")
    assert BrightnessSegmenter.calls == before + 6  # four, and the other two
    assert resumed == whole
    for file in ("per_class.csv", "report.html", "inference/squares/sem_seg_predictions.json"):
        same = [(tmp_path / run_ / file).read_text() for run_ in ("whole", "resumed")]
        assert same[0] == same[1]


def test_images_come_in_batches_where_the_model_takes_several(config, tmp_path, monkeypatch):
    alone = run(config, tmp_path / "alone")
    monkeypatch.setattr(BrightnessSegmenter, "images_at_once", 4)
    assert calls(config, tmp_path / "together") == 2
    assert run(config, tmp_path / "together") == alone


def test_reports(config, tmp_path):
    results = run(config, tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    assert "grey &lt;1&gt;" in page and "grey <1>" not in page
    assert page.count("data:image/jpeg;base64,") == 3 * 6
    assert "Not the published protocol: TEST.SLIDING_WINDOW is False" in page
    assert 'src="' not in page.replace('src="data:', "")  # nothing else is loaded
    assert "http" not in page and "url(" not in page and "@import" not in page
    for key, meaning in results["definitions"].items():
        assert key in page and meaning in page
    assert f"<b>{results['datasets'][0]['mIoU']:.2f}</b>" in page
    with open(tmp_path / "out" / "per_class.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == SQUARES
    assert {(row["dataset"], row["images"]) for row in rows} == {("squares", "6 of 6")}


def test_a_limit_is_marked_everywhere(config, tmp_path, capsys):
    result = run(config, tmp_path / "out", "--limit", "2")
    data = result["datasets"][0]
    assert result["limit"] == data["limit"] == 2 and "--limit 2" in result["warnings"][0]
    assert (data["images"], data["expected_images"], data["comparable"]) == (2, 6, False)
    remark = "not comparable: 2 of 6 images (limited to 2)"
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count(remark) == 2 and "quick look" in page
    for file in tmp_path.glob("out/**/per_class.csv"):
        assert "squares,2 of 6," in file.read_text()
    saved = json.loads((tmp_path / "out/inference/squares/results.json").read_text())
    assert saved["remark"] == remark and saved["limit"] == 2
    assert remark in capsys.readouterr().out.split("in percent:")[-1]


def test_quick_looks_and_whole_runs_share_what_was_predicted(config, tmp_path):
    out = tmp_path / "out"
    assert calls(config, out, "--limit", "2") == 2
    assert calls(config, out) == 4
    assert run(config, out, "--limit", "2")["datasets"][0]["images"] == 2
    assert calls(config, out) == 0
    assert run(config, out) == run(config, tmp_path / "anew")


def test_other_runs_are_refused_or_replaced(config, tmp_path):
    out = tmp_path / "out"
    before = run(config, out)
    with pytest.raises(CATSegError, match=r"another run: INPUT.MIN_SIZE_TEST: 32 -> 64\. Choose"):
        calls(config, out, "INPUT.MIN_SIZE_TEST", "64")
    assert json.loads((out / "results.json").read_text()) == before
    assert calls(config, out, "--overwrite", "INPUT.MIN_SIZE_TEST", "64") == 6
    assert calls(config, out, "INPUT.MIN_SIZE_TEST", "64") == 0
    (tmp_path / "names.json").write_text(json.dumps([*SQUARES, "pink"]))
    with pytest.raises(CATSegError, match=r"another run: words of squares: \+ 'pink'\. Ch"):
        calls(config, out, "INPUT.MIN_SIZE_TEST", "64")
    assert calls(config, out, "--overwrite", "INPUT.MIN_SIZE_TEST", "64") == 6


def test_weights_that_changed_in_place_are_another_run(config, tmp_path):
    run(config, tmp_path / "out")
    cfg = load_config(config)
    facts = evaluate.run_facts(cfg, ["squares"])
    weights = tmp_path / "weights.pth"
    weights.write_bytes(b"1")
    changed = load_config(config, ["MODEL.WEIGHTS", str(weights)])
    one = evaluate.run_facts(changed, ["squares"])
    assert one.keys() == facts.keys() and one["weights"] != facts["weights"]
    assert {k: v for k, v in one.items() if k != "weights"} == {
        k: v for k, v in facts.items() if k != "weights"
    }
    clip = ["MODEL.SEM_SEG_HEAD.CLIP_WEIGHTS", str(weights)]
    two = evaluate.run_facts(load_config(config, clip), ["squares"])
    weights.write_bytes(b"2")
    assert two != evaluate.run_facts(load_config(config, clip), ["squares"])


def test_results_say_what_they_rest_on(config, tmp_path):
    data = run(config, tmp_path / "out")["datasets"][0]
    facts = evaluate.run_facts(load_config(config), ["squares"])
    assert data["sha256"]["weights"] == facts["weights"]
    assert data["sha256"]["words"] == digest_of(facts["words of squares"])
    assert all(len(value) == 64 for value in data["sha256"].values())


def test_two_runs_do_not_share_a_folder(config, tmp_path):
    with RunFolder(tmp_path / "out", "evaluation").held():
        with pytest.raises(CATSegError, match=r"out: another run works in it"):
            run(config, tmp_path / "out")
    assert run(config, tmp_path / "out")["datasets"][0]["images"] == 6


def test_label_maps_of_an_evaluation_by_train_net_are_not_resumed(config, tmp_path):
    out = tmp_path / "out"
    assert calls(config, out) == 6
    evaluator = evaluate.build_evaluator(load_config(config, ["OUTPUT_DIR", str(out)]), "squares")
    evaluator.reset()
    labels = torch.zeros(read_label_map(next(out.glob("inference/*/labels/*.png"))).shape)
    record = DatasetCatalog.get("squares")[0]
    evaluator.process([record], [{"labels": labels.long()}])
    assert calls(config, out) == 1


def test_unreadable_images_are_told(config, tmp_path, monkeypatch, capsys):
    def damage(cfg, names) -> dict:  # after the data was checked
        (tmp_path / "images" / "3.png").write_bytes(b"nothing")
        return {}

    monkeypatch.setattr(evaluate, "run_facts", damage)
    data = run(config, tmp_path / "out")["datasets"][0]
    assert data["images"] == 5 and not data["comparable"]
    assert list(data["left_out"]) == [str(tmp_path / "images" / "3.png")]
    assert "3.png was left out" in (tmp_path / "out" / "report.html").read_text()
    table = capsys.readouterr().out.split("in percent:")[-1]
    assert "not comparable: 5 of 6 images (1 left out)" in table


def test_a_data_set_that_fails_does_not_end_the_run(config, tmp_path, monkeypatch):
    text = config.read_text()
    entry = text[text.index("    - {") :]
    config.write_text(
        text.replace("[squares]", "[empty, squares]") + entry.replace("squares,", "empty,", 1)
    )
    build = evaluate.build_evaluator

    def broken(cfg, name, **options):
        if name == "empty":
            raise CATSegError("no image could be evaluated")
        return build(cfg, name, **options)

    monkeypatch.setattr(evaluate, "build_evaluator", broken)
    result = run(config, tmp_path / "out")
    assert [data["dataset"] for data in result["datasets"]] == ["squares"]
    assert "empty could not be evaluated: no image" in result["warnings"][-1]
    with pytest.raises(ValueError, match="empty could not be evaluated"):
        run(config, tmp_path / "none", "--benchmark", "empty")


def test_mistakes_in_options():
    parse = evaluate.build_parser().parse_args
    with pytest.raises(ValueError, match="--config-file is missing"):
        evaluate.read_config(parse([]))
    with pytest.raises(ValueError, match="--limit is -1"):
        evaluate.read_config(parse(["--config-file", "configs/vitl.yaml", "--limit", "-1"]))


def test_unknown_data_set(config):
    with pytest.raises(ValueError, match=r"ade151.*expected one or several of .*ade847.*squares"):
        evaluate.chosen_datasets(load_config(config), "squares,ade151")


def test_most_confused():
    confusion = np.array([[5, 2, 0, 9], [1, 0, 0, 9], [4, 0, 3, 9]])
    pairs = most_confused(confusion, ["a", "b", "c"], 2)
    assert pairs == [
        {"truth": "a", "predicted": "c", "pixels": 4, "share": 0.4},
        {"truth": "b", "predicted": "a", "pixels": 2, "share": 1.0},
    ]
    assert len(most_confused(confusion, ["a", "b", "c"], 20)) == 3


@pytest.mark.parametrize(
    ("config_file", "model"),
    [
        ("vitb", "2023 B"),
        ("vitl", "2023 L"),
        ("vith", "2023 H"),
        ("vitg", "2023 G"),
        ("vitb_2024", "2024 B"),
        ("vitl_2024", "2024 L"),
    ],
)
def test_published_configs_keep_the_protocol(config_file, model):
    cfg = load_config(f"configs/{config_file}.yaml")
    assert deviations(cfg) == []
    found = published_model(cfg)
    assert found and found["model"] == model
    changed = ["TEST.POOLING_SIZES", "[2, 2]", "MODEL.SEM_SEG_HEAD.MAX_CLASSES", "7"]
    changed += ["TEST.PRECISION", "bf16", "TEST.INT8_ENCODERS", "True", "TEST.HALF_VOLUME", "True"]
    told = deviations(load_config(f"configs/{config_file}.yaml", changed))
    assert len(told) == 5 and told[3].startswith("TEST.POOLING_SIZES is [2, 2]")
