from pathlib import Path

import pytest

from cat_seg.class_lists import class_names
from cat_seg.errors import CATSegError
from cat_seg.resources import PROJECT_ROOT, resource, user_file


@pytest.fixture
def own_list(tmp_path: Path, monkeypatch) -> Path:
    """A file in the working directory that is named as one that CAT-Seg brings."""
    monkeypatch.chdir(tmp_path)
    own = tmp_path / "datasets" / "ade150.json"
    own.parent.mkdir()
    own.write_text('["mine"]')
    return own


@pytest.mark.parametrize(
    "name",
    [
        "datasets/ade150.json",
        "configs/vitl_ade150.yaml",
        "cat_seg/models/synthetic/model.safetensors",
    ],
)
def test_what_cat_seg_brings_is_found_from_anywhere(name: str, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert resource(name).is_file()
    assert resource(name).is_absolute()
    assert user_file(name) == resource(name)


def test_what_cat_seg_brings_is_never_taken_from_the_working_directory(own_list: Path):
    assert resource("datasets/ade150.json") == PROJECT_ROOT / "datasets" / "ade150.json"
    assert len(class_names("ade150")) == 150


def test_your_own_file_comes_first(own_list: Path):
    assert user_file("datasets/ade150.json").samefile(own_list)
    assert user_file(own_list) == own_list


def test_your_file_may_be_relative_to_another_folder(own_list: Path, monkeypatch):
    monkeypatch.chdir("/")
    assert user_file("ade150.json", relative_to=own_list.parent) == own_list
    assert user_file(own_list, relative_to="/elsewhere") == own_list


@pytest.mark.parametrize("name", ["configs/none.yaml", "../README.md", "/etc/hostname", ""])
def test_only_files_of_the_package_are_resources(name: str):
    with pytest.raises(CATSegError, match="no file that CAT-Seg brings"):
        resource(name)


def test_a_missing_file_is_named_with_the_places(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CATSegError, match=r"none\.yaml does not exist") as error:
        user_file("configs/none.yaml")
    assert str(tmp_path) in str(error.value) and str(PROJECT_ROOT) in str(error.value)
