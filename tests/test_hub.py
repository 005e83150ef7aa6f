"""The table of models, and how a model is found; fetching from a server of this test."""

import hashlib
import http.server
import json
import math
import os
import shutil
import threading
from pathlib import Path

import pytest
import torch

from cat_seg import hub
from cat_seg.class_lists import published_results
from cat_seg.errors import CATSegError
from cat_seg.hub import MODELS, Source, list_models, resolve
from cat_seg.model import CATSeg
from cat_seg.model_config import ModelConfig, published_config
from tests.golden import checkpoint_rows
from tests.hub_client import point_to

KEY_LISTS = {
    "base-2024": "cvpr24_vitb16",
    "large-2024": "cvpr24_vitl336",
    "base-2023": "r101_vitb16",
    "large-2023": "swinb_vitl336",
}


def build(name: str) -> CATSeg:
    """A model of the table without memory for its weights."""
    if MODELS[name].address:
        config = published_config(name)
    else:
        about = json.loads((resolve(name).path / "config.json").read_text())
        config = ModelConfig.from_dict(about["model"])
    with torch.device("meta"):
        return CATSeg(config)


@pytest.mark.parametrize("name", MODELS)
def test_parameters_are_the_models(name):
    assert MODELS[name].parameters == sum(p.numel() for p in build(name).parameters())


@pytest.mark.parametrize("name", KEY_LISTS)
def test_parameters_are_the_released_files(name):
    parameters = dict(build(name).named_parameters())
    shapes = {row["key"]: row["shape"] for row in checkpoint_rows(KEY_LISTS[name])}
    assert parameters.keys() <= shapes.keys()
    assert MODELS[name].parameters == sum(math.prod(shapes[key]) for key in parameters)


def test_every_published_result_belongs_to_one_model():
    published = [model for model in list_models() if model.address]
    results = [row["mIoU"] for row in published_results()]
    assert len(published) == len(results) and all(model.miou in results for model in published)
    assert {len([m for m in published if m.miou == row]) for row in results} == {1}
    assert MODELS["large-2024"].miou["ade20k_150_test_sem_seg"] == 37.9
    assert not MODELS["synthetic"].miou and not MODELS["synthetic"].photographs


def test_the_list_is_a_table():
    lines = str(list_models()).splitlines()
    assert len(lines) == 1 + len(MODELS)
    at = lines[0].index("A-150")
    shown = {line.split()[0]: line[at : at + 5].strip() for line in lines[1:]}
    expected = {
        name: str(model.miou.get("ade20k_150_test_sem_seg", "-")) for name, model in MODELS.items()
    }
    assert shown == expected
    assert "434 M" in str(MODELS["large-2024"]) and "ships" in str(MODELS["synthetic"])


def test_the_model_that_ships():
    found = resolve("synthetic")
    assert (found.kind, found.name) == ("folder", "synthetic")
    assert all((found.path / file).is_file() for file in hub.SAVED_FILES)


def test_published_names_are_fetched_from_their_addresses(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(hub, "fetch", lambda address: asked.append(address) or tmp_path / "file")
    for name, model in MODELS.items():
        if model.address:
            assert resolve(name) == Source("file", tmp_path / "file", name)
    assert asked == [model.address for model in MODELS.values() if model.address]
    assert len(set(asked)) == 6


@pytest.fixture
def saved(tmp_path):
    folder = tmp_path / "saved"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "README.md").write_text("card")
    return folder


def test_folders_and_files(saved, tmp_path, monkeypatch):
    checkpoint = tmp_path / "model.pth"
    checkpoint.touch()
    (tmp_path / "owner" / "repo").mkdir(parents=True)
    shutil.copytree(saved, tmp_path / "synthetic")
    monkeypatch.chdir(tmp_path)
    assert resolve(saved) == resolve(str(saved)) == Source("folder", saved)
    assert resolve(saved / "model.safetensors") == resolve(saved / "config.json") == resolve(saved)
    assert resolve(checkpoint) == Source("file", checkpoint)
    assert resolve("model.pth") == Source("file", Path("model.pth"))
    assert resolve("./synthetic") == Source("folder", Path("synthetic"))
    assert resolve("synthetic").path != Path("synthetic")
    with pytest.raises(CATSegError, match=r"owner/repo: no config\.json and no model\.safetensors"):
        resolve("owner/repo")  # what is here goes before the hub


def test_home_is_found(saved, monkeypatch):
    monkeypatch.setenv("HOME", str(saved.parent))
    assert resolve("~/saved") == Source("folder", saved)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("large-2025", "did you mean 'large-2024' or 'large-2023'"),
        ("Large-2024", "did you mean 'large-2024'"),
        ("syntetic", "did you mean 'synthetic'"),
        ("xyzzy", "Expected one of synthetic, base-2024"),
        ("weights/model.pth", "no file or folder here"),
        ("/no/such/place", "no file or folder here"),
        ("../no/such", "no file or folder here"),
        ("", "expected a name"),
        (None, "None is no model"),
        (3, "3 is no model"),
        ("n" * 5000, "cannot be looked at"),
        ("~nobody-of-this-name/model", "no file or folder here"),
        ("a\0b", "no file or folder here"),
        ("hf://owner", "hf://owner/repo/file"),
    ],
)
def test_what_is_no_model_is_told(source, message):
    with pytest.raises(CATSegError, match=message):
        resolve(source)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no FIFOs")
def test_what_is_no_file_is_told(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CATSegError, match="neither a file nor a folder"):
        resolve(tmp_path / "pipe")


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub as serves one repository of models, "owner/repo"."""

    def do_HEAD(self):
        self.send(b"")

    def do_GET(self):
        self.send(None)

    def send(self, body):
        self.server.asked.append(self.path)
        path = self.path.partition("?")[0]
        api, name = "/api/models/owner/repo/revision/", path.rpartition("/")[2]
        if path.startswith(api) and name in ("main", "v2"):
            siblings = [{"rfilename": file} for file in self.server.files]
            about = {"id": "owner/repo", "sha": "c" * 40, "siblings": siblings}
            about |= {"private": False, "downloads": 0, "likes": 0, "tags": []}  # older clients
            self.answer(200, json.dumps(about).encode(), body, {"Content-Type": "application/json"})
        elif path == "/api/models/owner/repo/tree/" + "c" * 40:  # which newer clients ask for
            entries = [
                {"type": "file", "path": file, "size": len(content), "oid": "0" * 40}
                for file, content in self.server.files.items()
            ]
            self.answer(
                200, json.dumps(entries).encode(), body, {"Content-Type": "application/json"}
            )
        elif path.startswith("/owner/repo/resolve/" + "c" * 40) and name in self.server.files:
            content = self.server.files[name]
            tag = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": "c" * 40}
            self.answer(200, content, body, tag)
        else:
            what = "Revision" if path.startswith(api) else "Repo"
            self.answer(404, b"", body, {"X-Error-Code": f"{what}NotFound"})

    def answer(self, status, content, body, headers):
        self.send_response(status)
        for key, value in (headers | {"Content-Length": str(len(content))}).items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(content if body is None else body)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch, saved):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        server.asked, server.files = [], {f.name: f.read_bytes() for f in saved.iterdir()}
        server.files["pytorch_model.bin"] = b"what is not asked for"
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        point_to(f"http://127.0.0.1:{server.server_port}", tmp_path, monkeypatch)
        yield server
        server.shutdown()


@pytest.mark.parametrize(
    ("source", "revision"),
    [
        ("owner/repo", "main"),
        ("hf://owner/repo", "main"),
        ("https://huggingface.co/owner/repo", "main"),
        ("https://huggingface.co/owner/repo/tree/v2", "v2"),
        ("owner/repo@v2", "v2"),
    ],
)
def test_repositories_of_the_hub(server, saved, source, revision):
    found = resolve(source)
    assert found.kind == "folder" and found.name is None
    fetched = {file.name: file.read_bytes() for file in found.path.iterdir()}
    assert fetched == {file.name: file.read_bytes() for file in saved.iterdir()}
    assert any(path.endswith(f"/revision/{revision}") for path in server.asked)


def test_what_was_fetched_is_found_without_a_network(server, tmp_path, monkeypatch):
    path = resolve("owner/repo").path
    asked = len(server.asked)
    for offline in (True, False):
        point_to("http://127.0.0.1:9", tmp_path, monkeypatch, offline)
        assert resolve("owner/repo").path == path
    assert len(server.asked) == asked


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("owner/other", "no such repository, or a private one"),
        ("owner/repo@v3", "no revision 'v3'"),
    ],
)
def test_what_the_hub_does_not_have_is_told(server, source, message):
    with pytest.raises(CATSegError, match=f"{source[:10]}.*{message}"):
        resolve(source)


def test_a_repository_of_something_else_is_told(server):
    del server.files["config.json"]
    with pytest.raises(CATSegError, match=r"owner/repo: no config\.json in this repository"):
        resolve("owner/repo")


@pytest.mark.parametrize("offline", [True, False])
def test_without_a_network_it_is_told_what_to_do(tmp_path, monkeypatch, offline):
    point_to("http://127.0.0.1:9", tmp_path, monkeypatch, offline)
    with pytest.raises(CATSegError, match=r"owner/repo: .*hub .*by other means"):
        resolve("owner/repo")
