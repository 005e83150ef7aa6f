"""Data sets that register themselves: adopted by name, and MESS by its own toolkit."""

import sys

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from cat_seg.errors import CATSegError
from cat_seg.plugin.data.datasets.registered import MESS, adopt, import_plugin, mess_datasets

MODULE = """
from detectron2.data import DatasetCatalog, MetadataCatalog
import numpy as np
DatasetCatalog.register("their_set", lambda: [{"file_name": "a.png", "sem_seg_file_name": "b.png"}])
MetadataCatalog.get("their_set").set(stuff_classes=("a", "b"), stuff_colors=np.zeros((2, 3)))
"""


@pytest.fixture
def their_set(tmp_path, monkeypatch):
    (tmp_path / "their_module.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    yield import_plugin("their_module")
    del sys.modules["their_module"]
    DatasetCatalog.remove("their_set")
    MetadataCatalog.remove("their_set")


def test_what_a_set_lacks_is_completed_once(their_set):
    adopt("their_set")
    adopt("their_set")
    metadata = MetadataCatalog.get("their_set")
    assert metadata.vocabulary == ["a", "b"] and metadata.ignore_label == 255
    assert (metadata.evaluator_type, metadata.title) == ("sem_seg", "their_set")


def test_what_cannot_be_adopted_is_told():
    with pytest.raises(CATSegError, match="no_such_module cannot be imported"):
        import_plugin("no_such_module")
    DatasetCatalog.register("nameless", list)
    with pytest.raises(CATSegError, match="without `stuff_classes`"):
        adopt("nameless")
    DatasetCatalog.remove("nameless")
    MetadataCatalog.remove("nameless")


def test_mess_is_told_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "mess.datasets", None)
    with pytest.raises(CATSegError, match=r"mess.datasets cannot be imported .*mess-benchmark"):
        mess_datasets()


# Layouts of seven sets as their toolkit prepares them: suffixes, sub-folders, blanks, capitals.
LAYOUTS = {
    "dark_zurich_sem_seg_val": ("_rgb_anon.png", "_gt_labelIds.png"),
    "corrosion_cs_sem_seg_test": (".jpeg", ".png"),
    "bdd100k_sem_seg_val": (".jpg", ".png"),
    "zerowaste_sem_seg_test": (".PNG", ".PNG"),
    "cwfid_sem_seg_test": ("_image.png", "_annotation.png"),
    "isprs_potsdam_sem_seg_test_irrg": (".png", ".png"),
    "cub_200_sem_seg_test": (".jpg", ".png"),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_figures_equal_those_of_the_toolkit(name, tmp_path, monkeypatch):
    pytest.importorskip("mess.datasets", reason="needs mess-benchmark")
    evaluation = pytest.importorskip("mess.evaluation.sem_seg_evaluation")
    import detectron2
    import torch

    from cat_seg.plugin.evaluation import SegmentationEvaluator

    if "cat_seg" in detectron2.__version__:
        pytest.skip("the toolkit's evaluator needs the real detectron2")
    metadata = MetadataCatalog.get(name)
    monkeypatch.chdir(tmp_path)
    if metadata.image_root.startswith("/"):
        pytest.skip("DETECTRON2_DATASETS is set")
    rng = np.random.default_rng(0)
    classes = len(metadata.stuff_classes)
    for i in range(3):
        folders = (metadata.image_root, metadata.sem_seg_root)
        for root, suffix in zip(folders, LAYOUTS[name], strict=True):
            (tmp_path / root).mkdir(parents=True, exist_ok=True)
            shape = (9, 11, 3) if root == metadata.image_root else (9, 11)
            values = rng.integers(0, max(2, classes // 2), shape)
            values[0] = 255
            Image.fromarray(values.astype(np.uint8)).save(tmp_path / root / f"{i}{suffix}")
    adopt(name)
    records = DatasetCatalog.get(name)
    assert len(records) == 3
    ours = SegmentationEvaluator(name, distributed=False)
    theirs = evaluation.MESSSemSegEvaluator(name, distributed=False)
    for evaluator in (ours, theirs):
        evaluator.reset()
        random = torch.Generator().manual_seed(0)
        for record in records:
            scores = torch.rand(classes, 9, 11, generator=random)
            evaluator.process([record], [{"sem_seg": scores}])
    expected = theirs.evaluate()["sem_seg"]
    ours.evaluate()
    found = ours.result.summary()
    pairs = {"mIoU_2021": "mIoU", "CoI-mIoU": "CoI-mIoU", "fwIoU": "fwIoU", "pACC": "pACC"}
    for here, there in pairs.items():
        assert found[here] == pytest.approx(expected[there], abs=1e-9), here


def test_every_set_of_the_table_is_registered_by_the_toolkit():
    pytest.importorskip("mess.datasets", reason="needs mess-benchmark")
    assert set(MESS) <= set(DatasetCatalog.list())
