"""Atomic writing; fetching from a server of this test, and from nowhere."""

import functools
import hashlib
import http.server
import threading
import time

import pytest

from cat_seg.utils import files
from cat_seg.utils.files import FetchError, atomic_write, fetch


def test_atomic_write_replaces_only_when_complete(tmp_path):
    path = tmp_path / "new" / "a.txt"
    with atomic_write(path) as part:
        part.write_text("one")
        assert part.suffix == ".txt" and not path.exists()
    with pytest.raises(RuntimeError), atomic_write(path) as part:
        part.write_text("half")
        raise RuntimeError
    assert path.read_text() == "one"
    assert list(path.parent.iterdir()) == [path]


class Handler(http.server.SimpleHTTPRequestHandler):
    def do_GET(self):
        self.server.count += 1
        if "short" in self.path:  # promises more than it sends
            self.send_response(200)
            self.send_header("Content-Length", "100")
            self.end_headers()
            self.wfile.write(b"half")
        else:
            super().do_GET()

    def log_message(self, *args):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv("CAT_SEG_CACHE", str(tmp_path / "cache"))
    served = tmp_path / "served"
    served.mkdir()
    handler = functools.partial(Handler, directory=str(served))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.count, server.folder = 0, served
        server.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def test_fetch_downloads_once_and_checks_the_digest(server, tmp_path):
    (server.folder / "w.pth").write_bytes(b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()
    with pytest.raises(FetchError, match="SHA-256"):
        fetch(f"{server.url}/w.pth", sha256="0" * 64)
    path = fetch(f"{server.url}/w.pth", sha256=digest)
    assert fetch(f"{server.url}/w.pth") == path and server.count == 2
    assert path.read_bytes() == b"weights" and path.suffix == ".pth"
    assert path.is_relative_to(tmp_path / "cache")


def test_fetch_keeps_nothing_of_a_broken_download(server, tmp_path):
    with pytest.raises(FetchError, match="4 of 100 bytes"):
        fetch(f"{server.url}/short.pth")
    assert not [p for p in (tmp_path / "cache").rglob("*") if p.is_file()]


def test_fetch_says_what_is_missing_and_how_to_provide_it(server, tmp_path):
    with pytest.raises(FetchError, match=r"absent\.pth.*404.*give its local path.*save it as"):
        fetch(f"{server.url}/absent.pth")
    with pytest.raises(FetchError, match="no such file"):
        fetch(tmp_path / "absent.pth")
    with pytest.raises(FetchError, match="hf://owner/repo/file"):
        fetch("hf://owner/file")


def test_fetch_offline_fails_fast(tmp_path, monkeypatch):
    monkeypatch.setenv("CAT_SEG_CACHE", str(tmp_path))

    def no_network(*args, **kwargs):
        raise OSError("Name or service not known")

    monkeypatch.setattr(files.urllib.request, "urlopen", no_network)
    start = time.monotonic()
    with pytest.raises(FetchError, match=r"hf://o/r/a/b\.pth .*/o/r/resolve/main/a/b\.pth"):
        fetch("hf://o/r/a/b.pth")
    assert time.monotonic() - start < 3


def test_hub_addresses():
    assert files._hub_url("hf://o/r/f").endswith("/o/r/resolve/main/f")
    assert files._hub_url("hf://spaces/o/r/f").endswith("/spaces/o/r/resolve/main/f")


def test_local_path_is_returned(tmp_path):
    (tmp_path / "a").touch()
    assert fetch(tmp_path / "a") == tmp_path / "a"
