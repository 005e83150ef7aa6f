"""Evaluators, their loop, and what is logged and written."""

from __future__ import annotations

import json
import logging
import re

import numpy as np
import pytest
import torch
from torch import nn

from tests.compat.implementations import IS_REAL, Implementation

needs_both = pytest.mark.skipif(not IS_REAL, reason="needs the real detectron2")


def count(d2, model):
    """An evaluator that counts what it sees of `model`, and measures something."""

    class Count(d2("evaluation").DatasetEvaluator):
        def reset(self):
            self.count = 0

        def process(self, inputs, outputs):
            assert not model.training and not torch.is_grad_enabled()
            self.count += len(outputs)

        def evaluate(self):
            return {"sem_seg": {"mIoU": self.count, "pACC": 7.0, "IoU-cat": 3.0}}

    return Count()


def test_loop_shows_every_batch_and_restores_the_mode(d2):
    model = nn.Identity().train()
    results = d2("evaluation").inference_on_dataset(model, [[1, 2], [3]], count(d2, model))
    assert results["sem_seg"]["mIoU"] == 3
    assert model.training


def test_label_maps_are_looked_up(d2, register, scenes):
    evaluator = d2("evaluation").SemSegEvaluator(register(d2), distributed=False)
    assert evaluator.input_file_to_gt_file == {
        sample["file_name"]: sample["sem_seg_file_name"] for sample in scenes
    }


def test_predictions_are_written_as_rle(d2, register):
    import pycocotools.mask as mask_util

    labels = np.random.default_rng(0).integers(0, 3, (20, 30))
    name = register(d2)
    d2("data").MetadataCatalog.get(name).stuff_dataset_id_to_contiguous_id = {7: 0, 8: 1, 11: 2}
    evaluator = d2("evaluation").SemSegEvaluator(name, distributed=False)
    rows = evaluator.encode_json_sem_seg(labels, "x.jpg")
    assert [(row["file_name"], row["category_id"]) for row in rows] == [
        ("x.jpg", 7),
        ("x.jpg", 8),
        ("x.jpg", 11),
    ]
    masks = [mask_util.decode(row["segmentation"]) for row in json.loads(json.dumps(rows))]
    np.testing.assert_array_equal(np.argmax(masks, axis=0), labels)


@needs_both
def test_results_and_log_lines_are_the_same(caplog, monkeypatch):
    found = []
    for name in ("detectron2", "stand_in"):
        d2, model = Implementation(name), nn.Identity()

        class Trainer(d2("engine").DefaultTrainer):
            build_test_loader = classmethod(lambda cls, cfg, dataset_name: [[1, 2]] * 20)
            build_evaluator = classmethod(lambda cls, cfg, name, d2=d2, m=model: count(d2, m))

        cfg = d2("config").get_cfg()
        monkeypatch.setattr(logging.getLogger(name), "propagate", True)
        for datasets in (("one",), ("one", "two")):
            cfg.DATASETS.TEST = datasets
            caplog.clear()
            with caplog.at_level(logging.INFO, logger=name):
                results = Trainer.test(cfg, model)
            names = [record.name.removeprefix(name) for record in caplog.records]
            lines = [record.getMessage() for record in caplog.records]
            # times differ
            lines = [re.sub(r"[\d.:]+ \([\d.]+|\d\.\d.*s/iter|ETA.*", "#", x) for x in lines]
            found.append((results, [*zip(names, lines, strict=True)]))
    # The real one says only every five seconds, also over datasets, how far it is.
    progress = [[x for x in lines if "Inference done" not in x[1]] for _, lines in found]
    assert progress[:2] == progress[2:] and len(progress[0]) > 5
    assert [results for results, _ in found[:2]] == [results for results, _ in found[2:]]
    assert [x for x in found[0][1] if "done" in x[1]] == [x for x in found[2][1] if "done" in x[1]]


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
