"""The folder of a run: what it is a run of, who works in it, and what was written into it.

Two runs whose facts are the same give the same results. So a run goes on in a folder only where the
facts of the one before are its own, and any other is told what differs.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from filelock import FileLock, Timeout

from cat_seg import __version__
from cat_seg.errors import CATSegError
from cat_seg.trust.text import read_json
from cat_seg.utils.files import LOCK, atomic_write, digest

logger = logging.getLogger(__name__)

_SHOWN = 8  # differences in a message
_SHOWN_WORDS = 20  # of those that one list has and another lacks
# What decides where and how fast a run is, and nothing of its result.
_WITHOUT_EFFECT = (
    *("OUTPUT_DIR", "MODEL.DEVICE", "MODEL.WEIGHTS", "MODEL.SEM_SEG_HEAD.CLIP_WEIGHTS"),
    *("TEST.TEXT_CACHE", "DATASETS.FOLDERS", "DATASETS.TEST", "TEST.EVAL_PERIOD"),
    *("SOLVER.CHECKPOINT_PERIOD", "SOLVER.CHECKPOINT_KEEP", "SOLVER.MAX_BAD_IMAGES"),
)


class RunFolder:
    """The record of one kind of run in a folder, such as "training": a JSON file of that name.

    Attributes:
        facts: what decides the results of the run that is recorded; None if none is.
        wrote: names of the files that it wrote, with their SHA-256; "" while one is being written.
    """

    def __init__(self, folder: str | Path, kind: str) -> None:
        """Read the record, if there is one.

        Raises:
            CATSegError: if it cannot be read.
        """
        self.folder, self.kind = Path(folder), kind
        self._file = self.folder / f"{kind}.json"
        self.facts: dict[str, Any] | None = None
        self.wrote: dict[str, str] = {}
        if not self._file.exists():
            return
        record = read_json(self._file)
        facts, wrote = (
            (record.get("facts"), record.get("wrote")) if isinstance(record, dict) else (None, None)
        )
        if not isinstance(facts, dict) or not isinstance(wrote, dict):
            raise CATSegError(
                f"{self._file} is not the record of a run; move it, or choose another OUTPUT_DIR."
            )
        # Names only: nothing outside the folder is ever taken for a file of the run.
        names = {k: str(v) for k, v in wrote.items() if k == os.path.basename(k)}
        self.facts, self.wrote = facts or None, names

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keep other processes out of the folder.

        Raises:
            CATSegError: if another one holds it, or nothing can be written there.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.folder / LOCK)
            lock.acquire(timeout=0)
        except Timeout:
            raise CATSegError(
                f"OUTPUT_DIR {self.folder}: another run works in it; wait for its end, or choose "
                "another."
            ) from None
        except NotImplementedError:  # of file systems without locks
            logger.warning("%s cannot be locked: start no second run there", self.folder)
        except OSError as error:
            raise CATSegError(
                f"OUTPUT_DIR {self.folder}: {error.strerror or error}; expected a folder, there or "
                "to be made, in which files can be written."
            ) from error
        try:
            yield
        finally:
            lock.release()

    def differences(self, facts: Mapping[str, Any]) -> list[str]:
        """Say in what the run that is recorded differs from another: "KEY: old -> new" each.

        Of lists of words what is gone and what is new: "KEY: - 'couch', + 'sofa'". A fact that only
        one of the two has is compared if it is a setting, and else left alone.
        """
        before = self.facts or {}
        keys = [k for k in {**before, **facts} if k in before and k in facts]
        keys += [k for k in before.keys() ^ facts.keys() if k.partition(".")[0].isupper()]
        return [
            f"{key}: {_change(before.get(key), facts.get(key))}"
            for key in sorted(keys)
            if before.get(key) != facts.get(key)
        ]

    def begin(self, facts: Mapping[str, Any], *, keep: bool) -> None:
        """Record what the run is of.

        Args:
            facts: of this run.
            keep: whether it goes on with the one that is recorded, whose files stay listed.
        """
        self.facts = {**(self.facts or {}), **facts} if keep else dict(facts)
        if not keep:
            self.wrote = {}
        self._save()

    @contextlib.contextmanager
    def writing(self, name: str) -> Iterator[None]:
        """List a file that is written in the block; before, so that a kill leaves none unlisted."""
        self.wrote.pop(name, None)
        self.wrote[name] = ""
        self._save()
        yield
        self.wrote[name] = digest(self.folder / name)
        self._save()

    def remove(self, *names: str) -> None:
        """Delete files that the run has written."""
        for name in names:
            assert name in self.wrote, name
            (self.folder / name).unlink(missing_ok=True)
            del self.wrote[name]
        self._save()

    def _save(self) -> None:
        record = {"facts": self.facts or {}, "wrote": self.wrote}
        with atomic_write(self._file) as part:
            part.write_text(json.dumps(record, indent=1), encoding="utf-8")


def settings(cfg: CfgNode, *sections: str) -> dict[str, Any]:
    """Flatten what decides results in sections of a config: {"SOLVER.BASE_LR": 0.1, ...}."""
    found: dict[str, Any] = {"cat_seg": __version__}

    def visit(node: Any, name: str) -> None:
        if isinstance(node, CfgNode):
            for key, value in node.items():
                visit(value, f"{name}.{key}")
        elif name not in _WITHOUT_EFFECT:
            found[name] = json.loads(json.dumps(node, default=str))  # lists for tuples

    for section in sections:
        visit(cfg[section], section)
    return found


def digest_of(content: Any) -> str:
    """Return the SHA-256 of what JSON can hold, in hex."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def refuse(folder: Path, differences: list[str], advice: str) -> None:
    """Refuse to go on with a run that is another.

    Raises:
        CATSegError: if there is a difference, with old and new values.
    """
    if differences:
        more = [f"{len(differences) - _SHOWN} more"] if len(differences) > _SHOWN else []
        raise CATSegError(
            f"OUTPUT_DIR {folder} holds another run: {'; '.join([*differences[:_SHOWN], *more])}. "
            f"{advice}"
        )


def _change(old: Any, new: Any) -> str:
    if not (_is_words(old) and _is_words(new)):
        return f"{_short(old)} -> {_short(new)}"
    gone, added = Counter(old) - Counter(new), Counter(new) - Counter(old)
    changes = []
    for sign, words in (("-", list(gone)), ("+", list(added))):
        changes += [f"{sign} {word!r:.80}" for word in words[:_SHOWN_WORDS]]
        if len(words) > _SHOWN_WORDS:
            changes.append(f"{sign} {len(words) - _SHOWN_WORDS} more")
    return ", ".join(changes) or "the same in another order"


def _is_words(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(word, str) for word in value)


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text[:12] + "..." if isinstance(value, str) and len(text) == 64 else text[:80]
