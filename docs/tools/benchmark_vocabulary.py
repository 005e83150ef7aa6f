"""Measure what many classes cost, and how many labels change where only some are computed.

    python docs/tools/benchmark_vocabulary.py train two_layers/
    python docs/tools/benchmark_vocabulary.py cost --classes 150 847 2500 --json cost.json
    python docs/tools/benchmark_vocabulary.py merging --json merging.json
    python docs/tools/benchmark_vocabulary.py labels --model two_layers/ --json labels.json
    python docs/tools/benchmark_vocabulary.py plot OUT.svg cost.json    (or labels.json)

Times are CPU seconds of one thread, so that other work on the machine matters little; what is
compared runs in turns, and medians are told. Memory is the peak of a process of its own (VmHWM)
beyond what it held before, weights and words included, and beyond labels and scores. `--random`
takes random weights of two layers (width 16, 8 x 8 positions) for what does not depend on what a
model knows: memory. Their classes tie, which is the worst that merging can meet.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from matplotlib import rc_context
from matplotlib.figure import Figure
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from tqdm import trange

from cat_seg.inference import EncodedImage, Inference, Maps
from cat_seg.model import CATSeg
from cat_seg.modeling.aggregator import ClassLogits, aggregator
from cat_seg.modeling.aggregator.correlation import (
    Selection,
    most_probable_classes,
    most_similar_classes,
    represent,
)
from cat_seg.modeling.class_sampling import present, present_and_random, restrict
from cat_seg.modeling.losses import mask_bce
from cat_seg.modeling.merging import Merging
from cat_seg.modeling.sliding_window import TileGrid, resize
from cat_seg.synthetic.dataset import split_scene
from cat_seg.synthetic.names import SEEN_NAMES, wide_names
from cat_seg.utils import memory
from cat_seg.utils.files import atomic_write
from docs.tools.plot_benchmark import STYLE

SEED = 31  # of scenes that no other figure uses
WORDS = 10_000  # of `wide_names`; features of more are made of theirs
WAYS = {  # what is done with the classes: changes of a plan
    "kept": {"memory": 1 << 60},
    "streamed": {"memory": 1},
    "dropped": {"max_classes": 100},
    "represented": {"max_classes": 100, "representatives": 50},
}
STAGES = ("encoders", "choice", "embedding", "spatial", "class", "decoder", "merging", "rest")
# Numbers of classes that are merged, and sizes of pictures.
MERGED: dict[int, Sequence[tuple[int, int]]] = {
    80: [(1024, 1024)],
    150: [(480, 640), (4000, 6000)],
    847: [(480, 640), (1024, 1024)],
}


# What may be done with the classes that are not computed -------------------------------------


def by_peak(features: Tensor, means: Tensor, count: int) -> Tensor:
    """Choose the classes with the highest similarity anywhere, as the published 2024 model does."""
    return most_similar_classes(features, means[:, None], count, 1024)


def dropped(classes: Tensor, means: Tensor) -> Selection:
    """Let the others count for nothing."""
    return Selection(classes, classes[:0], None)


def summed(classes: Tensor, means: Tensor) -> Selection:
    """Keep all others in the sums: nothing but a winner that was not chosen changes a label."""
    rest = torch.ones(len(means), dtype=torch.bool)
    rest[classes] = False
    return Selection(classes, rest.nonzero()[:, 0], None)


def sampled(classes: Tensor, means: Tensor, count: int) -> Selection:
    """Represent the others by a random sample."""
    rest = summed(classes, means).others
    count = min(count, len(rest))
    chosen = torch.randperm(len(rest), generator=torch.Generator().manual_seed(SEED))[:count]
    weights = torch.ones(len(classes) + count)
    weights[len(classes) :] = len(rest) / count
    return Selection(classes, rest[chosen.sort().values], weights)


Rule = Callable[[Tensor, Tensor, int, Tensor], Selection]  # as `represent`


def rules(count: int) -> dict[str, tuple[Rule, int]]:
    """By name what to do, and how many representatives; `count` of them where there are any."""
    return {
        "peak, dropped": (lambda f, m, k, c: dropped(by_peak(f, m, k), m), 1),
        "probability, dropped": (lambda f, m, k, c: dropped(most_probable_classes(f, m, k), m), 1),
        "peak, all in the sums": (lambda f, m, k, c: summed(by_peak(f, m, k), m), 1),
        "probability, all in the sums": (
            lambda f, m, k, c: summed(most_probable_classes(f, m, k), m), 1,
        ),
        "peak, random sample": (lambda f, m, k, c: sampled(by_peak(f, m, k), m, count), 1),
        "probability, random sample": (
            lambda f, m, k, c: sampled(most_probable_classes(f, m, k), m, count), 1,
        ),
        "peak, clusters": (
            lambda f, m, k, c: _with_choice(by_peak, f, m, k, c), count,
        ),
        "probability, clusters": (represent, count),
    }  # fmt: skip


def _with_choice(choice: Any, features: Tensor, means: Tensor, k: int, owner: Tensor) -> Selection:
    where = "cat_seg.modeling.aggregator.correlation.most_probable_classes"
    with mock.patch(where, choice):
        return represent(features, means, k, owner)


# Models, words, pictures ----------------------------------------------------------------------


def train(iterations: int) -> CATSeg:
    """Train the aggregation of a two-layer model; CLIP and the guidance backbone stay.

    The published depth. The one layer of the model that ships is the start of both. A step sees
    the classes of its two scenes and random others, 20 in all.
    """
    torch.manual_seed(0)
    shipped = CATSeg.from_pretrained("synthetic", device="cpu")
    model = CATSeg(replace(shipped.config, num_layers=2))
    state = shipped.state_dict()
    for key in [key for key in state if "predictor.transformer.layers.0." in key]:
        state[key.replace(".layers.0.", ".layers.1.")] = state[key].clone()
    model.load_state_dict(state)
    text = shipped.vocabulary(SEEN_NAMES).features
    assert text is not None
    sample = present_and_random(model.config, count=20)
    transformer = model.eval().requires_grad_(False).predictor.transformer.requires_grad_(True)
    optimizer = torch.optim.AdamW(transformer.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, iterations, pct_start=0.1)
    for step in trange(iterations, desc="Training"):
        scenes = [split_scene("train", 2 * step + i, seed=SEED) for i in range(2)]
        pixels = torch.stack([torch.from_numpy(s.image).permute(2, 0, 1) for s in scenes])
        labels = torch.stack([torch.from_numpy(s.labels).long() for s in scenes])
        taught = sample(present(labels, [None, None], 255), len(text))
        loss = mask_bce(model(pixels, text[taught]), restrict(labels, [None] * 2, taught, 255)[0])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(transformer.parameters(), 0.1)
        optimizer.step()
        schedule.step()
    return model.requires_grad_(False)


def load(name: str, random: bool) -> CATSeg:
    """Load a model, or make one of random weights."""
    model = CATSeg.from_pretrained(name, device="cpu")
    if random:
        torch.manual_seed(0)
        sizes: dict[str, Any] = {"grid": (8, 8), "window": 4, "hidden_dim": 16, "num_layers": 2}
        model = CATSeg(replace(model.config, **sizes, templates="single")).eval()
    return model.requires_grad_(False)


def text_of(model: CATSeg, count: int, random: bool) -> Tensor:
    """Return the text features of so many classes, (T, P, D)."""
    generator = torch.Generator().manual_seed(SEED)
    if random:
        D = model.predictor.text_dim
        return F.normalize(torch.randn(count, 1, D, generator=generator), dim=-1)
    text = model.vocabulary(wide_names(min(count, WORDS))).features
    assert text is not None
    pairs = torch.randint(len(text) // 2, len(text), (2, count - len(text)), generator=generator)
    more = [F.normalize(text[a] + text[b], dim=-1) for a, b in pairs.split(4096, dim=1)]
    return torch.cat([text, *more]) if count > len(text) else text


def tiles_of(model: CATSeg) -> TileGrid:
    """Make tiles in the published proportion, 384 of 640 pixels."""
    side = model.grid[0] * 8
    return TileGrid(side, 0.333, side + int(side * 0.667))


def scene_of(index: int) -> Tensor:
    """A picture of the synthetic world, (3, 128, 128)."""
    return torch.from_numpy(split_scene("val", index, seed=SEED).image).permute(2, 0, 1)


# Measuring ------------------------------------------------------------------------------------


class Stages:
    """CPU seconds of each stage, what runs within another counted there alone."""

    def __init__(self, model: CATSeg) -> None:
        transformer = model.predictor.transformer
        self.functions: list[tuple[str, Any, str]] = [
            ("encoders", model, "encode_crops"),
            ("choice", aggregator, "cluster"),
            ("choice", aggregator, "represent"),
            ("choice", aggregator, "most_similar_classes"),
            ("choice", transformer, "_mean_text"),
            ("embedding", transformer, "embed"),
            ("decoder", transformer, "decode"),
            ("merging", Maps, "best"),
        ]
        for layer in transformer.every_layer():
            self.functions.append(("spatial", layer.swin_block, "forward"))
            self.functions += [("class", layer.attention, n) for n in ("forward", "sums", "part")]
        self.spent: dict[str, float] = defaultdict(float)
        self._running = ["rest"]
        self._since = 0.0

    def switch(self, stage: str | None) -> None:
        """Enter a stage, or leave the present one."""
        now = time.process_time()
        self.spent[self._running[-1]] += now - self._since
        self._since = now
        if stage is None:
            self._running.pop()
        else:
            self._running.append(stage)

    def run(self, function: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
        """Call a function; its result and the seconds of each stage."""
        self.spent.clear()
        with contextlib.ExitStack() as stack:
            for stage, owner, name in self.functions:
                timed = self._timed(stage, getattr(owner, name))
                stack.enter_context(mock.patch.object(owner, name, timed))
            self._since = time.process_time()
            result = function()
            self.switch("rest")
            self._running.pop()
        return result, {stage: self.spent[stage] for stage in STAGES}

    def _timed(self, stage: str, function: Any) -> Any:
        def timed(*args: Any, **kwargs: Any) -> Any:
            self.switch(stage)
            try:
                return function(*args, **kwargs)
            finally:
                self.switch(None)

        return timed


def segmenting(
    model: CATSeg, way: str, text: Tensor, size: tuple[int, int]
) -> Callable[[], tuple[Tensor, Tensor]]:
    """Labels and scores of one picture, in one of the ways."""
    plan = replace(model.plan, sliding_window=tiles_of(model), **WAYS[way])
    inference, image = Inference(model, plan), scene_of(0)
    return lambda: inference([image], text, [size])[0].best()


def possible(way: str, count: int) -> bool:
    """Tell whether a way leaves out any of so many classes."""
    return count > sum(WAYS[way].get(key, 0) for key in ("max_classes", "representatives"))


def measure_costs(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure time, memory and operations of each way, with each number of classes."""
    model = load(args.model, args.random)
    every, results = Stages(model), []
    kept_bytes = model.predictor.transformer.kept_bytes
    for count in args.classes:
        text = text_of(model, count, args.random)
        ways = [w for w in args.ways if possible(w, count) and count <= args.most.get(w, count)]
        runs = {way: segmenting(model, way, text, tuple(args.image_size)) for way in ways}
        spent: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
        for _ in trange(args.repeat, desc=f"{count} classes"):
            for way, run in runs.items():  # in turns: all see the same machine
                spent[way].append(every.run(run)[1])
        for way in ways:
            found: dict[str, Any] = {"classes": count, "way": way}
            if spent[way]:
                stages = {s: statistics.median(x[s] for x in spent[way]) for s in STAGES}
                found["cpu_seconds"] = statistics.median(sum(x.values()) for x in spent[way])
                found["stage_cpu_seconds"] = stages
            if args.memory:
                found["peak_bytes"] = _peak_of_child(args, way, text)
                found["counted_bytes"] = kept_bytes(count, 5, 1) if way == "kept" else None
            if args.flops:
                with FlopCounterMode(display=False) as mode:
                    runs[way]()
                found["flop"] = mode.get_total_flops()
            results.append(found)
            print(told(found), flush=True)
    return results


def told(found: dict[str, Any]) -> str:
    """Format the costs of one way."""
    line = f"{found['classes']:>7} {found['way']:<12}"
    if "cpu_seconds" in found:
        stages = ", ".join(f"{s} {x:.2f}" for s, x in found["stage_cpu_seconds"].items())
        line += f"{found['cpu_seconds']:9.2f} s ({stages})"
    if "peak_bytes" in found:
        line += f"  {found['peak_bytes'] / 1e9:.3f} GB"
    if found.get("counted_bytes"):
        line += f" (volume and logits {found['counted_bytes'] / 1e9:.3f})"
    return line + (f"  {found['flop'] / 1e9:.1f} GFLOP" if "flop" in found else "")


def _peak_of_child(args: argparse.Namespace, way: str, text: Tensor) -> int:
    """The most memory that a process of its own takes, in bytes."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "text.safetensors"
        save_file({"text": text.contiguous()}, file)
        command = [sys.executable, "-m", "docs.tools.benchmark_vocabulary", "child", way, str(file)]
        command += ["--model", args.model, "--image-size", *map(str, args.image_size)]
        command += ["--random"] * args.random
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(done.stdout.split()[-1])


def measure_child(args: argparse.Namespace) -> int:
    """Return the peak of this process beyond weights, words and result, in bytes."""
    model, size = load(args.model, args.random), tuple(args.image_size)
    with safe_open(args.text, "pt") as file:
        text = file.get_tensor("text")  # mapped
    segmenting(model, "kept", text[:4].clone(), size)()  # what is loaded or made once
    text.sum()  # the words, mapped, are part of what is held before
    memory.give_back_memory()
    if not memory.reset_peak():
        raise SystemExit("The peak of memory cannot be measured here.")
    before = memory.resident_bytes()
    result = segmenting(model, args.way, text, size)()
    held = sum(x.numel() * x.element_size() for x in result)
    return memory.peak_bytes() - before - held


def measure_merging(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure merging by bounds and of all maps, of a model's logits at the published sizes."""
    model, results, tiles = load(args.model, False), [], TileGrid()
    few = Inference(model, replace(model.plan, sliding_window=tiles_of(model)))
    published: Any = mock.Mock(plan=mock.Mock(sliding_window=tiles), _divisor=1, model=model)
    image = EncodedImage(torch.empty(0), (), (640, 640), (640, 640), model.plan)
    for count, sizes in MERGED.items():
        text, same = text_of(model, count, False), True
        spent: dict[Any, list[float]] = defaultdict(list)
        for index in trange(args.scenes, desc=f"{count} classes"):
            logits = [
                ClassLogits(resize(crop.of(torch.arange(count))[None], 96)[0], None)
                for crop in few([scene_of(index)], text, [(8, 8)])[0].logits
            ]
            for size in sizes:
                maps, found = Inference._maps(published, image, logits, count, size), []
                for way, pays in (("bounds", Merging.pays), ("all maps", lambda *_: False)):
                    start = time.process_time()
                    with mock.patch.object(Merging, "pays", pays):
                        found.append(maps.best()[0])
                    spent[size, way].append(time.process_time() - start)
                same &= torch.equal(*found)
        for size in sizes:
            medians = {w: statistics.median(spent[size, w]) for w in ("bounds", "all maps")}
            results.append({"classes": count, "size": size, "same": same, "cpu_seconds": medians})
            print(f"{count} classes, {size[0]} x {size[1]}: {medians}, same {same}", flush=True)
    return results


def measure_labels(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure how many labels each rule changes against all classes, in turns scene by scene."""
    model, results = load(args.model, False), []
    for count in args.classes:
        text = text_of(model, count, False)
        cases: list[tuple[str, int, int, Rule | None, int]] = [("all", count, 0, None, 0)]
        for kept, others in args.settings:
            cases += [
                (name, kept, others if "sample" in name or "clusters" in name else 0, rule, m)
                for name, (rule, m) in rules(others).items()
                if kept + others < count and not (count > args.summed and "all in" in name)
            ]
        changed: list[list[float]] = [[] for _ in cases]
        spent: list[list[float]] = [[] for _ in cases]
        right = []
        for index in trange(args.scenes, desc=f"{count} words"):
            truth = torch.from_numpy(split_scene("val", index, seed=SEED).labels)
            full: Tensor | None = None
            for i, (_, kept, _, rule, m) in enumerate(cases):
                plan = model.plan if rule is None else replace(
                    model.plan, max_classes=kept, representatives=m
                )  # fmt: skip
                start = time.process_time()
                with mock.patch.object(aggregator, "represent", rule or represent):
                    maps = Inference(model, plan)([scene_of(index)], text, [truth.shape])[0]
                    labels, _ = maps.best()
                spent[i].append(time.process_time() - start)
                full = labels if full is None else full
                changed[i].append(float((labels != full).float().mean()))
            assert full is not None
            right.append(float((full == truth).float().mean()))
        print(f"{count} words: {100 * statistics.mean(right):.1f} % of the pixels are right")
        for i, (name, kept, others, *_) in enumerate(cases):
            found = {
                "words": count, "rule": name, "classes": kept, "representatives": others,
                "changed": statistics.mean(changed[i]), "changed_most": max(changed[i]),
                "cpu_seconds": statistics.median(spent[i]), "right": statistics.mean(right),
                "scenes": args.scenes,
            }  # fmt: skip
            results.append(found)
            print(
                f"{kept:>6} + {others:<4} {name:<30} {100 * found['changed']:8.3f} % "
                f"(at most {100 * found['changed_most']:.2f} %)  {found['cpu_seconds']:.2f} s",
                flush=True,
            )
    return results


# Plots ----------------------------------------------------------------------------------------


def draw_costs(results: list[dict[str, Any]]) -> Figure:
    """Draw seconds and memory over classes, a line for each way."""
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    panels = (("cpu_seconds", 1, "CPU seconds"), ("peak_bytes", 1e9, "GB beyond weights and words"))
    for axes, (key, unit, label) in zip(figure.subplots(1, 2), panels, strict=True):
        for way in WAYS:
            points = [
                (r["classes"], r[key] / unit) for r in results if r["way"] == way and key in r
            ]
            if points:
                axes.plot(*zip(*points, strict=True), marker="o", label=way)
        axes.set(xscale="log", yscale="log", xlabel="classes", ylabel=label)
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.grid(color="#ddd")
    figure.axes[0].legend(frameon=False)
    return figure


def draw_labels(results: list[dict[str, Any]]) -> Figure:
    """Draw the share of changed labels over time, a panel for each number of words."""
    words = sorted({r["words"] for r in results})
    figure = Figure(figsize=(4 * len(words) + 0.5, 4), layout="constrained")
    for axes, count in zip(figure.subplots(1, len(words), squeeze=False)[0], words, strict=True):
        of_count = [r for r in results if r["words"] == count]
        for name in dict.fromkeys(r["rule"] for r in of_count if r["rule"] != "all"):
            points = [(r["cpu_seconds"], 100 * r["changed"]) for r in of_count if r["rule"] == name]
            dashes = "--" if name.startswith("peak") else "-"
            axes.plot(*zip(*sorted(points), strict=True), dashes, marker="o", label=name)
        full = next(r for r in of_count if r["rule"] == "all")
        axes.axvline(full["cpu_seconds"], color="#888", linestyle=":", label="all classes")
        axes.axhline(0.1, color="#ccc")
        axes.set(xscale="log", title=f"{count:,} words", xlabel="CPU seconds a picture")
        axes.set_yscale("symlog", linthresh=0.01)
        axes.yaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_major_formatter("{x:g}")
    figure.axes[0].set_ylabel("changed labels, %")
    figure.axes[-1].legend(frameon=False, fontsize=8)
    return figure


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    training = commands.add_parser("train")
    training.add_argument("folder", type=Path)
    training.add_argument("--iterations", type=int, default=100)
    plot = commands.add_parser("plot")
    plot.add_argument("output", type=Path, metavar="OUT.svg")
    plot.add_argument("files", type=Path, nargs="+", metavar="FILE.json")
    child = commands.add_parser("child")  # a process of its own, whose memory is measured
    child.add_argument("way")
    child.add_argument("text", type=Path)
    costs, merging, labels = map(commands.add_parser, ("cost", "merging", "labels"))
    for one in (child, costs):
        one.add_argument("--image-size", type=int, nargs=2, default=(480, 640), metavar="PIXELS")
        one.add_argument("--random", action="store_true", help="weights, see above")
    for one in (child, costs, merging, labels):
        one.add_argument("--model", default="synthetic")
    for one in (costs, merging, labels):
        one.add_argument("--json", type=Path, required=True, metavar="FILE")
    costs.add_argument("--repeat", type=int, default=3, metavar="N", help="0: no times")
    costs.add_argument("--memory", action="store_true", help="measure it")
    costs.add_argument("--flops", action="store_true", help="count operations")
    costs.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    costs.add_argument(
        "--most", type=_limit, nargs="*", default=[], metavar="WAY=N", help="a way's most classes"
    )
    for one in (costs, labels):
        one.add_argument("--classes", type=int, nargs="+", default=[300, 1000], metavar="N")
    for one in (merging, labels):
        one.add_argument("--scenes", type=int, default=12)
    labels.add_argument(
        "--settings", type=_setting, nargs="+", metavar="K+M",
        default=[(24, 8), (48, 16), (96, 32), (160, 64)],
        help="classes computed, and representatives of the others",
    )  # fmt: skip
    labels.add_argument(
        "--summed", type=int, default=1 << 30, metavar="N", help="most words with all in the sums"
    )
    return parser


def _limit(text: str) -> tuple[str, int]:
    way, _, most = text.partition("=")
    return way, int(most)


def _setting(text: str) -> tuple[int, int]:
    kept, _, others = text.partition("+")
    return int(kept), int(others)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    args = build_parser().parse_args(arguments)
    torch.set_num_threads(1)
    if args.command == "train":
        train(args.iterations).save_pretrained(args.folder)
        return 0
    if args.command == "child":
        print(measure_child(args))
        return 0
    if args.command == "plot":
        results = [r for file in args.files for r in json.loads(file.read_text())["results"]]
        draw = draw_labels if "rule" in results[0] else draw_costs
        with rc_context(STYLE), atomic_write(args.output) as part:
            draw(results).savefig(part, format="svg", metadata={"Date": None})
        return 0
    if args.command == "cost":
        args.most = dict(args.most)
    measure = {"cost": measure_costs, "merging": measure_merging, "labels": measure_labels}
    results = measure[args.command](args)
    with atomic_write(args.json) as part:
        part.write_text(json.dumps({"torch": torch.__version__, "results": results}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
