"""From a vocabulary to the text side of the cost volume, and its cache on disk.

T classes, P prompt templates, D embedding width.

A cache file is named by everything that its content depends on: the text tower (its weights,
activation and heads), the templates, the exact class names and the synonym rule. So a file is
never stale, and files need no order among them; any may be deleted at any time. Those that were
not used for longest are, when all of them take more than `_CACHE_BYTES`.

A file is mapped into memory, and a long vocabulary is written to it while it is encoded: neither
needs it whole in memory. What a killed process has written, the next one goes on with.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import open_clip
import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from cat_seg.errors import CATSegError
from cat_seg.modeling.chunks import gather_chunks
from cat_seg.modeling.clip import Encoder
from cat_seg.modeling.clip.text import text_traits
from cat_seg.resources import user_path
from cat_seg.utils.files import atomic_write, cache_folder
from cat_seg.vocabulary import parse_vocabulary

logger = logging.getLogger(__name__)

_LONG = 2000  # texts that take long enough for a progress bar
_TOGETHER = 8192  # texts whose tokens and features are in memory at a time
_CACHE_BYTES = 2 << 30  # on disk, of all vocabularies; 847 classes in 80 templates have 0.2 GB
_FORMAT = "1"  # of cache files; part of their names
_CACHE_FILE = re.compile(r"[0-9a-f]{32}(\.part)?\.safetensors")


def embed_text(
    clip: Encoder,
    class_names: Sequence[str],
    templates: Sequence[str],
    *,
    synonyms: str,
    batch_size: int = 8192,
    cache_dir: str | Path | None = None,
    recompute: bool = False,
) -> Tensor:
    """Embed every class in every template.

    Args:
        clip: whose text encoder is used.
        class_names: T names; the synonyms of one separated by ", ".
        templates: P texts with a "{}" for the name.
        synonyms: "mean", all of a class's names count the same (2023 model), or "first", its first
            name alone counts (2024 model).
        batch_size: tokens encoded at once; bounds memory, changes nothing.
        cache_dir: folder in which the result is looked for and kept; it then has no gradient. None
            for no cache: gradients as usual.
        recompute: in training, trade time for memory.

    Returns:
        (T, P, D), of unit length, on the device of `clip`.

    Raises:
        CATSegError: if the vocabulary is empty, or a name or the synonym rule is not valid.
    """
    if synonyms not in ("mean", "first"):
        raise CATSegError(f"SYNONYMS is {synonyms!r}; expected 'mean' or 'first'.")
    names = parse_vocabulary(class_names)
    if synonyms == "first":
        names = [of_class[:1] for of_class in names]
    if cache_dir is None:
        return _embed(clip, names, templates, batch_size, recompute)

    device = next(clip.parameters()).device
    key = _cache_key(clip, names, templates)
    path = user_path(cache_dir) / f"{key}.safetensors"
    features = _read_cache(path)
    if features is not None:
        return features.to(device)
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        if len(names) > _group(templates):
            try:
                with FileLock(path.with_suffix(".lock")):
                    features = _read_cache(path)  # another process had the lock before
                    if features is None:
                        features = _stream_to_cache(path, clip, names, templates, batch_size)
                if features is not None:
                    return features.to(device)
            except OSError as error:
                _not_kept(path, error)
                return _embed(clip, names, templates, batch_size, recompute=False)
        features = _embed(clip, names, templates, batch_size, recompute=False)
    _write_cache(path, features)
    return features


class VocabularyCache:
    """The text features of the last few vocabularies of one model. Safe to share between threads.

    An entry is dropped when the text encoder's state has changed, or others were used since. It
    is no part of the model: copies and pickles of it are empty.
    """

    def __init__(self, size: int = 8) -> None:
        self._size = size
        self._lock = threading.Lock()
        self._kept: OrderedDict[Hashable, tuple[object, Tensor]] = OrderedDict()

    def get(self, key: Hashable, state: object, encode: Callable[[], Tensor]) -> Tensor:
        """The features kept under a key for this state; else those that `encode` gives."""
        with self._lock:
            kept = self._kept.get(key)
            if kept is not None and kept[0] == state:
                self._kept.move_to_end(key)
                return kept[1]
        features = encode()
        with self._lock:
            self._kept[key] = (state, features)
            self._kept.move_to_end(key)
            while len(self._kept) > self._size:
                self._kept.popitem(last=False)
        return features

    def __reduce__(self) -> tuple[type, tuple[int]]:
        return VocabularyCache, (self._size,)


def default_cache_dir() -> Path | None:
    """The folder of text features: `text` in $CAT_SEG_CACHE, or in ~/.cache/cat_seg.

    None, with a warning, for a user without a home folder.
    """
    try:
        return cache_folder() / "text"
    except CATSegError as error:
        logger.warning("Text features are not kept for next time: %s", error)
        return None


def _embed(
    clip: Encoder,
    names: list[list[str]],
    templates: Sequence[str],
    batch_size: int,
    recompute: bool,
) -> Tensor:
    """(T, P, D) of T lists of names, some classes at a time: little is needed beside the result."""
    groups = _groups(clip, names, templates, batch_size, recompute)
    return gather_chunks((group[None] for group in groups), len(names))[0]


def _group(templates: Sequence[str]) -> int:
    """How many classes are encoded at a time."""
    return max(1, _TOGETHER // len(templates))


def _groups(
    clip: Encoder,
    names: list[list[str]],
    templates: Sequence[str],
    batch_size: int,
    recompute: bool = False,
    start: int = 0,
) -> Iterator[Tensor]:
    """The features of the classes from `start` on, (n, P, D) of some classes at a time."""
    count = len(templates) * sum(len(of_class) for of_class in names)
    done = len(templates) * sum(len(of_class) for of_class in names[:start])
    hidden = None if count >= _LONG else True  # None: hidden where there is no terminal
    with tqdm(total=count, initial=done, desc="Encoding texts", unit="text", disable=hidden) as bar:
        for first in range(start, len(names), _group(templates)):
            some = names[first : first + _group(templates)]
            texts = [t.format(name) for of_class in some for name in of_class for t in templates]
            features = clip.encode_tokens(
                clip.tokenize(texts),
                batch_tokens=batch_size,
                recompute=recompute,
                progress=bar,
            )
            features = F.normalize(features, dim=-1).view(-1, len(templates), features.shape[-1])
            owner = [i for i, of_class in enumerate(some) for _ in of_class]
            sums = features.new_zeros(len(some), *features.shape[1:])
            sums = sums.index_add(0, torch.tensor(owner, device=sums.device), features)
            yield F.normalize(sums, dim=-1)  # a sum and a mean point the same way


def _stream_to_cache(
    path: Path,
    clip: Encoder,
    names: list[list[str]],
    templates: Sequence[str],
    batch_size: int,
) -> Tensor | None:
    """Encode into a cache file, from where a process before left off; None if it was damaged.

    Raises:
        OSError: if it cannot be written.
    """
    part = path.with_suffix(".part.safetensors")
    part.touch()
    with part.open("r+b") as file:
        done, start = _resumed(file, len(names), len(templates))
        if done:
            logger.info("Going on with text features of %d classes in %s", done, part)
        for group in _groups(clip, names, templates, batch_size, start=done):
            if not start:
                start = file.write(_header((len(names), *group.shape[1:])))
            file.write(_bytes(group.float()))
            file.flush()
        file.seek(start)
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
        shape = (
            len(names),
            len(templates),
            (file.tell() - start) // 4 // len(names) // len(templates),
        )
        file.seek(0)
        file.write(_header(shape, digest.hexdigest()))
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
    _prune(path)
    return _read_cache(path)


def _header(shape: Sequence[int], digest: str = "0" * 64) -> bytes:
    """The beginning of a safetensors file of float32 features; as long whatever the digest."""
    end = 4 * math.prod(shape)
    told = {
        "__metadata__": {"sha256": digest},
        "features": {"dtype": "F32", "shape": list(shape), "data_offsets": [0, end]},
    }
    text = json.dumps(told).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _resumed(file: BinaryIO, T: int, P: int) -> tuple[int, int]:
    """How many classes an unfinished file holds, and where they begin; what else it holds is cut.

    Where its beginning is not `_header`, nothing is kept: (0, 0).
    """
    beginning, size = file.read(4096), file.seek(0, os.SEEK_END)
    start = 8 + int.from_bytes(beginning[:8], "little")
    kept = 0
    try:
        D = json.loads(beginning[8:start])["features"]["shape"][2]
        if beginning[:start] == _header((T, P, D)):
            kept = (size - start) // (4 * P * D)
    except (ValueError, KeyError, IndexError, TypeError):
        pass
    if not kept:
        start = 0
    file.truncate(start + kept * 4 * P * D if kept else 0)
    file.seek(0, os.SEEK_END)
    return kept, start


def _cache_key(clip: Any, names: list[list[str]], templates: Sequence[str]) -> str:
    """Digest of everything that the features depend on."""
    tower = text_traits(clip)
    if isinstance(clip, open_clip.CLIP):
        block = clip.transformer.resblocks[0]
        tower = [type(block.mlp.gelu).__name__, block.attn.num_heads, *tower]
    digest = hashlib.sha256(json.dumps([_FORMAT, tower, names, list(templates)]).encode())
    for name, tensor in clip.state_dict().items():
        if not name.startswith(("visual.", "logit_")):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(_bytes(tensor))
    return digest.hexdigest()[:32]


def _read_cache(path: Path) -> Tensor | None:
    """The features in a cache file; None if there is none, or it is damaged."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            features = file.get_tensor("features")
            expected = file.metadata()["sha256"]
        if hashlib.sha256(_bytes(features)).hexdigest() != expected:
            raise ValueError("its content has changed")
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        logger.warning("Ignoring the damaged text cache %s (%s).", path, error)
        return None
    with contextlib.suppress(OSError):  # of a cache that is read-only
        os.utime(path)  # used now, by which `_prune` goes
    logger.info("Read text features of %d classes from %s", len(features), path)
    return features


def _write_cache(path: Path, features: Tensor) -> None:
    """Keep features on disk; that this fails is no reason to stop."""
    features = features.cpu().contiguous()
    metadata = {"sha256": hashlib.sha256(_bytes(features)).hexdigest()}
    try:
        with atomic_write(path) as part:
            save_file({"features": features}, part, metadata)
        _prune(path)
    except (OSError, SafetensorError) as error:
        _not_kept(path, error)


def _not_kept(path: Path, error: Exception) -> None:
    logger.warning("Text features are not kept for next time: %s (%s)", path, error)


def _prune(newest: Path) -> None:
    """Delete the files that were not used for longest until the rest is within the bound."""
    files = [file for file in newest.parent.iterdir() if _CACHE_FILE.fullmatch(file.name)]
    states = {}
    for file in files:
        with contextlib.suppress(FileNotFoundError):  # another process prunes as well
            states[file] = file.stat()
    total = sum(state.st_size for state in states.values())
    for file in sorted(states, key=lambda file: states[file].st_mtime_ns):
        if total <= _CACHE_BYTES or file == newest:
            break
        file.unlink(missing_ok=True)
        total -= states[file].st_size


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
