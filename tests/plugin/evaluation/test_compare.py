"""Evaluations beside each other: what the page says, and what it does in a browser."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from cat_seg.cli import compare
from cat_seg.errors import CATSegError
from cat_seg.label_rules import LabelRule
from cat_seg.plugin.evaluation.compare import overlay, write_comparison
from cat_seg.plugin.evaluation.metrics import confusion_matrix
from cat_seg.plugin.evaluation.result import EvaluationResult, save_result
from cat_seg.plugin.run_folder import RunFolder

NAMES = ["sky", "</script><b>cat</b>", "nowhere"]
TRUTH = np.array([[0, 0, 1, 1], [0, 0, 1, 9]])  # 9 is ignored
RULE = LabelRule(ignore=(9,))
# Image -> what is predicted by each of two runs.
PREDICTED = {
    "a/1.png": ([[0, 0, 0, 0], [0, 0, 0, 0]], [[0, 0, 1, 1], [0, 0, 1, 1]]),  # better
    "b/1.png": ([[0, 0, 1, 1], [0, 0, 1, 1]], [[0, 0, 2, 1], [0, 0, 1, 1]]),  # worse
    "ü ?.png": ([[0, 1, 1, 1], [0, 0, 1, 1]], [[0, 2, 1, 1], [0, 0, 1, 1]]),  # both wrong
}


def write_runs(folder: Path, names: tuple[list[str], list[str]] = (NAMES, NAMES)) -> list[Path]:
    """Write what two evaluations of three images leave."""
    runs = []
    for run in range(2):
        runs.append(folder / f"run{run}")
        result = EvaluationResult("own", names[run], 3, 0, np.zeros((3, 4), np.int64), rule=RULE)
        for image, predictions in PREDICTED.items():
            paths = [
                folder / kind / image
                for kind in ("images", "labels", f"run{run}/inference/own/labels")
            ]
            contents = (np.full((2, 4, 3), 90), TRUTH, np.array(predictions[run]))
            for path, array in zip(paths, contents, strict=True):
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array.astype(np.uint8)).save(path)
            truth = np.where(TRUTH == 9, 3, TRUTH)
            counts = confusion_matrix(contents[2], truth, 3)
            result.add(str(paths[0]), counts, [], ("0" * 64, "1" * 64))
            result.label_maps[str(paths[0])] = (str(paths[1]), str(paths[2]))
        save_result(result, runs[-1] / "inference/own")
    return runs


def data_of(page: Path) -> dict:
    text = page.read_text("utf-8").split('<script type="application/json">')[1]
    return json.loads(text.split("</script>")[0])


def test_differences_of_classes_and_images(tmp_path, capsys):
    runs = write_runs(tmp_path)
    page = tmp_path / "out/page.html"
    assert compare.main([*map(str, runs), "--output", str(page), "--names", "old", "new"]) == 0
    assert str(page) in capsys.readouterr().out
    scenes = {scene["name"]: scene for scene in data_of(page)["scenes"]}
    assert list(scenes) == ["a/1.png", "b/1.png", "ü ?.png"]
    assert scenes["a/1.png"]["differences"] == [pytest.approx(100 - 50 * 4 / 7)]
    assert scenes["b/1.png"]["differences"] == [pytest.approx(100 / 3 * -1 / 2)]
    text = page.read_text("utf-8")
    assert "<b>cat" not in text  # names may hold anything
    for name in ("old", "new", "images better"):
        assert name in text
    changes = Image.open(tmp_path / "out/page_files/0/00000_change1.png").convert("RGBA")
    assert np.array(changes)[:, :, 3].tolist() == [[0, 0, 255, 255], [0, 0, 255, 0]]
    assert "http" not in text and "url(" not in text


def test_one_evaluation_alone_shows_what_is_wrong(tmp_path):
    runs = write_runs(tmp_path)
    write_comparison(tmp_path / "page.html", [runs[0] / "inference/own"])
    wrong = Image.open(tmp_path / "page_files/0/00000_change0.png").convert("RGBA")
    assert np.array(wrong)[:, :, 3].tolist() == [[0, 0, 255, 255], [0, 0, 255, 0]]


def test_runs_in_other_words_are_compared_and_in_other_classes_are_not(tmp_path):
    words = (NAMES, ["heaven", *NAMES[1:]])
    runs = write_runs(tmp_path, words)
    for run, names in zip(runs, words, strict=True):
        RunFolder(run, "evaluation").begin({"words of own": names}, keep=False)
    write_comparison(tmp_path / "page.html", runs)
    page = (tmp_path / "page.html").read_text("utf-8")
    assert "sky / heaven" in page and "words of own: - &#39;sky&#39;, + &#39;heaven&#39;" in page

    results = runs[1] / "inference/own/results.json"
    contents = json.loads(results.read_text())
    contents["classes"].pop()
    results.write_text(json.dumps(contents))
    with pytest.raises(CATSegError, match="run0 has 3 classes and run1 2"):
        write_comparison(tmp_path / "page.html", runs)


def test_what_cannot_be_compared_is_told(tmp_path):
    runs = write_runs(tmp_path)
    with pytest.raises(CATSegError, match="no evaluation was written here"):
        write_comparison(tmp_path / "page.html", [tmp_path])
    with pytest.raises(CATSegError, match="1 names for 2 runs"):
        write_comparison(tmp_path / "page.html", runs, ["one"])
    (tmp_path / "images/a/1.png").unlink()
    write_comparison(tmp_path / "page.html", runs)
    assert "problem" in data_of(tmp_path / "page.html")["scenes"][0]
    for change in ({"dataset": "other"}, {"label_rule": {"offset": []}}):
        results = runs[1] / "inference/own/results.json"
        results.write_text(json.dumps(json.loads(results.read_text()) | change))
        with pytest.raises(CATSegError, match=r"no dataset in common|cannot be compared"):
            write_comparison(tmp_path / "page.html", runs)


@pytest.mark.parametrize("classes", [3, 300])
def test_overlay_keeps_every_class(classes):
    labels = np.arange(-1, classes).reshape(1, -1)
    colors = np.stack([np.arange(classes) % 256, np.arange(classes) // 256, labels[0, 1:] * 0], 1)
    painted = np.array(overlay(labels, colors.astype(np.uint8)).convert("RGBA"))
    assert painted[0, 0, 3] == 0 and (painted[0, 1:, 3] == 255).all()
    assert (painted[0, 1:, :3] == colors).all()


@pytest.fixture
def browser(tmp_path):
    """Chromium without a window, kept off the network."""
    selenium = pytest.importorskip("selenium.webdriver")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("needs chromium and chromedriver")
    options = selenium.ChromeOptions()
    options.binary_location = chromium
    for flag in ("headless", "no-sandbox", "disable-gpu", "disable-background-networking"):
        options.add_argument(f"--{flag}")
    options.add_argument(f"--user-data-dir={tmp_path / 'profile'}")
    options.add_argument("--window-size=1400,1000")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = selenium.ChromeService(executable_path=driver)
    browser = selenium.Chrome(options=options, service=service)
    yield browser
    browser.quit()


def parts(browser, root=None) -> SimpleNamespace:
    """Find by CSS."""
    root = root or browser
    return SimpleNamespace(
        one=lambda css: root.find_element("css selector", css),
        every=lambda css: root.find_elements("css selector", css),
    )


@pytest.mark.slow
def test_page_in_a_browser(tmp_path, browser):
    page = tmp_path / "page ü.html"
    write_comparison(page, write_runs(tmp_path), ["old", "new"])
    browser.get(page.as_uri())
    find = parts(browser)
    titles = lambda: [caption.text.split(" mIoU")[0] for caption in find.every("figcaption")]  # noqa: E731

    # images: worst change first, sorted and searched
    assert titles()[0] == "b/1.png" and titles()[-1] == "a/1.png"
    find.one(".gallery button").click()
    assert titles()[0] == "a/1.png"
    find.one(".gallery option:last-child").click()  # by name, falling
    assert titles() == ["ü ?.png", "b/1.png", "a/1.png"]
    find.one(".gallery input").send_keys("nowhere")  # a class
    assert set(titles()) == {"b/1.png", "ü ?.png"}
    find.one(".gallery input").clear()

    # tables
    classes = parts(browser, find.one("table.classes"))
    shown = lambda: [row.text.split()[0] for row in classes.every("tbody tr") if row.is_displayed()]  # noqa: E731
    assert shown() == ["sky", "</script><b>cat</b>", "nowhere"]
    head = classes.every("th")[3]  # difference
    head.click()
    assert head.get_attribute("aria-sort") == "descending"
    falling = [float(cell.text) for cell in classes.every("td:nth-child(4)") if cell.text]
    assert len(falling) == 2 and falling == sorted(falling, reverse=True)
    find.one("section .columns input").send_keys("CAT")
    assert shown() == ["</script><b>cat</b>"]
    classes.one("tbody tr:not([hidden]) a").click()  # its images
    assert find.one(".gallery input").get_attribute("value") == "</script><b>cat</b>"

    # enlarged, with a slider
    find.every(".strip > div")[3].click()  # the second run
    viewer = parts(browser, find.one("dialog[open]"))
    assert [s.get_attribute("value") for s in viewer.every("select")] == ["picture", "new"]
    assert all(
        browser.execute_script("return arguments[0].complete && arguments[0].naturalWidth", image)
        for image in find.every("img")
    )
    clip = lambda: browser.execute_script(  # noqa: E731
        "return getComputedStyle(document.querySelector('.stage .right')).clipPath"
    )
    assert "50%" in clip()
    browser.execute_script(
        "const s = arguments[0]; s.value = 20; s.dispatchEvent(new Event('input'))",
        viewer.one("input[type=range]"),
    )
    assert "20%" in clip()
    stage = viewer.one(".stage")
    from selenium.webdriver import ActionChains

    ActionChains(browser).move_to_element_with_offset(
        stage, stage.size["width"] // 4, 0
    ).click().perform()
    assert "75" in clip()
    before = viewer.one(".title").text
    viewer.every("button")[1].click()  # next
    assert viewer.one(".title").text != before
    viewer.every("button")[2].click()  # close
    assert not find.every("dialog[open]")
    assert not browser.get_log("browser")
