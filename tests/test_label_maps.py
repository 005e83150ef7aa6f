"""Label maps as files, of every depth."""

import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from cat_seg.errors import CATSegError
from cat_seg.label_maps import image_size, read_label_map, write_label_map


@pytest.mark.parametrize(
    ("suffix", "depth"), [("png", "uint8"), ("png", "uint16"), ("tif", "uint16")]
)
def test_what_is_written_is_read(tmp_path, suffix, depth):
    labels = np.arange(0, 60, dtype=depth).reshape(6, 10)
    labels[0, 0] = np.iinfo(depth).max
    write_label_map(tmp_path / f"labels.{suffix}", labels)
    read = read_label_map(tmp_path / f"labels.{suffix}")
    assert read.dtype == depth
    np.testing.assert_array_equal(read, labels)


def test_palette_gives_indices(tmp_path):
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8))
    image.putpalette([9, 9, 9, 7, 7, 7, 5, 5, 5])
    image.save(tmp_path / "palette.png")
    np.testing.assert_array_equal(read_label_map(tmp_path / "palette.png"), [[0, 1, 2]])


def test_three_equal_channels_are_one(tmp_path):
    grey = np.array([[0, 1, 2]], np.uint8)
    Image.fromarray(np.stack([grey] * 3, axis=-1)).save(tmp_path / "rgb.png")
    np.testing.assert_array_equal(read_label_map(tmp_path / "rgb.png"), grey)


def test_size_is_that_of_the_upright_image(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 8
    image = Image.fromarray(np.zeros((2, 3, 3), np.uint8))
    image.save(tmp_path / "turned.jpg", exif=exif)
    image.save(tmp_path / "plain.jpg")
    assert image_size(tmp_path / "turned.jpg") == (3, 2)
    assert image_size(tmp_path / "plain.jpg") == (2, 3)


@pytest.mark.parametrize("read", [read_label_map, image_size])
def test_unreadable_files_are_named(tmp_path, read):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG")
    for name in ("broken.png", "missing.png"):
        with pytest.raises(ValueError, match=name):
            read(tmp_path / name)


def test_jpegs_are_refused_with_the_reason(tmp_path):
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "labels.jpg")
    (tmp_path / "labels.jpg").rename(tmp_path / "named.png")
    with pytest.raises(ValueError, match=r"named.png: a label map as JPEG, whose compression"):
        read_label_map(tmp_path / "named.png")


@pytest.mark.parametrize("read", [read_label_map, image_size])
def test_what_is_no_file_or_too_large_is_told_at_once(tmp_path, read):
    os.mkfifo(tmp_path / "fifo.png")
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    small = io.BytesIO()
    Image.new("1", (8, 8)).save(small, "PNG")
    header = b"IHDR" + struct.pack(">II", 60_000, 60_000) + small.getvalue()[24:29]
    content = small.getvalue()[:12] + header + struct.pack(">I", zlib.crc32(header))
    (tmp_path / "bomb.png").write_bytes(content + small.getvalue()[33:])
    problems = {"fifo.png": "not a regular", "loop.png": "cannot be opened"}
    problems["bomb.png"] = "too large: 60000 x 60000"
    for name, problem in problems.items():
        with pytest.raises(CATSegError, match=f"{name} .*{problem}"):
            read(tmp_path / name)
