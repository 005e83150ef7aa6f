"""Two real processes on CPU give the figures and files of one, to the last bit."""

import cat_seg.plugin  # noqa: F401  (before any import of detectron2, also in the processes)

# isort: split
import json
from pathlib import Path

import pytest
import torch
from detectron2.utils import comm

from cat_seg.cli import evaluate
from cat_seg.plugin.engine.launch import leave
from tests.brightness import write_squares

IMAGES = 5
FILES = ("results.json", "per_class.csv", "sem_seg_predictions.json")


def process(rank: int, arguments: list[str], rendezvous: str) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2
    )
    comm.create_local_process_group(2)
    run(arguments)
    leave()


def run(arguments: list[str]) -> None:
    evaluate.main(arguments)


@pytest.mark.slow
def test_two_processes(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("CAT_SEG_CACHE", str(tmp_path / "cache"))
    common = ["--config-file", str(write_squares(tmp_path, IMAGES)), "--benchmark", "squares"]
    one, two = tmp_path / "one", tmp_path / "two"
    run([*common, "--output", str(one)])
    run([*common, "--output", str(two), "--limit", "2"])  # what is to be resumed
    kept = {path: path.stat().st_mtime_ns for path in (two / "inference/squares/labels").iterdir()}
    assert len(kept) == 2

    arguments = [*common, "--output", str(two)]
    torch.multiprocessing.spawn(process, (arguments, f"{tmp_path}/rendezvous"), nprocs=2)
    for file in FILES:
        results = [folder / "inference/squares" / file for folder in (one, two)]
        assert results[0].read_bytes() == results[1].read_bytes()
    assert json.loads((one / "results.json").read_text())["datasets"][0]["images"] == IMAGES
    for file in ("results.json", "per_class.csv", "report.html"):
        assert (one / file).read_bytes() == (two / file).read_bytes()
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())
