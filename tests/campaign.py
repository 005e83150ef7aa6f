"""A longer campaign of faults than the tests have time for.

    python -m tests.campaign --tries 2000 --kills 10 --disks 20 --threads 4 --seed 1

Damages files of every kind, kills trainings and resumes them, fills disks while results are
written, fetches from servers that fail in many ways, lets processes race for one folder and one
download, and shares a model between threads.
Prints a table of tries: survived (the result is right, or the fault is told in a sentence), lost
(work is gone, or another exception than ours came), silent (the result is wrong without a word).
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import http.server
import io
import json
import logging
import multiprocessing
import os
import resource
import signal
import sys
import tempfile
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

import cat_seg.plugin  # noqa: F401  (before any import of detectron2)
from cat_seg import CATSeg
from cat_seg.cli.main import main as cat_seg_command
from cat_seg.errors import CATSegError
from cat_seg.trust.weights import read_weights
from cat_seg.utils import files
from cat_seg.utils.files import FetchError, fetch
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


def full_disks(tries: int, rng: np.random.Generator, folder: Path) -> Outcomes:
    """Let files end at a random size, as on a full disk, while pictures and models are written.

    The command has to say so, nothing half-written may stand under its final name, and a second
    run with room has to write what a run that was never disturbed writes.
    """
    predict, whole = _predictions(rng, folder)
    largest = max(len(content) for content in whole.values())
    model = CATSeg.from_pretrained("synthetic", "cpu")
    model.save_pretrained(folder / "model")
    saved = _contents(folder / "model")
    for index in range(tries):
        output = folder / f"out{index}"
        if index % 4:
            limit = int(rng.integers(0, largest + 1))
            code, said = _in_a_child(_command, [*predict, str(output)], limit)
            again = (_command, [*predict, str(output)])
            should = whole
        else:
            limit = int(rng.integers(0, len(saved["model.safetensors"])))
            code, said = _in_a_child(_save, str(output), limit)
            again = (_save, str(output))
            should = saved
        left = _contents(output)
        half = [n for n in left if n in should and n.endswith((".png", ".jpg", ".safetensors"))]
        if wrong := [name for name in half if left[name] != should[name]]:
            print(f"limit {limit}: half of {wrong}, exit {code}: {said[-500:]}", file=sys.stderr)
            yield "silent"
        elif "Traceback" in said or (code == 0 and left.keys() != should.keys()):
            print(f"limit {limit}, exit {code}: {said[-2000:]}", file=sys.stderr)
            yield "lost"
        else:
            code, said = _in_a_child(*again)
            pictures = {n: c for n, c in _contents(output).items() if not n.endswith(".jsonl")}
            same = all(pictures.get(n) == c for n, c in should.items() if n in pictures)
            complete = {n for n in should if not n.endswith(".jsonl")} == pictures.keys()
            yield "survived" if code == 0 and same and complete else "lost"


def _predictions(rng: np.random.Generator, folder: Path) -> tuple[list[str], dict[str, bytes]]:
    """Draw pictures; return arguments but for the output, and what a run alone writes."""
    photos = folder / "photos"
    photos.mkdir()
    for index in range(3):
        cv2.imwrite(str(photos / f"{index}.png"), rng.integers(0, 256, (64, 80, 3), np.uint8))
    predict = ["predict", str(photos), "--words", "grass, sand", "--device", "cpu", "--output"]
    assert _in_a_child(_command, [*predict, str(folder / "alone")])[0] == 0
    return predict, _contents(folder / "alone")


def _contents(folder: Path) -> dict[str, bytes]:
    """Read all files but those whose names say that they are unfinished."""
    paths = [path for path in folder.rglob("[!.]*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def _command(arguments: list[str]) -> int:
    return int(cat_seg_command(arguments) or 0)


def _save(folder: str) -> int:
    try:
        CATSeg.from_pretrained("synthetic", "cpu").save_pretrained(folder)
    except (CATSegError, OSError) as error:
        print(error)
        return 1
    return 0


def _in_a_child(work: Callable[[Any], int], argument: Any, limit: int | None = None) -> Any:
    """Run a function in a process of its own whose files may have `limit` bytes.

    Returns:
        the exit status, and all that was printed.
    """
    context = multiprocessing.get_context("fork")
    theirs, mine = context.Pipe()
    process = context.Process(target=_child, args=(work, argument, limit, theirs))
    process.start()
    theirs.close()
    try:
        answer = mine.recv()
    except EOFError:
        answer = (1, "the process died: Traceback")
    process.join()
    return answer


def _child(work: Callable[[Any], int], argument: Any, limit: int | None, pipe: Any) -> None:
    torch.set_num_threads(1)
    said = io.StringIO()
    if limit is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write then fails as on a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            code = work(argument)
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
            said.write(str(end.code))
        except BaseException as error:
            code = 1
            said.write(f"Traceback: {type(error).__name__}: {error}")
    pipe.send((code, said.getvalue()))


class _Faulty(http.server.BaseHTTPRequestHandler):
    """Serves the server's content, with a fault that is drawn for each answer."""

    def do_GET(self) -> None:
        server: Any = self.server
        rng, content, fault = server.rng, server.content, int(server.rng.integers(8))
        first = int((self.headers.get("Range") or "bytes=0-")[6:-1])
        rest = content[first:]
        if fault == 0:
            return self.send_error(int(rng.choice([404, 403, 429, 500, 502, 503])))
        if fault == 1:  # a page of somebody who is in between
            return self._answer(b"<!DOCTYPE html><title>log in</title>", 200, "text/html")
        if fault == 2:  # no range is understood
            return self._answer(content, 200)
        if fault == 3:  # one bit is another
            damaged = bytearray(rest or b"?")
            damaged[int(rng.integers(len(damaged)))] ^= 1 << int(rng.integers(8))
            return self._answer(bytes(damaged), 206 if first else 200)
        if fault == 4:  # breaks off
            return self._answer(rest, 206 if first else 200, most=int(rng.integers(len(rest) + 1)))
        if fault == 5:  # no length is told, and it breaks off
            return self._answer(rest, 206 if first else 200, most=len(rest) // 2, length=False)
        if fault == 6:  # the connection ends without an answer
            return None
        return self._answer(rest, 206 if first else 200)

    def _answer(
        self, body: bytes, status: int, kind: str = "", most: int = -1, length: bool = True
    ) -> None:
        self.send_response(status)
        self.send_header("ETag", '"one"')
        if length:
            self.send_header("Content-Length", str(len(body)))
        if kind:
            self.send_header("Content-Type", kind)
        self.end_headers()
        self.wfile.write(body if most < 0 else body[:most])

    def handle(self) -> None:
        with contextlib.suppress(OSError):
            super().handle()

    def log_message(self, *args: Any) -> None:
        pass


@contextlib.contextmanager
def _server(rng: np.random.Generator, content: bytes) -> Iterator[Any]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Faulty) as opened:
        server: Any = opened
        server.rng, server.content = rng, content
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


def faulty_servers(tries: int, rng: np.random.Generator, folder: Path) -> Outcomes:
    """Fetch from a server that fails in many ways, with the digest that the file should have."""
    files._PAUSE = 0.001
    content = rng.bytes(50_000)
    sha256 = hashlib.sha256(content).hexdigest()
    with _server(rng, content) as server:
        for index in range(tries):
            cache = folder / str(index)
            os.environ["CAT_SEG_CACHE"] = str(cache)
            address = f"http://127.0.0.1:{server.server_port}/weights.pth"
            try:
                path = fetch(address, sha256=sha256, deadline=20)
            except FetchError:
                yield "silent" if _contents(cache) else "survived"
            except Exception as error:
                print(f"{type(error).__name__}: {error}", file=sys.stderr)
                yield "lost"
            else:
                yield "survived" if path.read_bytes() == content else "silent"
    os.environ.pop("CAT_SEG_CACHE", None)


def races(tries: int, rng: np.random.Generator, folder: Path) -> Outcomes:
    """Start three runs into one folder at nearly one time.

    At least one has to write what a run alone writes; the others are refused, or find it done.
    """
    predict, whole = _predictions(rng, folder)
    for index in range(tries):
        arguments = [*predict, str(folder / f"out{index}")]
        waits = rng.uniform(0, 0.3, 3)
        with ThreadPoolExecutor(3) as pool:
            ends = list(pool.map(_late, waits, [arguments] * 3))
        found = _contents(folder / f"out{index}")
        same = {n for n, c in whole.items() if found.get(n) == c or n.endswith(".jsonl")}
        if any("Traceback" in said for _, said in ends) or all(code for code, _ in ends):
            print([said[-300:] for _, said in ends], file=sys.stderr)
            yield "lost"
        else:
            yield "survived" if same == whole.keys() == found.keys() else "silent"


def _late(seconds: float, arguments: list[str]) -> Any:
    time.sleep(seconds)
    return _in_a_child(_command, arguments)


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
    with ThreadPoolExecutor(max(threads, 1)) as pool:
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
    parser.add_argument("--disks", type=int, default=20, help="full disks, and races")
    parser.add_argument("--servers", type=int, default=500, help="fetches from faulty servers")
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    parts: dict[str, tuple[Callable[[int, np.random.Generator, Path], Outcomes], int]] = {
        "damaged files": (damaged_files, args.tries),
        "damaged weights": (damaged_weights, args.tries),
        "killed trainings": (killed_trainings, args.kills),
        "full disks": (full_disks, args.disks),
        "faulty servers": (faulty_servers, args.servers),
        "races for one folder": (races, args.disks),
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
