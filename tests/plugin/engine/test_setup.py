"""What a process does before it trains or evaluates."""

import argparse
from pathlib import Path

import pytest
import torch

from cat_seg.plugin.engine import load_config, set_up


@pytest.mark.parametrize("precision, rounded", [(None, False), ("high", True), ("", True)])
def test_convolutions_are_exact_unless_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str | None, rounded: bool
):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)  # PyTorch's default
    opts = [] if precision is None else ["FLOAT32_PRECISION", precision]
    cfg = load_config("configs/synthetic.yaml", ["OUTPUT_DIR", str(tmp_path), *opts])
    before = torch.get_float32_matmul_precision()
    set_up(cfg, argparse.Namespace(config_file="", eval_only=True))
    torch.set_float32_matmul_precision(before)
    assert torch.backends.cudnn.allow_tf32 == rounded
    assert (tmp_path / "config.yaml").exists()
