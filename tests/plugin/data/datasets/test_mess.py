"""MESS: small copies of its sets, prepared and scored by its own toolkit, and scored here."""

import importlib
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image, ImageFile

from cat_seg.plugin.data.datasets.registered import MESS, adopt
from cat_seg.plugin.evaluation import SegmentationEvaluator

pytest.importorskip("mess.datasets", reason="needs mess-benchmark")
COUNT, HEIGHT, WIDTH = 3, 30, 40


def save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array.astype(np.uint8)).save(path)


def photo(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, 256, (HEIGHT, WIDTH, 3))


def values(rng: np.random.Generator, choices) -> np.ndarray:
    return rng.choice(np.array(choices), (HEIGHT, WIDTH))


# How each set looks when it is downloaded, of those whose toolkit changes it.
def mhp_v1(root: Path, rng: np.random.Generator) -> None:
    """A mask for each person, a list of the split."""
    folder = root / "LV-MHP-v1"
    for i in range(COUNT):
        save(folder / f"images/{i:04d}.jpg", photo(rng))
        for person in (1, 2):
            save(folder / f"annotations/{i:04d}_02_0{person}.png", values(rng, range(19)))
    (folder / "test_list.txt").write_text("".join(f"{i:04d}.jpg\n" for i in range(COUNT)))
    (folder / "train_list.txt").write_text("")


def atlantis(root: Path, rng: np.random.Generator) -> None:
    """Sub-folders; 0 is unlabelled."""
    for i in range(COUNT):
        for kind, suffix in (("images", "jpg"), ("masks", "png")):
            array = photo(rng) if kind == "images" else values(rng, range(57))
            save(root / f"atlantis/{kind}/test/scene{i}/{i}.{suffix}", array)


def worldfloods(root: Path, rng: np.random.Generator) -> None:
    """13 bands of 16 bit."""
    rasterio = pytest.importorskip("rasterio")
    folder = root / "WorldFloods/test"
    (folder / "S2").mkdir(parents=True)
    for i in range(COUNT):
        bands = rng.integers(0, 9000, (13, HEIGHT, WIDTH)).astype(np.uint16)
        form = {"driver": "GTiff", "count": 13, "height": HEIGHT, "width": WIDTH, "dtype": "uint16"}
        with rasterio.open(folder / f"S2/{i}.tif", "w", **form) as file:
            file.write(bands)
        save(folder / f"gt/{i}.tif", values(rng, range(4)))


def cub_200(root: Path, rng: np.random.Generator) -> None:
    """A folder for each class, a split by number, masks in grey."""
    folder, names = root / "CUB_200_2011", []
    for i in range(COUNT + 1):
        names.append(f"{50 * i + 1:03d}.Bird/Bird_{i}.jpg")
        save(folder / "images" / names[-1], photo(rng))
        save(folder / "segmentations" / names[-1].replace("jpg", "png"), values(rng, [0, 51, 255]))
    lines = [f"{i + 1} {name}\n" for i, name in enumerate(names)]
    (folder / "images.txt").write_text("".join(lines))
    (folder / "train_test_split.txt").write_text("1 1\n2 0\n3 0\n4 0\n")


def uavid(root: Path, rng: np.random.Generator) -> None:
    """Sub-folders of sequences, colours."""
    colours = np.array([(0, 0, 0), (128, 0, 0), (128, 64, 128), (0, 128, 0), (192, 0, 192)])
    for i in range(COUNT):
        folder = root / f"uavid_v1.5/uavid_val/seq{i}"
        save(folder / "Images/000000.png", photo(rng))
        save(folder / "Labels/000000.png", colours[values(rng, range(len(colours)))])


def suim(root: Path, rng: np.random.Generator) -> None:
    """Bitmaps in colours of one bit."""
    for i in range(COUNT):
        save(root / f"SUIM/TEST/images/{i}.jpg", photo(rng))
        bits = values(rng, range(8))[:, :, None] >> np.array([2, 1, 0]) & 1
        save(root / f"SUIM/TEST/masks/{i}.bmp", 255 * bits)


def cryonuseg(root: Path, rng: np.random.Generator) -> None:
    """Nuclei before a background; masks of 0 and 255."""
    folder = root / "CryoNuSeg"
    masks = "Annotator 1 (biologist second round of manual marks up)"
    for i in range(COUNT):
        save(folder / f"tissue images/{i}.tif", photo(rng))
        save(folder / masks / masks / f"mask binary/{i}.png", values(rng, [0, 255]))


def kvasir_instrument(root: Path, rng: np.random.Generator) -> None:
    """A list of the split; masks of 0 and 255 in three channels."""
    folder = root / "kvasir-instrument"
    for i in range(COUNT):
        save(folder / f"images/{i}.jpg", photo(rng))
        save(folder / f"masks/{i}.png", np.stack([values(rng, [0, 255])] * 3, 2))
    (folder / "test.txt").write_text("".join(f"{i}\n" for i in range(COUNT)))


RAW = {
    "mhp_v1_sem_seg_test": mhp_v1,
    "atlantis_sem_seg_test": atlantis,
    "worldfloods_sem_seg_test_irrg": worldfloods,
    "cub_200_sem_seg_test": cub_200,
    "uavid_sem_seg_val": uavid,
    "suim_sem_seg_test": suim,
    "cryonuseg_sem_seg_test": cryonuseg,
    "kvasir_instrument_sem_seg_test": kvasir_instrument,
}
# Layouts of others once they are prepared, by the suffixes of images and label maps.
PREPARED = {
    "dark_zurich_sem_seg_val": ("_rgb_anon.png", "_gt_labelIds.png"),
    "corrosion_cs_sem_seg_test": (".jpeg", ".png"),  # blanks in a folder's name
    "zerowaste_sem_seg_test": (".PNG", ".PNG"),
    "cwfid_sem_seg_test": ("_image.png", "_annotation.png"),
}


def prepare(name: str, root: Path) -> None:
    """Write a small copy of a set, and have the toolkit prepare it."""
    rng = np.random.default_rng(0)
    if name in RAW:
        pytest.importorskip("gdown", reason="needs what mess-benchmark needs")
        RAW[name](root, rng)
        importlib.import_module(f"mess.prepare_datasets.prepare_{RAW[name].__name__}").main()
        return
    metadata = MetadataCatalog.get(name)
    for i in range(COUNT):
        images, labels = PREPARED[name]
        save(Path(metadata.image_root) / f"{i}{images}", photo(rng))
        known = values(rng, [*range(len(metadata.stuff_classes)), 255])
        save(Path(metadata.sem_seg_root) / f"{i}{labels}", known)


@pytest.mark.parametrize("name", [*RAW, *PREPARED])
def test_figures_equal_those_of_the_toolkit(name, tmp_path, monkeypatch):
    import detectron2

    evaluation = pytest.importorskip("mess.evaluation.sem_seg_evaluation")
    if "cat_seg" in detectron2.__version__:
        pytest.skip("the toolkit's evaluator needs the real detectron2")
    metadata = MetadataCatalog.get(name)
    if Path(metadata.image_root).is_absolute():
        pytest.skip("DETECTRON2_DATASETS is set")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DETECTRON2_DATASETS", raising=False)
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", False)  # the toolkit sets it
    prepare(name, Path("datasets"))
    adopt(name)
    records = DatasetCatalog.get(name)
    assert len(records) == COUNT
    ours = SegmentationEvaluator(name, distributed=False)
    theirs = evaluation.MESSSemSegEvaluator(name, distributed=False)
    random = torch.Generator().manual_seed(0)
    for evaluator in (ours, theirs):
        evaluator.reset()
    for record in records:
        with Image.open(record["sem_seg_file_name"]) as truth:
            size = truth.size[::-1]
        scores = torch.rand(min(len(metadata.stuff_classes), 9), *size, generator=random)
        rest = len(metadata.stuff_classes) - len(scores)
        scores = torch.cat([scores, torch.zeros(1, *size).expand(rest, -1, -1)])
        for evaluator in (ours, theirs):
            evaluator.process([record], [{"sem_seg": scores}])
    expected = theirs.evaluate()["sem_seg"]
    ours.evaluate()
    found = ours.result.summary()
    pairs = {"mIoU_2021": "mIoU", "CoI-mIoU": "CoI-mIoU", "fwIoU": "fwIoU", "pACC": "pACC"}
    for here, there in pairs.items():
        assert found[here] == pytest.approx(expected[there], abs=1e-9), here


def test_every_set_of_the_table_is_registered_by_the_toolkit():
    assert set(MESS) <= set(DatasetCatalog.list())
