"""A longer campaign of faults than the tests have time for.

    python -m tests.campaign --tries 2000 --kills 10 --threads 4 --seed 1

Damages files of every kind, kills trainings and resumes them, and shares a model between threads.
Prints a table of tries: survived (the result is right, or the fault is told in a sentence), lost
(work is gone, or another exception than ours came), silent (the result is wrong without a word).
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

import cat_seg.plugin  # noqa: F401  (before any import of detectron2)
from cat_seg import CATSeg
from cat_seg.errors import CATSegError
from cat_seg.trust.weights import read_weights
from tests.plugin.engine.test_train_net import start, train_net
from tests.plugin.engine.toy import CLASSES, register_toy_data, toy_config
from tests.trust.test_fuzz_readers import KINDS, try_kind
from tests.trust.test_fuzz_weights import KINDS as WEIGHTS
from tests.trust.test_fuzz_weights import mutated, whole_file

Outcomes = Iterator[str]  # "survived", "lost" or "silent"


def damaged_files(tries: int, rng: np.random.Generator, folder: Path) -> Outcomes:
    """Damage pictures, label maps, YAML, JSON, lists, caches and ledgers."""
    for kind in KINDS:
        for _ in range(tries // len(KINDS)):
            try:
                with tempfile.TemporaryDirectory(dir=folder) as fresh:
                    try_kind(kind, Path(fresh), rng, 1)
            except Exception as error:
                print(f"{kind.name}: {type(error).__name__}: {error}", file=sys.stderr)
                yield "lost"
            else:
                yield "survived"


def damaged_weights(tries: int, rng: np.random.Generator, folder: Path) -> Outcomes:
    """Damage weight files; a flipped bit in an archive has to be told."""
    path = folder / "weights"
    for kind in WEIGHTS:
        content = whole_file(kind)
        path.write_bytes(content)
        whole = read_weights(path)
        for _ in range(tries // len(WEIGHTS)):
            path.write_bytes(mutated(content, rng))
            try:
                state = read_weights(path)
            except CATSegError:
                yield "survived"
            except Exception as error:
                print(f"{kind}: {type(error).__name__}: {error}", file=sys.stderr)
                yield "lost"
            else:
                same = all(torch.equal(state[k], v) for k, v in whole.items() if k in state)
                # Only torch's zip holds a checksum; elsewhere, nobody can tell other numbers.
                yield "survived" if same or kind not in ("archive", "torchscript") else "silent"


def killed_trainings(tries: int, rng: np.random.Generator, folder: Path) -> Outcomes:
    """Kill a training at random moments, resume it, and compare with one that was left alone."""
    register_toy_data(folder)
    (folder / "names.json").write_text(json.dumps(CLASSES))
    cfg = toy_config(folder / "out", "SOLVER.MAX_ITER", 200, "SOLVER.CHECKPOINT_PERIOD", 7)
    cfg.SOLVER.CHECKPOINT_KEEP = 2
    files = {"IMAGES": "images", "LABELS": "labels", "CLASSES": "names.json"}
    entry = {key: str(folder / name) for key, name in files.items()}
    cfg.DATASETS.FOLDERS = [{"NAME": "own", **entry}]
    cfg.DATASETS.TRAIN = ("own",)
    config = folder / "config.yaml"
    config.write_text(cfg.dump())
    begun = time.monotonic()
    assert train_net(folder, "--config-file", config)[0] == 0
    seconds = time.monotonic() - begun
    expected = read_weights(folder / "out/model_final.pth")
    for index in range(tries):
        arguments = ("--config-file", config, "--resume", "OUTPUT_DIR", folder / f"run{index}")
        for _ in range(3):
            process: multiprocessing.Process = start(folder, *arguments)
            process.join(float(rng.uniform(0, seconds)))
            process.kill()
            process.join()
        code, printed = train_net(folder, *arguments)
        if code:
            print(printed[-2000:], file=sys.stderr)
            yield "lost"
            continue
        found = read_weights(folder / f"run{index}" / "model_final.pth")
        same = all(torch.equal(found[name], value) for name, value in expected.items())
        yield "survived" if same else "silent"


def shared_model(threads: int, rng: np.random.Generator, folder: Path) -> Outcomes:
    """Use one model in several threads with different words and pictures, against one alone."""
    del folder
    model = CATSeg.from_pretrained("synthetic", "cpu")
    words = [["red disc", "grass"], ["blue square", "sand", "sky"], ["wood", "water"]]
    jobs = [
        (rng.integers(0, 256, (64, 48 + 16 * (i % 3), 3), dtype=np.uint8), words[i % len(words)])
        for i in range(6)
    ]
    alone = [model.predict(*job).labels for job in jobs]
    with ThreadPoolExecutor(threads) as pool:
        together = pool.map(lambda job: model.predict(*job).labels, jobs * threads)
        for index, labels in enumerate(together):
            same = np.array_equal(labels, alone[index % len(jobs)])
            yield "survived" if same else "silent"


def main() -> int:
    """Run the campaign; 1 if anything was lost or silent."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.campaign",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--tries", type=int, default=2000, help="damaged files of either kind")
    parser.add_argument("--kills", type=int, default=10, help="trainings, each killed three times")
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    parts: dict[str, tuple[Callable[[int, np.random.Generator, Path], Outcomes], int]] = {
        "damaged files": (damaged_files, args.tries),
        "damaged weights": (damaged_weights, args.tries),
        "killed trainings": (killed_trainings, args.kills),
        "threads on one model": (shared_model, args.threads),
    }
    bad = 0
    print(f"{'':22}{'tries':>8}{'survived':>10}{'lost':>6}{'silent':>8}{'seconds':>9}")
    for name, (part, tries) in parts.items():
        begun = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            found = Counter(part(tries, np.random.default_rng(args.seed), Path(folder)))
        bad += found["lost"] + found["silent"]
        counts = f"{found.total():8}{found['survived']:10}{found['lost']:6}{found['silent']:8}"
        print(f"{name:22}{counts}{time.monotonic() - begun:9.0f}", flush=True)
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
