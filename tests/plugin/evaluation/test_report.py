"""The page of a report: whole without any other file, and safe whatever names are in it."""

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from cat_seg.plugin.evaluation.report import write_report
from cat_seg.plugin.evaluation.result import EvaluationResult
from cat_seg.plugin.evaluation.summary import BenchmarkResult

NAMES = ["sky", "<b>cat</b>", "nowhere"]

DIGESTS = ("0" * 64, "1" * 64)


def benchmark(folder: Path) -> BenchmarkResult:
    """Two images of 2 x 4 pixels; one is gone since it was evaluated."""
    result = EvaluationResult("own", NAMES, 3, 0, np.zeros((3, 4), np.int64))
    result.add("gone.png", np.array([[0, 0, 0, 0], [0, 6, 0, 0], [0, 0, 0, 2]]), [], DIGESTS)
    files = [str(folder / file) for file in ("image.png", "truth.png", "predicted.png")]
    result.add(files[0], np.array([[4, 2, 0, 0], [0, 2, 0, 0], [0, 0, 0, 0]]), [], DIGESTS)
    Image.fromarray(np.full((2, 4, 3), 99, np.uint8)).save(files[0])
    for file, labels in zip(files[1:], ([0, 0, 1, 1], [0, 0, 0, 1]), strict=True):
        Image.fromarray(np.array([labels] * 2, np.uint8)).save(file)
    result.left_out["broken & torn.png"] = "not an image"
    result.label_maps = {
        files[0]: (files[1], files[2]),
        "gone.png": ("gone_truth.png", "gone_predicted.png"),
    }
    return BenchmarkResult("Own data", result, 50.0)


def test_page(tmp_path: Path) -> None:
    page_file = tmp_path / "report.html"
    write_report(page_file, "A <title>", "model & co", [benchmark(tmp_path)], ["Mind <this>."])
    page = page_file.read_text()
    assert "A &lt;title&gt;" in page and "model &amp; co" in page and "Mind &lt;this&gt;." in page
    assert "&lt;b&gt;cat&lt;/b&gt;" in page and "<b>cat" not in page
    assert "not comparable: 2 of 3 images (1 left out)" in page
    assert "broken &amp; torn.png was left out: not an image" in page
    assert page.count("data:image/jpeg;base64,") == 3 and page.count("not readable any more") == 1
    assert "http" not in page and "url(" not in page and "@import" not in page

    body = page[page.index("<main>") : page.index("</main>") + len("</main>")]
    main = ElementTree.fromstring(body)  # well formed: every tag is closed
    rows = [["".join(cell.itertext()) for cell in row] for row in main.iter("tr")]
    # 4 of 6 pixels of the sky's union, 8 of 10 of the cat's
    assert ["sky", "66.67", "", "100.00", "4"] in rows
    assert ["<b>cat</b>", "80.00", "", "80.00", "10"] in rows
    assert ["nowhere", "", "", "", "0"] in rows  # no ground truth
    assert ["<b>cat</b> → sky", "20.0", "", "2"] in rows
    overview = rows[1]
    assert overview[2] == "73.33" and overview[4] == "50.00"
    assert overview[5] == ""  # not comparable, so no difference
    tiles = {
        tile.findtext("span"): tile.findtext("b") for tile in main.iterfind(".//*[@class='tile']")
    }
    assert tiles["mIoU"] == "73.33" and tiles["of 3 images"] == "2"
