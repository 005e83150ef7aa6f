"""What is written when the disk is full: an error in words, and nothing half under its name."""

import signal
import subprocess
import sys

import pytest

BEGINNING = """
import resource, signal, sys
import numpy as np, torch
from PIL import Image
from cat_seg.trust.weights import write_weights
from cat_seg.utils.files import write_picture
noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a limit on files then fails as a full disk does
resource.setrlimit(resource.RLIMIT_FSIZE, (9999, 9999))
"""
WEIGHTS = "write_weights({'a': torch.zeros(9999)}, sys.argv[1])"
PICTURE = "write_picture(sys.argv[1], noise)"


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="limits of files are POSIX's")
@pytest.mark.parametrize(
    ("name", "write", "error"),
    [
        ("w.safetensors", WEIGHTS, "CATSegError"),
        ("w.pth", WEIGHTS, "CATSegError"),
        ("a.jpg", PICTURE, "OSError"),  # which Pillow alone would cut without a word
        ("a.png", PICTURE, "OSError"),
        ("a.tif", PICTURE, "OSError"),
    ],
)
def test_a_full_disk_is_told_and_leaves_nothing(tmp_path, name, write, error):
    program = [sys.executable, "-c", BEGINNING + write, tmp_path / name]
    ended = subprocess.run(program, capture_output=True, text=True)
    assert error in ended.stderr.splitlines()[-1], ended.stderr
    assert "disk full" in ended.stderr or "File too large" in ended.stderr
    assert not list(tmp_path.iterdir())
