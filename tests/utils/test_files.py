"""Atomic writing; fetching from servers of this test, and from nowhere."""

import hashlib
import http.server
import threading
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import pytest
from PIL import Image

from cat_seg import CATSeg
from cat_seg.errors import CATSegError
from cat_seg.images import find_inputs
from cat_seg.trust.weights import read_weights
from cat_seg.utils import files
from cat_seg.utils.files import FetchError, atomic_write, fetch, other_content
from tests.hub_client import point_to

CONTENT = bytes(range(256)) * 1000


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
    """Serves a folder; where a path has a fault's name in it, with that fault."""

    def do_GET(self):
        self.server.count += 1
        self.server.ranges.append(self.headers.get("Range"))
        fault = self.path.strip("/").partition(".")[0]
        getattr(self, f"send_{fault}", super().do_GET)()

    def start(self, status=200, **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()

    def send_short(self):  # promises more than it ever sends
        self.start(Content_Length=100)
        self.wfile.write(b"half")

    def send_broken(self):  # breaks off after a third of what is asked for
        first = int((self.headers.get("Range") or "bytes=0-")[6:-1])
        about = {"ETag": self.server.tag, "Content_Length": len(CONTENT) - first}
        self.start(206 if first else 200, **about)
        self.wfile.write(CONTENT[first : first + len(CONTENT) // 3 + 1])

    def send_drip(self):
        self.start(Content_Length=1000)
        self.drip(b"x")

    def send_slow_header(self):
        self.wfile.write(b"HTTP/1.0 200 OK\r\n")
        self.drip(b"x")

    def drip(self, byte):
        while not self.server.stopped.wait(0.05):
            self.wfile.write(byte)

    def send_page(self):
        self.start(Content_Type="text/html")
        self.wfile.write(b"please log in")

    def send_unnamed_page(self):
        self.start()
        self.wfile.write(b"\n<!DOCTYPE html><title>Log in</title>")

    def send_empty(self):
        self.start(Content_Length=0)

    def send_busy(self):
        if self.server.count < 3:
            self.start(503)
        else:
            self.start(Content_Length=2)
            self.wfile.write(b"ok")

    def send_endless(self):
        self.start()
        while not self.server.stopped.is_set():
            self.wfile.write(CONTENT)

    def send_slowly(self):
        time.sleep(0.3)
        self.start(Content_Length=2)
        self.wfile.write(b"ok")

    def handle(self):
        try:
            super().handle()
        except OSError:
            pass  # the other side has hung up, as it should

    def log_message(self, *args):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv("CAT_SEG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(files, "_PAUSE", 0.01)
    served = tmp_path / "served"
    served.mkdir()
    handler = partial(Handler, directory=str(served))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.count, server.folder, server.ranges, server.tag = 0, served, [], '"one"'
        server.stopped = threading.Event()
        server.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.stopped.set()
        server.shutdown()


def kept(tmp_path):
    """What was fetched, without what is left to go on from."""
    return [p.name for p in (tmp_path / "cache").rglob("[!.]*") if p.is_file()]


def test_fetch_downloads_once_and_checks_the_digest(server, tmp_path):
    (server.folder / "w.pth").write_bytes(b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()
    with pytest.raises(FetchError, match="SHA-256"):
        fetch(f"{server.url}/w.pth", sha256="0" * 64)
    path = fetch(f"{server.url}/w.pth", sha256=digest)
    assert fetch(f"{server.url}/w.pth") == path and server.count == 2
    assert path.read_bytes() == b"weights" and path.suffix == ".pth"
    assert path.is_relative_to(tmp_path / "cache")


def test_digests_in_addresses():
    digest = "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f"
    addresses = [
        f"https://openaipublic.azureedge.net/clip/models/{digest}/ViT-B-16.pt",
        "https://github.com/mlfoundations/open_clip/releases/download/v0.2-weights/"
        "vit_b_16-laion400m_e32-55e67d44.pt",
        "https://download.pytorch.org/models/resnet101-63fe2227.pth",
        "https://example.com/model-20230101.pth",  # a date, not a digest
    ]
    found = [[m["digest"] for p in files._DIGESTS if (m := p.match(a))] for a in addresses]
    assert found == [[digest], ["55e67d44"], ["63fe2227"], []]


def test_an_address_with_a_digest_is_held_to_it(server, tmp_path, monkeypatch):
    pattern = files.re.compile(r".*/(?P<digest>[0-9a-f]{64})/")
    monkeypatch.setattr(files, "_DIGESTS", (pattern,))
    for content, served in ((b"weights", b"weights"), (b"weights", b"wrong")):
        digest = hashlib.sha256(content).hexdigest()
        folder = server.folder / digest
        folder.mkdir(exist_ok=True)
        name = f"{served.decode()}.pt"
        (folder / name).write_bytes(served)
        if served == content:
            assert fetch(f"{server.url}/{digest}/{name}").read_bytes() == content
        else:
            with pytest.raises(FetchError, match=f"expected SHA-256 {digest}"):
                fetch(f"{server.url}/{digest}/{name}")
    assert len(kept(tmp_path)) == 1


def test_what_breaks_off_is_continued(server):
    path = fetch(f"{server.url}/broken.bin", sha256=hashlib.sha256(CONTENT).hexdigest())
    assert path.read_bytes() == CONTENT
    third = len(CONTENT) // 3 + 1
    assert [r for r in server.ranges if r] == [f"bytes={n * third}-" for n in (1, 2)]
    assert not list(path.parent.glob(".*.part"))


def test_the_next_call_continues_the_same_version_only(server, monkeypatch):
    monkeypatch.setattr(files, "_ATTEMPTS", 1)
    third = len(CONTENT) // 3 + 1
    with pytest.raises(FetchError, match=f"{third} of {len(CONTENT)} bytes"):
        fetch(f"{server.url}/broken.bin")
    server.tag = '"two"'  # the file on the server was replaced
    with pytest.raises(FetchError, match=f"{third} of {len(CONTENT)} bytes"):
        fetch(f"{server.url}/broken.bin")
    with pytest.raises(FetchError, match=f"{2 * third} of {len(CONTENT)} bytes"):
        fetch(f"{server.url}/broken.bin")
    path = fetch(f"{server.url}/broken.bin")
    assert path.read_bytes() == CONTENT and not list(path.parent.glob(".*.part"))


def test_fetch_keeps_nothing_of_a_broken_download(server, tmp_path):
    with pytest.raises(FetchError, match="4 of 100 bytes"):
        fetch(f"{server.url}/short.pth")
    assert server.count == files._ATTEMPTS and not kept(tmp_path)


@pytest.mark.parametrize("kind", ["drip", "slow_header"])
def test_a_server_that_drips_is_left_at_the_deadline(server, tmp_path, kind):
    start = time.monotonic()
    with pytest.raises(FetchError, match="time for it is over"):
        fetch(f"{server.url}/{kind}.pth", deadline=0.4)
    assert time.monotonic() - start < 3 and not kept(tmp_path)


@pytest.mark.parametrize(
    ("kind", "message"),
    [("page", "web page"), ("unnamed_page", "web page"), ("empty", "an empty file")],
)
def test_what_is_no_file_is_refused_and_not_kept(server, tmp_path, kind, message):
    with pytest.raises(FetchError, match=message):
        fetch(f"{server.url}/{kind}.pth")
    assert server.count == 1 and not kept(tmp_path)
    assert not list((tmp_path / "cache").rglob("*.part"))


def test_a_busy_server_is_asked_again(server):
    assert fetch(f"{server.url}/busy.txt").read_bytes() == b"ok" and server.count == 3


def test_larger_files_than_allowed_are_refused(server, tmp_path):
    (server.folder / "w.pth").write_bytes(bytes(1000))
    with pytest.raises(FetchError, match="1000 bytes are more than the 999"):
        fetch(f"{server.url}/w.pth", most_bytes=999)
    with pytest.raises(FetchError, match="are more than the 5000000"):
        fetch(f"{server.url}/endless.pth", most_bytes=5_000_000)
    assert not kept(tmp_path)


@pytest.mark.parametrize(
    "pool", [ThreadPoolExecutor, partial(ProcessPoolExecutor, mp_context=get_context("fork"))]
)
def test_six_threads_or_processes_make_one_download(server, pool):
    with pool(6) as six:
        paths = set(six.map(fetch, [f"{server.url}/slowly.txt"] * 6))
    assert server.count == 1 and paths.pop().read_bytes() == b"ok" and not paths


def test_fetched_weights_that_cannot_be_read_are_fetched_anew(server):
    (server.folder / "w.pth").write_bytes(b"PK\x03\x04 cut, and no length told")
    path = fetch(f"{server.url}/w.pth")
    with pytest.raises(CATSegError, match=r"damaged.*will be fetched anew"):
        read_weights(path)
    assert fetch(f"{server.url}/w.pth") == path and server.count == 2


def test_fetch_says_what_is_missing_and_how_to_provide_it(server, tmp_path):
    with pytest.raises(FetchError, match=r"absent\.pth.*404.*give its local path.*save it as"):
        fetch(f"{server.url}/absent.pth")
    with pytest.raises(FetchError, match="no such file"):
        fetch(tmp_path / "absent.pth")
    for address in ("hf://owner/file", "hf://", "hf://spaces", "hf://o//f"):
        with pytest.raises(FetchError, match="hf://owner/repo/file"):
            fetch(address)
    for address in ("http://", "https://[", "http://a b/c"):
        with pytest.raises(FetchError, match="Cannot fetch"):
            fetch(address)


def test_without_a_network_it_fails_at_once(tmp_path, monkeypatch):
    monkeypatch.setenv("CAT_SEG_CACHE", str(tmp_path))
    point_to("http://127.0.0.1:9", tmp_path, monkeypatch)
    start = time.monotonic()
    with pytest.raises(FetchError, match=r"hf://o/r/a/b\.pth .*/o/r/resolve/main/a/b\.pth"):
        fetch("hf://o/r/a/b.pth")
    with pytest.raises(FetchError, match=r"127\.0\.0\.1:9/w\.pth .*refused.*local path"):
        fetch("http://127.0.0.1:9/w.pth")
    assert time.monotonic() - start < 3


def test_offline_mode_is_told(tmp_path, monkeypatch):
    point_to("http://127.0.0.1:9", tmp_path, monkeypatch, offline=True)
    with pytest.raises(FetchError, match=r"hf://spaces/o/r/f .*offline.*spaces/o/r/resolve"):
        fetch("hf://spaces/o/r/f")


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub as serves one file of a repository."""

    def do_HEAD(self):
        self.server.asked.append((self.path, self.headers.get("Authorization")))
        self.send_response(200)
        self.send_header("X-Repo-Commit", "c" * 40)
        self.send_header("ETag", f'"{hashlib.sha256(b"weights").hexdigest()}"')
        self.send_header("Content-Length", "7")
        self.end_headers()

    def do_GET(self):
        self.do_HEAD()
        self.wfile.write(self.server.content)

    def log_message(self, *args):
        pass


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        server.content, server.asked = b"weights", []
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        point_to(f"http://127.0.0.1:{server.server_port}", tmp_path, monkeypatch)
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        yield server
        server.shutdown()


def test_hub_files_come_through_its_client(hub):
    path = fetch("hf://spaces/o/r/a/b.pth")
    assert path.read_bytes() == b"weights" and path.name == "b.pth"
    assert hub.asked[0] == ("/spaces/o/r/resolve/main/a/b.pth", "Bearer hf_secret")
    fetched = len(hub.asked)
    assert fetch("hf://spaces/o/r/a/b.pth") == path
    hub.shutdown()
    hub.server_close()
    assert fetch("hf://spaces/o/r/a/b.pth") == path and len(hub.asked) == fetched + 1


def test_addresses_copied_from_the_browser_go_through_the_client(hub):
    page = "https://huggingface.co/o/r/blob/v1%2E0/a/b.pth?download=true"
    assert fetch(page).read_bytes() == b"weights"
    assert hub.asked[0][0] == "/o/r/resolve/v1.0/a/b.pth"


def test_hub_files_are_held_against_their_digest(hub, tmp_path):
    hub.content = b"weighed"
    for _ in range(2):  # it is not kept
        with pytest.raises(FetchError, match="SHA-256"):
            fetch("hf://o/r/b.pth")
    hub.content = b"weights"
    assert fetch("hf://o/r/b.pth").read_bytes() == b"weights"


def test_local_path_is_returned(tmp_path):
    (tmp_path / "a").touch()
    assert fetch(tmp_path / "a") == tmp_path / "a"


def test_other_content():
    assert "web page" in other_content(b"\xef\xbb\xbf \n<HTML>")
    assert "git lfs pull" in other_content(b"version https://git-lfs.github.com/spec/v1\n")
    assert "empty" in other_content(b"")
    assert other_content(b"PK\x03\x04") is None


def test_a_user_without_a_home(monkeypatch, tmp_path, caplog):
    def nobody(uid):
        raise KeyError(uid)

    monkeypatch.delenv("HOME")
    monkeypatch.delenv("CAT_SEG_CACHE", raising=False)
    monkeypatch.setattr("pwd.getpwuid", nobody)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FetchError, match=r"no home folder to keep files in: set .* CAT_SEG_CACHE"):
        fetch("http://127.0.0.1:1/model.pth")
    (tmp_path / "weights.pth").write_bytes(b"nothing")
    with pytest.raises(CATSegError, match="not a weight file"):
        read_weights("weights.pth")
    Image.new("RGB", (64, 48)).save("~me.png")  # no such user's home, but a file
    result = CATSeg.from_pretrained("synthetic", "cpu").predict("~me.png", ["red", "grass"])
    assert result.labels.shape == (48, 64)
    assert "not kept for next time: This user has no home folder" in caplog.text
    assert [found for found, _ in find_inputs(["~me.png"])] == [Path("~me.png")]
    assert {path.name for path in tmp_path.iterdir()} == {"~me.png", "weights.pth"}
