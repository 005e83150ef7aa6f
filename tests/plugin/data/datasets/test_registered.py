"""Data sets that register themselves: adopted by name, and MESS by its own toolkit."""

import sys

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from cat_seg.errors import CATSegError
from cat_seg.plugin.data.datasets.registered import adopt, import_plugin, mess_datasets

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
    with pytest.raises(CATSegError, match=r"mess.datasets cannot be imported .*cat-seg.mess"):
        mess_datasets()
