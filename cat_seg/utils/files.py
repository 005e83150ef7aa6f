"""Files that are written whole or not at all, and files that are fetched once."""

import contextlib
import hashlib
import http.client
import logging
import os
import secrets
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import huggingface_hub
from tqdm import tqdm

logger = logging.getLogger(__name__)

_TIMEOUT = 5  # seconds without an answer
_BLOCK = 1 << 20  # bytes read at a time


class FetchError(ValueError):
    """A file could not be brought here; the message says which, why, and what to do."""


@contextlib.contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Writes a file so that it appears under its name only when it is complete.

    Yields a path in the same folder, with the same suffix, to write to. On success it is
    renamed to `path` (replacing what was there); on an error it is removed and `path` is as before.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.stem}.{secrets.token_hex(4)}{path.suffix}")
    try:
        yield part
        with open(part, "rb") as written:
            os.fsync(written.fileno())  # the rename must not reach the disk before the content
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def cache_folder() -> Path:
    """Where fetched and computed files are kept: $CAT_SEG_CACHE, else ~/.cache/cat_seg."""
    return Path(os.environ.get("CAT_SEG_CACHE") or "~/.cache/cat_seg").expanduser()


def fetch(uri: str | Path, *, sha256: str | None = None) -> Path:
    """Returns a local file for a path or an address, downloading it at most once.

    Args:
        uri: A local path, an http(s) URL, or `hf://owner/repo/file` (a space's file:
            `hf://spaces/owner/repo/file`).
        sha256: Expected digest of a downloaded file, in hex.

    Raises:
        FetchError: There is no such file, the address is malformed or cannot be reached, or
            what came is incomplete or has another digest.
    """
    uri = str(uri)
    if not uri.startswith(("http://", "https://", "hf://")):
        path = Path(uri).expanduser()
        if not path.is_file():
            raise FetchError(
                f"{uri}: no such file; give a local file, a URL or hf://owner/repo/file"
            )
        return path
    url = _hub_url(uri) if uri.startswith("hf://") else uri
    name = Path(urlsplit(url).path)
    digest = hashlib.sha256(url.encode()).hexdigest()[:8]  # same name from another place
    target = cache_folder() / "downloads" / f"{name.stem}-{digest}{name.suffix}"
    if not target.exists():
        try:
            _download(url, target, sha256)
        except (OSError, http.client.HTTPException, FetchError) as error:
            raise FetchError(
                f"Cannot fetch {uri} ({error}): download {url} by other means, and give its local "
                f"path instead or save it as {target}"
            ) from error
    return target


def _hub_url(uri: str) -> str:
    """hf://[spaces/ | datasets/]owner/repo/file -> URL on the hub ($HF_ENDPOINT)."""
    parts = uri.removeprefix("hf://").split("/")
    kind = parts.pop(0).removesuffix("s") if parts[0] in ("spaces", "datasets") else None
    if len(parts) < 3 or not all(parts):
        raise FetchError(f"{uri}: expected hf://owner/repo/file")
    owner, repo, *file = parts
    return huggingface_hub.hf_hub_url(f"{owner}/{repo}", "/".join(file), repo_type=kind)


def _download(url: str, target: Path, sha256: str | None) -> None:
    """Streams `url` into `target`, with a progress bar; checks its length and digest."""
    request = urllib.request.Request(url, headers={"User-Agent": "cat_seg"})
    hasher = hashlib.sha256()
    with urllib.request.urlopen(request, timeout=_TIMEOUT) as answer, atomic_write(target) as part:
        size = int(answer.headers.get("Content-Length") or 0)
        bar = tqdm(total=size or None, unit="B", unit_scale=True, desc=target.name)
        with bar, open(part, "wb") as file:
            while block := answer.read(_BLOCK):
                file.write(block)
                hasher.update(block)
                bar.update(len(block))
            if size and file.tell() != size:
                raise FetchError(f"broken off after {file.tell()} of {size} bytes")
        if sha256 and hasher.hexdigest() != sha256.lower():
            raise FetchError(f"expected SHA-256 {sha256}, what came has {hasher.hexdigest()}")
    logger.info("Fetched %s into %s", url, target)
