from pathlib import Path

import pytest

from cat_seg.resources import PROJECT_ROOT, project_file


def test_files_of_the_project_are_found_from_anywhere(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert project_file("datasets/ade150.json") == PROJECT_ROOT / "datasets" / "ade150.json"
    assert project_file("configs/vitl_ade150.yaml").is_file()


def test_your_own_file_comes_first(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = tmp_path / "datasets" / "ade150.json"
    own.parent.mkdir()
    own.touch()
    assert project_file("datasets/ade150.json").samefile(own)
    assert project_file(own) == own


def test_a_missing_file_is_named_with_the_places(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"none\.yaml does not exist") as error:
        project_file("configs/none.yaml")
    assert str(tmp_path) in str(error.value) and str(PROJECT_ROOT) in str(error.value)
