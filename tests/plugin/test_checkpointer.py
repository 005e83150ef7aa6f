"""CATSegCheckpointer: what it loads, reports and refuses, and how it writes and resumes."""

import logging
import os
import pickle

import pytest
import safetensors.torch
import torch
from detectron2.checkpoint import DetectionCheckpointer
from torch import nn

from cat_seg.conversion import CLIP, holds_clip, to_released
from cat_seg.plugin.checkpointer import CATSegCheckpointer
from tests.golden import load_golden
from tests.golden_model import golden_model


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return {
        name: golden_model(name, tmp_path_factory.mktemp(name))
        for name in ("swin_tiny", "clip_tiny")
    }


@pytest.fixture(params=["swin_tiny", "clip_tiny"])
def model(request, models):
    """A golden model with other weights than the golden ones."""
    return spoiled(models[request.param]), load_golden(request.param).weights


@pytest.fixture
def swin(models):
    return spoiled(models["swin_tiny"]), load_golden("swin_tiny").weights


def spoiled(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.5)
    return model


def assert_holds(model, weights):
    state = model.state_dict()
    assert state.keys() == weights.keys()
    assert all(torch.equal(state[key], value) for key, value in weights.items())


def write(path, state):
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(state, path)
    elif path.suffix == ".pkl":
        path.write_bytes(pickle.dumps({"model": {k: v.numpy() for k, v in state.items()}}))
    else:
        torch.save({"model": state, "iteration": 4}, path)
    return str(path)


@pytest.mark.parametrize("file", ["a.pth", "a.safetensors", "a.pkl"])
def test_released_files_fill_the_model(model, tmp_path, file, caplog):
    model, weights = model
    CATSegCheckpointer(model).load(write(tmp_path / file, to_released(weights)))
    assert_holds(model, weights)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_half_precision_fills_the_model(swin, tmp_path):
    model, weights = swin
    half = {key: value.half() for key, value in weights.items()}
    rest = CATSegCheckpointer(model).load(write(tmp_path / "a.pth", half))
    assert_holds(model, weights)  # the golden weights are exact in half precision
    assert rest == {"iteration": 4}


def test_every_problem_is_named_and_nothing_is_half_loaded(swin, tmp_path):
    model, weights = swin
    head = "sem_seg_head.predictor.transformer.head."
    state = {key: value for key, value in weights.items() if key != head + "bias"}
    state |= {head + "weight": torch.zeros(2, 2), "extra": torch.zeros(1)}
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ValueError) as error:
        CATSegCheckpointer(model).load(write(tmp_path / "a.pth", state))
    for part in ("a.pth", f"1 missing: {head}bias", f"{head}weight (2, 2), expected (1, 16, 3, 3)",
                 "1 unexpected: extra"):  # fmt: skip
        assert part in str(error.value)
    assert_holds(model, before)


def test_unexpected_tensors_are_reported(swin, tmp_path, caplog):
    model, weights = swin
    CATSegCheckpointer(model).load(write(tmp_path / "a.pth", weights | {"extra": torch.ones(1)}))
    assert_holds(model, weights)
    assert "1 unexpected, not loaded: extra" in caplog.text


@pytest.mark.parametrize("other", ["swin_tiny", "clip_tiny"])
def test_the_other_generation_is_refused(models, tmp_path, other):
    (mine,) = models.keys() - {other}
    path = write(tmp_path / "a.pth", load_golden(other).weights)
    has, wants = ("2024", "2023") if other == "clip_tiny" else ("2023", "2024")
    with pytest.raises(ValueError, match=rf"holds the {has}.*config builds the {wants}.*Choose"):
        CATSegCheckpointer(models[mine]).load(path)


def test_a_backbone_starts_a_training(swin, tmp_path, caplog):
    model, weights = swin
    caplog.set_level(logging.INFO)
    backbone = {k[9:]: v for k, v in weights.items() if k.startswith("backbone.")}
    pretrained = {key: value for key, value in backbone.items() if not key.startswith("norm")}
    CATSegCheckpointer(model).load(write(tmp_path / "a.pth", pretrained))
    state = model.state_dict()
    assert all(torch.equal(state[f"backbone.{key}"], v) for key, v in pretrained.items())
    assert "backbone.norm0.weight" in caplog.text and "left as they were" in caplog.text
    incomplete = dict(list(pretrained.items())[:-1])
    with pytest.raises(ValueError, match=r"1 missing: backbone.layers"):
        CATSegCheckpointer(model).load(write(tmp_path / "a.pth", incomplete))


def test_clip_starts_a_training(model, tmp_path):
    model, weights = model
    clip = {key: value for key, value in weights.items() if key.startswith(CLIP)}
    CATSegCheckpointer(model).load(
        write(tmp_path / "a.pth", {key.removeprefix(CLIP): value for key, value in clip.items()})
    )
    state = model.state_dict()
    assert all(torch.equal(state[key], value) for key, value in clip.items())
    assert (state["sem_seg_head.predictor.transformer.head.bias"] == 0.5).all()


@pytest.mark.filterwarnings("ignore")  # TorchScript is deprecated, OpenAI's archives are not
def test_an_archive_of_clip_starts_a_training(swin, tmp_path):
    model, weights = swin
    clip = model.sem_seg_head.predictor.clip_model
    clip.load_state_dict(
        {k.removeprefix(CLIP): v for k, v in weights.items() if k.startswith(CLIP)}
    )
    inputs = torch.zeros(1, 3, 336, 336), torch.zeros(1, 77, dtype=torch.long)
    torch.jit.save(torch.jit.trace(clip, inputs, check_trace=False), tmp_path / "clip.pt")
    CATSegCheckpointer(spoiled(model)).load(str(tmp_path / "clip.pt"))
    state = model.state_dict()
    assert all(torch.equal(state[k], v) for k, v in weights.items() if k.startswith(CLIP))


def test_clip_is_loaded_only_where_the_checkpoint_lacks_it(swin, tmp_path, monkeypatch):
    model, weights = swin
    without = {key: value for key, value in weights.items() if not key.startswith(CLIP)}
    clip = {key.removeprefix(CLIP): v for key, v in weights.items() if key.startswith(CLIP)}
    assert holds_clip(weights) and not holds_clip(without)
    head = model.sem_seg_head
    monkeypatch.setattr(head, "clip_weights", "", raising=False)
    with pytest.raises(ValueError, match=r"no CLIP.*CLIP_WEIGHTS"):
        CATSegCheckpointer(model).load(write(tmp_path / "a.pth", without))
    monkeypatch.setattr(head, "clip_weights", write(tmp_path / "clip.pth", clip))
    CATSegCheckpointer(model).load(str(tmp_path / "a.pth"))
    assert_holds(model, weights)
    CATSegCheckpointer(spoiled(model)).load("")
    assert torch.equal(model.state_dict()[CLIP + "visual.proj"], clip["visual.proj"])
    monkeypatch.setattr(head, "clip_weights", "https://nowhere.invalid/clip.pt")
    CATSegCheckpointer(model).load(write(tmp_path / "a.pth", weights))  # asks for nothing
    assert_holds(model, weights)


def test_files_that_are_no_checkpoints(swin, tmp_path):
    (tmp_path / "text.pth").write_text("version https://git-lfs.github.com/spec/v1")
    other = write(tmp_path / "other.pth", {"conv9.weight": torch.zeros(1)})
    for path, problem in [
        (str(tmp_path / "text.pth"), "text.pth: a pointer of Git LFS"),
        (str(tmp_path / "absent.pth"), "absent.pth does not exist"),
        ("odd://a/b.pth", "Cannot fetch odd://a/b.pth"),
        (other, "other.pth: neither a checkpoint of CAT-Seg"),
    ]:
        with pytest.raises(ValueError, match=problem):
            CATSegCheckpointer(swin[0]).load(path)


class Counter:
    """Something with a state."""

    def __init__(self, count=0):
        self.count = count

    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, state):
        self.count = state["count"]


def save(folder, step):
    model = nn.Linear(2, 2)
    nn.init.constant_(model.weight, step)
    CATSegCheckpointer(model, folder, trainer=Counter(step)).save(
        f"model_{step:07d}", iteration=step
    )
    path = folder / f"model_{step:07d}.pth"
    os.utime(path, ns=(step * 10**9, step * 10**9))  # the clock may be coarse
    return path


def resume(folder):
    model, counter = nn.Linear(2, 2), Counter()
    checkpointer = CATSegCheckpointer(model, folder, trainer=counter)
    rest = checkpointer.resume_or_load("", resume=True)
    return model.weight[0, 0].item(), counter.count, rest


@pytest.mark.parametrize("damage", ["none", "cut", "empty"])
def test_resume_takes_the_newest_readable(tmp_path, damage, caplog):
    save(tmp_path, 3)
    newest = save(tmp_path, 7)
    if damage != "none":
        newest.write_bytes(newest.read_bytes()[: 500 if damage == "cut" else 0])
        os.utime(newest, ns=(8 * 10**9, 8 * 10**9))
    step = 7 if damage == "none" else 3
    assert resume(tmp_path) == (step, step, {"iteration": step})
    assert ("model_0000007.pth" in caplog.text) == (damage != "none")


def test_resume_goes_by_last_checkpoint_and_never_by_time(tmp_path):
    old, new = save(tmp_path, 3), save(tmp_path, 7)
    os.utime(old, ns=(9 * 10**9, 9 * 10**9))
    assert resume(tmp_path)[0] == 7
    (tmp_path / "last_checkpoint").unlink()
    assert resume(tmp_path)[0] == 7
    (tmp_path / "last_checkpoint").write_text(old.name)
    assert resume(tmp_path)[0] == 3
    content = bytearray(new.read_bytes())
    (tmp_path / "last_checkpoint").write_text(new.name)
    content[content.index(torch.tensor(7.0).numpy().tobytes()) + 1] ^= 1  # one bit of a weight
    new.write_bytes(content)
    assert resume(tmp_path)[0] == 3


def test_resume_needs_one_readable(tmp_path):
    save(tmp_path, 3).write_bytes(b"")
    with pytest.raises(ValueError, match="none of the 1 checkpoints"):
        resume(tmp_path)


def test_resume_without_checkpoints_loads_the_path(tmp_path):
    checkpointer = CATSegCheckpointer(nn.Linear(2, 2), tmp_path / "new", trainer=Counter())
    assert not checkpointer.has_checkpoint() and checkpointer.get_checkpoint_file() == ""
    assert checkpointer.resume_or_load(str(save(tmp_path, 3)))["iteration"] == 3
    assert checkpointer.checkpointables["trainer"].count == 0


def test_a_killed_write_leaves_the_checkpoints_whole(tmp_path, monkeypatch):
    save(tmp_path, 3)

    def killed(content, path):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, 7)
    monkeypatch.undo()
    assert resume(tmp_path)[0] == 3
    (tmp_path / ".cat-seg.0123456789abcdef.pth").touch()  # left by a kill that nothing could catch
    save(tmp_path, 9)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"model_0000003.pth", "model_0000009.pth", "last_checkpoint"}


def test_detectron2_reads_what_is_written(tmp_path):
    path = save(tmp_path, 3)
    model, counter = nn.Linear(2, 2), Counter()
    plain = DetectionCheckpointer(model, str(tmp_path), trainer=counter)
    assert plain.get_checkpoint_file() == str(path)
    assert plain.resume_or_load("", resume=True)["iteration"] == 3
    assert model.weight[0, 0] == counter.count == 3


def test_what_detectron2_writes_is_read(tmp_path):
    model = nn.Linear(2, 2)
    nn.init.constant_(model.weight, 5)
    plain = DetectionCheckpointer(model, str(tmp_path), trainer=Counter(5))
    plain.save("model_0000005", iteration=5)
    assert resume(tmp_path) == (5, 5, {"iteration": 5})
