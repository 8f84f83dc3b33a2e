"""The benchmarks opened by name, prepared and not."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import official_layouts as official
from locatvit.data import open_dataset
from locatvit.data.segmentation_sets import SETS
from locatvit.data.spec import ImageDataset
from locatvit.errors import LocAtError


def open_set(name: str, root: Path | None, split: str = "train", **options: object) -> ImageDataset:
    return open_dataset(name, task="segmentation", split=split, root=root, **options)  # type: ignore[arg-type]


@pytest.fixture
def ade(tmp_path: Path) -> Path:
    return official.prepared(tmp_path, SETS["ade20k"].classes, {"train": [[0, 149, 255]], "val": [[1]]})


@pytest.mark.parametrize("name", SETS)
def test_spec(name: str, tmp_path: Path) -> None:
    known = SETS[name]
    root = official.prepared(tmp_path, known.classes, {"train": [[0, len(known.classes) - 1, 255]]})
    found = open_set(name, root)
    assert (found.spec.name, found.spec.task, found.spec.ignore_index) == (name, "segmentation", 255)
    assert found.spec.classes == known.classes
    assert found.spec.colours == known.palette
    assert found.spec.image_size == {"camvid": (360, 480), "cityscapes": (1024, 2048)}.get(name)
    assert found[0][1].unique().tolist() == [0, len(known.classes) - 1, 255]


def test_the_official_folder_in_which_it_was_prepared(ade: Path) -> None:
    within = ade / "locatvit_ade20k"
    within.mkdir()
    for part in ("images", "annotations", "classes.txt"):
        (ade / part).rename(within / part)
    assert open_set("ade20k", ade).describe(0) == str(within / "images/train/0.png")
    assert len(open_set("ade20k", within)) == 1


def test_an_official_folder_that_is_not_prepared(tmp_path: Path) -> None:
    root = official.ade20k(tmp_path, {"train": [[1]], "val": [[1]]})
    message = (
        rf"ade20k in {root} is not prepared: there is no classes.txt; run: locatvit data prepare ade20k --root {root}"
    )
    with pytest.raises(LocAtError, match=message):
        open_set("ade20k", root)


def test_no_root_and_no_folder(tmp_path: Path) -> None:
    with pytest.raises(
        LocAtError, match=r"'voc2012' needs root: the folder that `locatvit data prepare voc2012` wrote"
    ):
        open_set("voc2012", None)
    with pytest.raises(
        LocAtError, match=r"no folder \S+nowhere; Cityscapes .* from https://www.cityscapes-dataset.com/"
    ):
        open_set("cityscapes", tmp_path / "nowhere")


def test_classes_in_another_order(ade: Path) -> None:
    names = list(SETS["ade20k"].classes)
    names[3], names[4] = names[4], names[3]
    (ade / "classes.txt").write_text("\n".join(names))
    message = (
        r"has 150 classes \(wall, ...\), not ade20k's 150 .*; class 3 is 'tree', not 'floor'; open it as data set 'fo"
    )
    with pytest.raises(LocAtError, match=message):
        open_set("ade20k", ade)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (
            "ade20k",
            150,
            r"has the value 150; .* off by one \(0 stood for pixels without a class .*; prepare the data set",
        ),
        ("pascal_context", 59, r"has the value 59; .* off by one .*: locatvit data prepare pascal_context --root"),
        ("coco_stuff", 171, r"has the value 171; classes are 0 to 170, and 255 is ignored\. The labels are off by one"),
        ("camvid", 11, r"off by one \(SegNet's 11, unlabelled, was not made 255\)"),
        ("cityscapes", 33, r"has the value 33; .*These are no labels of cityscapes; prepare the data set anew"),
        ("voc2012", 21, r"off by one \(the classes are 0 \(background\) to 20"),
    ],
)
def test_masks_that_tell_of_a_shifted_map(name: str, value: int, message: str, tmp_path: Path) -> None:
    root = official.prepared(tmp_path, SETS[name].classes, {"train": [[0, value]]})
    with pytest.raises(LocAtError, match=rf"mask {root}/annotations/train/0.png .*{message}"):
        open_set(name, root)[0]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (2, r"has the value 2; .*may be off by one, 1 to 2 with 0 for no class: then make 0 255 and subtract 1"),
        (254, r"has the value 254; .*may be 255 less one, shifted together with the classes: then make it 255 again"),
        (9, r"has the value 9; .*Mend the mask or add the class to classes.txt"),
    ],
)
def test_the_same_in_a_folder_of_ones_own(value: int, message: str, tmp_path: Path) -> None:
    root = official.prepared(tmp_path, ["road", "sky"], {"train": [[0, value]]})
    with pytest.raises(LocAtError, match=message):
        open_set("folder", root)[0]


def test_masks_with_colours_or_16_bits_say_what_to_do(ade: Path) -> None:
    path = ade / "annotations/train/0.png"
    Image.fromarray(np.zeros((6, 10, 3), np.uint8)).save(path)
    with pytest.raises(
        LocAtError, match=rf"mask {path} has mode RGB; .*turn its colours into the numbers of the classes"
    ):
        open_set("ade20k", ade)[0]
    Image.fromarray(np.zeros((6, 10), np.uint16)).save(path)
    with pytest.raises(
        LocAtError, match=rf"mask {path} has mode I;16; .*if no number is above 255, save it again with 8"
    ):
        open_set("ade20k", ade)[0]


def test_image_without_mask(ade: Path) -> None:
    shutil.copy(ade / "images/train/0.png", ade / "images/train/1.png")
    with pytest.raises(
        LocAtError, match=r"image \S+train/1.png has no mask \S+annotations/train/1.png; add it or remove"
    ):
        open_set("ade20k", ade)


def test_a_part_is_called_that(ade: Path, caplog: pytest.LogCaptureFixture) -> None:
    (ade / "dataset.json").write_text('{"name": "ade20k", "partial": true}')
    with caplog.at_level(logging.WARNING):
        open_set("ade20k", ade)
    assert "is a part of ade20k, 1 train images: its numbers do not compare" in caplog.text


@pytest.mark.parametrize(("text", "message"), [("{", "is no JSON"), ("[]", "holds no record of a data set")])
def test_a_spoiled_record(text: str, message: str, ade: Path) -> None:
    (ade / "dataset.json").write_text(text)
    with pytest.raises(LocAtError, match=rf"dataset.json {message}.*; remove it and prepare the data set again"):
        open_set("ade20k", ade)


def test_lists_of_voc(tmp_path: Path) -> None:
    root = official.prepared(tmp_path, SETS["voc2012"].classes, {"train": [[0], [1]], "val": [[2]]})
    with pytest.raises(LocAtError, match=r"train_list of voc2012 is 'all'; it must be one of train, trainaug"):
        open_set("voc2012", root, train_list="all")
    message = (
        r"was prepared with the list 'train', not 'trainaug' \(10582 .*voc2012 --root OFFICIAL --train_list trainaug"
    )
    with pytest.raises(LocAtError, match=message):
        open_set("voc2012", root, train_list="trainaug")
    assert len(open_set("voc2012", root, "val", train_list="trainaug")) == 1
    (root / "dataset.json").write_text('{"name": "voc2012", "train_list": "trainaug"}')
    with pytest.raises(LocAtError, match=r"no file \S+train.txt, the list of VOC's own training images; prepare"):
        open_set("voc2012", root, train_list="train")
    (root / "train.txt").write_text("1\n")
    assert open_set("voc2012", root, train_list="train").describe(0).endswith("1.png")
