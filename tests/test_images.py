import contextlib
import http.server
import io
import os
import socket
import sys
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

from cat_seg import images
from cat_seg.errors import CATSegError
from cat_seg.images import MAX_PIXELS, find_images, find_inputs, read, read_image
from cat_seg.label_maps import read_label_map

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


@pytest.mark.parametrize("allowed", [False, True], ids=["", "truncated files allowed by others"])
def test_damaged_files_are_named(tmp_path: Path, picture, allowed, monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", allowed)
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
    assert ImageFile.LOAD_TRUNCATED_IMAGES == allowed


def test_too_many_pixels_are_refused_before_decoding(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)  # of the process; ours is an argument
    monkeypatch.setattr(images, "_STRIP", 20)  # Pillow holds a strip, too, against its limit
    path = tmp_path / "large.png"
    Image.new("L", (20, 20)).save(path)
    assert read(path).shape == (20, 20, 3)
    assert read(path, max_pixels=400).shape == read(path, max_pixels=0).shape == (20, 20, 3)
    path.write_bytes(path.read_bytes()[:48])  # decoding it would fail otherwise
    with pytest.raises(CATSegError, match=r"large\.png is too large: 20 x 20"):
        read(path, max_pixels=399)
    with pytest.raises(CATSegError, match="max_pixels"):
        read(Image.new("L", (20, 20)), max_pixels=399)
    monkeypatch.setenv("CAT_SEG_MAX_PIXELS", "399")
    for reader in (read, read_image, read_label_map):
        with pytest.raises(CATSegError, match=r"at most 399 are read.*CAT_SEG_MAX_PIXELS"):
            reader(path)
    monkeypatch.setenv("CAT_SEG_MAX_PIXELS", "0")  # the rest of it is missing
    with pytest.raises(CATSegError, match="may be damaged"):
        read(path)
    monkeypatch.setenv("CAT_SEG_MAX_PIXELS", "2e8")
    with pytest.raises(CATSegError, match="CAT_SEG_MAX_PIXELS is '2e8'; expected a number"):
        read(path)
    assert MAX_PIXELS >= 100_000_000


def test_every_form_of_one_picture_gives_the_same(tmp_path: Path, picture):
    picture.save(tmp_path / "a.png")
    expected = np.asarray(picture)
    for form in (
        tmp_path / "a.png",
        str(tmp_path / "a.png"),
        (tmp_path / "a.png").read_bytes(),
        bytearray((tmp_path / "a.png").read_bytes()),
        picture,
        expected,
        expected[:, ::-1][:, ::-1],
        expected.astype(np.uint16) * 257,
        expected.astype(np.uint16).astype(">u2") * 257,
        expected / 255,
        (expected / 255).astype(np.float32),
        torch.from_numpy(expected.copy()).permute(2, 0, 1),
        torch.from_numpy(expected / 255).permute(2, 0, 1),
        torch.from_numpy(expected / 255).permute(2, 0, 1).bfloat16(),
    ):
        image = read(form)
        assert image.dtype == np.uint8 and image.flags.c_contiguous and image.flags.writeable
        tolerance = isinstance(form, torch.Tensor) and form.dtype == torch.bfloat16
        np.testing.assert_allclose(image, expected, atol=int(tolerance))
        assert not isinstance(form, np.ndarray) or not np.shares_memory(image, form)


def test_grey_and_transparent_arrays(tmp_path: Path):
    grey = np.array([[0, 128, 255]], np.uint8)
    expected = np.repeat(grey[:, :, None], 3, axis=2)
    for form in (grey, grey[:, :, None], torch.from_numpy(grey), torch.from_numpy(grey)[None]):
        np.testing.assert_array_equal(read(form), expected)
    pixels = np.array([[[255, 0, 0, 255], [255, 0, 0, 0], [0, 0, 0, 51]]], np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    for form in (pixels, pixels.astype(np.uint16) * 257, pixels / 255, tmp_path / "a.png"):
        np.testing.assert_array_equal(read(form), [[RED, WHITE, (204,) * 3]])


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (None, "is None"),
        (3, "of type int"),
        ([[1, 2]], "of type list"),
        (np.zeros((2, 2, 2), np.uint8), r"\(2, 2, 2\) of uint8"),
        (np.zeros((3, 8, 8), np.uint8), r"\(3, 8, 8\) of uint8"),
        (np.zeros((1, 8, 8, 3), np.uint8), r"\(1, 8, 8, 3\)"),
        (np.zeros(3, np.uint8), r"\(3,\)"),
        (np.zeros((0, 3, 3), np.uint8), r"\(0, 3, 3\)"),
        (np.zeros((2, 2), bool), "of bool"),
        (np.zeros((2, 2), np.int64), "of int64"),
        (np.zeros((2, 2), complex), "of complex128"),
        (np.array([["a"]]), "of <U1"),
        (np.full((2, 2), np.nan), "from nan to nan"),
        (np.array([[0.0, np.inf]]), "from 0 to inf"),
        (np.array([[0.0, 255.0]]), "from 0 to 255"),
        (np.array([[-0.5, 1.0]]), "from -0.5 to 1"),
        (torch.zeros(8, 8, 3, dtype=torch.uint8), r"tensor \(8, 8, 3\)"),
        (torch.zeros(1, 3, 8, 8), r"tensor \(1, 3, 8, 8\)"),
        (torch.zeros(3, 8, 8, dtype=torch.complex64), "complex64"),
        (torch.zeros(3, 8, 8).to_sparse(), "of type Tensor"),
        (Image.new("RGB", (0, 4)), "no pixels"),
        (b"", "bytes.*not an image"),
        (b"GIF89a", "bytes"),
        ("https://example.invalid/a.png", "allow_url=True"),
    ],
)
def test_what_is_no_picture_is_named(picture, message):
    with pytest.raises(CATSegError, match=message):
        read(picture)


def test_rounding_is_no_mistake():
    np.testing.assert_array_equal(read(np.array([[-1e-5, 1 + 1e-5]]))[0, :, 0], [0, 255])


def test_a_picture_of_pil_is_turned_and_left_as_it_is(picture):
    exif = Image.Exif()
    exif[0x0112] = 3
    stream = io.BytesIO()
    picture.save(stream, "PNG", exif=exif)
    opened = Image.open(stream)
    np.testing.assert_array_equal(read(opened), np.asarray(picture)[::-1, ::-1])
    np.testing.assert_array_equal(np.asarray(opened), picture)


def test_only_regular_files_are_opened(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe.jpg")  # opening it would wait for a writer
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nothing")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s.jpg"))
    for name, problem in [
        ("pipe.jpg", "not a regular file"),
        ("s.jpg", "not a regular file"),
        ("loop.jpg", "cannot be opened"),
        ("gone.jpg", "does not exist"),
        ("x" * 5000, "cannot be opened"),
        ("a\0b", "cannot be the name"),
        ("none*.jpg", "matches no file"),
    ]:
        with pytest.raises(CATSegError, match=problem) as error:
            read(tmp_path / name)
        assert len(str(error.value)) < 1000
    with pytest.raises(CATSegError, match="not a regular file"):
        read("/dev/zero")


def test_names_of_any_bytes(tmp_path: Path, picture):
    path = os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe.png")
    picture.save(path)
    assert read(path).shape == (2, 3, 3)
    Path(path).write_bytes(b"")
    with pytest.raises(CATSegError) as error:
        read(path)
    str(error.value).encode()  # can be printed


def test_programs_are_no_pictures(tmp_path: Path):
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n")
    with pytest.raises(CATSegError, match="not an image"):
        read(tmp_path / "a.png")


def test_heic_or_the_way_to_it(tmp_path: Path, monkeypatch):
    path = tmp_path / "a.heic"
    path.write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "pillow_heif", None)
        with pytest.raises(CATSegError, match=r"a\.heic is HEIC.*pip install pillow-heif"):
            read(path)
    pillow_heif = pytest.importorskip("pillow_heif")
    picture = Image.new("RGB", (64, 48), RED)
    exif = Image.Exif()
    exif[0x0112] = 6
    pillow_heif.from_pillow(picture).save(path, exif=exif.tobytes(), quality=95)
    image = read(path)
    assert image.shape == (64, 48, 3)
    assert np.abs(image.astype(int) - RED).max() < 12


class _Server(http.server.BaseHTTPRequestHandler):
    content = b""

    def do_GET(self):
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", "ftp://127.0.0.1/a.png")
            self.end_headers()
        elif self.path == "/nonsense":
            self.wfile.write(b"What?\r\n\r\n")
        elif self.path == "/drip":  # a header without end
            self.wfile.write(b"HTTP/1.0 200 OK\r\n")
            with contextlib.suppress(OSError):
                for _ in range(100):
                    self.wfile.write(b"x")
                    time.sleep(0.05)
        elif self.path == "/a.png":
            self.send_response(200)
            self.end_headers()
            self.wfile.write(self.content)
        else:
            self.send_error(404)

    def log_message(self, *args):
        pass


def test_addresses_are_fetched_when_asked(picture, monkeypatch):
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    monkeypatch.setattr(_Server, "content", stream.getvalue())
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        base = f"http://127.0.0.1:{server.server_port}"
        np.testing.assert_array_equal(read(f"{base}/a.png", allow_url=True), picture)
        with pytest.raises(CATSegError, match=r"/none cannot be fetched.*404"):
            read(f"{base}/none", allow_url=True)
        for path in ("moved", "nonsense"):
            with pytest.raises(CATSegError, match=f"/{path} cannot be fetched"):
                read(f"{base}/{path}", allow_url=True)
        with monkeypatch.context() as patch:
            patch.setattr("cat_seg.images._URL_SECONDS", 0.3)
            with pytest.raises(CATSegError, match="takes longer than"):
                read(f"{base}/drip", allow_url=True)
        monkeypatch.setattr("cat_seg.images._URL_BYTES", 10)
        with pytest.raises(CATSegError, match="is larger than"):
            read(f"{base}/a.png", allow_url=True)
        server.shutdown()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in (
        *("b.jpg", "a.PNG", "notes.txt", ".hidden.png", "odd[1].jpg", "sub/c.tif"),
        *("sub/deep/d.jpg", ".git/e.jpg", "twin/a.jpg", "twin/A.png", "twin/a.jpg.bmp"),
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "sub" / "up").symlink_to(tmp_path)
    return tmp_path


TWINS = ["twin/A.png", "twin/a.jpg", "twin/a.jpg.bmp"]


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        ([""], ["a.PNG", "b.jpg", "odd[1].jpg", "sub/c.tif", "sub/deep/d.jpg", *TWINS]),
        (["sub/", "sub/c.tif"], ["sub/c.tif", "sub/deep/d.jpg"]),
        (["notes.txt"], ["notes.txt"]),
        (["odd[1].jpg"], ["odd[1].jpg"]),
        (["*.jpg", "b.jpg"], ["b.jpg", "odd[1].jpg"]),
        (["*"], ["a.PNG", "b.jpg", "odd[1].jpg", "sub/c.tif", "sub/deep/d.jpg", *TWINS]),
        (["sub/**/*.jpg", "sub"], ["sub/deep/d.jpg", "sub/c.tif"]),
        (["*.txt"], ["notes.txt"]),
        (["none*.jpg", "gone"], ["none*.jpg", "gone"]),
    ],
)
def test_find_images(tree: Path, inputs, expected):
    found = [p.relative_to(tree).as_posix() for p in find_images(tree / item for item in inputs)]
    # links are not followed by folders; a glob of Python follows them, and finds the same again
    assert [name for name in found if "/up/" not in name] == expected


def names(root: Path, *inputs: str) -> list[str]:
    return [name.as_posix() for _, name in find_inputs(root / item for item in inputs)]


def test_names_of_outputs_mirror_the_tree(tree: Path, monkeypatch):
    whole = ["a", "b", "odd[1]", "sub/c", "sub/deep/d", *TWINS]
    assert names(tree, "") == whole
    assert names(tree, "sub") == ["c", "deep/d"]
    assert names(tree, "b.jpg", "sub/deep/d.jpg") == ["b", "sub/deep/d"]
    assert names(tree, "sub/deep/d.jpg") == ["d"]
    assert names(tree, "twin/a.jpg") == ["a.jpg"]  # as if its twins were asked for
    assert names(tree, "twin/*.png") == ["A.png"]
    assert names(tree, "*.jpg") == ["b", "odd[1]"]
    assert names(tree, "notes.txt") == ["notes.txt"]
    monkeypatch.chdir(tree)
    assert [name.as_posix() for _, name in find_inputs(["sub", "./b.jpg"])] == [
        "sub/c",
        "sub/deep/d",
        "b",
    ]


def test_what_is_missing_changes_no_name(tree: Path):
    assert names(tree, "sub", "gone/x.jpg") == ["c", "deep/d", "x"]


def test_memory_and_time_of_a_large_picture_are_bounded(tmp_path, monkeypatch):
    values = np.arange(600, dtype=np.int32).reshape(20, 30) * 200
    whole = read(Image.fromarray(values)), read(Image.new("RGBA", (30, 20), (9, 8, 7, 60)))
    monkeypatch.setattr("cat_seg.images._STRIP", 90)  # pixels: three rows
    parts = read(Image.fromarray(values)), read(Image.new("RGBA", (30, 20), (9, 8, 7, 60)))
    for one, other in zip(whole, parts, strict=True):
        np.testing.assert_array_equal(one, other)


def test_pillows_own_limit_is_no_limit_of_ours(tmp_path, monkeypatch):
    Image.new("L", (300, 80), 7).save(tmp_path / "large.png")
    monkeypatch.setattr("cat_seg.images._STRIP", 4_000)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 8_000)  # pixels; of the half, it warns
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read(tmp_path / "large.png").shape == (80, 300, 3)
