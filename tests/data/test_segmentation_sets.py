"""The facts about the benchmarks, checked against what is known of them elsewhere."""

from __future__ import annotations

from collections import Counter
from importlib import resources

import pytest

from locatvit.data import DATASETS
from locatvit.data.segmentation_sets import SETS
from locatvit.data.spec import DataSpec, voc_colours
from locatvit.errors import LocAtError

# blender, desk, door, eye glasses, hair brush, hat, mirror, plate, shoe, street sign and window have no masks in COCO
MISSING_COCO_IDS = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91}
# VOC's colours as its development kit's table prints them
VOC_TABLE = {
    0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 3: (128, 128, 0), 4: (0, 0, 128), 7: (128, 128, 128), 8: (64, 0, 0),
    15: (192, 128, 128), 16: (0, 64, 0), 20: (0, 64, 128), 255: (224, 224, 192),
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "classes", "train", "val"),
    [
        ("ade20k", 150, 20210, 2000),
        ("pascal_context", 59, 4998, 5105),
        ("coco_stuff", 171, 118287, 5000),
        ("coco_stuff_10k", 171, 9000, 1000),
        ("voc2012", 21, 1464, 1449),
        ("cityscapes", 19, 2975, 500),
        ("camvid", 11, 367, 101),
    ],
)
def test_counts(name: str, classes: int, train: int, val: int) -> None:
    known = SETS[name]
    assert (len(known.classes), len(known.palette)) == (classes, classes)
    assert known.num_images == {"train": train, "val": val}


@pytest.mark.parametrize("name", SETS)
def test_every_set_is_whole(name: str) -> None:
    known = SETS[name]
    assert name in DATASETS
    assert known.name == name
    assert known.page.startswith("http")
    assert known.citation
    assert known.layout
    assert len(set(known.classes)) == len(known.classes)
    assert all(name == name.strip() and name for name in known.classes)
    assert all(0 <= value <= 255 for colour in known.palette for value in colour)
    assert len(set(known.official_values)) == len(known.classes)
    assert not set(known.unlabelled) & set(known.official_values)
    assert sorted(set(known.train_ids.values())) == [*range(len(known.classes)), 255]


def test_colours_are_apart_but_for_two_of_ade20k() -> None:
    for name, known in SETS.items():
        twice = {colour for colour, count in Counter(known.palette).items() if count > 1}
        of_them = [known.classes[place] for place, colour in enumerate(known.palette) if colour in twice]
        assert of_them == (["road", "skyscraper"] if name == "ade20k" else [])


def test_vocs_colour_map() -> None:
    colours = voc_colours(256)
    assert len(set(colours)) == 256
    assert {index: colours[index] for index in VOC_TABLE} == VOC_TABLE
    assert SETS["voc2012"].palette == colours[:21]
    assert SETS["voc2012"].official_values == tuple(range(21))


def test_colours_of_a_spec() -> None:
    assert DataSpec("x", "segmentation", ("a", "b"), 255).colours == ((0, 0, 0), (128, 0, 0))
    assert DataSpec("x", "segmentation", ("a",), 255, palette=((1, 2, 3),)).colours == ((1, 2, 3),)
    with pytest.raises(LocAtError, match="has 2 classes and a palette of 1 colours; it needs a colour a class"):
        DataSpec("x", "segmentation", ("a", "b"), 255, palette=((1, 2, 3),))


def test_coco_stuffs_ids() -> None:
    maps, matlab = SETS["coco_stuff"], SETS["coco_stuff_10k"]
    assert maps.classes == matlab.classes
    assert set(range(1, 183)) - set(matlab.official_values) == MISSING_COCO_IDS
    assert matlab.official_values == tuple(sorted(matlab.official_values))
    # the pixel maps count from 0 and have 255 for no class, the MATLAB files from 1 with 0 for none
    assert maps.official_values == tuple(value - 1 for value in matlab.official_values)
    assert (maps.unlabelled, matlab.unlabelled) == ((255,), (0,))
    by_id = dict(zip(matlab.official_values, matlab.classes, strict=True))
    assert {1: "person", 13: "stop sign", 90: "toothbrush", 92: "banner", 182: "wood"}.items() <= by_id.items()
    things = [name for value, name in by_id.items() if value <= 91]
    assert len(things) == 80
    # the stuff classes are in the order of the alphabet
    assert list(matlab.classes[80:]) == sorted(matlab.classes[80:])


def test_ade20ks_ids() -> None:
    known = SETS["ade20k"]
    assert known.official_values == tuple(range(1, 151))
    assert (known.classes[0], known.classes[12], known.classes[149]) == ("wall", "person", "flag")


def test_pascal_contexts_ids() -> None:
    """The 459 categories are numbered in the order of the alphabet; so are the 59, in both regards."""
    known = SETS["pascal_context"]
    assert known.official_values == tuple(sorted(known.official_values))
    assert known.classes == tuple(sorted(known.classes))
    assert known.official_values[-1] <= 459
    # the 20 classes of VOC are among them, one by another name
    assert set(SETS["voc2012"].classes) - set(known.classes) == {"background", "diningtable"}


def test_cityscapes_ids() -> None:
    known = SETS["cityscapes"]
    assert {*known.official_values, *known.unlabelled} == set(range(34))
    by_id = dict(zip(known.official_values, known.classes, strict=True))
    assert {7: "road", 11: "building", 23: "sky", 26: "car", 33: "bicycle"}.items() <= by_id.items()
    assert known.official_values == tuple(sorted(known.official_values))


def test_the_label_files_are_part_of_the_package() -> None:
    folder = resources.files("locatvit.data") / "label_files"
    assert {f"{known.labels}.txt" for known in SETS.values()} == {file.name for file in folder.iterdir()}
