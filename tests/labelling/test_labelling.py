"""Many pictures: every kind of source and output, exactly once, whatever is lost on the way."""

import io
import json
import os
import signal
import tarfile
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from cat_seg import CATSegError, Segmentation, Vocabulary
from cat_seg.cli.main import main
from cat_seg.images import read
from cat_seg.labelling import FORMATS, Job, Labeller, find_units, label, progress, sources

WORDS = Vocabulary.parse(["dark", "grey", "light"])


class Brightness:
    """A model by whose measure the first word is dark, the last one bright."""

    default_words = ("dark", "grey", "light")

    def __init__(self) -> None:
        self.seen = 0

    def vocabulary(self, words):
        return Vocabulary.parse(words)

    def predict(self, picture, words, *, threshold=None):
        self.seen += 1
        grey = (read(picture).mean(2) / 255).astype(np.float32)
        labels = np.rint(grey * (len(words) - 1)).astype(np.int64)
        labels[grey < (threshold or 0)] = -1
        return Segmentation(labels=labels, scores=grey, classes=words.names)


def picture(i: int) -> Image.Image:
    pixels = np.full((12, 20, 3), 20, np.uint8)
    pixels[2:8, i % 10 : i % 10 + 6] = 250
    return Image.fromarray(pixels)


def content(i: int) -> bytes:
    buffer = io.BytesIO()
    picture(i).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sources, "PICTURES", 3)
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    for i in range(7):
        (folder / ("sub" if i > 4 else "") / f"{i}.png").write_bytes(content(i))
    return folder


def files(folder: Path) -> dict[str, bytes]:
    found = (f for name in FORMATS for f in (folder / name).rglob("*") if f.is_file())
    return {f.relative_to(folder).as_posix(): f.read_bytes() for f in found if f.name[0] != "."}


def job(out: Path, *formats: str, **options) -> Job:
    return Job("brightness", str(out), WORDS, formats or ("png",), **options)


def test_every_format_says_the_same(photos: Path, tmp_path: Path):
    pycocotools = pytest.importorskip("pycocotools.mask")
    parquet = pytest.importorskip("pyarrow.parquet")
    out = tmp_path / "out"
    found = label(job(out, *FORMATS), find_units(str(photos)), model=Brightness())
    assert (found.units, found.pictures, found.problems) == (3, 7, {})
    assert json.loads((out / "classes.json").read_text()) == ["dark", "grey", "light"]
    expected = {}
    for i in range(7):
        key = f"sub/{i}" if i > 4 else f"{i}"
        expected[key] = np.asarray(Image.open(out / "png" / f"{key}.png"))
        assert (expected[key][2:8, i : i + 6] == 2).all() and (expected[key] == 0).sum() == 204
    seen = {}
    for number in range(3):
        coco = json.loads((out / "coco" / f"{number:06d}.json").read_text())
        names = {image["id"]: image["file_name"] for image in coco["images"]}
        for one in coco["annotations"]:
            mask = pycocotools.decode(one["segmentation"]).astype(bool)
            assert (expected[names[one["image_id"]]][mask] == one["category_id"] - 1).all()
        table = parquet.read_table(out / "parquet" / f"{number:06d}.parquet")
        assert json.loads(table.schema.metadata[b"classes"]) == ["dark", "grey", "light"]
        for row in table.to_pylist():
            seen[row["key"]] = np.asarray(Image.open(io.BytesIO(row["labels"])))
        with tarfile.open(out / "webdataset" / f"{number:06d}.tar") as tar:
            for name in (name for name in tar.getnames() if name.endswith(".png")):
                held = np.asarray(Image.open(tar.extractfile(name)))
                np.testing.assert_array_equal(held, expected[name[:-4]])
        for image in ElementTree.parse(out / "cvat" / f"{number:06d}.xml").iter("image"):
            found = np.full((12, 20), -1)
            assert (image.get("height"), image.get("width")) == ("12", "20")
            for one in image.iter("mask"):
                runs = [int(n) for n in one.get("rle").split(", ")]
                inside = np.repeat(np.arange(len(runs)) % 2, runs) == 1
                y, x, h, w = (int(one.get(n)) for n in ("top", "left", "height", "width"))
                index = ["dark", "grey", "light"].index(one.get("label"))
                found[y : y + h, x : x + w][inside.reshape(h, w)] = index
            np.testing.assert_array_equal(found, expected[image.get("name")])
        for task in json.loads((out / "labelstudio" / f"{number:06d}.json").read_text()):
            for one in task["predictions"][0]["result"]:
                (name,) = one["value"]["polygonlabels"]
                points = np.array(one["value"]["points"]) * (20 / 100, 12 / 100) - 0.5
                index = ["dark", "grey", "light"].index(name)
                labels = expected[task["data"]["image"]]
                assert all(labels[y, x] == index for x, y in points.round().astype(int))
    assert seen.keys() == expected.keys()
    assert all((seen[key] == expected[key]).all() for key in seen)
    line = (out / "yolo/3.txt").read_text().splitlines()[1].split()
    points = np.array(line[1:], float).reshape(-1, 2)
    assert line[0] == "2" and points.min(0) == pytest.approx([3.5 / 20, 2.5 / 12], abs=1e-4)


def test_every_source_gives_the_same_labels(photos: Path, tmp_path: Path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    fsspec = pytest.importorskip("fsspec")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for i in range(7):
            for name, data in ((f"../{i}.png", content(i)), (f"{i}.json", b"{}")):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    rows = [{"image": {"bytes": content(i), "path": f"{i}.png"}} for i in range(7)]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "b.parquet")
    plain = [{"photo": content(i)} for i in range(7)]
    parquet.write_table(pyarrow.Table.from_pylist(plain), tmp_path / "c.parquet")
    store = fsspec.filesystem("memory")
    for i in range(7):
        store.pipe(f"/bucket/photos/{i}.png", content(i))
    store.pipe("/bucket/shards/d.tar", (tmp_path / "a.tar").read_bytes())
    lines = [f"photos/{'sub/' if i > 4 else ''}{i}.png" for i in range(6)]
    (tmp_path / "list.txt").write_text("\n".join([*lines, "memory://bucket/photos/6.png"]))
    expected = None
    for number, (source, column) in enumerate(
        [
            (photos, "image"),
            (tmp_path / "list.txt", "image"),
            (tmp_path / "a.tar", "image"),
            (tmp_path / "*.tar", "image"),
            (tmp_path / "b.parquet", "image"),
            (tmp_path / "c.parquet", "photo"),
            ("memory://bucket/photos", "image"),
            ("memory://bucket/photos/*.png", "image"),
            ("memory://bucket/shards/d.tar", "image"),
        ]
    ):
        out = tmp_path / f"out{number}"
        found = label(job(out, column=column), find_units(str(source)), model=Brightness())
        assert found.pictures == 7 and not found.problems, source
        labels = [data for _, data in sorted(files(out).items())]
        expected = expected or labels
        assert sorted(labels) == sorted(expected), source
        assert not (tmp_path / "0.png").exists()


def test_bad_pictures_are_counted_and_listed(photos: Path, tmp_path: Path):
    (photos / "1.png").write_bytes(b"nothing")
    found = label(job(tmp_path / "out"), find_units(str(photos)), model=Brightness())
    assert found.pictures == 6 and list(found.problems) == ["1"]
    told = json.loads((tmp_path / "out/problems.json").read_text())
    assert "is not an image" in told["1"]


def test_shards_and_interruptions_give_what_one_run_gives(photos: Path, tmp_path: Path):
    units = find_units(str(photos))
    formats = ("png", "yolo", "webdataset")
    label(job(tmp_path / "one", *formats), units, model=Brightness())
    model = Brightness()
    for i in (2, 0, 1):
        found = label(job(tmp_path / "n", *formats), units, shard=(i, 3), model=model)
    assert found.units == 3 and model.seen == 7
    assert files(tmp_path / "n") == files(tmp_path / "one") != {}
    model = Brightness()
    predict = model.predict

    def interrupted(*args, **options):
        if model.seen == 4:
            model.seen += 1
            raise KeyboardInterrupt
        return predict(*args, **options)

    model.predict = interrupted
    with pytest.raises(KeyboardInterrupt):
        label(job(tmp_path / "cut", *formats), units, model=model)
    assert progress(tmp_path / "cut").pictures == 3
    found = label(job(tmp_path / "cut", *formats), units, model=model)
    assert found.pictures == 7 and model.seen == 9  # of the first unit nothing again
    assert files(tmp_path / "cut") == files(tmp_path / "one")
    label(job(tmp_path / "cut", *formats), units, model=model)
    assert model.seen == 9


def test_mistakes_are_told(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    model, units = Brightness(), find_units(str(photos))
    label(job(tmp_path / "out"), units, model=model)
    with pytest.raises(CATSegError, match=r"another job \(other formats\)"):
        label(job(tmp_path / "out", "yolo"), units, model=model)
    (photos / "new.png").write_bytes(content(0))
    with pytest.raises(CATSegError, match=r"another job \(other pictures\)"):
        label(job(tmp_path / "out"), find_units(str(photos)), model=model)
    with pytest.raises(CATSegError, match="no pictures there"):
        find_units(str(tmp_path / "none"))
    (tmp_path / "bad.tar").write_bytes(b"x" * 2000)
    with pytest.raises(CATSegError, match="cannot be read as tar"):
        label(job(tmp_path / "tar"), find_units(str(tmp_path / "bad.tar")), model=model)
    for arguments in (["--shard", "3/3"], ["--format", "gif"]):
        with pytest.raises(SystemExit):
            main(["label", str(photos), "--out", str(tmp_path / "x"), *arguments])
    capsys.readouterr()


def test_on_the_command_line(photos: Path, tmp_path: Path, capsys, monkeypatch):
    monkeypatch.setattr(Labeller, "__init__", given_model)
    (photos / "3.png").write_bytes(b"nothing")
    arguments = ["label", str(photos), "--out", str(tmp_path / "out"), "--words", "dark, light"]
    assert main([*arguments, "--shard", "0/2"]) == 0
    assert "4 pictures labelled, 2 of 3 units" in capsys.readouterr().out
    assert main(arguments) == 1
    told = capsys.readouterr().out
    assert "6 pictures labelled, all" in told and "1 left out (problems.json): 3: " in told
    assert "whose model waited" in told


def given_model(self, job, model=None):
    self.job, self.model, self.vocabulary = job, Brightness(), job.words


@pytest.mark.slow
def test_a_worker_of_ray_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    ray = pytest.importorskip("ray")
    if not Path("/proc").is_dir():
        pytest.skip("workers are found by /proc")
    monkeypatch.setattr(sources, "PICTURES", 6)
    photos = tmp_path / "photos"
    photos.mkdir()
    for i in range(30):
        (photos / f"{i:02}.png").write_bytes(content(i))
    words = Vocabulary.parse(["sky", "water"])
    units = find_units(str(photos))
    shipped = Job("synthetic", str(tmp_path / "one"), words, ("png", "webdataset"), device="cpu")
    label(shipped, units)
    two = Job("synthetic", str(tmp_path / "two"), words, ("png", "webdataset"), device="cpu")
    killed: list[int] = []

    def kill(record: dict) -> None:
        if not killed:
            killed.append(ours("MapWorker"))
            os.kill(killed[0], signal.SIGKILL)

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        found = label(two, units, workers=2, on_unit=kill)
    finally:
        ray.shutdown()
    assert killed and (found.units, found.pictures) == (5, 30)
    assert files(tmp_path / "two") == files(tmp_path / "one") != {}


def ours(title: str) -> int:
    """Return the id of a process below this one whose title has a word in it."""
    parents, named = {}, []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(entry.name)] = int(
                (entry / "stat").read_text().rsplit(")", 1)[1].split()[1]
            )
            if title.encode() in (entry / "cmdline").read_bytes():
                named.append(int(entry.name))
        except OSError:  # it has ended
            continue
    for one in named:
        above = one
        while above in parents:
            above = parents[above]
            if above == os.getpid():
                return one
    raise AssertionError(f"no {title}")
