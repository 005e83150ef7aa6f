"""The page that runs the small model in a browser, by onnxruntime-web if that is installed."""

from __future__ import annotations

import functools
import http.server
import importlib.util
import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import open_clip
import pytest
from open_clip.tokenizer import default_bpe
from PIL import Image

from cat_seg import CATSeg
from cat_seg.resources import PROJECT_ROOT
from tests.app.test_page import browse

WEB = PROJECT_ROOT / "demo" / "web"
RUNTIME = Path(os.environ.get("ONNXRUNTIME_WEB", WEB / "node_modules/onnxruntime-web"))
NODE = shutil.which("node")

_TOKENS = """
import { Tokenizer } from %s;
import { gunzipSync } from "node:zlib";
import { readFileSync } from "node:fs";
const tokenizer = new Tokenizer(gunzipSync(readFileSync(%s)).toString());
console.log(JSON.stringify(%s.map((text) => tokenizer.encode(text))));
"""


@pytest.mark.skipif(NODE is None, reason="needs node")
def test_words_are_cut_into_the_same_tokens(tmp_path: Path):
    texts = [
        *("a photo of a red striped star in the scene.", "Zürich,  it's 42 o'clock!", "", "ſtraße"),
        *("hahahahaha mississippi", "日本 🐈", "sofa-bed/couch", "long " * 90),
    ]
    script = tmp_path / "tokens.mjs"
    address = (WEB / "cat_seg.js").as_uri()
    script.write_text(_TOKENS % tuple(map(json.dumps, (address, default_bpe(), texts))), "utf-8")
    assert NODE is not None
    done = subprocess.run([NODE, str(script)], capture_output=True, timeout=60, check=True)
    for text, got in zip(texts, json.loads(done.stdout), strict=True):
        (expected,) = open_clip.tokenize([text]).tolist()
        assert got == expected[: len(got)] and not any(expected[len(got) :]), text


@pytest.fixture
def page(tmp_path: Path) -> Iterator[str]:
    """The page, served to this machine alone."""
    if not RUNTIME.is_dir():
        pytest.skip("needs onnxruntime-web (npm install onnxruntime-web in demo/web)")
    pytest.importorskip("onnxscript")
    spec = importlib.util.spec_from_file_location("web_export", WEB / "export.py")
    assert spec and spec.loader
    exporter = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(exporter)
    exporter.main([str(tmp_path)])
    (tmp_path / "node_modules").mkdir()
    (tmp_path / "node_modules/onnxruntime-web").symlink_to(RUNTIME.resolve())
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.mark.slow
def test_the_page_labels_as_pytorch_does(page: str, tmp_path: Path):
    driver = browse()
    from selenium.webdriver.common.by import By

    def labels(before: object = None) -> tuple[np.ndarray, list[list[str]]]:
        """Wait for a segmentation, and return it."""
        end = time.monotonic() + 100
        while True:
            status = driver.find_element(By.ID, "status").text
            if status.endswith(" s") and status != before:
                break
            assert time.monotonic() < end, status
            time.sleep(0.1)
        found = driver.execute_script(
            "return [[...segmentation.labels], segmentation.classes, picture.width]"
        )
        return np.array(found[0]).reshape(-1, found[2]), found[1]

    model = CATSeg.from_pretrained("synthetic", "cpu")
    seen = tmp_path / "seen.png"  # a picture that nobody has to resize
    side = model.config.min_size
    Image.open(tmp_path / "scene.png").resize((side, side)).save(seen)
    try:
        driver.get(page)
        got, classes = labels()
        assert [names[0] for names in classes] == list(model.default_words)
        expected = model.predict(tmp_path / "scene.png")
        print(f"the scene: {(got != expected.labels).mean():.4%} differ")
        assert (got != expected.labels).mean() < 0.05  # a browser resizes in its own way
        driver.execute_script("status.textContent = 'waiting'")
        first, second, *_ = expected.areas()
        named = [f"{first.title()}|purple thing", second, "something else"]
        words = driver.find_element(By.ID, "words")
        words.clear()
        words.send_keys(", ".join(named))
        driver.find_element(By.ID, "file").send_keys(str(seen))
        got, classes = labels("waiting")
        assert classes == [one.split("|") for one in named]
        expected = model.predict(seen, named)
        print(f"a picture of its size: {(got != expected.labels).mean():.4%} differ")
        assert got.shape == expected.labels.shape and len(np.unique(got)) > 1
        assert (got != expected.labels).mean() < 0.001
        assert driver.find_element(By.ID, "picture").accessible_name.startswith("Segmentation: ")
        driver.save_screenshot(str(tmp_path / "web.png"))
    finally:
        driver.quit()
