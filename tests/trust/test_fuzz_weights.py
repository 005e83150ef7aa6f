"""Damaged and forged weight files by the hundred: only CATSegError leaves the reader."""

import io
import pickle
import zipfile

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from cat_seg.errors import CATSegError
from cat_seg.trust.weights import read_weights

pytestmark = pytest.mark.filterwarnings("ignore")  # TorchScript is deprecated, its files are not

MUTATIONS = 150  # of each kind of file


def whole_file(kind: str) -> bytes:
    torch.manual_seed(0)
    state = {f"blocks.{i}.weight": torch.randn(3, 4) for i in range(3)}
    state |= {"scale": torch.tensor(2.5), "index": torch.arange(4), "mask": torch.ones(2).bool()}
    file = io.BytesIO()
    if kind == "safetensors":
        return safetensors.torch.save(state)
    if kind in ("archive", "legacy"):
        content = {"model": state, "iteration": 3, "optimizer": {"state": {0: [1.5, None]}}}
        torch.save(content, file, _use_new_zipfile_serialization=kind == "archive")
    elif kind == "torchscript":
        torch.jit.save(torch.jit.script(nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))), file)
    elif kind.startswith("arrays"):
        arrays = {"model": {name: value.numpy() for name, value in state.items()}}
        return pickle.dumps(arrays, protocol=int(kind[-1]))
    else:
        return pickle.dumps(state, protocol=2)
    return file.getvalue()


KINDS = ["safetensors", "archive", "legacy", "torchscript", "arrays 2", "arrays 5", "tensors"]


def mutated(content: bytes, rng: np.random.Generator) -> bytes:
    """The content with one thing wrong."""
    at, length = int(rng.integers(len(content))), int(rng.integers(1, 40))
    noise = rng.bytes(length)
    number = [b"\xff\xff\xff\x7f", b"\xff\xff\xff\xff", b"\0\0\0\0", b"\0\0\0\x80"][rng.integers(4)]
    opcode = bytes([rng.choice(list(b"(0t.}]RbQc\x81\x85\x86\x87h\x94qrsuNKJXU\x8c\x93\x95\x96"))])
    match rng.integers(8):
        case 0:  # a flipped bit
            flipped = content[at] ^ 1 << int(rng.integers(8))
            return content[:at] + bytes([flipped]) + content[at + 1 :]
        case 1:
            return content[:at]
        case 2:
            return content[:at] + noise + content[at + length :]
        case 3:
            return content[:at] + noise + content[at:]
        case 4:
            return content[:at] + content[at + length :]
        case 5:  # a length or index
            return content[:at] + number + content[at + 4 :]
        case 6:  # another instruction
            return content[:at] + opcode + content[at + 1 :]
        case _:  # a part moved
            other = int(rng.integers(len(content)))
            return content[:at] + content[other : other + length] + content[at + length :]


def rewritten(content: bytes, rng: np.random.Generator) -> bytes:
    """An archive with something wrong in its pickle, and the right CRC-32."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(file, "w") as new:
        for name in old.namelist():
            record = old.read(name)
            new.writestr(name, mutated(record, rng) if name.endswith("data.pkl") else record)
    return file.getvalue()


@pytest.mark.parametrize("kind", [*KINDS, "archive, its pickle", "torchscript, its pickle"])
def test_only_our_error_leaves_the_reader(tmp_path, kind):
    base, _, inner = kind.partition(", ")
    content = whole_file(base)
    (tmp_path / "file").write_bytes(content)
    whole = read_weights(tmp_path / "file")
    rng = np.random.default_rng(KINDS.index(base))
    told = 0
    for _ in range(MUTATIONS):
        wrong = rewritten(content, rng) if inner else mutated(content, rng)
        (tmp_path / "file").write_bytes(wrong)
        try:
            state = read_weights(tmp_path / "file")
        except CATSegError as error:
            told += 1
            assert str(error).startswith(str(tmp_path / "file"))
            continue
        for name, value in state.items():
            assert isinstance(value, Tensor) and name.isprintable()
            value.sum()  # reads every element
            assert value.numel() <= len(wrong)
            if base in ("archive", "torchscript") and not inner and name in whole:
                assert torch.equal(value, whole[name])  # the CRC-32 would have told
    assert told > MUTATIONS // 3
