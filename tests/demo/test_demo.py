"""The demo and the predictor behind it, with a stand-in model that segments by brightness."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cat_seg.plugin.engine.predictor import Predictor, load_config
from cat_seg.resources import PROJECT_ROOT
from tests.brightness import write_config

spec = importlib.util.spec_from_file_location("demo", PROJECT_ROOT / "demo" / "demo.py")
assert spec and spec.loader
demo = importlib.util.module_from_spec(spec)
spec.loader.exec_module(demo)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return write_config(tmp_path)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    values = np.zeros((40, 60, 3), np.uint8)
    values[:, 30:] = 255
    for name in ("a.png", "b.jpg"):
        Image.fromarray(values).save(folder / name)
    (folder / "broken.jpg").write_bytes(b"\xff\xd8 nothing")
    return folder


def test_outputs_and_one_unreadable_file(config, photos, tmp_path, capsys):
    output = tmp_path / "out"
    arguments = ["--config-file", str(config), "--input", str(photos), "--output", str(output)]
    code = demo.main([*arguments, "--vocabulary", "night|dark, day"])
    assert code == 1
    text = capsys.readouterr()
    assert "2 images in" in text.out and str(output) in text.out
    assert "broken.jpg" in text.err
    assert sorted(p.name for p in output.iterdir()) == sorted(
        f"{stem}_{what}" for stem in "ab" for what in ("labels.json", "labels.png", "overlay.jpg")
    )
    labels = np.asarray(Image.open(output / "a_labels.png"))
    assert labels.shape == (40, 60)
    assert (labels[:, :28] == 0).all() and (labels[:, 32:] == 1).all()
    table = json.loads((output / "a_labels.json").read_text())
    assert table["classes"] == ["night, dark", "day"]
    assert table["image"] == str(photos / "a.png")


def test_all_is_well_with_the_vocabulary_of_the_config(config, photos, tmp_path):
    output = tmp_path / "out"
    arguments = ["--config-file", str(config), "--output", str(output)]
    assert demo.main([*arguments, "--input", str(photos / "*.png")]) == 0
    assert json.loads((output / "a_labels.json").read_text())["classes"] == ["dark", "light"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--vocabulary", " , "], "--vocabulary: The vocabulary is empty"),
        (["--vocabulary", "cat, dog, cat"], "Classes 0 and 2 are 'cat' and 'cat'"),
        (["--vocabulary-file", "none.txt"], "none.txt"),
        (["--vocabulary-file", "none.json"], "none.json"),
        (["--config-file", "none.yaml"], "none.yaml"),
        (["--config-file", "demo/images/yard.jpg"], "yard.jpg: 'utf-8' codec can't decode"),
        (["--output", __file__], "test_demo.py: File exists; expected a folder"),
        (["--input", "no_*.jpg"], "no_*.jpg matches no file"),
        (["--input", "tests/demo"], "tests/demo is a folder without images"),
        (["--device", "abacus"], "abacus"),
        (["--opts", "MODEL.MASK_ON", "perhaps"], "Options: Type mismatch"),
        (["--opts", "MODEL.WEIGHTS", "none.pth"], "none.pth"),
        (["--opts", "MODEL.WEIGHTS", ""], "MODEL.WEIGHTS is empty"),
        (["--opts", "MODEL.WIGHTS", "a.pth"], "MODEL.WIGHTS; did you mean MODEL.WEIGHTS?"),
        (["--opts", "ABC", "1"], "ABC; cat_seg/config.py"),
        (["--opts", "MODEL", "3"], "Options: "),
        (["--opts", "MODEL.WEIGHTS.PATH", "3"], "Options: "),
        (["--opts", "MODEL.WEIGHTS"], "pairs"),
    ],
)
def test_mistakes_are_told_in_a_sentence(config, photos, tmp_path, capsys, arguments, message):
    known = [
        "--config-file",
        str(config),
        "--input",
        str(photos),
        "--output",
        str(tmp_path / "out"),
    ]
    assert demo.main([*known, *arguments]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1


@pytest.mark.parametrize("content", ["", "hello", "[1, 2]", "_BASE_: config.yaml", "MODEL: 3"])
def test_files_that_are_no_config_are_told(tmp_path, content):
    (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(ValueError, match=r"^Config .*config\.yaml: "):
        load_config(tmp_path / "config.yaml")


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.txt", "\ufeffcat\r\n\r\nsofa, couch\r\n"), ("a.json", '["cat", "sofa, couch"]')],
)
def test_vocabulary_files(tmp_path, name, content):
    (tmp_path / name).write_text(content, encoding="utf-8")
    args = demo.build_parser().parse_args(
        ["--input", "x", "--vocabulary-file", str(tmp_path / name)]
    )
    assert demo.vocabulary_of(args) == ["cat", "sofa, couch"]


def test_outputs_mirror_the_inputs(config, tmp_path):
    for name in ("in/a.png", "in/a.jpg", "in/sub/a.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 40)).save(tmp_path / name)
    output = tmp_path / "out"
    arguments = ["--config-file", str(config), "--input", str(tmp_path / "in")]
    assert demo.main([*arguments, "--output", str(output)]) == 0
    overlays = [p.relative_to(output).as_posix() for p in output.rglob("*_overlay.jpg")]
    assert sorted(overlays) == ["a.jpg_overlay.jpg", "a.png_overlay.jpg", "sub/a_overlay.jpg"]


def test_predictor_changes_vocabulary(config):
    predictor = Predictor(load_config(config, device="cpu"))
    image = np.zeros((50, 70, 3), np.uint8)
    image[:, 20:40] = 128
    image[:, 40:] = 255
    predictor.set_vocabulary(["black", "grey", "white"])
    assert predictor.class_names == ["black", "grey", "white"]
    labels = predictor(image)
    assert labels.shape == (50, 70)
    assert [int(labels[25, x]) for x in (5, 30, 60)] == [0, 1, 2]


def test_shipped_config_reads_from_another_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_config("configs/vitl_ade150.yaml").MODEL.META_ARCHITECTURE == "CATSeg"
