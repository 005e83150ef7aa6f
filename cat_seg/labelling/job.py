"""What is to be done, one unit after the other, here or by Ray's workers."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from cat_seg import images
from cat_seg.errors import CATSegError, MissingPackageError
from cat_seg.labelling.outputs import FORMATS
from cat_seg.labelling.sources import Unit
from cat_seg.model import CATSeg
from cat_seg.utils.files import atomic_write
from cat_seg.vocabulary import Vocabulary

READERS = 4  # threads that read and decode
AHEAD = 16  # pictures that are read before they are needed
BEHIND = 4  # results that wait for being written
RECORDS = "units"  # folder of what was done
T = TypeVar("T")


@dataclass(frozen=True)
class Job:
    """What decides the labels, so that any worker makes the same.

    Attributes:
        model: for `CATSeg.from_pretrained`.
        out: the folder of all outputs.
        words: the classes and the background, without features; None takes the model's own.
        formats: names of `FORMATS`.
        threshold: see `CATSeg.predict`.
        column: of Parquet, where the pictures are.
        device: see `CATSeg.from_pretrained`; changes rounding alone.
    """

    model: str
    out: str
    words: Vocabulary | None = None
    formats: tuple[str, ...] = ("png",)
    threshold: float | None = None
    column: str = "image"
    device: str = ""


@dataclass
class Progress:
    """What the records of a folder say.

    Attributes:
        units: that are done.
        pictures: that have labels.
        problems: why others have none, by key.
        seconds: that the workers took for them, added up.
        waited: the seconds of those that the model waited for pictures, or for writing.
    """

    units: int
    pictures: int
    problems: dict[str, str]
    seconds: float
    waited: float


def open_job(job: Job, units: Sequence[Unit]) -> list[Unit]:
    """Make or find the folder of a job, and return the units that are not done.

    Raises:
        CATSegError: if a format is unknown, or the folder is another job's.
    """
    if unknown := [name for name in job.formats if name not in FORMATS]:
        raise CATSegError(f"{unknown[0]!r} is no format; expected of {', '.join(FORMATS)}.")
    out = Path(job.out)
    listing = hashlib.sha256(repr([(u.kind, u.places, u.keys) for u in units]).encode())
    about = {
        "model": job.model,
        "classes": None if job.words is None else [list(names) for names in job.words.classes],
        "background": [] if job.words is None else list(job.words.background),
        "formats": list(job.formats),
        "threshold": job.threshold,
        "units": len(units),
        "pictures": listing.hexdigest(),
    }
    path = out / "job.json"
    if path.exists():
        before = json.loads(path.read_text("utf-8"))
        if changed := [key for key in about if before.get(key) != about[key]]:
            raise CATSegError(
                f"{out} holds labels of another job (other {', '.join(changed)}); choose another "
                "--out, or give what was given before."
            )
    else:
        with atomic_write(path) as part:
            part.write_text(json.dumps(about, indent=2, ensure_ascii=False) + "\n", "utf-8")
    return [unit for unit in units if not _record(out, unit.number).exists()]


class Labeller:
    """A worker: holds the model, and does units."""

    def __init__(self, job: Job, model: CATSeg | None = None) -> None:
        """Load the job's model, unless it is given."""
        self.job = job
        self.model = model or CATSeg.from_pretrained(job.model, job.device)
        words = job.words if job.words is not None else list(self.model.default_words)
        self.vocabulary = self.model.vocabulary(words)

    def __call__(self, unit: Unit) -> dict[str, Any]:
        """Label a unit, and write its record.

        Returns:
            the record: pictures, problems by key, seconds, and those that the model waited.
        """
        start = time.perf_counter()
        waited, done, problems = 0.0, 0, {}
        out = Path(self.job.out)
        outputs = [FORMATS[name](out / name, unit.number) for name in self.job.formats]
        with ThreadPoolExecutor(READERS) as readers, ThreadPoolExecutor(1) as writer:
            writing: deque[Future[None]] = deque()
            pictures = iter(_ahead(readers, _read, unit.pictures(self.job.column)))
            while True:
                before = time.perf_counter()
                found = next(pictures, None)
                while len(writing) > BEHIND:
                    writing.popleft().result()
                waited += time.perf_counter() - before
                if found is None:
                    break
                key, pixels = found
                if isinstance(pixels, str):
                    problems[key] = pixels
                    continue
                result = self.model.predict(pixels, self.vocabulary, threshold=self.job.threshold)
                writing.append(writer.submit(_add, outputs, key, result))
                done += 1
            before = time.perf_counter()
            for one in writing:
                one.result()
            for output in outputs if done else ():
                output.close()
            waited += time.perf_counter() - before
        record = {
            "unit": unit.number,
            "pictures": done,
            "problems": problems,
            "seconds": round(time.perf_counter() - start, 3),
            "waited": round(waited, 3),
        }
        with atomic_write(_record(out, unit.number)) as part:
            part.write_text(json.dumps(record, ensure_ascii=False) + "\n", "utf-8")
        return record


def label(
    job: Job,
    units: Sequence[Unit],
    *,
    shard: tuple[int, int] = (0, 1),
    workers: int = 0,
    model: CATSeg | None = None,
    on_unit: Callable[[dict[str, Any]], None] | None = None,
) -> Progress:
    """Label what is not done yet.

    Args:
        job: what is to be made of the pictures.
        units: all units of the source, see `find_units`.
        shard: (i, n): do every n-th unit alone, from the i-th; others do the rest.
        workers: of Ray Data, on this machine or the cluster that Ray is told of; 0 does it here.
        model: the job's, if it is loaded already.
        on_unit: called with each record.

    Returns:
        what all records in the folder say.

    Raises:
        CATSegError: see `open_job`, and if a file of a source or an output cannot be used.
        MissingPackageError: Ray is not installed.
    """
    todo = [u for u in open_job(job, units) if u.number % shard[1] == shard[0]]
    _write_names(job, model)
    records = _by_ray(job, todo, workers) if workers else map(Labeller(job, model), todo)
    for record in records if todo else ():
        if on_unit is not None:
            on_unit(record)
    found = progress(job.out)
    with atomic_write(Path(job.out) / "problems.json") as part:
        part.write_text(json.dumps(found.problems, indent=1, ensure_ascii=False) + "\n", "utf-8")
    return found


def progress(out: str | Path) -> Progress:
    """Read the records of a folder."""
    found = Progress(0, 0, {}, 0.0, 0.0)
    for path in sorted((Path(out) / RECORDS).glob("*.json")):
        record = json.loads(path.read_text("utf-8"))
        found.units += 1
        found.pictures += record["pictures"]
        found.problems.update(record["problems"])
        found.seconds += record["seconds"]
        found.waited += record["waited"]
    return found


def _by_ray(job: Job, units: Sequence[Unit], workers: int) -> Iterator[dict[str, Any]]:
    """Let actors do units, each with a model; a unit whose actor is lost is done by another."""
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise MissingPackageError.of_extra("Several workers", "Ray", "label") from error
    ray.data.DataContext.get_current().enable_progress_bars = False
    rows = [{"unit": json.dumps(dataclasses.asdict(unit))} for unit in units]
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows))
    done = dataset.map_batches(
        _RayWorker,
        fn_constructor_args=(job,),
        batch_size=1,
        concurrency=workers,
        num_gpus=1 if job.device.startswith("cuda") else 0,
    )
    for row in done.iter_rows():
        yield json.loads(row["record"])


class _RayWorker:
    """A `Labeller` in Ray's terms: batches of columns in and out."""

    def __init__(self, job: Job) -> None:
        self.labeller = Labeller(job)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        records = []
        for text in batch["unit"]:
            told = json.loads(str(text))
            places, keys = tuple(told["places"]), tuple(told["keys"])
            unit = Unit(told["number"], told["kind"], places, keys)
            records.append(json.dumps(self.labeller(unit)))
        return {"record": np.array(records)}


def _write_names(job: Job, model: CATSeg | None) -> None:
    """Write the names of the classes in the order of their numbers, for people and for YOLO."""
    path = Path(job.out) / "classes.json"
    if path.exists():
        return
    words = job.words
    if words is None:
        model = model or CATSeg.from_pretrained(job.model, job.device)
        words = Vocabulary.parse(list(model.default_words))
    names = [*words.names, *words.background]
    with atomic_write(path) as part:
        part.write_text(json.dumps(names, indent=1, ensure_ascii=False) + "\n", "utf-8")
    if "yolo" in job.formats:
        with atomic_write(Path(job.out) / "yolo" / "data.yaml") as part:
            lines = [f"  {i}: {json.dumps(name)}\n" for i, name in enumerate(names)]
            part.write_text("names:\n" + "".join(lines), "utf-8")


def _record(out: Path, number: int) -> Path:
    return out / RECORDS / f"{number:06d}.json"


def _read(item: tuple[str, str | bytes]) -> tuple[str, np.ndarray | str]:
    """Return the pixels of a picture, or why there are none."""
    key, picture = item
    try:
        return key, images.read(picture)
    except CATSegError as error:
        return key, str(error)


def _add(outputs: Iterable[Any], key: str, result: Any) -> None:
    for output in outputs:
        output.add(key, result)


def _ahead(
    pool: ThreadPoolExecutor, function: Callable[[Any], T], items: Iterable[Any]
) -> Iterator[T]:
    """Map a function over items in their order, some of them ahead."""
    waiting: deque[Future[T]] = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) > AHEAD:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
