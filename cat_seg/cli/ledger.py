"""A folder's record of what was written into it, so that work is done once and files are safe.

One line of JSON is added before the files of a picture are written, and one after. A file is ours
to replace if a line names it and its content is still what was written.
"""

from __future__ import annotations

import contextlib
import json
import os
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

from filelock import FileLock, Timeout

from cat_seg.errors import CATSegError
from cat_seg.utils.files import LOCK, atomic_write, digest, remove_parts

NAME = "cat-seg.jsonl"
_HEADER = {"cat-seg": "what was written into this folder, by which picture, model and words"}


class Ledger:
    """The record of one folder.

    Attributes:
        folder: of the outputs.
    """

    def __init__(self, folder: Path) -> None:
        """Read what is there already.

        Raises:
            CATSegError: if the file of that name is none of ours, or cannot be read.
        """
        self.folder = folder
        self._done: dict[str, dict[str, Any]] = {}  # by output
        self._files: dict[str, str | None] = {}  # name -> digest, None while it is being written
        self._file: TextIO | None = None
        self._lock: FileLock | None = None
        for record in _records(folder / NAME):
            self._take(record)

    def result(self, output: Path, job: dict[str, Any]) -> dict[str, Any] | None:
        """Return what `finish` was told of an output if it is there, made by the same job."""
        record = self._done.get(output.as_posix())
        if record is None or record["job"] != job:
            return None
        files = [self.folder / name for name in record["files"]]
        if not all(file.is_file() and file.stat().st_size for file in files):
            return None
        result: dict[str, Any] = record["result"]
        return result

    def wrote(self, path: Path) -> bool:
        """Tell whether a file in the folder is ours, with the content that we gave it."""
        name = Path(os.path.relpath(path, self.folder)).as_posix()
        if name not in self._files:
            return False
        expected = self._files[name]
        if expected is None:
            return True
        # A crash of the machine may leave a file empty; then nobody's work is in it.
        return path.is_file() and (not path.stat().st_size or expected == digest(path))

    def __enter__(self) -> Ledger:
        """Make the folder, keep other processes out of it, and get ready to write.

        Raises:
            CATSegError: if that cannot be done, or another process writes there.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(NotImplementedError):  # of file systems without locks
                self._lock = FileLock(self.folder / LOCK)
                self._lock.acquire(timeout=0)
            remove_parts(self.folder, recursive=True)
            file = self.folder / NAME
            if not file.exists() or not file.stat().st_size:
                with atomic_write(file) as part:
                    part.write_text(json.dumps(_HEADER) + "\n", encoding="utf-8")
            self._file = open(file, "a", encoding="utf-8")
            self._file.write("\n")  # a line that was broken off must not take the next one with it
            self._file.flush()
        except Timeout:
            raise CATSegError(
                f"--output {self.folder}: another run writes there; wait for its end, or choose "
                "another."
            ) from None
        except OSError as error:
            raise CATSegError(
                f"--output {self.folder}: {error.strerror or error}; expected a folder, there or "
                "to be made, in which files can be written."
            ) from error
        return self

    def __exit__(self, *error: object) -> None:
        """Close the file, and let others in."""
        if self._file:
            self._file.close()
        if self._lock:
            self._lock.release()

    def begin(self, output: Path, files: Iterable[Path]) -> None:
        """Tell that files are about to be written.

        Raises:
            CATSegError: if one is there that is not ours, which is then left as it is.
        """
        files = list(files)
        for path in files:
            if os.path.lexists(path) and not self.wrote(path):
                raise CATSegError(
                    f"{path} is there already, and not (or no more) as cat-seg wrote it: left as "
                    "it is. Move it, or choose another --output."
                )
        names = {path.relative_to(self.folder).as_posix(): None for path in files}
        self._write({"output": output.as_posix(), "files": names})

    def finish(
        self, output: Path, files: Iterable[Path], job: dict[str, Any], result: dict[str, Any]
    ) -> None:
        """Tell that these files were written, by which job, with which result."""
        names = {path.relative_to(self.folder).as_posix(): digest(path) for path in files}
        self._write({"output": output.as_posix(), "files": names, "job": job, "result": result})

    def _write(self, record: dict[str, Any]) -> None:
        assert self._file, "it is a context manager"
        self._take(record)
        self._file.write(json.dumps(record | {"sum": _sum(record)}) + "\n")
        self._file.flush()

    def _take(self, record: dict[str, Any]) -> None:
        self._files |= record["files"]
        self._done.pop(record["output"], None)
        if "job" in record:
            self._done[record["output"]] = record


def _records(file: Path) -> Iterator[dict[str, Any]]:
    """Read the lines of a ledger; one that was broken off is left out."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (FileNotFoundError, NotADirectoryError):
        return
    except (OSError, UnicodeDecodeError) as error:
        raise CATSegError(f"{file} cannot be read ({error}); choose another --output.") from error
    if lines and lines[0] != json.dumps(_HEADER):
        raise CATSegError(
            f"{file} is not the record that cat-seg keeps under this name; move it, or choose "
            "another --output."
        )
    for line in lines[1:]:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if _is_whole(record):
            yield record


def _sum(record: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(record).encode())


def _is_whole(record: Any) -> bool:
    """Tell whether a line is as it was written; earlier versions wrote no sum."""
    if not isinstance(record, dict) or not isinstance(record.get("output"), str):
        return False
    if "sum" in record and record.pop("sum") != _sum(record):
        return False
    whole = isinstance(record.get("files"), dict)
    return whole and ("job" not in record or isinstance(record.get("result"), dict))
