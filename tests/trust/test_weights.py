"""Every kind of weight file is read; none is executed."""

import io
import os
import pickle
import zipfile

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from cat_seg.trust.weights import read_file, read_weights

pytestmark = pytest.mark.filterwarnings("ignore")  # TorchScript is deprecated, its files are not


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
        self.scale = nn.Parameter(torch.tensor(2.5))
        self.register_buffer("counts", torch.arange(4.0).half())
        self.sizes: list[int] = [3, 2]

    def forward(self, x):
        return self.blocks(x) * self.scale


@pytest.fixture
def state():
    torch.manual_seed(0)
    return dict(Net().state_dict())


def check(read, expected):
    assert read.keys() == expected.keys()
    for name, value in expected.items():
        assert read[name].dtype == value.dtype and torch.equal(read[name], value), name


@pytest.mark.parametrize("wrap", ["{}", "model", "state_dict"])
@pytest.mark.parametrize("kind", ["zip", "legacy", "arrays", "tensors"])
def test_pickled_kinds(tmp_path, state, kind, wrap):
    path = tmp_path / "file"  # the content tells the kind, not the name
    content = state if wrap == "{}" else {wrap: state, "iteration": 3, "__author__": "x"}
    if kind in ("zip", "legacy"):
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
    else:
        as_array = (lambda v: v.numpy()) if kind == "arrays" else (lambda v: v)
        arrays = {k: as_array(v) for k, v in state.items()}
        content = arrays if wrap == "{}" else {wrap: arrays, "matching_heuristics": True}
        path.write_bytes(pickle.dumps(content, protocol=2))
    check(read_weights(path), state)


def test_safetensors(tmp_path, state):
    safetensors.torch.save_file(state, tmp_path / "a")
    check(read_weights(tmp_path / "a"), state)


def test_torchscript_is_read_without_its_code(tmp_path, state):
    net = Net().eval()
    net.load_state_dict(state)
    path = tmp_path / "clip.pt"
    torch.jit.save(torch.jit.script(net), path)
    broken = tmp_path / "broken_code.pt"  # the same archive with code that cannot even be parsed
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(broken, "w") as new:
        for name in old.namelist():
            new.writestr(name, b"raise !" if name.endswith(".py") else old.read(name))
    with pytest.raises(RuntimeError):
        torch.jit.load(broken)
    for file in (path, broken):
        check(read_weights(file), state)


class Masked(nn.Linear):
    """Like CLIP's blocks: a plain tensor beside the weights, which is no part of the state."""

    def __init__(self):
        super().__init__(2, 2)
        self.attn_mask = torch.ones(2)

    def forward(self, x):
        return super().forward(x) + self.attn_mask.to(x.dtype)


@pytest.mark.parametrize("place", ["tests", "__main__"])
def test_trace_of_half_tensors_that_share_storage(tmp_path, place, monkeypatch):
    monkeypatch.setattr(Masked, "__module__", place)
    net = nn.Sequential(Masked(), Masked()).half()
    net[1].weight = net[0].weight
    path = tmp_path / "traced.pt"
    torch.jit.save(torch.jit.trace(net, torch.zeros(1, 2).half()), path)
    read = read_weights(path)
    check(read, dict(net.state_dict()))
    assert read["0.weight"].data_ptr() == read["1.weight"].data_ptr()


class Attack:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle", "torchscript", "nested"])
def test_attack_is_refused(tmp_path, kind):
    path, trap = tmp_path / "file", tmp_path / "trap"
    content = {"model": {"w": torch.zeros(1)}, "more": Attack(trap)}
    if kind in ("zip", "legacy"):
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
    elif kind == "torchscript":
        torch.jit.save(torch.jit.script(Net()), tmp_path / "good")
        with zipfile.ZipFile(tmp_path / "good") as old, zipfile.ZipFile(path, "w") as new:
            for name in old.namelist():
                evil = name.endswith("/data.pkl")
                new.writestr(name, pickle.dumps(Attack(trap)) if evil else old.read(name))
    elif kind == "nested":  # inside the torch.save of a pickled tensor's storage
        inner = io.BytesIO()
        torch.save(Attack(trap), inner, _use_new_zipfile_serialization=False)
        load = b"ctorch.storage\n_load_from_bytes\n"
        path.write_bytes(b"\x80\x02" + load + b"B" + len(inner.getvalue()).to_bytes(4, "little")
                         + inner.getvalue() + b"\x85R.")  # fmt: skip
    else:
        path.write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match=rf"{path}.*(mkdir|posix)"):
        read_weights(path)
    assert not trap.exists()


def test_trainer_state_comes_back_whole(tmp_path):
    rng = np.random.default_rng(0)
    content = {
        "model": {"w": torch.ones(2)},
        "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 0.1}]},
        "trainer": {"iteration": 7, "metric": rng.normal(), "seed": np.arange(3, dtype=np.uint32)},
        "scalar": np.float64(1.5),
    }
    torch.save(content, tmp_path / "file")
    read = read_file(tmp_path / "file")
    assert read["trainer"]["iteration"] == 7 and read["scalar"] == 1.5
    assert np.array_equal(read["trainer"]["seed"], content["trainer"]["seed"])
    assert read["optimizer"]["param_groups"] == [{"lr": 0.1}]


@pytest.mark.parametrize(
    "kind", ["empty", "text", "short zip", "short safetensors", "short pickle"]
)
def test_damaged_and_foreign_files_are_named(tmp_path, state, kind):
    path = tmp_path / "file"
    if kind == "short zip":
        torch.save(state, path)
    elif kind == "short safetensors":
        safetensors.torch.save_file(state, path)
    elif kind == "short pickle":
        path.write_bytes(pickle.dumps({k: v.numpy() for k, v in state.items()}))
    else:
        path.write_text("" if kind == "empty" else "version https://git-lfs.github.com/spec/v1")
    path.write_bytes(path.read_bytes()[:-40] if "short" in kind else path.read_bytes())
    expected = "damaged or incomplete|pickle data was truncated" if "short" in kind else "not a"
    with pytest.raises(ValueError, match=f"{path}: ({expected})"):
        read_weights(path)


def test_no_tensors_and_no_file(tmp_path):
    torch.save({"model": {"name": "x"}}, tmp_path / "none")
    with pytest.raises(ValueError, match="found none"):
        read_weights(tmp_path / "none")
    with pytest.raises(ValueError, match="no such file"):
        read_weights(tmp_path / "absent")
