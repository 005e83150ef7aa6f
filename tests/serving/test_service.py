"""The service over HTTP: answers, limits, figures, and an end that finishes what runs."""

import json
import re
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cat_seg import CATSeg
from cat_seg.label_maps import text_inside
from cat_seg.serving import Limits, build
from docs.tools.load_test import form, masks_of

uvicorn = pytest.importorskip("uvicorn")
pytest.importorskip("fastapi")
pytest.importorskip("pycocotools")
PICTURE = Path(__file__).parents[2] / "demo" / "images" / "harbour.jpg"


@pytest.fixture(scope="module")
def model() -> CATSeg:
    return CATSeg.from_pretrained("synthetic", "cpu")


@pytest.fixture(scope="module")
def address(model: CATSeg) -> Iterator[str]:
    app = build(model, Limits(bytes=300_000, pixels=400_000, words=90))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    host, port = server.servers[0].sockets[0].getsockname()
    assert host == "127.0.0.1"
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()


def ask(address: str, picture: bytes | None = None, **fields: Any) -> tuple[int, bytes]:
    body, kind = form(picture or PICTURE.read_bytes(), **fields)
    request = urllib.request.Request(f"{address}/segment", body, {"Content-Type": kind})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def get(address: str) -> str:
    with urllib.request.urlopen(address, timeout=60) as answer:
        return answer.read().decode()


def test_answers_are_what_predict_gives(address: str, model: CATSeg):
    words, background = ["water", ["snow", "ice"]], ["sky"]
    expected = model.predict(PICTURE, words, background=background, threshold=0.1)
    given = {"words": "water, snow|ice", "background": "sky", "threshold": 0.1}
    status, content = ask(address, **given)
    told = json.loads(content)
    assert status == 200 and "synthetic world" in told["notes"][-1]
    found = masks_of(told)
    assert list(found) == list(expected.areas())
    for name, mask in found.items():
        np.testing.assert_array_equal(mask, expected.mask(name))
    status, content = ask(address, **given, format="png")
    with Image.open(BytesIO(content)) as image:
        labels = np.asarray(image).astype(int)
        assert json.loads(text_inside(image))["classes"] == ["water", "snow", "sky"]
    labels[labels == 255] = -1
    np.testing.assert_array_equal(labels, expected.labels)
    status, content = ask(address, words="water, sky", format="overlay")
    with Image.open(BytesIO(content)) as image:
        assert image.format == "PNG" and image.height >= expected.labels.shape[0]
    assert json.loads(ask(address)[1])["segments"], "of the model's own words"


def test_what_cannot_be_done_is_told(address: str):
    noise = np.random.default_rng(0).integers(0, 255, (700, 700, 3), dtype=np.uint8)
    buffer = BytesIO()
    Image.fromarray(noise[:, :, :1].repeat(3, 2) // 128).save(buffer, "PNG")
    for status, message, picture, fields in (
        (422, "is not an image", b"nothing", {}),
        (422, "too large", buffer.getvalue(), {}),
        (413, "At most 300000 bytes", noise.tobytes()[:300_001], {}),
        (422, "101 words and synonyms", None, {"words": "|".join(f"w{i}" for i in range(101))}),
        (422, "empty", None, {"words": ","}),
        (422, "/etc/passwd", None, {"words": "/etc/passwd", "format": "gif"}),
        (422, "less than or equal to 1", None, {"words": "sky", "threshold": 2}),
    ):
        got, content = ask(address, picture, **fields)
        assert got == status, content
        assert message in content.decode() or fields.get("format"), content


def test_it_tells_of_itself(address: str):
    told = json.loads(get(f"{address}/health"))
    assert (told["status"], told["model"], told["waiting"]) == ("ok", "synthetic", 0)
    assert ask(address, words="sky")[0] == 200
    before = get(f"{address}/metrics")
    assert ask(address, words="sky")[0] == 200
    found = get(f"{address}/metrics")
    counts = [re.search(r'requests_total{status="200"} (\S+)', text)[1] for text in (before, found)]
    assert float(counts[1]) == float(counts[0]) + 1
    assert "catseg_model_seconds_total" in found and "catseg_batch_pictures_bucket" in found
    schema = json.loads(get(f"{address}/openapi.json"))
    assert set(schema["paths"]) == {"/segment", "/health", "/metrics"}
    page = get(f"{address}/docs")
    assert "synthetic" in page and not re.search(r"(src|href)=\"(https?:)?//", page)


@pytest.mark.slow
def test_many_clients_with_other_words(tmp_path: Path):
    """And at the end by a signal, nobody is left without an answer."""
    from docs.tools import load_test

    log = tmp_path / "told.json"
    assert load_test.main(["--clients", "4", "--requests", "1", "--json", str(log)]) == 0
    told = json.loads(log.read_text())
    assert told["answers"] == 4 and told["wrong"] == told["failed"] == 0
    assert told["exit_code"] == 0 and told["unanswered_at_the_end"] == 0
