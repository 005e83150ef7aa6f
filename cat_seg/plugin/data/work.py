"""Making files of files: one after another, each written whole or not at all.

What is there already is kept, so a second run does only what is missing; an error is noted under
the file's name, and the rest goes on.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from tqdm.contrib.concurrent import thread_map

from cat_seg.utils.files import remove_parts

_SHOWN = 10  # names listed for one reason


class Skip(Exception):
    """There is nothing to write for this file; the message says why."""


@dataclass(frozen=True)
class Work:
    """The files made of one source."""

    name: str  # of the source, for messages
    outputs: tuple[Path, ...]
    # Writes the outputs, and returns a remark if there is something to tell. Raises Skip, or
    # ValueError where the source is wrong.
    make: Callable[[], str | None]
    sources: tuple[Path, ...] = ()  # whose change asks for new outputs

    def is_done(self) -> bool:
        """Tell whether all outputs are there, not empty, and no source was touched after them."""
        try:
            outputs = [output.stat() for output in self.outputs]
            sources = [source.stat() for source in self.sources if source.exists()]
        except OSError:
            return False
        # A file that is copied or unpacked brings its mtime with it, but not its ctime.
        newest = max((max(s.st_mtime_ns, s.st_ctime_ns) for s in sources), default=0)
        return all(output.st_size and output.st_mtime_ns >= newest for output in outputs)


@dataclass
class Summary:
    """What a run did, by reason and name."""

    title: str
    written: int = 0
    kept: int = 0
    skipped: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    remarks: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    wrong: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def __str__(self) -> str:
        skipped, wrong = (sum(map(len, d.values())) for d in (self.skipped, self.wrong))
        lines = [
            f"{self.title}: {self.written} written, {self.kept} kept, {skipped} skipped, "
            f"{wrong} wrong"
        ]
        kinds = {"skipped": self.skipped, "note": self.remarks, "WRONG": self.wrong}
        for kind, reasons in kinds.items():
            for reason, names in reasons.items():
                more = f", ... ({len(names)})" if len(names) > _SHOWN else ""
                lines.append(f"  {kind}: {reason}: {', '.join(names[:_SHOWN])}{more}")
        return "\n".join(lines)


def run(title: str, work: Iterable[Work]) -> Summary:
    """Do what is not done yet, in parallel."""
    summary, todo = Summary(title), []
    for item in work:
        if item.is_done():
            summary.kept += 1
        else:
            todo.append(item)
    for folder in {output.parent for item in todo for output in item.outputs}:
        remove_parts(folder)

    done = thread_map(_attempt, todo, desc=title, unit="file", disable=None)
    for item, (reasons, reason) in zip(todo, done, strict=True):
        summary.written += reasons == "remarks"
        if reason:
            getattr(summary, reasons)[reason].append(item.name)
    return summary


def _attempt(item: Work) -> tuple[str, str | None]:
    """Do one item of work; return a field of `Summary`, and the reason to note there."""
    try:
        return "remarks", item.make()
    except Skip as reason:
        return "skipped", str(reason)
    except ValueError as error:
        return "wrong", str(error)
    except Exception as error:  # a damaged file must not end the run, however it is damaged
        return "wrong", f"{type(error).__name__}: {error}"
