"""Where many pictures come from: folders, lists, tar shards, Parquet, and any of them at a URL."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from cat_seg import images
from cat_seg.errors import CATSegError, MissingPackageError

PICTURES = 64  # of a unit


@dataclass(frozen=True)
class Unit:
    """A part of a source that is done at once.

    Attributes:
        number: counted from 0 over the whole source.
        kind: "pictures", "tar" or "parquet".
        places: paths or URLs: of the pictures, or of the one file that holds them.
        keys: what the pictures' outputs are called; () for those of a file, which names its own.
    """

    number: int
    kind: str
    places: tuple[str, ...]
    keys: tuple[str, ...] = ()

    def pictures(self, column: str = "image") -> Iterator[tuple[str, str | bytes]]:
        """Yield each picture's key, and its path or content.

        Args:
            column: of Parquet, where the pictures are.

        Raises:
            CATSegError: if the file that holds them cannot be read.
        """
        if self.kind == "pictures":
            for key, place in zip(self.keys, self.places, strict=True):
                yield key, _content(place) if "://" in place else place
            return
        read = _tar if self.kind == "tar" else _parquet
        (place,) = self.places
        stem = PurePosixPath(place).stem
        try:
            with _opened(place) as file:
                for key, content in read(file, column):
                    yield f"{stem}/{key}", content
        except (OSError, tarfile.TarError, KeyError, ValueError) as error:
            if isinstance(error, MissingPackageError):
                raise
            raise CATSegError(f"{place}: cannot be read as {self.kind} ({error}).") from error


def find_units(source: str) -> list[Unit]:
    """List a source's units.

    Args:
        source: a folder, a glob, a picture, or a URL of them (s3://bucket/folder); what ends in
            .tar or .parquet, or a glob or folder of such; a text file with a path or URL a line.

    Raises:
        CATSegError: if there is nothing.
    """
    remote = "://" in source
    path = Path(source)
    if not remote and path.suffix.lower() == ".txt" and path.is_file():
        lines = [line.strip() for line in path.read_text("utf-8").splitlines()]
        places = [line if "://" in line else str(path.parent / line) for line in lines if line]
        keys = [f"{number:09d}_{PurePosixPath(p).stem}" for number, p in enumerate(places)]
        return _chunks(places, keys)
    files = _listed(source) if remote else []
    holders = files if remote else _holders(path)
    for kind in ("tar", "parquet"):
        found = [name for name in holders if name.lower().endswith(f".{kind}")]
        if found:
            return [Unit(number, kind, (name,)) for number, name in enumerate(sorted(found))]
    if remote:
        places = sorted(f for f in files if PurePosixPath(f).suffix.lower() in images.SUFFIXES)
        common = len(source.split("*")[0].rsplit("/", 1)[0]) + 1
        keys = [_safe(PurePosixPath(place[common:])) for place in places]
    else:
        pairs = [(file, key) for file, key in images.find_inputs([source]) if file.is_file()]
        places, keys = [str(file) for file, _ in pairs], [key.as_posix() for _, key in pairs]
    if not places:
        raise CATSegError(
            f"{source}: no pictures there; expected a folder, a glob, a list (.txt), tar shards, "
            "Parquet, or a URL of them."
        )
    return _chunks(places, keys)


def _chunks(places: Sequence[str], keys: Sequence[str]) -> list[Unit]:
    starts = range(0, len(places), PICTURES)
    return [
        Unit(number, "pictures", tuple(places[a : a + PICTURES]), tuple(keys[a : a + PICTURES]))
        for number, a in enumerate(starts)
    ]


def _holders(path: Path) -> list[str]:
    """List files that may be tar shards or Parquet."""
    if path.is_dir():
        return [str(p) for kind in ("tar", "parquet") for p in path.glob(f"*.{kind}")]
    if path.is_file():
        return [str(path)]
    root = Path(*[part for part in path.parts if "*" not in part and "?" not in part])
    if root == path or not root.is_dir():
        return []
    return [str(p) for p in root.glob(str(path.relative_to(root))) if p.is_file()]


def _tar(file: BinaryIO, column: str) -> Iterator[tuple[str, bytes]]:
    """Read a shard's pictures in their order, whatever else a sample has."""
    with tarfile.open(fileobj=file, mode="r|*") as tar:
        for member in tar:
            name = PurePosixPath(member.name)
            if member.isfile() and name.suffix.lower() in images.SUFFIXES:
                content = tar.extractfile(member)
                assert content is not None
                yield _safe(name.with_suffix("")), content.read()


def _parquet(file: BinaryIO, column: str) -> Iterator[tuple[str, bytes]]:
    """Read a column of pictures: bytes, or Hugging Face's struct of bytes and path."""
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise MissingPackageError.of_extra("Parquet files", "pyarrow", "label") from error
    opened = parquet.ParquetFile(file)
    if column not in opened.schema_arrow.names:
        names = ", ".join(opened.schema_arrow.names)
        raise CATSegError(f"there is no column {column!r} but {names}; give --column")
    number = 0
    for batch in opened.iter_batches(PICTURES, columns=[column]):
        for value in batch.column(0).to_pylist():
            content: Any = value["bytes"] if isinstance(value, dict) else value
            yield f"{number:09d}", content if isinstance(content, bytes) else b""
            number += 1


def _safe(name: PurePosixPath) -> str:
    """Return a name from a file of strangers as one that stays inside a folder."""
    return "/".join(part for part in name.parts if part not in ("/", "..", "."))


def _opened(place: str) -> BinaryIO:
    if "://" not in place:
        return open(place, "rb")
    return io.BytesIO(_content(place))


def _content(place: str) -> bytes:
    try:
        with _fsspec().open(place, "rb") as file:
            content: bytes = file.read()
    except (OSError, ValueError) as error:
        raise CATSegError(f"{place}: cannot be read ({error}).") from error
    return content


def _listed(url: str) -> list[str]:
    """List the files below a URL, or that a glob matches."""
    try:
        system, path = _fsspec().core.url_to_fs(url)
        if "*" in path:
            found = system.glob(path)
        else:
            found = system.find(path) or [path]
        return [system.unstrip_protocol(name) for name in found]
    except (OSError, ValueError, ImportError) as error:
        raise CATSegError(f"{url}: cannot be listed ({error}).") from error


def _fsspec() -> Any:
    try:
        import fsspec
    except ImportError as error:
        raise MissingPackageError.of_extra("URLs", "fsspec", "label") from error
    return fsspec
