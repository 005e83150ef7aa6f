"""What `stream` and `cat-seg label` take beside the model: python docs/tools/throughput.py

Scenes of the small model's world as files. In each round `predict` on decoded pictures, `stream`
of the folder and `label` of it (label maps) follow each other, so that what else a machine does
meets all of them. Told are medians over rounds, as throughput relative to `predict`, and how far
memory has grown since the first round.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import tempfile
import time
from pathlib import Path

from PIL import Image

from cat_seg import CATSeg, images
from cat_seg.labelling import Job, find_units, label
from cat_seg.synthetic.dataset import split_scene
from cat_seg.utils.memory import keep_freed_memory


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=int, default=256, help="pixels of a side")
    parser.add_argument("--words", type=int, default=80)
    args = parser.parse_args()
    keep_freed_memory()
    model = CATSeg.from_pretrained("synthetic", "cpu")
    words = model.vocabulary(list(model.default_words[: args.words]))
    ratios: dict[str, list[float]] = {"stream": [], "label": []}
    seconds, first = [], 0.0
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "pictures"
        folder.mkdir()
        for i in range(args.pictures):
            scene = split_scene("val", i, seed=1, size=args.size)
            Image.fromarray(scene.image).save(folder / f"{i:04}.png")
        decoded = [images.read(path) for path in sorted(folder.iterdir())]
        for i in range(args.rounds + 1):  # the first one warms up
            before = time.perf_counter()
            for pixels in decoded:
                model.predict(pixels, words)
            alone = time.perf_counter()
            for _ in model.stream(str(folder), words):
                pass
            streamed = time.perf_counter()
            job = Job("synthetic", f"{place}/labels{i}", words)
            found = label(job, find_units(str(folder)), model=model)
            end = time.perf_counter()
            assert found.pictures == args.pictures
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
            if not i:
                first = peak
                continue
            seconds.append(alone - before)
            ratios["stream"].append((alone - before) / (streamed - alone))
            ratios["label"].append((alone - before) / (end - streamed))
    print(f"predict: {args.pictures / statistics.median(seconds):.1f} pictures a second")
    for name, found_ratios in ratios.items():
        low, high = min(found_ratios), max(found_ratios)
        print(f"{name}: {statistics.median(found_ratios):.2f} of it ({low:.2f} to {high:.2f})")
    print(f"memory: {first:.2f} GB after one round, {peak:.2f} GB after {args.rounds + 1}")


if __name__ == "__main__":
    main()
