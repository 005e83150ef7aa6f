"""Nothing in a YAML is run, with detectron2 as with the stand-in, and no stranger's is taken."""

from pathlib import Path

import pytest

from cat_seg.errors import CATSegError
from cat_seg.plugin.config import DEFAULT_CONFIG, load_config

RUNS = 'OUTPUT_DIR: !!python/object/apply:os.system ["touch ran"]\nVERSION: 2\n'


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_no_tag_runs_in_a_config_or_its_base():
    Path("base.yaml").write_text(RUNS)
    Path("own.yaml").write_text("_BASE_: base.yaml\n")
    for name in ("base.yaml", "own.yaml"):
        with pytest.raises(CATSegError, match=r"base.yaml: not YAML.*os.system"):
            load_config(name)
    assert not Path("ran").exists()


def test_nothing_is_fetched(monkeypatch):
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("a connection was made"))
    Path("own.yaml").write_text("_BASE_: http://localhost:1/base.yaml\n")
    with pytest.raises(CATSegError, match=r"_BASE_ is 'http://localhost:1/base.yaml'; expected"):
        load_config("own.yaml")


def test_options_run_nothing():
    cfg = load_config(opts=["OUTPUT_DIR", "__import__('os').system('touch ran')"])
    assert "touch ran" in cfg.OUTPUT_DIR and not Path("ran").exists()


def test_the_model_that_ships_is_not_looked_for_in_the_working_directory():
    Path("configs").mkdir()
    Path(DEFAULT_CONFIG).write_text("OUTPUT_DIR: a stranger's\nVERSION: 2\n")
    assert load_config().OUTPUT_DIR != "a stranger's"
    assert load_config(f"./{DEFAULT_CONFIG}").OUTPUT_DIR == "a stranger's"
