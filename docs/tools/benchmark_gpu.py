"""Measure on a GPU: both generations, in float32 and half precision, beside the reference.

    python docs/tools/benchmark_gpu.py --json gpu.json

Weights and text features are random, made on the device: what they are changes no time. Of a
480 x 640 image with the sliding window: milliseconds (median, host clock around synchronisation),
gigabytes beyond the weights, TFLOP/s, and the share of labels that differ from float32 (with random
weights nearly all classes tie, so that this is an upper bound; see docs/performance.md for trained
weights). The reference, tests/reference.py, runs in the same process on the same weights. Also: the
card's ceilings, a training step, and encoding a vocabulary.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from cat_seg.inference import Inference, Maps
from cat_seg.modeling import fused
from cat_seg.modeling.clip import encode_text, tokenize
from cat_seg.utils.files import atomic_write
from docs.tools import benchmark

SIZE = (480, 640)
CONFIGS = {"2024 L": "vitl_2024", "2023 L": "vitl", "2024 B": "vitb_2024"}
MODES: dict[str, dict[str, Any]] = {
    "float32": {},
    "tf32": {"tf32": True},
    "bf16, PyTorch's operations": {"precision": "bf16", "kernels": False},
    "bf16": {"precision": "bf16"},
    "bf16, graphs": {"precision": "bf16", "cuda_graphs": True},
    "fp16, graphs": {"precision": "fp16", "cuda_graphs": True},
}


def median_ms(function: Callable[[], Any], repeat: int) -> float:
    """Time a function on the device, after one call to warm up; milliseconds."""
    function()
    times = []
    for _ in range(repeat):
        torch.cuda.synchronize()
        start = time.perf_counter()
        function()
        torch.cuda.synchronize()
        times.append(1e3 * (time.perf_counter() - start))
    return round(statistics.median(times), 2)


def peak_gb(function: Callable[[], Any]) -> float:
    """Memory beyond what is there before, at most, in gigabytes."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    function()
    torch.cuda.synchronize()
    return round((torch.cuda.max_memory_allocated() - before) / 1e9, 2)


@contextmanager
def settings(*, tf32: bool = False, kernels: bool = True) -> Iterator[None]:
    """The state of the process that a mode asks for."""
    before = torch.get_float32_matmul_precision(), fused.AVAILABLE
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32
    fused.AVAILABLE = fused.AVAILABLE and kernels
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = False
        fused.AVAILABLE = before[1]


def ceilings() -> dict[str, float]:
    """What the card reaches: matrix products and copies."""
    figures = {}
    for name, dtype, n in (("bf16", torch.bfloat16, 8192), ("float32", torch.float32, 4096)):
        a, b = (torch.randn(n, n, device="cuda").to(dtype) for _ in range(2))
        ms = median_ms(lambda a=a, b=b: a @ b, 9)
        figures[f"{name}_tflop_per_second"] = round(2 * n**3 / ms / 1e9, 1)
    x = torch.randn(1 << 29, device="cuda")
    y = torch.empty_like(x)
    ms = median_ms(lambda: y.copy_(x), 9)
    figures["copy_gb_per_second"] = round(2 * x.nbytes / ms / 1e6, 1)
    return figures


def stage_ms(model: Any, run: Callable[[], Any], repeat: int) -> dict[str, float]:
    """Milliseconds by stage, by CUDA events around its calls."""
    transformer = model.predictor.transformer
    spent: dict[str, list[tuple[torch.cuda.Event, torch.cuda.Event]]] = defaultdict(list)
    undo: list[Callable[[], None]] = []

    def watch(owner: Any, name: str, stage: str) -> None:
        function, own = getattr(owner, name), name in vars(owner)

        def watched(*args: Any, **kwargs: Any) -> Any:
            events = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            events[0].record()
            result = function(*args, **kwargs)
            events[1].record()
            spent[stage].append(events)
            return result

        setattr(owner, name, watched)
        undo.append(lambda: setattr(owner, name, function) if own else delattr(owner, name))

    watch(model, "encode_crops", "encoders")
    watch(transformer, "embed", "embedding")
    for layer in transformer.layers:
        watch(layer.swin_block, "forward", "spatial")
        watch(layer.attention, "forward", "class")
    watch(transformer, "decode", "decoder")
    watch(Maps, "best", "merging")
    try:
        run()
        spent.clear()
        for _ in range(repeat):
            run()
        torch.cuda.synchronize()
    finally:
        for step in undo:
            step()
    return {k: round(sum(a.elapsed_time(b) for a, b in v) / repeat, 2) for k, v in spent.items()}


@torch.no_grad()
def segment(
    model: Any, classes: int, images: int, repeat: int, modes: dict[str, dict[str, Any]],
    reference: bool,
) -> dict[str, Any]:  # fmt: skip
    """Segment images at once in every mode, and by the reference; times of one image."""
    text = benchmark.set_classes(model, classes)
    random = torch.Generator("cuda").manual_seed(0)
    pixels = torch.randint(0, 256, (3, 640, 853), device="cuda", generator=random).float()
    results: dict[str, Any] = {}
    expected: tuple[Tensor, Tensor] | None = None
    flops = 0
    for name, mode in modes.items():
        plan = {k: v for k, v in mode.items() if k in ("precision", "cuda_graphs", "compiled")}
        rest = {k: v for k, v in mode.items() if k not in plan}
        inference = Inference(model, replace(model.plan, **plan))

        def run(inference: Inference = inference) -> list[tuple[Tensor, Tensor]]:
            maps = inference([pixels] * images, text, [SIZE] * images)
            return [one.best() for one in maps]

        with settings(**rest):
            run()  # compiles, and records graphs
            figures: dict[str, Any] = {"gb": peak_gb(run)}
            figures["ms"] = round(median_ms(run, repeat) / images, 2)
            labels, scores = run()[0]
            if images == 1 and not plan.get("cuda_graphs") and not plan.get("compiled"):
                figures["stages"] = stage_ms(model, run, 3)
            if expected is None:
                expected = labels, scores
                with FlopCounterMode(display=False) as counter:
                    run()
                flops = counter.get_total_flops() // images
        figures["tflop_per_second"] = round(flops / figures["ms"] / 1e9, 1)
        figures["other_labels"] = round((labels != expected[0]).float().mean().item(), 6)
        figures["score_difference"] = (scores - expected[1]).abs().max().item()
        results[name] = figures
        print(f"  {name:<28}", {k: v for k, v in figures.items()}, flush=True)
    if reference and expected is not None:
        module = benchmark.load_reference()
        options, weights = module.settings(model.benchmark_cfg, model), model.state_dict()

        def plainly() -> Tensor:
            return module.segment(weights, pixels, text, *SIZE, crop_batch=5, **options).argmax(0)

        figures = {"gb": peak_gb(plainly), "ms": median_ms(plainly, 2)}
        figures["other_labels"] = round((plainly() != expected[0]).float().mean().item(), 6)
        results["reference"] = figures
        print(f"  {'reference, float32':<28}", figures, flush=True)
        with torch.autocast("cuda", torch.bfloat16):
            figures = {"gb": peak_gb(plainly), "ms": median_ms(plainly, 3)}
        results["reference, bf16"] = figures
        print(f"  {'reference, bf16':<28}", figures, flush=True)
    results["tflop"] = round(flops / 1e12, 2)
    return results


def train(model: Any, classes: int, batch: int, repeat: int) -> dict[str, Any]:
    """Forward and backward pass of a batch of crops, by the package and the reference."""
    text = benchmark.set_classes(model, classes)
    random = torch.Generator("cuda").manual_seed(0)
    images = torch.randint(0, 256, (batch, 3, 384, 384), device="cuda", generator=random).float()
    labels = torch.randint(0, classes, (batch, 384, 384), device="cuda", generator=random)
    inputs = [{"image": i, "sem_seg": s} for i, s in zip(images, labels, strict=True)]
    model.train()
    model.requires_grad_(True)
    module = benchmark.load_reference()
    options = module.settings(model.benchmark_cfg, model)
    weights = dict(model.named_parameters()) | dict(model.named_buffers())
    losses = {
        "package": lambda: model(inputs)["loss_sem_seg"],
        "reference": lambda: module.loss(weights, images, labels, text, **options),
    }
    results: dict[str, Any] = {}
    for precision in ("float32", "bf16"):
        for name, loss in losses.items():

            def step(loss: Callable[[], Tensor] = loss, half: bool = precision == "bf16") -> Tensor:
                model.zero_grad()
                with torch.autocast("cuda", torch.bfloat16, enabled=half):
                    value = loss()
                value.backward()
                return value.detach()

            key = f"{name}, {precision}"
            try:
                results[key] = {"loss": step().item(), "gb": peak_gb(step)}
                results[key]["ms"] = median_ms(step, repeat)
            except torch.cuda.OutOfMemoryError as error:
                results[key] = {"error": str(error).splitlines()[0]}
            print(f"  {key:<28}", results[key], flush=True)
    model.zero_grad()
    model.eval().requires_grad_(False)
    return results


@torch.no_grad()
def encode_words(model: Any, classes: int, templates: int, repeat: int) -> dict[str, Any]:
    """Encode a vocabulary in many templates."""
    patterns = [
        f"a {chr(97 + i // 26)}{chr(97 + i % 26)} photo of a {{}}." for i in range(templates)
    ]
    names = [f"thing {chr(97 + i % 26)}{i // 26}" for i in range(classes)]
    tokens = tokenize([pattern.format(name) for name in names for pattern in patterns])
    clip = model.predictor.clip_model

    def run() -> Tensor:
        return F.normalize(encode_text(clip, tokens), dim=-1)

    return {"texts": len(tokens), "ms": median_ms(run, repeat)}


def main(arguments: list[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=CONFIGS, default=list(CONFIGS))
    parser.add_argument("--classes", nargs="+", type=int, default=[150, 847])
    parser.add_argument("--repeat", type=int, default=7, metavar="N", help="timed runs")
    parser.add_argument("--compile", action="store_true", help="torch.compile too, of the first")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    args = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("benchmark_gpu: there is no NVIDIA GPU here.", file=sys.stderr)
        return 1
    report: dict[str, Any] = {
        "card": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        **ceilings(),
    }
    print(report, flush=True)

    def save() -> None:
        if args.json:  # after each part: a run that is cut short keeps the others
            with atomic_write(args.json) as part:
                part.write_text(json.dumps(report, indent=2) + "\n")

    for name in args.models:
        options = benchmark.build_parser().parse_args(
            ["--config-file", f"configs/{CONFIGS[name]}.yaml", "--device", "cuda"]
        )
        with torch.device("cuda"):
            cfg, model = benchmark.build(options)
        model.benchmark_cfg = cfg
        report[name] = results = {}
        first = name == args.models[0]
        for classes in args.classes:
            for images in (1, 8):
                if images == 8 and classes != args.classes[0]:
                    continue
                print(f"{name}, {classes} classes, {images} images at once", flush=True)
                plain = images == 1 and (first or classes == args.classes[0])
                results[f"{classes} classes, {images} at once"] = segment(
                    model, classes, images, args.repeat, MODES, plain
                )
                save()
        if first:
            print(f"{name}, training, 171 classes, 4 crops", flush=True)
            results["training"] = train(model, 171, 4, 3)
            results["words"] = encode_words(model, 150, 80, 3)
            print("  words", results["words"], flush=True)
            if args.compile:
                compiled = {
                    "float32": {},
                    "bf16, compiled": {"precision": "bf16", "compiled": True},
                }
                print(f"{name}, compiled", flush=True)
                results["compiled"] = segment(
                    model, args.classes[0], 1, args.repeat, compiled, False
                )
        del model
        torch.cuda.empty_cache()
        save()
    return 0


if __name__ == "__main__":
    sys.exit(main())
