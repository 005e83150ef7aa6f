"""cat-seg data: a page a data set, and other formats turned into label maps."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cat_seg.cli.main import main


@pytest.fixture
def data(tmp_path, monkeypatch) -> Path:
    """Two images with label maps of three names, of which one never occurs."""
    monkeypatch.setenv("CAT_SEG_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    for folder in ("images", "labels"):
        Path(folder).mkdir()
    for i in range(2):
        Image.fromarray(np.full((6, 8, 3), 90, np.uint8)).save(f"images/{i}.jpg")
        labels = np.full((6, 8), i, np.uint8)
        labels[0] = 255
        Image.fromarray(labels).save(f"labels/{i}.png")
    Path("names.json").write_text(json.dumps(["road", "<b>car</b>", "sky"]))
    Path("my.yaml").write_text(
        "DATASETS: {FOLDERS: [{NAME: yard, IMAGES: images, LABELS: labels, CLASSES: names.json}]}"
    )
    return tmp_path


FOLDERS = ["--images", "images", "--labels", "labels", "--classes", "names.json"]


@pytest.mark.parametrize("arguments", [["--config-file", "my.yaml"], FOLDERS])
def test_a_page_as_text(data, capsys, arguments):
    assert main(["data", "check", *arguments]) == 0
    said = capsys.readouterr().out
    assert re.search(r"images with label maps +2", said)
    assert re.search(r"pixels ignored +16.7%", said)
    assert re.search(r"0  road +40 +50.00% +1", said)
    assert "SMELLS: 1 names never occur: sky." in said


def test_a_page_with_pictures(data, capsys):
    assert main(["data", "check", "--config-file", "my.yaml", "--html", "page.html"]) == 0
    page = Path("page.html").read_text()
    assert page.count('<img src="data:image/jpeg;base64,') == 2
    assert "&lt;b&gt;car" in page and "<b>car" not in page
    assert "names never occur" in page and "//" not in page.replace("image/jpeg", "")[:3000]


def test_mistakes_are_listed_beside_what_is_there(data, capsys):
    Image.fromarray(np.full((6, 8), 3, np.uint8)).save("labels/1.png")
    Path("images/2.jpg").touch()
    assert main(["data", "check", *FOLDERS, "--html", "page.html"]) == 1
    said = capsys.readouterr().out
    assert "WRONG: images/2.jpg: no label map" in said
    assert "WRONG: labels/1.png: label 3 is out of range" in said
    assert "SMELLS: a label equals the number of classes, 3" in said
    assert re.search(r"values that no name covers +3", said)
    assert main(["data", "check", *FOLDERS[:-1], "names.json", "--option", "OFFSET=1"]) == 1
    Path("images/2.jpg").unlink()
    assert main(["data", "check", *FOLDERS, "--option", "OFFSET=1"]) == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "Nothing to check"),
        (["no_such_set"], "'no_such_set' is no data set"),
        (["--images", "images"], "expected all three"),
        ([*FOLDERS, "--option", "OFFSET"], "expected KEY=VALUE"),
        ([*FOLDERS, "--option", "MAPP={}"], "any of IMAGE_SUFFIX"),
    ],
)
def test_what_cannot_be_checked_is_told(data, capsys, arguments, said):
    assert main(["data", "check", *arguments]) == 1
    assert said in capsys.readouterr().err


def test_import_prints_the_entry_that_goes_with_it(data, capsys):
    Path("voc").mkdir()
    Image.fromarray(np.zeros((2, 2, 3), np.uint8)).save("voc/a.png")
    assert main(["data", "import", "voc", "voc", "--output", "made"]) == 0
    said = capsys.readouterr().out
    assert "voc -> made: 1 written, 0 kept" in said
    assert 'IMAGES: "...", LABELS: "made/labels", CLASSES: "made/names.json"}' in said
    Path("voc/b.png").write_bytes(b"x")
    assert main(["data", "import", "voc", "voc", "--output", "made"]) == 1
    assert "1 kept, 0 skipped, 1 wrong" in capsys.readouterr().out
