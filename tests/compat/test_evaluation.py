"""Evaluators, their loop, and what is logged and written."""

from __future__ import annotations

import json
import logging
import re

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from tests.compat.conftest import CLASSES
from tests.compat.implementations import IS_REAL, Implementation

needs_both = pytest.mark.skipif(not IS_REAL, reason="needs the real detectron2")


class Guess(nn.Module):
    """Scores that follow from the image alone, other than the truth."""

    def forward(self, inputs):
        outputs = []
        for sample in inputs:
            generator = torch.Generator().manual_seed(int(sample["image"].sum()))
            size = (len(CLASSES), sample["height"], sample["width"])
            outputs.append({"sem_seg": torch.rand(size, generator=generator)})
        return outputs


def evaluate(d2, name, folder, **kwargs):
    cfg = d2("config").get_cfg()
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.INPUT.MIN_SIZE_TEST = 0
    evaluation = d2("evaluation")
    loader = d2("data").build_detection_test_loader(cfg, name)
    evaluator = evaluation.SemSegEvaluator(name, output_dir=str(folder), **kwargs)
    return evaluation.inference_on_dataset(Guess().train(), loader, evaluator)


def test_metrics_are_those_of_the_definition(d2, register, scenes, tmp_path):
    result = evaluate(d2, register(d2), tmp_path)["sem_seg"]
    cfg = d2("config").get_cfg()
    cfg.INPUT.MIN_SIZE_TEST = 0
    mapper = d2("data").DatasetMapper(cfg, False)
    true, predicted = [], []
    for sample in scenes:
        labels = np.asarray(Image.open(sample["sem_seg_file_name"])).ravel()
        guess = Guess()([mapper(sample)])[0]["sem_seg"].argmax(0).numpy().ravel()
        true.append(labels[labels != 255])
        predicted.append(guess[labels != 255])
    true, predicted = np.concatenate(true), np.concatenate(predicted)
    ious = []
    for c in range(3):  # the fourth has no ground truth, and does not count
        ious.append(((true == c) & (predicted == c)).sum() / ((true == c) | (predicted == c)).sum())
        assert result[f"IoU-{CLASSES[c]}"] == pytest.approx(100 * ious[c])
    shares = np.bincount(true) / len(true)
    assert result["mIoU"] == pytest.approx(100 * np.mean(ious))
    assert result["fwIoU"] == pytest.approx(100 * (shares * ious).sum())
    assert result["pACC"] == pytest.approx(100 * (true == predicted).mean())
    assert np.isnan(result["IoU-cat"])


def test_predictions_are_written_as_rle(d2, register, tmp_path):
    import pycocotools.mask as mask_util

    evaluate(d2, register(d2), tmp_path)
    rows = json.loads((tmp_path / "sem_seg_predictions.json").read_text())
    assert len(rows) == 5 * 4
    first = [row for row in rows if row["file_name"] == rows[0]["file_name"]]
    masks = [mask_util.decode(row["segmentation"]) for row in first]
    assert (np.sum(masks, axis=0) == 1).all()  # every pixel once
    assert (tmp_path / "sem_seg_evaluation.pth").is_file()


def test_more_classes_than_8_bits_leave_out_boundary_iou(d2, scenes):
    data = d2("data")
    data.DatasetCatalog.register("compat_many", lambda: scenes)
    many = [str(i) for i in range(300)]
    data.MetadataCatalog.get("compat_many").set(stuff_classes=many, ignore_label=65535)
    try:
        evaluator = d2("evaluation").SemSegEvaluator("compat_many", distributed=False)
        evaluator.reset()
        scores = torch.rand(300, 40, 60)
        evaluator.process([{"file_name": scenes[0]["file_name"]}], [{"sem_seg": scores}])
        result = evaluator.evaluate()["sem_seg"]
        assert "IoU-299" in result and "BoundaryIoU-299" not in result
    finally:
        data.DatasetCatalog.remove("compat_many")
        data.MetadataCatalog.remove("compat_many")


def test_loop_calls_all_and_restores_the_mode(d2):
    evaluation = d2("evaluation")
    events = []

    class Count(evaluation.DatasetEvaluator):
        def __init__(self, name):
            self.name = name

        def reset(self):
            self.count = 0

        def process(self, inputs, outputs):
            assert not model.training and not torch.is_grad_enabled()
            self.count += len(outputs)

        def evaluate(self):
            return {self.name: {"count": self.count}}

    model = nn.Identity().train()
    results = evaluation.inference_on_dataset(
        model,
        [[1, 2], [3]],
        [Count("a"), Count("b")],
        callbacks={name: lambda name=name: events.append(name) for name in ("on_start", "on_end")},
    )
    assert results == {"a": {"count": 3}, "b": {"count": 3}}
    assert model.training and events == ["on_start", "on_end"]
    with pytest.raises(AssertionError, match="same key a"):
        evaluation.inference_on_dataset(model, [[1]], [Count("a"), Count("a")])
    assert evaluation.inference_on_dataset(model, [[1]], None) == {}


def test_results_are_verified(d2):
    testing = d2("evaluation.testing")
    cfg = d2("config").get_cfg()
    results = {"sem_seg": {"mIoU": 30.05}}
    assert testing.verify_results(cfg, results)
    cfg.TEST.EXPECTED_RESULTS = [["sem_seg", "mIoU", 30.0, 0.1]]
    assert testing.verify_results(cfg, results)
    for wrong in ({"mIoU": 30.2}, {"mIoU": float("nan")}, {}):
        with pytest.raises(SystemExit) as error:
            testing.verify_results(cfg, {"sem_seg": wrong})
        assert error.value.code == 1
    assert testing.flatten_results_dict({"a": {"b": {"c": 1}}, "d": 2}) == {"a/b/c": 1, "d": 2}


@needs_both
def test_numbers_files_and_log_lines_are_the_same(register, tmp_path, caplog, monkeypatch):
    found = []
    for name in ("detectron2", "stand_in"):
        d2 = Implementation(name)
        dataset = register(d2)
        d2("data").MetadataCatalog.get(dataset).stuff_dataset_id_to_contiguous_id = {
            i + 7: i for i in range(4)
        }
        monkeypatch.setattr(logging.getLogger(name), "propagate", True)
        caplog.clear()
        with caplog.at_level(logging.INFO, logger=name):
            results = evaluate(d2, dataset, tmp_path / name)
            d2("evaluation").print_csv_format(results)
        names = [record.name.removeprefix(name) for record in caplog.records]
        lines = [record.getMessage() for record in caplog.records]
        # times differ
        lines = [re.sub(r"[\d.:]+ \([\d.]+|\d:\d.*s/iter", "#", line) for line in lines]
        kept = [x for x in zip(names, lines, strict=True) if "Serializ" not in x[1]]
        predictions = json.loads((tmp_path / name / "sem_seg_predictions.json").read_text())
        saved = torch.load(tmp_path / name / "sem_seg_evaluation.pth", weights_only=False)
        found.append((repr(results), kept, predictions, repr(saved)))
    for theirs, ours in zip(*found, strict=True):
        assert ours == theirs
    assert "'BoundaryIoU-sky'" in found[0][0]
