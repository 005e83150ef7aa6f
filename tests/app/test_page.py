"""The page: a visitor's session, what is served to whom, and a person's path in a browser."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cat_seg import CATSeg
from cat_seg.app import page
from cat_seg.errors import CATSegError
from cat_seg.label_maps import text_inside

PICTURE = Path(__file__).parents[2] / "demo" / "images" / "harbour.jpg"
SOURCE = (str(PICTURE), "synthetic")
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")


@pytest.fixture(scope="module")
def model() -> CATSeg:
    return CATSeg.from_pretrained("synthetic", "cpu")


@pytest.fixture()
def session() -> Iterator[page.Session]:
    session = page.Session()
    yield session
    session.close()


def test_other_words_use_the_encoded_picture(
    model: CATSeg, session: page.Session, monkeypatch: pytest.MonkeyPatch
):
    encoded = []
    encode = CATSeg.encode
    monkeypatch.setattr(CATSeg, "encode", lambda *args: encoded.append(1) or encode(*args))
    for words, background in ((["water", "sky"], []), (["snow|ice", "water"], ["sky", "sand"])):
        result = session.segment(model, SOURCE, words, ", ".join(background), 0.0)
        expected = model.predict(PICTURE, words, background=background, threshold=0.0)
        np.testing.assert_array_equal(result.labels, expected.labels)
        assert (result.classes, result.background) == (expected.classes, expected.background)
    assert len(encoded) == 1
    texts: list[str] = []
    compute = type(model.predictor).text_features
    monkeypatch.setattr(
        *(type(model.predictor), "text_features"),
        lambda self, names, *more: texts.extend(names) or compute(self, names, *more),
    )
    result = session.segment(model, SOURCE, ["water", "a new word", "sand"], "", 0.0)
    assert texts == ["a new word"]
    expected = model.predict(PICTURE, ["water", "a new word", "sand"], threshold=0.0)
    assert (result.labels != expected.labels).mean() < 1e-3  # rounding
    session.segment(model, (str(PICTURE.with_name("beach.jpg")), "synthetic"), ["sand"], "", None)
    assert len(encoded) == 2


def test_limits(model: CATSeg, session: page.Session, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(CATSegError, match="1001 words; this page takes 1000"):
        session.segment(model, SOURCE, [f"word {i}" for i in range(1001)], "", None)
    monkeypatch.setattr(page, "MAX_PIXELS", 100)
    with pytest.raises(CATSegError, match="too large"):
        session.segment(model, SOURCE, ["water"], "", None)


def test_the_files_are_the_segmentation(model: CATSeg, session: page.Session):
    assert session.files() == []
    result = session.segment(model, SOURCE, ["water", "sky"], "", None)
    overlay, labels, about, coco = map(Path, session.files())
    with Image.open(labels) as image:
        assert json.loads(text_inside(image))["classes"] == ["water", "sky"]
        assert image.size == (result.labels.shape[1], result.labels.shape[0])
    assert Image.open(overlay).format == "PNG" and json.loads(about.read_text())["classes"]
    annotations = json.loads(coco.read_text())["annotations"]
    assert {one["category_id"] for one in annotations} == {1, 2}
    session.close()
    assert not overlay.exists()


def test_models_are_loaded_once_and_few_are_kept(monkeypatch: pytest.MonkeyPatch):
    loaded: list[str] = []
    monkeypatch.setattr(
        CATSeg, "from_pretrained", lambda name, device: loaded.append(name) or object()
    )
    models = page.Models()
    first = models.get("a")
    assert models.get("a") is first
    for name in ("b", "c", "a"):
        models.get(name)
    assert loaded == ["a", "b", "c", "a"]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A page that is served."""
    pytest.importorskip("gradio")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("gradio")))
        built = page.build(device="cpu")
        _, url, _ = page.launch(built, quiet=True, prevent_thread_lock=True)
        yield url.rstrip("/")
        built.close()


@pytest.mark.slow
def test_it_listens_here_alone_and_serves_no_file_of_others(address: str, tmp_path: Path):
    assert address.startswith("http://127.0.0.1:")
    secret = tmp_path / "secret.txt"
    secret.write_text("mine")
    here = Path.cwd() / "README.md"
    for path in (secret, here, "/etc/passwd", f"{tempfile.gettempdir()}/../etc/passwd"):
        with pytest.raises(urllib.error.HTTPError) as error:
            urllib.request.urlopen(f"{address}/gradio_api/file={path}", timeout=30)
        assert error.value.code in (403, 404), path


def browse() -> Any:
    """Open a browser without a window."""
    webdriver = pytest.importorskip("selenium.webdriver")
    if not (CHROMIUM and DRIVER):
        pytest.skip("needs chromium and chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (
        *("headless", "no-sandbox", "disable-gpu", "no-first-run", "window-size=1400,1500"),
        *("disable-background-networking", "disable-component-update", "disable-sync"),
    ):
        options.add_argument(f"--{flag}")
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))


@pytest.mark.slow
def test_a_persons_path(address: str, tmp_path: Path):
    """Picture, pointer, keys, another word, heat map, files: with nothing from elsewhere."""
    driver = browse()
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    def find(selector: str) -> list[Any]:
        return list(driver.find_elements(By.CSS_SELECTOR, selector))

    def wait(condition: Callable[[], Any]) -> Any:
        end = time.monotonic() + 60
        while not (value := condition()):
            assert time.monotonic() < end, driver.find_element(By.TAG_NAME, "body").text
            time.sleep(0.1)
        return value

    def sentence() -> str:
        return find("figure.catseg")[0].get_attribute("aria-label")

    def tip() -> str:
        return find(".catseg-tip")[0].text

    try:
        driver.get(address)
        wait(lambda: find("#words input"))
        assert "nothing but its synthetic world" in find("#banner")[0].text
        wait(lambda: find("#upload input[type=file]"))[0].send_keys(str(PICTURE))
        wait(lambda: find("figure.catseg img"))
        wait(lambda: "water" in sentence() and "sky" in sentence())
        assert all(image.get_attribute("alt") for image in find("figure.catseg img"))

        figure = find("figure.catseg")[0]
        ActionChains(driver).move_to_element(figure).perform()
        assert wait(tip).endswith((" %", " %)"))
        driver.execute_script("arguments[0].focus()", figure)
        assert driver.switch_to.active_element == figure
        keys = ActionChains(driver).key_down(Keys.SHIFT).send_keys(Keys.ARROW_UP * 6)
        keys.key_up(Keys.SHIFT).perform()
        wait(lambda: driver.execute_script("return arguments[0].at[1] === 0", figure))
        assert tip().endswith((" %", " %)"))

        start = time.monotonic()
        find("#words input")[0].send_keys("something else", Keys.ENTER)
        before = figure.get_attribute("data-names")
        wait(lambda: find("figure.catseg")[0].get_attribute("data-names") != before)
        assert "something else" in find("figure.catseg")[0].get_attribute("data-names")
        print(f"another word took {time.monotonic() - start:.2f} s")  # of the whole way; told only
        wait(lambda: "water" in find("#areas")[0].text)

        find("#word input")[0].click()
        find("#word input")[0].send_keys("water", Keys.ENTER)
        wait(lambda: find("#heat img"))
        assert "water" in find("#heat img")[0].get_attribute("alt")
        find("#prepare")[0].click()
        wait(lambda: find("a[href*=cat_seg_labels]"))
        driver.save_screenshot(str(tmp_path / "page.png"))

        names = [entry["message"] for entry in driver.get_log("browser")]
        assert not [name for name in names if "Error" in name and "favicon" not in name], names
        loaded = driver.execute_script(
            "return performance.getEntriesByType('resource').map(entry => entry.name)"
        )
        assert not [url for url in loaded if not url.startswith((address, "data:", "blob:"))]
    finally:
        driver.quit()
