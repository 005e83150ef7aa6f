"""Images and label maps in the layouts that people have."""

from pathlib import Path

import pytest

from cat_seg.plugin.data.datasets.pairs import match_files, read_split


def make(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def names(matched):
    assert not matched.problems
    return [(pair.image.name, pair.label.name) for pair in matched.pairs]


def test_sub_folders(tmp_path):
    images = make(tmp_path / "images", "a/1.jpg", "b/1.png", "2.JPG", ".hidden/3.jpg", "a/._1.jpg")
    labels = make(tmp_path / "labels", "a/1.png", "b/1.png", "2.tif")
    matched = match_files(images, labels)
    assert [p.label.relative_to(labels).as_posix() for p in matched.pairs] == [
        "2.tif", "a/1.png", "b/1.png",
    ]  # fmt: skip
    assert names(matched)[0] == ("2.JPG", "2.tif")


@pytest.mark.parametrize("extension", ["", ".png"])
def test_suffixes_of_cityscapes(tmp_path, extension):
    images = make(tmp_path / "leftImg8bit/val", "ulm/ulm_1_leftImg8bit.png")
    labels = make(
        tmp_path / "gtFine/val", "ulm/ulm_1_gtFine_labelIds.png", "ulm/ulm_1_gtFine_color.png"
    )
    matched = match_files(
        images,
        labels,
        image_suffix=f"_leftImg8bit{extension}",
        label_suffix=f"_gtFine_labelIds{extension}",
    )
    assert names(matched) == [("ulm_1_leftImg8bit.png", "ulm_1_gtFine_labelIds.png")]


def test_masks_beside_their_images(tmp_path):
    folder = make(tmp_path, "1.png", "1_mask.png", "2.png", "2_mask.png")
    found = names(match_files(folder, folder, label_suffix="_mask.png"))
    assert found == [("1.png", "1_mask.png"), ("2.png", "2_mask.png")]


def test_labels_below_their_images(tmp_path):
    images = make(tmp_path, "1.jpg", "labels/1.png")
    assert names(match_files(images, tmp_path / "labels")) == [("1.jpg", "1.png")]


def test_two_images_of_one_stem_are_told(tmp_path):
    images, labels = make(tmp_path / "i", "1.jpg", "1.png"), make(tmp_path / "l", "1.png")
    (problem,) = match_files(images, labels).problems
    assert "i/1.jpg and " in problem and "2 images of one name" in problem
    assert names(match_files(images, labels, image_suffix=".jpg")) == [("1.jpg", "1.png")]


def test_photographs_beside_the_label_maps_are_no_label_maps(tmp_path):
    images, labels = make(tmp_path / "i", "1.jpg"), make(tmp_path / "l", "1.png", "1.jpg")
    assert names(match_files(images, labels)) == [("1.jpg", "1.png")]


def test_a_split_is_a_list_of_names(tmp_path):
    images = make(tmp_path / "i", "a/1.jpg", "a/2.jpg", "b/2.jpg", "b/3_rgb.jpg")
    labels = make(tmp_path / "l", "a/1.png", "a/2.png", "b/2.png")
    (tmp_path / "val.txt").write_text("1\n# a comment\nimages/b/2.jpg annotations/b/2.png\n2\n9\n")
    matched = match_files(images, labels, listed=read_split(tmp_path / "val.txt"))
    assert [p.image.parent.name for p in matched.pairs] == ["a", "b"]
    assert [text.split(":")[0] for text in matched.problems] == ["2", "9"]  # 2 is in a and in b
    make(labels, "b/3_id.png")
    matched = match_files(
        images, labels, image_suffix="_rgb", label_suffix="_id", listed=["3_rgb.jpg"]
    )
    assert names(matched) == [("3_rgb.jpg", "3_id.png")]


def test_links_that_lead_back_end(tmp_path):
    images = make(tmp_path / "i", "1.jpg")
    (images / "again").symlink_to(images)
    assert names(match_files(images, make(tmp_path / "l", "1.png"))) == [("1.jpg", "1.png")]


def test_empty_lists_are_refused(tmp_path):
    (tmp_path / "val.txt").write_text("\n")
    with pytest.raises(ValueError, match=r"val.txt: no names"):
        read_split(tmp_path / "val.txt")
