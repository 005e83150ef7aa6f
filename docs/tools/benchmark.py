"""Measure time and memory of one image.

    python docs/tools/benchmark.py --config-file configs/vitl.yaml --classes 150 --against-reference

Weights and text features are random: what they are changes no time. `--against-reference` runs the
reference too, tests/reference.py, straight from the formulas, in the same process on the same
weights, in turns, and compares the results. Memory is that beyond the weights, of the first
run. Stages are timed inside the model; `torch.utils.benchmark` measures the peak of the machine.
`--training B` measures forward and backward pass of a batch of B crops instead, `--text` encoding
the first names of the config's vocabulary in all templates.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import platform
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.benchmark import Timer
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count
from tqdm import tqdm

import cat_seg.plugin  # noqa: F401  (before any import of detectron2)

# isort: split
from detectron2.config import CfgNode
from detectron2.modeling import build_model

from cat_seg.inference import Maps
from cat_seg.modeling.clip import encode_text, tokenize
from cat_seg.plugin.data.vocabulary import vocabulary_of
from cat_seg.plugin.engine import load_config
from cat_seg.plugin.meta_arch import CATSeg
from cat_seg.resources import project_file
from cat_seg.utils import memory
from cat_seg.utils.files import atomic_write
from cat_seg.vocabulary import parse_vocabulary

STAGES = ("encoders", "spatial", "class", "decoder", "merging")
# How far results may be apart.
APART = (
    "largest_difference_of_probabilities",
    "share_of_other_labels",
    "relative_difference_of_losses",
    "largest_difference_of_features",
)


class Runner:
    """One of the two that are compared: what to run, and where its stages are."""

    def __init__(self, run: Callable[[], Tensor], stages: dict[str, list[tuple[Any, str]]]):
        """
        Args:
            run: gives the result for one image.
            stages: of each stage the functions that it consists of, as owner and attribute.
        """
        self.run = run
        self.stages = stages
        self.first_seconds = 0.0
        self.seconds: list[float] = []
        self.stage_seconds: dict[str, list[float]] = defaultdict(list)
        self.peak_bytes = 0
        self.flops = 0
        self.result = torch.empty(0)

    def first(self, device: torch.device) -> None:
        """Run once, to warm up and to measure memory."""
        self.result = torch.empty(0)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            before = torch.cuda.memory_allocated(device)
        else:
            memory.give_back_memory()
            before = memory.resident_bytes() if memory.reset_peak() else 0
        start = _now(device)
        self.result = self.run()
        self.first_seconds = _now(device) - start
        peak = (
            torch.cuda.max_memory_allocated(device)
            if device.type == "cuda"
            else memory.peak_bytes()
        )
        size = self.result.numel() * self.result.element_size()
        self.peak_bytes = peak - before - size if before else 0

    def again(self, device: torch.device, stages: bool) -> None:
        """Run once, to measure time, of the stages too if asked for."""
        spent: dict[str, float] = defaultdict(float)
        with contextlib.ExitStack() as stack:
            for stage, functions in self.stages.items() if stages else ():
                for owner, name in functions:
                    stack.enter_context(_timed(owner, name, spent, stage, device))
            start = _now(device)
            self.run()
            total = _now(device) - start
        self.seconds.append(total)
        for stage in self.stages if stages else ():
            self.stage_seconds[stage].append(spent[stage])
        if stages:
            self.stage_seconds["rest"].append(total - sum(spent.values()))

    def count(self) -> None:
        """Run once, to count floating-point operations."""
        attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        with FlopCounterMode(display=False, custom_mapping={attention: _attention_flops}) as mode:
            self.run()
        self.flops = mode.get_total_flops()

    def summary(self) -> dict[str, Any]:
        times = self.seconds or [self.first_seconds]
        seconds = statistics.median(times)
        figures: dict[str, Any] = {
            "seconds": round(seconds, 4),
            "seconds_least": round(min(times), 4),
            "seconds_most": round(max(times), 4),
            "peak_gigabytes_beyond_weights": round(self.peak_bytes / 1e9, 3),
        }
        if self.flops:
            figures["gflop"] = round(self.flops / 1e9, 1)
            figures["gflop_per_second"] = round(self.flops / 1e9 / seconds, 1)
        if self.stage_seconds:
            figures["stage_seconds"] = {
                stage: round(statistics.median(spent), 4)
                for stage, spent in self.stage_seconds.items()
            }
        return figures


def package_runner(model: CATSeg, image: Tensor, size: tuple[int, int]) -> Runner:
    """Run the package."""
    transformer = model.predictor.transformer
    inputs = {"image": image, "height": size[0], "width": size[1]}

    def run() -> Tensor:
        result = model([inputs])[0]
        return result["labels"] if model.labels_only else result["sem_seg"]

    return Runner(
        run,
        {
            "encoders": [(model, "encode_crops")],
            "spatial": [(layer.swin_block, "forward") for layer in transformer.layers],
            "class": [(layer.attention, "forward") for layer in transformer.layers],
            "decoder": [(transformer, "decode")],
            "merging": [(Maps, "best"), (Maps, "volume")],
        },
    )


def reference_runner(
    reference: ModuleType, cfg: CfgNode, model: CATSeg, image: Tensor, text: Tensor,
    size: tuple[int, int], crop_batch: int,
) -> Runner:  # fmt: skip
    """Run the reference implementation on the same weights."""
    if model.plan.sliding_window is None:
        raise ValueError("--against-reference needs TEST.SLIDING_WINDOW True.")
    settings = reference.settings(cfg, model)
    weights = model.state_dict()
    image = image.to(model.device)

    @torch.no_grad()
    def run() -> Tensor:
        maps = reference.segment(weights, image, text, *size, crop_batch=crop_batch, **settings)
        return maps.argmax(0) if model.labels_only else maps

    names = {
        "encoders": "encode", "spatial": "spatial_aggregation", "class": "class_aggregation",
        "decoder": "decoder_block", "merging": "merge",
    }  # fmt: skip
    return Runner(run, {stage: [(reference, name)] for stage, name in names.items()})


def training_runners(
    args: argparse.Namespace, cfg: CfgNode, model: CATSeg, text: Tensor
) -> dict[str, Runner]:
    """Compute loss and gradients of a batch, by the package and, if asked for, the reference."""
    model.train()
    random = torch.Generator().manual_seed(0)
    size = cfg.INPUT.CROP.SIZE[0]
    images = torch.randint(0, 256, (args.training, 3, size, size), generator=random).float()
    labels = torch.randint(0, len(text), (args.training, size, size), generator=random)
    images, labels = images.to(model.device), labels.to(model.device)
    batch = [{"image": i, "sem_seg": s} for i, s in zip(images, labels, strict=True)]

    def step(losses: Callable[[], Iterable[Tensor]]) -> Tensor:
        """Add up losses and their gradients, one after the other."""
        model.zero_grad()
        total = torch.zeros((), device=model.device)
        for loss in losses():
            loss.backward()
            total += loss.detach()
        return total

    runners = {"package": Runner(partial(step, lambda: [model(batch)["loss_sem_seg"]]), {})}
    if args.against_reference:
        reference = load_reference()
        settings = reference.settings(cfg, model)
        weights = dict(model.named_parameters()) | dict(model.named_buffers())
        at_once = args.reference_crop_batch

        def reference_losses() -> Iterator[Tensor]:
            """Compute the loss chunk by chunk, each by its share of the batch."""
            chunks = zip(images.split(at_once), labels.split(at_once), strict=True)
            for chunk, targets in chunks:
                loss = reference.loss(weights, chunk, targets, text, **settings)
                yield loss * len(chunk) / len(images)

        runners["reference"] = Runner(partial(step, reference_losses), {})
    return runners


def text_runners(
    args: argparse.Namespace, cfg: CfgNode, model: CATSeg, count: int
) -> dict[str, Runner]:
    """Encode the vocabulary's first names, each in every template.

    Raises:
        ValueError: if the vocabulary has fewer.
    """
    predictor = model.predictor
    clip = predictor.clip_model
    names = parse_vocabulary(
        vocabulary_of(cfg.MODEL.SEM_SEG_HEAD.TEST_CLASS_JSON, cfg.DATASETS.TEST)
    )
    if len(names) < count:
        raise ValueError(f"--text: the config's vocabulary has {len(names)} names, not {count}.")
    tokens = tokenize([t.format(name[0]) for name in names[:count] for t in predictor.templates])

    @torch.no_grad()
    def package() -> Tensor:
        return F.normalize(encode_text(clip, tokens, batch_tokens=predictor.text_batch), dim=-1)

    runners = {"package": Runner(package, {})}
    if args.against_reference:
        reference = load_reference()
        weights = clip.state_dict()
        block = clip.transformer.resblocks[0]
        quick = type(block.mlp.gelu).__name__ == "QuickGELU"

        @torch.no_grad()
        def reference_features() -> Tensor:
            batches = tokens.to(model.device).split(len(predictor.templates))
            heads = block.attn.num_heads
            features = [reference.clip_text(weights, "", batch, heads, quick) for batch in batches]
            return F.normalize(torch.cat(features), dim=-1)

        runners["reference"] = Runner(reference_features, {})
    return runners


def load_reference() -> ModuleType:
    """Load the reference implementation, tests/reference.py of the clone.

    Raises:
        ValueError: where there is none.
    """
    try:
        path = project_file("tests/reference.py")
    except ValueError as error:
        raise ValueError(
            "--against-reference needs a clone: tests/reference.py is not there."
        ) from error
    spec = importlib.util.spec_from_file_location("reference", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def build(args: argparse.Namespace) -> tuple[CfgNode, CATSeg]:
    """Build the model with random weights."""
    torch.manual_seed(0)
    # The reference has no stochastic depth.
    opts = ["TEST.TEXT_CACHE", "none", "MODEL.SWIN.DROP_PATH_RATE", "0.0", *args.opts]
    cfg = load_config(args.config_file, opts, args.device)
    model: CATSeg = build_model(cfg).eval()
    for parameter in model.parameters():
        if parameter.dim() == 0 or not parameter.any():  # not left at zero: nothing is skipped
            nn.init.normal_(parameter, std=0.02)
    if not args.training:  # parameters that want gradients confuse the counting of operations
        model.requires_grad_(False)
    return cfg, model


def set_classes(model: CATSeg, classes: int) -> Tensor:
    """Give the model so many classes with random text features, (T, P, D)."""
    predictor = model.predictor
    width = predictor.clip_model.text_projection.shape[1]
    random = torch.Generator().manual_seed(0)
    text = torch.randn(classes, len(predictor.templates), width, generator=random)
    text = F.normalize(text, dim=-1).to(model.device)
    names = tuple(f"class {i}" for i in range(classes))
    model.head.train_names = model.head.test_names = names

    def features(chosen: Tensor | None = None) -> Tensor:
        return text if chosen is None else text[chosen.to(text.device)]

    model.head.text_features = features  # type: ignore[method-assign]
    return text


def measure(args: argparse.Namespace, cfg: CfgNode, model: CATSeg, classes: int) -> dict[str, Any]:
    """Measure what the options ask for, with one number of classes."""
    text = set_classes(model, classes)
    if args.training:
        runners = training_runners(args, cfg, model, text)
    elif args.text:
        runners = text_runners(args, cfg, model, classes)
    else:
        runners = inference_runners(args, cfg, model, text)
    steps = tqdm(total=len(runners) * (1 + args.repeat + args.flops), desc=f"{classes} classes")
    for runner in runners.values():
        runner.first(model.device)
        steps.update()
    difference = (
        compare(*(runner.result for runner in runners.values())) if args.against_reference else {}
    )
    for runner in runners.values():
        runner.result = torch.empty(0)
    for _ in range(args.repeat):
        for runner in runners.values():  # in turns: both see the same machine
            runner.again(model.device, args.stages)
            steps.update()
    for runner in runners.values() if args.flops else ():
        runner.count()
        steps.update()
    steps.close()
    return {
        "classes": classes,
        **{n: s.summary() for n, s in runners.items()},
        **difference,
    }


def inference_runners(
    args: argparse.Namespace, cfg: CfgNode, model: CATSeg, text: Tensor
) -> dict[str, Runner]:
    """Segment one image, by the package and, if asked for, the reference."""
    height, width = args.image_size
    scale = cfg.INPUT.MIN_SIZE_TEST / min(height, width)
    shape = (3, round(height * scale), round(width * scale))  # as the test mapper resizes it
    image = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0)).float()
    runners = {"package": package_runner(model, image, (height, width))}
    if args.against_reference:
        reference = load_reference()
        runners["reference"] = reference_runner(
            reference, cfg, model, image, text, (height, width), args.reference_crop_batch
        )
    return runners


def compare(ours: Tensor, reference: Tensor) -> dict[str, Any]:
    """Compute how far two results are apart."""
    figures = {}
    if ours.dim() == 2 and ours.is_floating_point():
        return {"largest_difference_of_features": (ours - reference).abs().max().item()}
    if ours.dim() == 0:
        return {"relative_difference_of_losses": (ours / reference - 1).abs().item()}
    if ours.is_floating_point():
        figures["largest_difference_of_probabilities"] = max(
            (a - b).abs().max().item() for a, b in zip(ours, reference, strict=True)
        )
        ours, reference = ours.argmax(0), reference.argmax(0)
    return {**figures, "share_of_other_labels": (ours != reference).float().mean().item()}


def measured_peak(device: torch.device, seconds: float = 1.0) -> float:
    """Measure GFLOP/s of large float32 matrix products, the better of two ways to ask for them."""
    m, n = 4096, 1024
    a, b = torch.randn(m, n, device=device), torch.randn(n, n, device=device)
    rows = a.view(1, m, 1, n).permute(0, 3, 1, 2)  # (1, n, m, 1), channels last
    names = {"a": a, "b": b, "rows": rows, "kernel": b[:, :, None, None], "torch": torch}
    timers = [
        Timer(product, globals=names, num_threads=torch.get_num_threads())
        for product in ("torch.mm(a, b)", "torch.nn.functional.conv2d(rows, kernel)")
    ]
    fastest = min(timer.blocked_autorange(min_run_time=seconds).median for timer in timers)
    return 2 * m * n**2 / 1e9 / fastest


def environment(device: torch.device, allocator: str) -> dict[str, Any]:
    """Describe what the figures depend on besides the code."""
    return {
        "processor": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "allocator": allocator,
        "peak_gflop_per_second": round(measured_peak(device), 1),
    }


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


@contextlib.contextmanager
def _timed(
    owner: Any, name: str, spent: dict[str, float], stage: str, device: torch.device
) -> Iterator[None]:
    """Add the time that a function takes to its stage while this context lasts."""
    function, own = getattr(owner, name), name in vars(owner)

    def timed(*args: Any, **kwargs: Any) -> Any:
        start = _now(device)
        try:
            return function(*args, **kwargs)
        finally:
            spent[stage] += _now(device) - start

    setattr(owner, name, timed)
    try:
        yield
    finally:
        if own:
            setattr(owner, name, function)
        else:
            delattr(owner, name)  # the class's own shows again


def _attention_flops(query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
    return sdpa_flop_count(query, key, value)


def table(results: list[dict[str, Any]]) -> str:
    """Format results, one line an implementation."""
    lines = []
    for result in results:
        for name in ("package", "reference"):
            if name not in result:
                continue
            r = result[name]
            line = f"{result['classes']:>6} classes  {name:<10}{r['seconds']:9.2f} s"
            line += f" ({r['seconds_least']:.2f} to {r['seconds_most']:.2f})"
            line += f"{r['peak_gigabytes_beyond_weights']:8.2f} GB beyond the weights"
            if "gflop" in r:
                line += f"{r['gflop']:10.0f} GFLOP, {r['gflop_per_second']:.0f} a second"
            lines.append(line)
            if stages := r.get("stage_seconds"):
                lines.append("        " + ", ".join(f"{k} {v:.2f}" for k, v in stages.items()))
        if "reference" in result:
            times = result["reference"]["seconds"] / result["package"]["seconds"]
            apart = [f"{key.replace('_', ' ')} {result[key]:.1e}" for key in APART if key in result]
            lines.append(f"        {times:.2f} times as fast, {', '.join(apart)}")
    return "\n".join(lines)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", default="configs/vitl.yaml", metavar="FILE")
    parser.add_argument("--classes", type=int, nargs="+", default=[150], metavar="N")
    parser.add_argument("--image-size", type=int, nargs=2, default=(480, 640), metavar=("H", "W"))
    parser.add_argument("--device", default="", help="cuda, mps or cpu; the best if left out")
    parser.add_argument(
        "--training", type=int, default=0, metavar="B", help="a training step of B crops instead"
    )
    parser.add_argument("--text", action="store_true", help="encoding the vocabulary instead")
    parser.add_argument(
        "--repeat", type=int, default=3, metavar="N",
        help="timed runs; 0 times the first run, which is not warmed up",
    )  # fmt: skip
    parser.add_argument("--stages", action="store_true", help="time of each stage too")
    parser.add_argument("--flops", action="store_true", help="count operations too")
    parser.add_argument(
        "--against-reference", action="store_true", help="the reference implementation too"
    )
    parser.add_argument(
        "--reference-crop-batch", type=int, default=5, metavar="N",
        help="crops that the reference takes at once; fewer where memory is short",
    )  # fmt: skip
    parser.add_argument(
        "--allocator", choices=("default", "kept"), default="kept",
        help="the C library's own behaviour, or freed memory kept as our entry points do",
    )  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="config changes"
    )
    return parser


def main(arguments: list[str] | None = None) -> int:
    args = build_parser().parse_args(arguments)
    try:
        if args.allocator == "kept" and not memory.keep_freed_memory():
            args.allocator = "default"
        cfg, model = build(args)
        results = [measure(args, cfg, model, classes) for classes in args.classes]
    except ValueError as error:
        print(f"benchmark: {error}", file=sys.stderr)
        return 1
    about = environment(model.device, args.allocator)
    print(table(results))
    print(", ".join(f"{key.replace('_', ' ')} {value}" for key, value in about.items()))
    if args.json:
        report = {
            "config": args.config_file,
            "opts": args.opts,
            "environment": about,
            "results": results,
        }
        with atomic_write(args.json) as part:
            part.write_text(json.dumps(report, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
