from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cat_seg.images import find_images, read_image

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


@pytest.fixture
def picture() -> Image.Image:
    """2 rows, 3 columns: red, green, blue; white, black, grey."""
    values = [[RED, GREEN, BLUE], [WHITE, (0, 0, 0), (128, 128, 128)]]
    return Image.fromarray(np.array(values, np.uint8))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, picture, orientation):
    # What the camera stored for each orientation, by the numbers' meaning in the EXIF standard.
    upright = np.asarray(picture)
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), upright)


@pytest.mark.parametrize("mode", ["L", "1", "LA", "P", "RGB", "RGBA"])
def test_modes_become_rgb(tmp_path: Path, picture, mode):
    grey = picture.convert("L") if mode in ("L", "1", "LA") else picture
    if mode == "1":
        grey = grey.point(lambda v: 255 * (v > 127))
    grey.convert(mode, palette=Image.Palette.ADAPTIVE).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    assert image.dtype == np.uint8
    assert image.flags.writeable
    np.testing.assert_array_equal(image, np.asarray(grey.convert("RGB")))


def test_transparency_shows_white(tmp_path: Path):
    pixels = np.array([[[255, 0, 0, 255], [255, 0, 0, 0], [0, 0, 0, 51]]], np.uint8)
    Image.fromarray(pixels).save(tmp_path / "rgba.png")
    np.testing.assert_array_equal(read_image(tmp_path / "rgba.png"), [[RED, WHITE, (204,) * 3]])

    palette = Image.fromarray(np.array([[0, 1]], np.uint8))
    palette.putpalette([*RED, *GREEN])
    palette.save(tmp_path / "palette.png", transparency=1)
    np.testing.assert_array_equal(read_image(tmp_path / "palette.png"), [[RED, WHITE]])


def test_cmyk(tmp_path: Path):
    inks = np.zeros((16, 16, 4), np.uint8)
    inks[:, :, 1:3] = 255  # magenta and yellow: red
    for name in ("a.jpg", "a.tif"):
        Image.fromarray(inks, mode="CMYK").save(tmp_path / name)
        assert np.abs(read_image(tmp_path / name).astype(int) - RED).max() <= 3


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_is_scaled(tmp_path: Path, suffix):
    values = np.array([[0, 257, 32896, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / f"a.{suffix}")
    image = read_image(tmp_path / f"a.{suffix}")
    np.testing.assert_array_equal(image[:, :, 0], [[0, 1, 128, 255]])
    np.testing.assert_array_equal(image[:, :, 0], image[:, :, 2])


def test_16_bit_colour_png(tmp_path: Path):
    cv2 = pytest.importorskip("cv2")
    values = np.zeros((1, 2, 3), np.uint16)
    values[0, 0] = 65535, 32896, 0  # OpenCV: blue first
    cv2.imwrite(str(tmp_path / "a.png"), values)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), [[(0, 128, 255), (0, 0, 0)]])


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.5, 1.0], [0, 128, 255]),
        ([0.0, 7.0, 255.0], [0, 7, 255]),
        ([-5.0, 0.0, 510.0], [0, 0, 2]),
    ],
)
def test_floats_are_scaled(tmp_path: Path, values, expected):
    Image.fromarray(np.array([values], np.float32)).save(tmp_path / "a.tif")
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif")[0, :, 1], expected)


def test_not_a_number_is_black(tmp_path: Path):
    Image.fromarray(np.array([[np.nan, np.inf, 1.0]], np.float32)).save(tmp_path / "a.tif")
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif")[0, :, 1], [0, 0, 255])


def test_first_frame_of_an_animation(tmp_path: Path):
    frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, BLUE)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert (read_image(tmp_path / "a.gif") == RED).all()


def test_damaged_files_are_named(tmp_path: Path, picture):
    picture.resize((64, 64)).save(tmp_path / "whole.jpg")
    data = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "truncated.jpg").write_bytes(data[: len(data) // 2])
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("not an image")
    for name in ("truncated.jpg", "empty.jpg", "text.jpg", "missing.jpg"):
        with pytest.raises(ValueError, match=name):
            read_image(tmp_path / name)
    with pytest.raises(ValueError, match="is a folder"):
        read_image(tmp_path)


def test_too_many_pixels(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    Image.new("L", (20, 20)).save(tmp_path / "large.png")
    with pytest.raises(ValueError, match=r"large\.png is too large"):
        read_image(tmp_path / "large.png")


def test_find_images(tmp_path: Path):
    for name in ("b.jpg", "a.PNG", "notes.txt", ".hidden.png", "odd[1].jpg", "sub/c.tif"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()

    def found(*inputs: str) -> list[str]:
        paths = find_images(tmp_path / item for item in inputs)
        return [p.relative_to(tmp_path).as_posix() for p in paths]

    assert found("") == ["a.PNG", "b.jpg", "odd[1].jpg"]
    assert found("notes.txt") == ["notes.txt"]
    assert found("odd[1].jpg") == ["odd[1].jpg"]
    assert found("*.jpg", "b.jpg") == ["b.jpg", "odd[1].jpg"]
    assert found("**/*.tif", "sub") == ["sub/c.tif"]
    assert found("none*.jpg") == ["none*.jpg"]
