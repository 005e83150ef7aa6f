"""The whole model through `build_model(cfg)`: golden runs, batches, vocabularies, sizes."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from detectron2.modeling import build_model
from torch import Tensor

from cat_seg.class_lists import class_names
from cat_seg.conversion import CLIP, to_released
from cat_seg.errors import CATSegError
from cat_seg.inference import Inference
from cat_seg.loading import load_state
from cat_seg.model import CATSeg as CATSegLibrary
from cat_seg.modeling.aggregator.correlation import correlate
from cat_seg.modeling.chunks import _DIVISOR
from cat_seg.modeling.losses import mask_bce
from cat_seg.plugin import CATSeg
from tests import reference
from tests.golden import GOLDEN, load_golden
from tests.golden_model import golden_cfg, golden_model, mapped_image, resized

GUIDANCE = {
    "swin_tiny": ("guidance_res4", "guidance_res3", "guidance_res2"),
    "clip_tiny": ("guidance_res3", "guidance_res4", "guidance_res5"),
}


@pytest.fixture(scope="module", params=GOLDEN)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def model(name: str, tmp_path_factory: pytest.TempPathFactory) -> CATSeg:
    return golden_model(name, tmp_path_factory.mktemp(name))


@contextmanager
def planned(model: CATSeg, **changes: Any) -> Iterator[None]:
    """Follow another plan for a while."""
    plan, model.plan = model.plan, replace(model.plan, **changes)
    try:
        yield
    finally:
        model.plan = plan


@pytest.fixture()
def mapped(name: str) -> Tensor:
    return mapped_image(name)


@pytest.mark.parametrize("gradients", [True, False], ids=["gradients", "in_place"])
def test_every_stage_is_that_of_the_published_model(
    name: str, model: CATSeg, mapped: Tensor, gradients: bool
):
    run = load_golden(name).inference
    run.assert_matches(mapped, "mapped_image")
    predictor = model.predictor
    transformer = predictor.transformer
    stages: dict[str, Tensor] = {}
    handles = []

    def keep(module: torch.nn.Module, stage: str) -> None:
        def hook(_module: object, _inputs: object, output: Tensor) -> None:
            stages[stage] = output.detach().clone()  # before a later stage overwrites it

        handles.append(module.register_forward_hook(hook))

    transformer.class_chunk = 7
    for i, layer in enumerate(transformer.layers):
        keep(layer.swin_block, f"layer{i}_spatial_b_c_t_h_w")
        keep(layer.attention, f"layer{i}_class_b_c_t_h_w")
    keep(transformer.conv1, "embedding_bt_c_h_w")
    keep(transformer.decoder1, "decoder1_bt_c_h_w")
    keep(transformer.decoder2, "decoder2_bt_c_h_w")
    with torch.no_grad():
        text = model.head.text_features()
        crops = [*model.plan.sliding_window.cut(mapped.float())]
        features, guidance = model.encode_crops(*model.normalize(crops))
        with torch.set_grad_enabled(gradients):
            logits = predictor(features, guidance, text)
    transformer.class_chunk = 0
    for handle in handles:
        handle.remove()
    run.assert_matches(text, "text_features_test")
    for actual, stage in zip(guidance, GUIDANCE[name], strict=True):
        run.assert_matches(actual, stage)
    unit = torch.nn.functional.normalize
    cost = correlate(unit(features, dim=1).permute(0, 2, 3, 1), unit(text, dim=-1))
    run.assert_matches(cost.flatten(0, 1).permute(0, 3, 1, 2), "cost_volume_bt_p_h_w")
    for stage, actual in stages.items():
        volume = stage.endswith("b_c_t_h_w")
        run.assert_matches(actual.permute(0, 4, 1, 2, 3) if volume else actual, stage)
    assert len(stages) == 7
    run.assert_matches(torch.stack([one.values for one in logits]), "logits")


def test_sliding_window(name: str, model: CATSeg, mapped: Tensor):
    image = {"image": mapped, "height": 120, "width": 160}
    load_golden(name).inference.assert_matches(model([image])[0]["sem_seg"], "sem_seg_sliding")


@pytest.mark.usefixtures("single_crop")
def test_the_whole_image_that_needs_no_padding_is_as_published(name: str, model: CATSeg):
    run = load_golden(name).runs["whole_640x832"]
    image = resized(run["image_hwc"])
    assert image.shape == (3, 640, 832)
    text = model.head.text_features()
    with torch.no_grad():
        run.assert_matches(
            model.logits(*model.encode_crops(*model.normalize([image.float()], 32)), text), "logits"
        )
    result = model([{"image": image, "height": 120, "width": 156}])[0]["sem_seg"]
    torch.testing.assert_close(result, run["sem_seg_whole"], atol=1e-4, rtol=0)
    library = CATSegLibrary.forward(model, image[None], text)  # the network without a plan
    run.assert_matches(library.detach(), "logits")


@pytest.mark.usefixtures("single_crop")
def test_padding_is_seen_as_published_and_cut_off(name: str, model: CATSeg, mapped: Tensor):
    """853 columns are padded to 864: what the network sees is published, its stretching is not."""
    from cat_seg.inference import resize_without_padding

    text = model.head.text_features()
    with torch.no_grad():
        logits = model.logits(*model.encode_crops(*model.normalize([mapped.float()], 32)), text)
    result = model([{"image": mapped, "height": 120, "width": 160}])[0]["sem_seg"]
    expected = resize_without_padding(logits.sigmoid(), (640, 853), (640, 864), (120, 160))[0]
    torch.testing.assert_close(result, expected)
    stretched = torch.nn.functional.interpolate(logits.sigmoid(), (120, 160), mode="bilinear")[0]
    load_golden(name).inference.assert_matches(stretched, "sem_seg_whole")


def test_the_whole_model_is_the_plain_formulation(name: str, tmp_path, mapped: Tensor):
    chunks = ("MODEL.SEM_SEG_HEAD.CLASS_CHUNK", 3)
    cfg, model = golden_cfg(name, tmp_path, *chunks), golden_model(name, tmp_path, *chunks)
    with torch.no_grad():
        text = model.head.text_features()
        expected = reference.segment(
            model.state_dict(), mapped.float(), text, 40, 50, **reference.settings(cfg, model)
        )
    actual = model([{"image": mapped, "height": 40, "width": 50}])[0]["sem_seg"]
    torch.testing.assert_close(actual, expected, atol=2e-5, rtol=1e-4)
    assert torch.equal(actual.argmax(0), expected.argmax(0))


@pytest.mark.slow
def test_more_classes_than_the_limit(tmp_path):
    model = golden_model("clip_tiny", tmp_path)
    names = class_names("ade847")[:300]
    model.set_vocabulary(names)
    image = {"image": mapped_image("clip_tiny"), "height": 12, "width": 16}
    result = model([image])[0]
    assert [len(kept) for kept in result["aggregated_classes"]] == [256] * 5
    found = torch.cat(result["aggregated_classes"]).unique()
    left_out = sorted(set(range(len(names))) - set(found.tolist()))
    assert left_out and (result["sem_seg"][left_out] < 1e-40).all()
    model.labels_only = True
    labels = model([image])[0]["labels"]
    assert torch.equal(labels, result["sem_seg"].argmax(0))


@pytest.fixture()
def single_crop(model: CATSeg) -> Iterator[None]:
    """Without the sliding window, for speed."""
    plan, model.plan = model.plan, replace(model.plan, sliding_window=None)
    yield
    model.plan = plan


@pytest.mark.usefixtures("single_crop")
def test_a_batch_is_its_images_one_by_one(model: CATSeg, mapped: Tensor):
    images = [
        {"image": mapped[:, :400, :500], "height": 40, "width": 50},
        {"image": mapped[:, 100:300, :300]},
    ]
    together = model(images)
    assert together[1]["sem_seg"].shape[1:] == (200, 300)
    for one, result in zip(images, together, strict=True):
        torch.testing.assert_close(model([one])[0], result)


@pytest.mark.usefixtures("single_crop")
def test_half_precision_changes_few_labels_and_keeps_float32_results(model: CATSeg, mapped: Tensor):
    image = {"image": mapped, "height": 60, "width": 80}
    exact = model([image])[0]["sem_seg"]
    with planned(model, precision="bf16"):
        half = model([image])[0]["sem_seg"]
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, exact, atol=0.1, rtol=0)
    assert not torch.equal(half, exact)
    assert (half.argmax(0) == exact.argmax(0)).float().mean() > 0.7  # of random weights


def test_int8_encoders_change_few_labels(model: CATSeg, mapped: Tensor):
    image = {"image": mapped, "height": 48, "width": 64}
    exact = model([image])[0]["sem_seg"]
    with planned(model, int8_encoders=True):
        approximate = model([image])[0]["sem_seg"]
    assert torch.equal(model([image])[0]["sem_seg"], exact)
    assert not torch.equal(approximate, exact)
    torch.testing.assert_close(approximate, exact, atol=0.05, rtol=0)
    assert (approximate.argmax(0) != exact.argmax(0)).float().mean() < 0.1


@pytest.mark.usefixtures("single_crop")
def test_a_volume_in_half_precision_changes_little(model: CATSeg, mapped: Tensor):
    image = {"image": mapped, "height": 48, "width": 64}
    exact = model([image])[0]["sem_seg"]
    transformer = model.predictor.transformer
    transformer.half_volume = True
    try:
        approximate = model([image])[0]["sem_seg"]
    finally:
        transformer.half_volume = False
    assert approximate.dtype == torch.float32 and not torch.equal(approximate, exact)
    torch.testing.assert_close(approximate, exact, atol=2e-3, rtol=0)


@pytest.mark.slow
def test_compiled_parts_compute_the_same(
    name: str, model: CATSeg, mapped: Tensor, tmp_path, monkeypatch: pytest.MonkeyPatch
):
    """What is traced is right; code for a device is made elsewhere."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    blocks = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: blocks(self, backend="eager"))
    options = ["MODEL.SEM_SEG_HEAD.CLASS_CHUNK", 4]
    compiled = golden_model(name, tmp_path, "TEST.COMPILE", True, *options)
    image = {"image": mapped, "height": 48, "width": 64}
    expected = model([image])[0]["sem_seg"]
    torch.testing.assert_close(compiled([image])[0]["sem_seg"], expected, atol=2e-6, rtol=1e-4)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    copied = copy.deepcopy(compiled)
    with torch.no_grad():
        for parameter in compiled.parameters():
            parameter.zero_()
    torch.testing.assert_close(copied([image])[0]["sem_seg"], expected, atol=2e-6, rtol=1e-4)


def test_an_unknown_precision_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"TEST.PRECISION is 'half'.*bf16"):
        golden_model("clip_tiny", tmp_path, "TEST.PRECISION", "half")


def test_out_of_memory_is_met_with_smaller_chunks(monkeypatch: pytest.MonkeyPatch, tmp_path):
    model = golden_model("clip_tiny", tmp_path)
    mps = RuntimeError("MPS backend out of memory")
    room: list[RuntimeError] = [mps, *[torch.OutOfMemoryError("CUDA out of memory.")] * 2]
    seen = []

    def segment(images: list[object]) -> list[dict[str, object]]:
        with model.inference._settings():
            seen.append((len(images), model.inference.crop_batch, _DIVISOR.get()))
        if room:
            raise room.pop()
        return [{"labels": one} for one in images]

    monkeypatch.setattr(model, "segment", segment)
    model.plan = replace(model.plan, crop_batch=2 * model.plan.sliding_window.count)
    assert model(["a", "b", "c"]) == [{"labels": one} for one in "abc"]
    assert seen == [(2, 10, 1), (1, 1, 1), (1, 1, 2), (1, 1, 4), (1, 1, 4), (1, 1, 4)]
    assert _DIVISOR.get() == 1  # the process is as it was
    assert Inference(model, model.plan).crop_batch == 10
    room += [mps] * 9
    with pytest.raises(CATSegError, match=r"memory of cpu does not suffice .MPS backend"):
        model(["image"])
    room[:] = [RuntimeError("sizes differ")]
    with pytest.raises(RuntimeError, match="sizes differ"):
        model(["image"])
    assert not room


def test_one_volume_serves_all_crops_and_the_last_logits_lie_in_it(tmp_path):
    model = golden_model("swin_tiny", tmp_path)
    crops = torch.rand(3, 3, 384, 384) * 255
    transformer = model.predictor.transformer
    volumes = []
    handle = transformer.layers[0].attention.register_forward_hook(
        lambda module, inputs, output: volumes.append(output.untyped_storage().data_ptr())
    )
    with torch.no_grad():
        encoded = model.encode_crops(*model.normalize(list(crops)))
        together = model.sem_seg_head(*encoded)
        assert len(volumes) == 1
        logits = model.sem_seg_head(*encoded, batch=1)
    handle.remove()
    assert len(set(volumes[1:])) == 1 and len(volumes) == 4
    for one, other in zip(logits, together, strict=True):
        torch.testing.assert_close(one.values, other.values, atol=1e-5, rtol=1e-4)
    storages = [image.values.untyped_storage() for image in logits]
    size = logits[0].values.numel() * 4
    assert [s.nbytes() == size for s in storages] == [True, True, False]
    assert storages[2].data_ptr() == volumes[-1]


def test_crops_of_several_images_share_a_batch(model: CATSeg, mapped: Tensor):
    images = [{"image": mapped[:, : 300 + 50 * i], "height": 60, "width": 80} for i in range(3)]
    alone = [result["sem_seg"] for result in model(images)]
    with planned(model, crop_batch=2 * model.plan.sliding_window.count + 1):
        assert model.inference.images_at_once == 2
        together = [result["sem_seg"] for result in model(images)]
    for one, other in zip(alone, together, strict=True):
        torch.testing.assert_close(one, other, atol=2e-6, rtol=1e-4)


def test_chunks_and_crop_batches_change_nothing(model: CATSeg, mapped: Tensor):
    image = {"image": mapped, "height": 120, "width": 160}
    whole = model([image])[0]["sem_seg"]
    transformer = model.predictor.transformer
    transformer.class_chunk = 2
    try:
        with planned(model, crop_batch=3):
            torch.testing.assert_close(model([image])[0]["sem_seg"], whole, atol=2e-6, rtol=1e-4)
    finally:
        transformer.class_chunk = 0


@pytest.mark.usefixtures("single_crop")
def test_labels_only_are_the_argmax(model: CATSeg, mapped: Tensor):
    image = {"image": mapped, "height": 120, "width": 160}
    sem_seg = model([image])[0]["sem_seg"]
    model.labels_only = True
    try:
        result = model([image])[0]
    finally:
        model.labels_only = False
    assert set(result) == {"labels", "scores"}
    assert torch.equal(result["labels"], sem_seg.argmax(0))
    assert torch.equal(result["scores"], sem_seg.amax(0))


@pytest.mark.usefixtures("single_crop")
def test_the_vocabulary_changes_in_one_call(model: CATSeg, mapped: Tensor):
    image = {"image": mapped, "height": 12, "width": 16}
    names = model.class_names
    before = model([image])[0]["sem_seg"]
    model.set_vocabulary([names[3], "a zebra", names[0]])
    assert model.class_names == (names[3], "a zebra", names[0])
    assert model([image])[0]["sem_seg"].shape == (3, 12, 16)
    model.set_vocabulary(names)
    torch.testing.assert_close(model([image])[0]["sem_seg"], before)
    for nothing in ([], ["cat", " "]):
        with pytest.raises(ValueError):
            model.set_vocabulary(nothing)


def test_changed_weights_leave_no_stale_text(model: CATSeg):
    predictor = model.head
    weight = model.predictor.clip_model.text_projection
    before = predictor.text_features()
    assert predictor.text_features() is before
    original = weight.detach().clone()
    with torch.no_grad():
        weight.mul_(torch.linspace(0.1, 2, weight.shape[1]))
    assert not torch.allclose(predictor.text_features(), before)
    model.load_state_dict({**model.state_dict(), **{
        "sem_seg_head.predictor.clip_model.text_projection": original}})  # fmt: skip
    torch.testing.assert_close(predictor.text_features(), before)


def test_training_loss_and_gradients(name: str, tmp_path):
    golden = load_golden(name)
    run = golden.training
    model = golden_model(name, tmp_path).train()
    batch = [
        {"image": image, "sem_seg": labels.long()}
        for image, labels in zip(run["images"], run["labels"], strict=True)
    ]
    loss = model(batch)["loss_sem_seg"]
    run.assert_matches(loss.detach()[None], "loss")
    loss.backward()
    parameters = dict(model.named_parameters())
    for stage in run.arrays:
        if stage.startswith("gradient:"):
            gradient = parameters[stage.removeprefix("gradient:")].grad
            assert gradient is not None
            run.assert_matches(gradient, stage)
    trained = {n for n, p in parameters.items() if p.requires_grad}
    norms = golden.facts["gradient_norms"]
    assert trained == set(norms)
    for parameter, norm in norms.items():
        gradient = parameters[parameter].grad
        actual = 0.0 if gradient is None else gradient.norm().item()
        assert actual == pytest.approx(norm, rel=2e-3, abs=1e-6), parameter


def test_recomputed_activations_give_the_same_gradients(name: str, tmp_path):
    run = load_golden(name).training
    batch = [{"image": run["images"][0], "sem_seg": run["labels"][0].long()}]
    gradients = []
    for opts in ([], ["MODEL.ACTIVATION_CHECKPOINTING", True, "MODEL.SEM_SEG_HEAD.CLASS_CHUNK", 2]):
        model = golden_model(name, tmp_path, *opts).train()
        model(batch)["loss_sem_seg"].backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-5, rtol=1e-3)


def test_an_image_teaches_the_classes_of_its_data_set_alone(name: str, tmp_path):
    """And a data set that has all of them teaches as it does alone."""
    run = load_golden(name).training
    model = golden_model(name, tmp_path).train()
    images = [
        {"image": image, "sem_seg": labels.long()}
        for image, labels in zip(run["images"], run["labels"], strict=True)
    ]
    every = torch.arange(len(model.class_names))
    plain = model(images)["loss_sem_seg"]
    torch.testing.assert_close(
        model([i | {"classes": every} for i in images])["loss_sem_seg"], plain
    )
    some = every[[2, 0]]
    for image in images:
        image["sem_seg"][image["sem_seg"] > 1] = 255  # labels count into `some`
    seen: list[Tensor] = []
    hook = model.predictor.register_forward_hook(
        lambda _module, _inputs, output: seen.extend(image.of(every) for image in output)
    )
    loss = model([images[0] | {"classes": some}, images[1] | {"classes": every}])["loss_sem_seg"]
    hook.remove()
    expected = [
        mask_bce(logits[None, classes], image["sem_seg"][None])
        for logits, classes, image in zip(seen, (some, every), images, strict=True)
    ]
    torch.testing.assert_close(loss, torch.stack(expected).mean())


def test_labels_are_padded_as_their_images(model: CATSeg, monkeypatch: pytest.MonkeyPatch):
    """A side of 380 is padded to 384; the original stretches such a map over unpadded labels."""
    seen = []
    monkeypatch.setattr(model.head, "losses", lambda *arguments: seen.append(arguments[2]) or {})
    monkeypatch.setattr(type(model), "encode_crops", lambda *_: (None, None))
    model.losses([{"image": torch.zeros(3, 380, 384), "sem_seg": torch.ones(380, 384).long()}])
    (targets,) = seen
    assert targets.shape == (1, 384, 384)
    assert (targets[0, :380] == 1).all() and (targets[0, 380:] == 255).all()


@pytest.mark.usefixtures("single_crop")
def test_without_a_size_the_result_is_of_the_images(model: CATSeg, mapped: Tensor):
    with planned(model, sliding_window=None):
        assert model([{"image": mapped[:, :64, :96]}])[0]["sem_seg"].shape[1:] == (64, 96)


def test_what_2024_trains_by_full(tmp_path):
    model = golden_model("clip_tiny", tmp_path, "MODEL.SEM_SEG_HEAD.CLIP_FINETUNE", "full")
    for name, parameter in model.predictor.clip_model.named_parameters():
        assert parameter.requires_grad == ("transformer" in name), name


def test_prompt_tokens_train_whatever_else_of_clip_does(tmp_path):
    sizes = ["MODEL.SEM_SEG_HEAD.PROMPT_DEPTH", 2, "MODEL.SEM_SEG_HEAD.PROMPT_LENGTH", 3]
    for mode in ("attention", "freeze"):
        opts = [*sizes, "MODEL.SEM_SEG_HEAD.CLIP_FINETUNE", mode]
        model = build_model(golden_cfg("clip_tiny", tmp_path, *opts))
        assert model.predictor.prompt_tokens.requires_grad
    released = to_released(model.state_dict())
    assert released[f"{CLIP}visual.transformer.prompt_tokens"].shape == (2, 3, 128)
    load_state(model, released)


def test_no_text_guidance(name: str, tmp_path):
    cfg = golden_cfg(name, tmp_path, "MODEL.SEM_SEG_HEAD.TEXT_GUIDANCE_DIM", 0)
    aggregator = build_model(cfg).predictor.transformer
    assert aggregator.text_guidance_projection is None
    attention = aggregator.layers[0].attention.attention
    assert attention.q.in_features == cfg.MODEL.SEM_SEG_HEAD.HIDDEN_DIMS


def test_labels_outside_the_vocabulary_are_named(model: CATSeg):
    batch = [{"image": torch.zeros(3, 384, 384), "sem_seg": torch.full((384, 384), 77)}]
    model.train()
    try:
        with pytest.raises(ValueError, match="77"):
            model(batch)
    finally:
        model.eval()
