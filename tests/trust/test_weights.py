"""Every kind of weight file is read; none is executed, and none is believed."""

import io
import os
import pickle
import struct
import zipfile
from collections import Counter, OrderedDict

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from cat_seg.errors import CATSegError
from cat_seg.trust.weights import (
    check_weights,
    find_tensors,
    read_file,
    read_weights,
    without_zero_rows,
)

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


WRAPPERS = ("model state_dict model_state_dict model_ema ema net module params").split()


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


@pytest.mark.parametrize("wrap", [*WRAPPERS, "ema.module"])
@pytest.mark.parametrize(
    "prefix", ["", "module.", "model.", "_orig_mod.", "module.module.", "module._orig_mod.model."]
)
def test_checkpoints_as_people_have_them(tmp_path, state, wrap, prefix):
    content = {prefix + name: value for name, value in state.items()}
    for key in reversed(wrap.split(".")):
        content = {key: content, "epoch": 3, "args": {"lr": 0.1}}
    torch.save(content, tmp_path / "file")
    check(read_weights(tmp_path / "file"), state)


def test_the_first_wrapper_counts(state):
    other = {name: value + 1 for name, value in state.items()}
    check(find_tensors({"ema": other, "model": state, "optimizer": {"state": {}}}), state)


def test_prefixes_that_not_all_names_have():
    names = ["model.a._orig_mod.w", "model._orig_mod.model.b"]
    assert list(find_tensors({name: torch.zeros(1) for name in names})) == ["a.w", "model.b"]
    for names in (["module.w", "w"], ["a._orig_mod.w", "a.w"]):  # else one would be lost
        assert list(find_tensors({name: torch.zeros(1) for name in names})) == names


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


@pytest.mark.parametrize("protocol", range(2, 6))
def test_arrays_of_every_protocol_and_kind(tmp_path, protocol):
    content = {
        "f": np.arange(6, dtype=np.float16).reshape(2, 3),
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "strided": np.arange(12)[::3],
        "big endian": np.arange(3, dtype=">i4"),
        "bool": np.array([True, False]),
        "texts": np.array(["kitchen", "bath"]),
        "objects": np.array(["a", None, 3], dtype=object),
        "none": np.zeros((0, 3), np.float32),
        "scalar": np.float32(1.5),
        "complex": np.array([1 + 2j]),
    }
    (tmp_path / "file").write_bytes(pickle.dumps(content, protocol=protocol))
    read = read_file(tmp_path / "file")
    assert read.keys() == content.keys() and isinstance(read["scalar"], np.float32)
    for name, value in content.items():
        assert np.array_equal(read[name], value), name
        assert np.asarray(read[name]).dtype.newbyteorder("=") == value.dtype.newbyteorder("=")
    found = find_tensors(read)
    assert "texts" not in found and "objects" not in found
    assert found["big endian"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("legacy", [False, True])
def test_tensors_of_every_kind(tmp_path, legacy):
    base = torch.arange(24.0)
    content = {
        "view": base.view(4, 6)[1:, ::2],
        "transposed": base.view(4, 6).T,
        "scalar": torch.tensor(3.0),
        "empty": torch.zeros(0, 3),
        "parameter": nn.Parameter(torch.ones(2)),
        "bool": torch.tensor([True, False]),
        "bfloat16": torch.ones(3, dtype=torch.bfloat16),
        "float8": torch.ones(3).to(torch.float8_e4m3fn),
        "uint16": torch.tensor([1, 2]).to(torch.uint16),
    }
    content["parameter"].note = "an attribute"
    content["counts"] = torch.arange(3)
    file = tmp_path / "file"
    torch.save(content, file, _use_new_zipfile_serialization=not legacy)
    read = read_weights(file)
    for name, value in content.items():
        assert read[name].dtype == value.dtype and read[name].shape == value.shape
        assert torch.equal(read[name].float(), value.detach().float()), name


def test_other_objects_of_checkpoints(tmp_path):
    content = {
        "dtype": torch.float16,
        "device": torch.device("cpu"),
        "size": torch.Size([2, 3]),
        "milestones": Counter({5: 1}),
        "ordered": OrderedDict(a=1),
        "set": {1, "x"},
        "bytes": b"\x00\xff",
        "empty": b"",
        "number": -(10**30),
        "nested": [(1.5, None, True), {"a": []}],
    }
    torch.save(content, tmp_path / "file")
    assert read_file(tmp_path / "file") == content
    assert type(read_file(tmp_path / "file")["milestones"]) is Counter


@pytest.mark.parametrize("switched_off", [False, True])
def test_every_flipped_bit_of_an_archive_is_noticed(tmp_path, state, switched_off):
    torch.serialization.set_crc32_options(not switched_off)
    try:
        torch.save(state, tmp_path / "file")
    finally:
        torch.serialization.set_crc32_options(True)
    check(read_weights(tmp_path / "file"), state)
    content = bytearray((tmp_path / "file").read_bytes())
    told = 0
    for position in np.random.default_rng(0).integers(0, 8 * len(content), 200):
        flipped = bytearray(content)
        flipped[position // 8] ^= 1 << position % 8
        (tmp_path / "flipped").write_bytes(flipped)
        try:
            read = read_weights(tmp_path / "flipped")
        except CATSegError:
            told += 1
        else:
            if not switched_off:  # in what the tensors do not depend on, such as padding
                check(read, state)
    assert told > 10


def test_more_than_the_file_has_is_never_allocated(tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", pickle.dumps({"w": 1}, protocol=2))
        archive.writestr("a/data/0", bytes(10_000_000))
    with pytest.raises(CATSegError, match="more bytes than it has"):
        read_weights(tmp_path / "bomb")
    long = [
        b"\x80\x02B\xff\xff\xff\x7fab",  # bytes
        b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b"ab",  # bytearray
        b"\x80\x04\x95" + struct.pack("<Q", 1 << 62) + b"}.",  # a frame
        b"\x80\x02}r\xff\xff\xff\xff.",  # a memo, for which C would make 64 GB of room
    ]
    for content in long:
        (tmp_path / "file").write_bytes(content)
        with pytest.raises(CATSegError, match=r"damaged|found none"):
            read_weights(tmp_path / "file")


def tensor_of(storage_length, size, stride, offset=0, content=b"\0" * 16):
    """A legacy file of one tensor, as it declares itself."""
    file = io.BytesIO()
    torch.save(torch.zeros(4), file, _use_new_zipfile_serialization=False)
    numbers = b"".join(
        b"(" + b"".join(b"I%d\n" % n for n in side) + b"t" for side in (size, stride)
    )
    tree = (
        b"\x80\x02}X\x01\x00\x00\x00wctorch._utils\n_rebuild_tensor_v2\n("
        b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu"
        b"I%d\nNtQI%d\n" % (storage_length, offset)
    )
    tree += numbers + b"\x89ccollections\nOrderedDict\n)RtRs."
    header = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2)
    header += pickle.dumps({"little_endian": True}, 2)
    return header + tree + pickle.dumps(["0"], 2) + struct.pack("<q", len(content) // 4) + content


def test_tensors_that_do_not_lie_in_their_storage(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(tensor_of(4, (2, 2), (2, 1)))
    assert read_weights(file)["w"].shape == (2, 2)
    wrong = [
        (4, (3, 2), (2, 1)),
        (4, (4,), (1,), 1),
        (4, (4,), (-1,), 3),
        (4, (-4,), (1,)),
        (4, (1 << 62, 1 << 62), (0, 0)),
        (4, (1000,), (0,)),  # each element a thousand times
        (4, (2, 2), (2,)),
        (1 << 40, (4,), (1,)),
        (5, (4,), (1,)),
    ]
    for declared in wrong:
        file.write_bytes(tensor_of(*declared))
        with pytest.raises(CATSegError, match="declares"):
            read_weights(file)


def pickled(body):
    return b"\x80\x02" + body + b"."


FORGED = {
    "dtype state": b"cnumpy\ndtype\n(U\x02O8I0\nI1\nt\x52(I3\nU\x01|NNNI-1\nI-1\nI63\ntb",
    "dtype fields": b"cnumpy\ndtype\n(U\x02V8I0\nI1\nt\x52(I4\nU\x01|N(U\x01ft}I8\nI1\nI16\ntb",
    "array": b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntU\x01bt\x52"
    b"(I1\n(I1000000\ntcnumpy\ndtype\n(U\x02f8I0\nI1\nt\x52(I3\nU\x01<NNNI-1\nI-1\nI0\ntb"
    b"I00\nU\x08aaaaaaaatb",
    "objects": b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntU\x01bt\x52"
    b"(I1\n(I1\ntcnumpy\ndtype\n(U\x02O8I0\nI1\nt\x52I00\nU\x08aaaaaaaatb",
    "function state": b"ctorch._utils\n_rebuild_tensor_v2\n(U\x01a]tb",
    "itself": b"}q\x00U\x05modelh\x00s",
    "list in itself": b"}U\x01a]q\x00h\x00as",
    "deep": b"}U\x01a" + b"(" * 5000 + b"l" * 5000 + b"s",
    "deep tuple": b"}U\x01aN" + b"\x85" * 5000 + b"s",
    "no stack": b"0",
    "no mark": b"}us",
    "odd items": b"(U\x01ad",
    "array as key": b"}cnumpy\ndtype\n(U\x02f8t\x52I1\ns",
    "list as key": b"}]I1\ns",
    "list as dict": b"]U\x01aI1\ns",
    "extension": b"\x82\x01",
    "instance": b"(ios\nmkdir\n",
    "object": b"(cos\nmkdir\no",
    "persistent": b"Ppath\n",
    "text": b"}U\x01aX\xff\xff\xff\x7f",
    "codec": b"c_codecs\nencode\n(U\x01aU\x03zipt\x52",
    "huge number": b"}U\x01aI" + b"9" * 5000 + b"\ns",
    "control codes": b"}U\x06a\x1b[2Jbcnumpy.core.multiarray\n_reconstruct\n"
    b"(cnumpy\nndarray\n(I0\ntU\x01bt\x52(I1\n(I1\ntcnumpy\ndtype\n(U\x02f8I0\nI1\nt\x52"
    b"I00\nU\x08aaaaaaaatbs",
}


@pytest.mark.parametrize("kind", FORGED)
def test_forged_pickles_end_in_one_error(tmp_path, kind):
    (tmp_path / "file").write_bytes(pickled(FORGED[kind]))
    with pytest.raises(CATSegError) as caught:
        read_weights(tmp_path / "file")
    assert str(caught.value).startswith(f"{tmp_path / 'file'}: ")
    assert str(caught.value).isprintable()


def test_modules_that_share_each_other_without_end(tmp_path):
    body = b"c__torch__\nM\n)\x81}b"
    for _ in range(25):  # each has the one before twice: 2 ** 25 ways through
        body = b"c__torch__\nM\n)\x81}(U\x01a" + body + b"q\x00U\x01bh\x00ub"
    with zipfile.ZipFile(tmp_path / "file", "w") as archive:
        archive.writestr("a/code/M.py", "")
        archive.writestr("a/data.pkl", pickled(body))
    with pytest.raises(CATSegError, match="attributes of modules"):
        read_weights(tmp_path / "file")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "an empty file instead of a weight file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
        (b"\n<!DOCTYPE html><title>Log in</title>", "a web page"),
        (b"PK\x05\x06" + bytes(18), "data.pkl is missing"),
        (b"a text", "not a weight file"),
    ],
)
def test_what_came_instead_is_told(tmp_path, content, message):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(CATSegError, match=f"{tmp_path / 'file'}: .*{message}"):
        read_weights(tmp_path / "file")


@pytest.mark.parametrize("kind", ["short zip", "short legacy", "short safetensors", "short pickle"])
def test_cut_files_are_named(tmp_path, state, kind):
    path = tmp_path / "file"
    if kind == "short safetensors":
        safetensors.torch.save_file(state, path)
    elif kind == "short pickle":
        path.write_bytes(pickle.dumps({k: v.numpy() for k, v in state.items()}))
    else:
        torch.save(state, path, _use_new_zipfile_serialization="zip" in kind)
    whole = path.read_bytes()
    for length in (len(whole) - 1, len(whole) - 40, len(whole) // 2):
        path.write_bytes(whole[:length])
        with pytest.raises(CATSegError, match=f"{path}: damaged or incomplete, get it again"):
            read_weights(path)


def test_no_tensors_and_no_file(tmp_path):
    torch.save({"model": {"name": "x", "epoch": 3}}, tmp_path / "none")
    with pytest.raises(CATSegError, match="found none; it has 'name', 'epoch'"):
        read_weights(tmp_path / "none")
    torch.save([1, 2], tmp_path / "list")
    with pytest.raises(CATSegError, match="found a list"):
        read_weights(tmp_path / "list")
    for path in (tmp_path / "absent", tmp_path):
        with pytest.raises(CATSegError, match="no such file"):
            read_weights(path)
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(CATSegError, match="no such file"):
        read_weights(tmp_path / "fifo")


def test_values_are_checked_before_a_model_takes_them():
    model = {"w": torch.zeros(2), "half": torch.zeros(2).half(), "n": torch.zeros(2).long()}
    check_weights({**model, "other": torch.tensor([torch.nan])}, model)
    check_weights({"w": torch.zeros(0), "half": torch.ones(2).to(torch.float8_e4m3fn)}, model)
    check_weights({"w": torch.full((20,), 3e38)}, model)  # of which the sum is infinite
    for wrong in (torch.nan, torch.inf, -torch.inf):
        for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
            with pytest.raises(CATSegError, match=r"1 tensors hold NaN or infinity \(w\)"):
                check_weights({**model, "w": torch.tensor([1, wrong]).to(dtype)}, model)
    for dtype in (torch.int64, torch.bool, torch.uint8):
        with pytest.raises(CATSegError, match=r"not of a floating type \(w\)"):
            check_weights({**model, "w": torch.ones(2).to(dtype)}, model)


def test_a_table_of_few_rows_is_stored_by_them(tmp_path):
    table = torch.zeros(100, 3)
    table[[2, 7, 99]] = torch.arange(1.0, 10).view(3, 3)
    state = {"text.table": table, "other": torch.ones(2)}
    stored = without_zero_rows(state, "text.table")
    assert stored["text.table"].shape == (3, 3)
    safetensors.torch.save_file(stored, tmp_path / "few")
    check(read_weights(tmp_path / "few"), state)
    full = {"text.table": torch.ones(4, 3)}
    check(without_zero_rows(full, "text.table"), full)


@pytest.mark.parametrize("rows", [[5, 2, 99], [-1, 2, 99], [2, 99], [1, 2, 1 << 30], [1, 2, 2]])
def test_rows_that_belong_nowhere_are_refused(rows):
    state = {"table": torch.ones(2, 3), "table.rows": torch.tensor(rows, dtype=torch.int32)}
    with pytest.raises(CATSegError, match="does not say where the rows of table belong"):
        find_tensors(state)
