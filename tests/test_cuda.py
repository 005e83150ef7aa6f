"""On an NVIDIA GPU: golden runs, half precision, graphs, memory that runs out."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cat_seg.inference import Inference
from cat_seg.model import CATSeg
from cat_seg.modeling import chunks
from tests.golden import GOLDEN, load_golden
from tests.golden_model import golden_model, mapped_image

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
SIZE = (120, 160)


@pytest.fixture(autouse=True)
def without_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's default lets convolutions round their factors to 10 bits."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture(params=GOLDEN)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture()
def model(name: str, tmp_path: Path) -> Any:
    return golden_model(name, tmp_path, "MODEL.DEVICE", "cuda")


def probabilities(model: Any, image: Tensor, **plan: Any) -> Tensor:
    """The volume of one image, on CPU."""
    inference = Inference(model, replace(model.plan, **plan))
    with torch.no_grad():
        text = model.head.text_features()
        maps = inference([image], text, [SIZE])[0]
        return maps.volume().float().cpu()


def test_the_published_probabilities(name: str, model: Any):
    result = model([{"image": mapped_image(name), "height": SIZE[0], "width": SIZE[1]}])[0]
    assert result["sem_seg"].is_cuda
    expected = torch.as_tensor(np.asarray(load_golden(name).inference["sem_seg_sliding"]))
    torch.testing.assert_close(result["sem_seg"].cpu(), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_is_near(name: str, model: Any, precision: str):
    image = mapped_image(name)
    expected = probabilities(model, image)
    actual = probabilities(model, image, precision=precision)
    assert (actual - expected).abs().max() < (0.03 if precision == "bf16" else 0.004)
    assert (actual != expected).any()


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_graphs_change_nothing(name: str, model: Any, precision: str):
    """For several images, and for another vocabulary in between."""
    images = [mapped_image(name), mapped_image(name).flip(-1)]
    text = model.head.text_features()
    plain = Inference(model, replace(model.plan, precision=precision))
    graphs = Inference(model, replace(model.plan, precision=precision, cuda_graphs=True))
    with torch.no_grad():
        for words in (text, text[:5], text):
            maps = [graphs([image], words, [SIZE])[0] for image in images]
            for image, one in zip(images, maps, strict=True):  # the first is still what it was
                expected = plain([image], words, [SIZE])[0].volume()
                torch.testing.assert_close(one.volume(), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_the_same_again(name: str, model: Any, precision: str):
    first = probabilities(model, mapped_image(name), precision=precision)
    again = probabilities(model, mapped_image(name), precision=precision)
    assert torch.equal(first, again)


def test_labels_are_the_best_of_the_probabilities(name: str, model: Any):
    inference = Inference(model, model.plan)
    with torch.no_grad():
        maps = inference([mapped_image(name)], model.head.text_features(), [SIZE])[0]
        labels, scores = maps.best()
        volume = maps.volume()
    torch.testing.assert_close(scores, volume.amax(dim=0), atol=0, rtol=0)
    assert torch.equal(volume.gather(0, labels[None])[0], scores)


def test_memory_that_runs_out(name: str, model: Any, monkeypatch: pytest.MonkeyPatch):
    """The first attempts find no memory; the result is the same, and graphs are made anew."""
    image = {"image": mapped_image(name), "height": SIZE[0], "width": SIZE[1]}
    expected = model([image])[0]["sem_seg"]
    length, calls = chunks.chunk_length, []

    def none_left(bytes_each: int, device: torch.device) -> int:
        calls.append(chunks._DIVISOR.get())
        if chunks._DIVISOR.get() < 4:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. (asked for by the test)")
        return length(bytes_each, device)

    monkeypatch.setattr("cat_seg.modeling.aggregator.aggregator.chunk_length", none_left)
    for graphs in (False, True):
        model.plan = replace(model.plan, cuda_graphs=graphs)
        actual = model([image])[0]["sem_seg"]
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)
        assert max(calls) == 4
        calls.clear()


def test_a_training_step(name: str, tmp_path: Path):
    """Loss and gradients are those of the CPU."""
    losses, gradients = [], []
    for device in ("cpu", "cuda"):
        model = golden_model(name, tmp_path, "MODEL.DEVICE", device).train()
        for module in model.modules():
            if hasattr(module, "drop_prob"):
                module.drop_prob = 0.0
        random = torch.Generator().manual_seed(0)
        labels = torch.randint(0, 5, (384, 384), generator=random)
        image = torch.randint(0, 256, (3, 384, 384), generator=random).float()
        loss = model([{"image": image, "sem_seg": labels}])["loss_sem_seg"]
        loss.backward()
        losses.append(loss.item())
        gradients.append(
            {n: p.grad.cpu() for n, p in model.named_parameters() if p.grad is not None}
        )
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert gradients[0].keys() == gradients[1].keys()
    # The keys' biases have no gradient but for rounding: softmax cancels them.
    floor = 1e-4 * max(gradient.norm() for gradient in gradients[0].values())
    for key, expected in gradients[0].items():
        error = (gradients[1][key] - expected).norm() / expected.norm().clamp(min=floor)
        assert error < 2e-3, key


def test_the_small_model_by_threads():
    model = CATSeg.from_pretrained("synthetic", device="cuda")
    picture = Path(__file__).resolve().parents[1] / "demo" / "images" / "harbour.jpg"
    words = [["water", "sky"], ["sand", "water", "grass"], ["sky", "brick wall"], ["snow"]]
    expected = [model.predict(picture, one).labels for one in words]
    results: dict[int, np.ndarray] = {}

    def work(index: int) -> None:
        for _ in range(3):
            results[index] = model.predict(picture, words[index]).labels

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(words))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, labels in enumerate(expected):
        assert np.array_equal(results[i], labels)
