"""Files that are written whole or not at all, and files that are fetched once.

Files of the Hugging Face hub go through huggingface_hub, which knows tokens, mirrors, offline mode,
locks, and where a transfer broke off. Any other URL is fetched here, with the same care.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import http.client
import io
import logging
import os
import re
import secrets
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import huggingface_hub
from filelock import FileLock, Timeout
from PIL.Image import Image
from PIL.Image import registered_extensions as picture_formats
from tqdm import tqdm

from cat_seg.errors import CATSegError
from cat_seg.resources import user_path

logger = logging.getLogger(__name__)

_TIMEOUT = 10.0  # seconds without a byte
_DEADLINE = 6 * 3600.0  # seconds for the whole of a file
_MOST_BYTES = 64 << 30  # the largest CLIP that open_clip lists has some 20 GB
_ATTEMPTS = 5  # at a server that has answered once
_PAUSE = 0.5  # seconds before the second of them; twice as long before each other
LOCK = ".cat-seg.lock"  # in a folder of results, held by the run that writes there
_PART = ".cat-seg."  # beginning of the names of files that are being written
_BLOCK = 1 << 20  # bytes read at a time
_HUB_PAGE = re.compile(
    r"https://huggingface\.co/(?P<kind>spaces/|datasets/)?(?P<repo>[^/]+/[^/]+)"
    r"/(?:resolve|blob|raw)/(?P<revision>[^/]+)/(?P<file>[^?#]+)"
)
# OpenAI puts the whole SHA-256 of a file into its URL, open_clip and torchvision its beginning.
_DIGESTS = (
    re.compile(r"^https://openaipublic\.\S+/(?P<digest>[0-9a-f]{64})/[^/]+$"),
    re.compile(r"^https://github\.com/mlfoundations/open_clip/\S+-(?P<digest>[0-9a-f]{8})\.pth?$"),
    re.compile(r"^https://download\.pytorch\.org/models/\S+-(?P<digest>[0-9a-f]{8})\.pth$"),
)


class FetchError(CATSegError):
    """A file could not be brought here; the message says which, why, and what to do."""


@contextlib.contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Write a file so that it appears under its name only when it is complete.

    Yields a path in the same folder, with the same suffix, to write to. On success it is
    renamed to `path` (replacing what was there); on an error it is removed and `path` is as before.
    What a killed process leaves, `remove_parts` removes.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not of the name itself, which may be as long as a name can be.
    part = path.with_name(f"{_PART}{secrets.token_hex(8)}{path.suffix}")
    try:
        yield part
        _replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_picture(path: str | Path, picture: Image, **options: Any) -> None:
    """Write a picture (PIL) in the format of its suffix, complete or not at all.

    Args:
        path: the file.
        picture: what is written.
        options: of Pillow's `save`.

    Raises:
        OSError: if it cannot be written. On a full disk Pillow itself cuts a JPEG in silence, since
            it does not look how much of a block was written.
    """
    buffer = io.BytesIO()
    kind = picture_formats()[Path(path).suffix.lower()]
    picture.save(buffer, format=kind, **options)
    with atomic_write(path) as part:
        part.write_bytes(buffer.getbuffer())


def _replace(part: Path, path: Path) -> None:
    with open(part, "rb") as written:
        os.fsync(written.fileno())  # the rename must not reach the disk before the content
    os.replace(part, path)


def remove_parts(folder: Path, *, recursive: bool = False) -> None:
    """Remove what killed processes left in a folder where no other one writes now."""
    pattern = f"{_PART}{'[0-9a-f]' * 16}*"
    for part in folder.rglob(pattern) if recursive else folder.glob(pattern):
        part.unlink(missing_ok=True)


def digest(path: str | Path) -> str:
    """Return the SHA-256 of a file, in hex."""
    hasher = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            hasher.update(block)
    return hasher.hexdigest()


def cache_folder() -> Path:
    """Where fetched and computed files are kept: $CAT_SEG_CACHE, else ~/.cache/cat_seg.

    Raises:
        FetchError: if the user has no home folder, as in some containers, and none is named.
    """
    folder = user_path(os.environ.get("CAT_SEG_CACHE") or "~/.cache/cat_seg")
    if folder.parts[0].startswith("~"):
        raise FetchError(
            "This user has no home folder to keep files in: set the environment variable "
            "CAT_SEG_CACHE to a folder."
        )
    return folder


def other_content(head: bytes) -> str | None:
    """Tell what came instead of a file that was fetched, or fetched by hand.

    Args:
        head: the beginning of the file.

    Returns:
        In words, with what to do about it; None if nothing seems wrong.
    """
    if not head:
        return "an empty file"
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype html", b"<html", b"<head", b"<?xml")):
        return "a web page (follow the link to the file itself, or log in)"
    if start.startswith(b"version https://git-lfs"):
        return "a pointer of Git LFS (run `git lfs pull`, or download the file itself)"
    return None


def fetch(
    uri: str | Path,
    *,
    sha256: str | None = None,
    deadline: float = _DEADLINE,
    most_bytes: int = _MOST_BYTES,
) -> Path:
    """Find a local file for a path or an address, downloading it at most once.

    Args:
        uri: a local path, an http(s) URL, or `hf://owner/repo/file` (a space's file:
            `hf://spaces/owner/repo/file`; another revision: `hf://owner/repo@revision/file`).
        sha256: expected digest of a downloaded file, in hex, or its beginning. Where an address is
            known to hold it, it is taken from there.
        deadline: seconds for the whole of it, waiting for another process included. What has come
            by then is kept, and the next call goes on from there.
        most_bytes: larger files are refused.

    Raises:
        FetchError: There is no such file, the address is malformed or cannot be reached, or
            what came is incomplete, has another digest, or is a web page.
    """
    uri = str(uri)
    if uri.startswith("hf://"):
        return _fetch_from_hub(uri, sha256, most_bytes)
    if page := _HUB_PAGE.match(uri):  # what people copy from the browser
        kind, repo, revision, file = page.groups("")
        uri = f"hf://{kind}{repo}@{unquote(revision)}/{unquote(file)}"
        return _fetch_from_hub(uri, sha256, most_bytes)
    if not uri.startswith(("http://", "https://")):
        path = user_path(uri)
        if not path.is_file():
            raise FetchError(
                f"{uri}: no such file; give a local file, a URL or hf://owner/repo/file"
            )
        return path
    target = _downloads() / _local_name(uri)
    if not target.exists():
        known = (pattern.match(uri) for pattern in _DIGESTS)
        sha256 = sha256 or next((found["digest"] for found in known if found), None)
        try:
            _Download(uri, target, sha256, time.monotonic() + deadline, most_bytes).run()
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise FetchError(
                f"Cannot fetch {uri} ({error}): download it by other means, and give its local "
                f"path instead or save it as {target}"
            ) from error
    return target


def set_aside(path: Path) -> str:
    """Rename a file that cannot be read, if it was fetched here, so that it is fetched anew.

    Returns:
        What was done, to be added to an error; empty if nothing.
    """
    with contextlib.suppress(FetchError):  # without a folder for it, nothing was fetched
        if path.parent == _downloads():
            return _set_aside(path)
    return ""


def _set_aside(path: Path) -> str:
    aside = path.with_name(f"{path.name}.unreadable")
    try:
        path.replace(aside)
    except OSError:
        return f"; it was fetched, remove {path} to fetch it anew"
    return f"; it was fetched, is now {aside.name}, and will be fetched anew next time"


def _downloads() -> Path:
    return cache_folder() / "downloads"


def _local_name(url: str) -> str:
    name = re.sub(r"[^\w.-]", "_", unquote(re.sub(r"[?#].*", "", url)).rpartition("/")[2]) or "file"
    stem, dot, suffix = name.rpartition(".")
    digest = hashlib.sha256(url.encode()).hexdigest()[:8]  # same name from another place
    return f"{(stem if dot else name)[:100]}-{digest}{dot}{suffix[:20] if dot else ''}"


def _fetch_from_hub(uri: str, sha256: str | None, most_bytes: int) -> Path:
    """Find hf://[spaces/ | datasets/]owner/repo[@revision]/file in the hub's cache, or fetch it."""
    parts = uri.removeprefix("hf://").split("/")
    kind = parts.pop(0).removesuffix("s") if parts[0] in ("spaces", "datasets") else None
    if len(parts) < 3 or not all(parts):
        raise FetchError(f"{uri}: expected hf://owner/repo/file")
    owner, name, *rest = parts
    name, _, revision = name.partition("@")
    repo, file = f"{owner}/{name}", "/".join(rest)
    where: dict[str, Any] = {"repo_type": kind, "revision": revision or None}
    url = huggingface_hub.hf_hub_url(repo, file, **where)
    try:
        if isinstance(huggingface_hub.try_to_load_from_cache(repo, file, **where), str):
            return Path(huggingface_hub.hf_hub_download(repo, file, **where))
        # Fails at once where hf_hub_download would ask for half a minute.
        about = huggingface_hub.get_hf_file_metadata(url, timeout=_TIMEOUT)
        if about.size and about.size > most_bytes:
            raise FetchError(_too_large(about.size, most_bytes))
        path = Path(huggingface_hub.hf_hub_download(repo, file, **where))
        if problem := _wrong(path, sha256 or _digest_of(about.etag)):
            path.resolve().unlink()  # a link to it is left, which the client renews
            raise FetchError(problem)
    except Exception as error:  # of the hub's client, its HTTP library, or the file system
        problem = str(error).strip().partition("\n")[0] or type(error).__name__
        raise FetchError(
            f"Cannot fetch {uri} ({problem}): download {url} by other means, and give its local "
            "path instead"
        ) from error
    return path


def _digest_of(etag: str | None) -> str | None:
    """The SHA-256 that the hub gives for the version of a large file."""
    return etag if etag and re.fullmatch(r"[0-9a-f]{64}", etag) else None


def _too_large(size: int, most_bytes: int) -> str:
    return f"its {size} bytes are more than the {most_bytes} that are allowed"


def _wrong(path: Path, sha256: str | None) -> str | None:
    """What is wrong with a file that came; None if nothing."""
    hasher = hashlib.sha256()
    with open(path, "rb") as file:
        if problem := other_content(file.read(512)):
            return f"what came is {problem}"
        file.seek(0)
        while sha256 and (block := file.read(_BLOCK)):
            hasher.update(block)
    if not sha256 or hasher.hexdigest().startswith(sha256.lower()):
        return None
    return f"expected SHA-256 {sha256}, what came has {hasher.hexdigest()}"


class _BrokenOff(FetchError):
    """The transfer ended early; there is sense in asking again."""


class _Download:
    """The transfer of one URL into one file, by one process at a time."""

    def __init__(
        self, url: str, target: Path, sha256: str | None, ends: float, most_bytes: int
    ) -> None:
        self.url, self.target, self.sha256 = url, target, sha256
        self.ends, self.most_bytes = ends, most_bytes
        self._answered = False

    def run(self) -> None:
        """Fetch the file, unless another process does so while this one waits."""
        self.target.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.target.with_name(f".{self.target.name}.lock"))
        try:
            with lock.acquire(timeout=self._left()):
                if not self.target.exists():
                    self._try_often()
        except Timeout:
            raise FetchError("another process is still fetching it") from None

    def _left(self) -> float:
        if (left := self.ends - time.monotonic()) <= 0:
            raise FetchError("the time for it is over; the next call goes on from here")
        return left

    def _try_often(self) -> None:
        for attempt in range(_ATTEMPTS):
            try:
                with url_opener(self._left()) as opener:
                    return self._try(opener)
            except _BrokenOff as error:
                pause = min(_PAUSE * 2**attempt, self._left())
                if attempt == _ATTEMPTS - 1:
                    raise
                logger.warning("%s: %s; trying again in %.1f s", self.url, error, pause)
                time.sleep(pause)

    def _try(self, opener: urllib.request.OpenerDirector) -> None:
        """Fetch all, or what an earlier try left to fetch of the same version."""
        answer = self._ask(opener, {})
        version = answer.headers.get("ETag") or answer.headers.get("Last-Modified") or ""
        size = int(answer.headers.get("Content-Length") or 0)
        if answer.headers.get_content_type() == "text/html":
            raise FetchError(f"what came is {other_content(b'<html')}")
        if size > self.most_bytes:
            raise FetchError(_too_large(size, self.most_bytes))
        # The name tells the version: the rest of one must not be added to another.
        mark = hashlib.sha256(f"{version} {size}".encode()).hexdigest()[:8]
        part = self.target.with_name(f".{self.target.name}.{mark}.part")
        have = part.stat().st_size if version and part.exists() else 0
        if 0 < have < size:
            answer.close()
            answer = self._ask(opener, {"Range": f"bytes={have}-", "If-Range": version})
        with answer:
            self._receive(answer, part, size)
        self._left()  # a connection that was cut looks like an end where no length is known
        if problem := _wrong(part, self.sha256):
            part.unlink()
            raise FetchError(problem)
        _replace(part, self.target)
        for left in self.target.parent.glob(f".{glob.escape(self.target.name)}.*.part"):
            left.unlink(missing_ok=True)  # of other versions
        logger.info("Fetched %s into %s", self.url, self.target)

    def _ask(self, opener: urllib.request.OpenerDirector, headers: dict[str, str]) -> Any:
        request = urllib.request.Request(self.url, headers={"User-Agent": "cat_seg", **headers})
        try:
            answer = opener.open(request, timeout=min(_TIMEOUT, self._left()))
        except urllib.error.HTTPError as error:
            if error.code == 429 or error.code >= 500:
                raise _BrokenOff(str(error)) from error
            raise
        except (OSError, http.client.HTTPException) as error:
            if self._answered:
                raise _BrokenOff(str(error)) from error
            raise  # without a network, and where there is no such server, say so at once
        self._answered = True
        return answer

    def _receive(self, answer: Any, part: Path, size: int) -> None:
        continued = answer.status == 206
        with open(part, "ab" if continued else "wb") as file:
            have = file.tell()
            with tqdm(
                total=size or None,
                initial=have,
                unit="B",
                unit_scale=True,
                desc=self.target.name,
                disable=None,  # unless on a terminal
            ) as bar:
                for block in _blocks(answer):
                    file.write(block)
                    bar.update(len(block))
                    have += len(block)
                    if have > self.most_bytes:
                        raise FetchError(_too_large(have, self.most_bytes))
        if size and have != size:
            raise _BrokenOff(f"broken off after {have} of {size} bytes")


@contextlib.contextmanager
def url_opener(seconds: float) -> Iterator[urllib.request.OpenerDirector]:
    """Yield an opener of http and https alone, whose connections are cut when the time is over.

    A timeout alone has no end: a server may send a byte a second, of the header or of the body.
    What was cut looks like the end of a body whose length is not known.
    """
    sockets: list[socket.socket] = []

    def tracked(kind: Any) -> Any:
        class Connection(kind):  # type: ignore[misc]
            def connect(self) -> None:
                super().connect()
                sockets.append(self.sock)

        return Connection

    class Http(urllib.request.HTTPHandler):
        def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
            return self.do_open(tracked(http.client.HTTPConnection), req)

    class Https(urllib.request.HTTPSHandler):
        def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
            return self.do_open(tracked(http.client.HTTPSConnection), req)

    def cut() -> None:
        for one in sockets:
            with contextlib.suppress(OSError):
                # Not SSL's own, which would let what is on its way through undeciphered.
                socket.socket.shutdown(one, socket.SHUT_RDWR)

    timer = threading.Timer(seconds, cut)
    timer.daemon = True
    timer.start()
    try:
        opener = urllib.request.OpenerDirector()
        for handler in (
            *(urllib.request.ProxyHandler, Http, Https, urllib.request.UnknownHandler),
            *(urllib.request.HTTPDefaultErrorHandler, urllib.request.HTTPErrorProcessor),
            urllib.request.HTTPRedirectHandler,
        ):
            opener.add_handler(handler())
        yield opener
    finally:
        timer.cancel()


def _blocks(answer: Any) -> Iterator[bytes]:
    try:
        while block := answer.read1(_BLOCK):  # what is there, without waiting for a whole block
            yield block
    except (OSError, http.client.HTTPException) as error:
        raise _BrokenOff(f"broken off ({error or type(error).__name__})") from error
