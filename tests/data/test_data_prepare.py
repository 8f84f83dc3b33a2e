"""From official downloads to the prepared layout, every converter, on small files in the official formats."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

import official_layouts as official
from locatvit.data import open_dataset
from locatvit.data.layout import read_record
from locatvit.data.prepare import CONVERTERS, convert
from locatvit.data.prepare.plan import PrepareOptions
from locatvit.data.prepare.run import Prepared, prepare
from locatvit.data.segmentation_sets import SETS
from locatvit.errors import LocAtError


def run(name: str, root: Path, output: Path | None = None, *, partial: bool = True, **more: Any) -> Prepared:
    options = {key: more.pop(key) for key in ("train_list", "sbd") if key in more}
    return prepare(name, PrepareOptions(root, **options), output, partial=partial, **more)


def masks(folder: Path, split: str) -> dict[str, list[int]]:
    """Name to the first row of each prepared mask, its repeated values left out; all rows are equal."""
    found = {}
    for path in sorted((folder / "annotations" / split).iterdir()):
        with Image.open(path) as picture:
            assert picture.mode == "L"
            pixels = np.asarray(picture)
        assert (pixels == pixels[0]).all()
        found[path.stem] = [
            int(value) for place, value in enumerate(pixels[0]) if not place or value != pixels[0][place - 1]
        ]
    return found


def images(folder: Path, split: str) -> list[str]:
    return sorted(path.name for path in (folder / "images" / split).iterdir())


ADE = {"train": [[0, 1, 150], [2]], "val": [[0, 13]]}


def test_ade20k(tmp_path: Path) -> None:
    root = official.ade20k(tmp_path / "ade", ADE)
    found = run("ade20k", root)
    folder = root / "locatvit_ade20k"
    assert found.folder == folder
    assert found.counts == {"train": 2, "val": 1}
    assert masks(folder, "train") == {"ADE_train_00000001": [255, 0, 149], "ADE_train_00000002": [1]}
    assert masks(folder, "val") == {"ADE_val_00000001": [255, 12]}
    assert images(folder, "val") == ["ADE_val_00000001.jpg"]
    record = json.loads((folder / "dataset.json").read_text())
    assert record["images"] == {"train": 2, "val": 1}
    assert record["official_images"] == {"train": 20210, "val": 2000}
    assert (record["name"], record["partial"], record["layout"]) == ("ade20k", True, 1)
    assert record["classes"] == list(SETS["ade20k"].classes)
    assert record["colours"][0] == [120, 120, 120]
    assert record["source"] == str(root.resolve())
    train = open_dataset("ade20k", task="segmentation", split="train", root=root)
    assert train[0][1].unique().tolist() == [0, 149, 255]


def test_the_unpacked_folder_itself_will_do(tmp_path: Path) -> None:
    root = official.ade20k(tmp_path, ADE) / "ADEChallengeData2016"
    assert run("ade20k", root).folder == root / "locatvit_ade20k"


@pytest.mark.parametrize("plain", [False, True])
def test_pascal_context(plain: bool, tmp_path: Path) -> None:
    root = official.pascal_context(tmp_path, plain)
    folder = run("pascal_context", root).folder
    assert folder is not None
    place = SETS["pascal_context"].classes.index
    assert masks(folder, "train") == {
        "2008_000002": [place("aeroplane"), 255, place("wood")],
        "2008_000003": [place("person"), place("sky")],  # a later region covers an earlier one
    }
    # accordion, 1, is not one of the 59
    assert masks(folder, "val") == {"2009_000001": [place("bag"), 255]}


@pytest.mark.parametrize("maps", ["stuffthingmaps", "annotations"])
def test_coco_stuff(maps: str, tmp_path: Path) -> None:
    labels = {"train": [[0, 10, 12, 181, 255]], "val": [[91]]}
    root = official.coco_stuff(tmp_path, labels, maps)
    folder = run("coco_stuff", root).folder
    assert folder is not None
    place = SETS["coco_stuff"].classes.index
    assert masks(folder, "train") == {"000000000000": [0, place("fire hydrant"), place("stop sign"), 170, 255]}
    assert masks(folder, "val") == {"000000000000": [place("banner")]}


def test_coco_stuff_in_the_folders_of_its_page(tmp_path: Path) -> None:
    root = official.coco_stuff(tmp_path / "dataset", {"train": [[0]], "val": [[1]]}, "annotations")
    (root / "images").mkdir()
    for folder in ("train2017", "val2017"):
        (root / folder).rename(root / "images" / folder)
    (root / "annotations/instances_val2017.json").write_text("{}")
    assert run("coco_stuff", root).counts == {"train": 1, "val": 1}


def test_coco_stuff_10k(tmp_path: Path) -> None:
    root = official.coco_stuff_10k(tmp_path, {"train": [[0, 1, 13], [182]], "val": [[92]]})
    folder = run("coco_stuff_10k", root).folder
    assert folder is not None
    place = SETS["coco_stuff"].classes.index
    assert masks(folder, "train") == {
        "COCO_train2014_train0": [255, 0, place("stop sign")],
        "COCO_train2014_train1": [170],
    }
    assert masks(folder, "val") == {"COCO_train2014_val0": [place("banner")]}


VOC = {"train": ["2007_000032", "2007_000039"], "val": ["2007_000033"]}
SBD = {"train": ["2007_000039", "2008_000001"], "val": ["2007_000033", "2008_000002"]}


def test_voc2012_reads_palette_masks_as_indices(tmp_path: Path) -> None:
    folder = run("voc2012", official.voc2012(tmp_path, VOC)).folder
    assert folder is not None
    assert masks(folder, "train") == {"2007_000032": [0, 1, 255], "2007_000039": [0, 2, 255]}
    assert masks(folder, "val") == {"2007_000033": [0, 1, 255]}
    assert (read_record(folder) or {})["train_list"] == "train"


def test_voc2012_with_sbd(tmp_path: Path) -> None:
    """SBD's train and val, VOC's train, less VOC's val; VOC's own mask where there are two."""
    root = official.voc2012(tmp_path / "voc", VOC)
    sbd = official.sbd(tmp_path / "sbd", root, SBD)
    found = run("voc2012", root, train_list="trainaug", sbd=sbd)
    assert found.folder is not None
    assert found.expected == {"train": 10582, "val": 1449}
    assert masks(found.folder, "train") == {
        "2007_000032": [0, 1, 255], "2007_000039": [0, 2, 255], "2008_000001": [0, 20], "2008_000002": [0, 20],
    }  # fmt: skip
    assert masks(found.folder, "val") == {"2007_000033": [0, 1, 255]}

    def train(**options: str) -> int:
        return len(open_dataset("voc2012", task="segmentation", split="train", root=root, **options))

    assert (train(), train(train_list="trainaug"), train(train_list="train")) == (4, 4, 2)


def test_cityscapes(tmp_path: Path) -> None:
    root = official.cityscapes(tmp_path, {"train": [[0, 7, 8, 33]], "val": [[9, 26], [30, 31]]})
    folder = run("cityscapes", root).folder
    assert folder is not None
    assert masks(folder, "train") == {"aachen_000000_000000": [255, 0, 1, 18]}
    assert masks(folder, "val") == {"frankfurt_000000_000000": [255, 13], "frankfurt_000000_000001": [255, 16]}
    assert images(folder, "train") == ["aachen_000000_000000.png"]


def test_camvid_whole_without_partial(tmp_path: Path) -> None:
    """The one set small enough to be made with its official counts."""
    root = official.camvid(tmp_path, {"train": 367, "val": 101, "test": 1})
    found = run("camvid", root, partial=False)
    assert found.folder == root / "locatvit_camvid"
    assert found.counts == found.expected == {"train": 367, "val": 101}
    assert (found.converted, found.missing) == (468, ())
    assert masks(found.folder, "val")["0001TP_val000000"] == [0, 10, 255]
    assert (read_record(found.folder) or {})["partial"] is False
    assert run("camvid", root, partial=False).converted == 0
    (root / "CamVid/val/0001TP_val000007.png").unlink()
    with pytest.raises(
        LocAtError, match=r"367 of 367 train images, 100 of 101 val images; missing: the image of .*007"
    ):
        run("camvid", root, partial=False)


def test_a_folder_in_the_layout_is_checked_and_nothing_written(tmp_path: Path) -> None:
    root = official.prepared(tmp_path / "own", ["road", "sky"], {"train": [[0, 1], [255]], "val": [[1]]})
    before = sorted(tmp_path.rglob("*"))
    found = run("folder", root, partial=False)
    assert (found.folder, found.counts, found.converted) == (None, {"train": 2, "val": 1}, 3)
    assert sorted(tmp_path.rglob("*")) == before
    copied = run("folder", root, tmp_path / "copy", partial=False).folder
    assert copied is not None
    assert masks(copied, "train") == {"0": [0, 1], "1": [255]}
    official.save_labels(root / "annotations/train/1.png", official.columns([2]))
    with pytest.raises(
        LocAtError, match=r"annotations/train/1.png has the value 2, .* of folder have not: theirs are 0 to 1, 255"
    ):
        run("folder", root, partial=False)


def test_camvid_in_the_layout_is_checked(tmp_path: Path) -> None:
    root = official.prepared(tmp_path, SETS["camvid"].classes, {"train": [[0]], "val": [[10]]})
    with pytest.raises(
        LocAtError, match=r"camvid in .*: 1 of 367 train images, 1 of 101 val images\. Official download"
    ):
        run("camvid", root, partial=False)
    assert run("camvid", root).counts == {"train": 1, "val": 1}
    (root / "classes.txt").write_text("road\n")
    with pytest.raises(LocAtError, match=r"has 1 classes \(road, ...\), not CamVid's 11 .*; prepare it as 'folder'"):
        run("camvid", root)


def test_images_are_second_names_where_the_disk_allows_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = official.ade20k(tmp_path, ADE)
    source = root / "ADEChallengeData2016/images/validation/ADE_val_00000001.jpg"
    folder = run("ade20k", root).folder
    assert folder is not None
    assert (folder / "images/val/ADE_val_00000001.jpg").samefile(source)

    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    copy = run("ade20k", root, tmp_path / "elsewhere").folder
    assert copy is not None
    copied = copy / "images/val/ADE_val_00000001.jpg"
    assert copied.read_bytes() == source.read_bytes()
    assert not copied.samefile(source)


def test_it_can_be_stopped_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped after one image it cannot be opened; started again it does the rest alone."""
    root = official.ade20k(tmp_path, ADE)
    folder = root / "locatvit_ade20k"
    work = convert.convert
    done: list[str] = []

    def stop_after_one(conversion: convert.Conversion, item: Any) -> None:
        if done:
            raise KeyboardInterrupt
        work(conversion, item)
        done.append(item.name)

    monkeypatch.setattr(convert, "convert", stop_after_one)
    with pytest.raises(KeyboardInterrupt):
        run("ade20k", root)
    assert not (folder / "dataset.json").exists()
    with pytest.raises(LocAtError, match=r"is prepared only in part, .*; run: locatvit data prepare ade20k --root"):
        open_dataset("ade20k", task="segmentation", split="train", root=root)
    first = folder / "annotations/train/ADE_train_00000001.png"
    written = first.stat().st_mtime_ns
    (first.with_name(".ADE_train_00000002.png.123.tmp")).write_bytes(b"half")
    monkeypatch.setattr(convert, "convert", work)
    steps: list[tuple[int, int]] = []
    assert run("ade20k", root, on_progress=lambda *step: steps.append(step)).converted == 2
    assert steps == [(1, 2), (2, 2)]
    assert first.stat().st_mtime_ns == written
    assert not list(folder.rglob("*.tmp"))
    assert run("ade20k", root).converted == 0


def test_a_mask_without_its_image_is_done_again(tmp_path: Path) -> None:
    root = official.ade20k(tmp_path, ADE)
    folder = run("ade20k", root).folder
    assert folder is not None
    (folder / "images/val/ADE_val_00000001.jpg").unlink()
    assert run("ade20k", root).converted == 1
    assert images(folder, "val") == ["ADE_val_00000001.jpg"]


def test_worker_processes_do_the_same(tmp_path: Path) -> None:
    labels = {"train": [[0, number] for number in range(1, 40)], "val": [[5]]}
    root = official.ade20k(tmp_path, labels)
    here = run("ade20k", root, tmp_path / "here", num_workers=0).folder
    steps: list[tuple[int, int]] = []
    there = run("ade20k", root, tmp_path / "there", num_workers=2, on_progress=lambda *step: steps.append(step)).folder
    assert here is not None
    assert there is not None
    assert masks(here, "train") == masks(there, "train")
    assert steps[-1] == (40, 40)


def test_an_error_in_a_worker_process_is_the_same_line(tmp_path: Path) -> None:
    root = official.ade20k(tmp_path, {"train": [[151]], "val": [[0]]})
    with pytest.raises(LocAtError, match=r"ADE_train_00000001.png has the value 151"):
        run("ade20k", root, num_workers=1)


@pytest.mark.parametrize("number", [-1, 65])
def test_worker_processes_are_bounded(number: int, tmp_path: Path) -> None:
    with pytest.raises(LocAtError, match=rf"num_workers is {number}; it must be 0 to 64"):
        run("ade20k", official.ade20k(tmp_path, ADE), num_workers=number)


def test_fewer_images_than_official_need_partial(tmp_path: Path) -> None:
    root = official.ade20k(tmp_path, ADE)
    (root / "ADEChallengeData2016/annotations/training/ADE_train_00000002.png").unlink()
    message = (
        r"ade20k in \S+: 1 of 20210 train images, 1 of 2000 val images; missing: the mask of "
        r"\S+ADE_train_00000002.jpg, image and mask of ADE_train_00000003, image and mask of ADE_train_00000004 and "
        r"22205 more\. Official download: http://sceneparsing.csail.mit.edu/ \(ADEChallengeData2016/.*; give --partial"
    )
    with pytest.raises(LocAtError, match=message):
        run("ade20k", root, partial=False)
    assert not (root / "locatvit_ade20k").exists()
    assert run("ade20k", root).counts == {"train": 1, "val": 1}


def test_a_split_alone_needs_partial(tmp_path: Path) -> None:
    root = official.coco_stuff(tmp_path, {"train": [], "val": [[0]]})
    with pytest.raises(
        LocAtError, match=r"0 of 118287 train images, 1 of 5000 val images; missing: the folder \S+train2017"
    ):
        run("coco_stuff", root, partial=False)
    found = run("coco_stuff", root)
    assert found.counts == {"train": 0, "val": 1}
    assert len(open_dataset("coco_stuff", task="segmentation", split="val", root=root)) == 1


def test_partial_with_no_image_at_all(tmp_path: Path) -> None:
    root = official.ade20k(tmp_path, {"train": [], "val": []})
    with pytest.raises(LocAtError, match=r"0 of 20210 train images, 0 of 2000 val images.*validation}\)$"):
        run("ade20k", root)


@pytest.mark.parametrize("name", CONVERTERS)
def test_wrong_layouts_name_the_right_one(name: str, tmp_path: Path) -> None:
    message = r"no file \S+classes.txt; expected under" if name == "folder" else (
        rf"\S+ does not hold {SETS[name].title.split(' ')[0]}.*: it has no .*; expected .*\. Official download: http"
    )  # fmt: skip
    with pytest.raises(LocAtError, match=message):
        run(name, tmp_path)
    if name != "folder":
        with pytest.raises(LocAtError, match=r"no folder \S+nowhere; give the official download of .*, from http"):
            run(name, tmp_path / "nowhere")


def test_missing_lists(tmp_path: Path) -> None:
    root = official.voc2012(tmp_path / "voc", VOC)
    (root / "VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt").write_text("\n")
    with pytest.raises(
        LocAtError, match=r"Segmentation/val.txt is empty; it must have the name of an image in each line"
    ):
        run("voc2012", root)
    (root / "VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt").unlink()
    with pytest.raises(LocAtError, match=r"no file \S+Segmentation/val.txt, a list of PASCAL VOC 2012 .*voc2012/"):
        run("voc2012", root)
    coco = official.coco_stuff_10k(tmp_path / "coco", {"train": [[0]], "val": [[1]]})
    (coco / "imageLists/train.txt").unlink()
    with pytest.raises(LocAtError, match=r"no file \S+imageLists/train.txt, a list of COCO-Stuff 10k"):
        run("coco_stuff_10k", coco)
    (tmp_path / "context/VOC2010/JPEGImages").mkdir(parents=True)
    with pytest.raises(
        LocAtError, match=r"PASCAL Context .*: it has no trainval_merged.json; expected VOC2010/JPEGImages"
    ):
        run("pascal_context", tmp_path / "context")


def test_missing_sbd(tmp_path: Path) -> None:
    root = official.voc2012(tmp_path, VOC)
    with pytest.raises(
        LocAtError, match=r"does not hold SBD, which the list trainaug needs: .*download.html and give .*--sbd"
    ):
        run("voc2012", root, train_list="trainaug")


@pytest.mark.parametrize(
    ("name", "labels", "message"),
    [
        ("ade20k", [[151]], r"has the value 151, which official masks of ADE20K .* theirs are 0 to 150\. Was it conv"),
        ("ade20k", [[0, 255]], r"has the value 255, which official masks of ADE20K .* Take the files as they were"),
        # ids from 1, as in the MATLAB files: 12 is COCO's street sign, which the maps have as 11 and never show
        ("coco_stuff", [[11]], r"has the value 11, .* theirs are 0 to 10, 12 to 24, .* 91 to 181, 255"),
        ("coco_stuff", [[182]], r"has the value 182"),
        ("cityscapes", [[0, 255]], r"has the value 255, .* theirs are 0 to 33"),
    ],
)
def test_labels_that_were_shifted_before(name: str, labels: Any, message: str, tmp_path: Path) -> None:
    root = getattr(official, name)(tmp_path, {"train": labels, "val": [[0]]})
    with pytest.raises(LocAtError, match=message):
        run(name, root)
    assert not (root / f"locatvit_{name}" / "dataset.json").exists()


def test_coco_stuff_10ks_first_version(tmp_path: Path) -> None:
    """Its 172 numbers have no gaps, so that one of them is soon one of COCO's eleven."""
    root = official.coco_stuff_10k(tmp_path, {"train": [[1, 26]], "val": [[1]]})
    with pytest.raises(
        LocAtError, match=r"train0.mat has the value 26, which official masks of COCO-Stuff 10k \(version 1.1"
    ):
        run("coco_stuff_10k", root)


@pytest.mark.parametrize(
    ("dtype", "shape", "message"),
    [
        (np.uint8, (6, 10, 3), "has mode RGB; it must be 8-bit with one channel .*; turn its colours into the numbers"),
        (np.uint16, (6, 10), "has mode I;16; it must be 8-bit .*: the class; if no number is above 255, save it again"),
    ],
)
def test_masks_with_colours_or_16_bits(dtype: type, shape: tuple[int, ...], message: str, tmp_path: Path) -> None:
    root = official.ade20k(tmp_path, ADE)
    path = root / "ADEChallengeData2016/annotations/training/ADE_train_00000001.png"
    Image.fromarray(np.zeros(shape, dtype=dtype)).save(path)
    with pytest.raises(LocAtError, match=f"mask {path} {message}"):
        run("ade20k", root)


def test_broken_files(tmp_path: Path) -> None:
    root = official.ade20k(tmp_path / "ade", ADE)
    image_path = root / "ADEChallengeData2016/images/training/ADE_train_00000001.jpg"
    image_path.write_bytes(b"broken")
    with pytest.raises(LocAtError, match=f"image {image_path} cannot be read"):
        run("ade20k", root)
    shutil.rmtree(root)
    coco = official.coco_stuff_10k(tmp_path / "coco", {"train": [[0]], "val": [[1]]})
    path = coco / "annotations/COCO_train2014_train0.mat"
    path.write_bytes(b"broken")
    with pytest.raises(LocAtError, match=f"{path} cannot be read as a MATLAB file: .*; download it again"):
        run("coco_stuff_10k", coco)
    savemat(path, {"T": [[1]]})
    with pytest.raises(LocAtError, match=f"{path} has no label map in S; it is not the official file"):
        run("coco_stuff_10k", coco)
    savemat(path, {"S": [[0.5]]})
    with pytest.raises(LocAtError, match=rf"S of {path} has the shape \(1, 1\); it must be whole numbers, height x"):
        run("coco_stuff_10k", coco)


def test_a_json_file_of_another_kind(tmp_path: Path) -> None:
    root = official.pascal_context(tmp_path)
    path = root / "VOCdevkit/VOC2010/trainval_merged.json"
    content = json.loads(path.read_text())
    content["annos_segmentation"][0]["segmentation"] = {"size": [2, 2], "counts": "04"}
    path.write_text(json.dumps(content))
    with pytest.raises(LocAtError, match=rf"{path} has a region of category 2 that is no mask of 6x10"):
        run("pascal_context", root)
    for text in ("[]", "{", '{"images": []}'):
        path.write_text(text)
        with pytest.raises(LocAtError, match=rf"{path} is not the annotation file of PASCAL in Detail .*; download it"):
            run("pascal_context", root)


def test_image_and_mask_of_different_sizes(tmp_path: Path) -> None:
    root = official.ade20k(tmp_path, ADE)
    path = root / "ADEChallengeData2016/images/validation/ADE_val_00000001.jpg"
    official.image(0, (7, 9)).save(path)
    with pytest.raises(LocAtError, match=rf"image {path} is 7x9 \(height x width\) and its mask \S+.png 6x10"):
        run("ade20k", root)


def test_an_output_with_something_else_in_it(tmp_path: Path) -> None:
    ade = official.ade20k(tmp_path / "ade", ADE)
    run("ade20k", ade, tmp_path / "out")
    cities = official.cityscapes(tmp_path / "cities", {"train": [[7]], "val": [[8]]})
    with pytest.raises(LocAtError, match=r"out holds the data set 'ade20k'; choose another --output"):
        run("cityscapes", cities, tmp_path / "out")
    (tmp_path / "out/dataset.json").unlink()
    with pytest.raises(LocAtError, match=r"images/train/ADE_train_00000001.jpg is none of the 2 images of cityscapes"):
        run("cityscapes", cities, tmp_path / "out")
    with pytest.raises(LocAtError, match=r"the official folder itself; give another one, or leave it out"):
        run("cityscapes", cities, cities)


def test_options_of_voc_alone(tmp_path: Path) -> None:
    with pytest.raises(LocAtError, match=r"train_list is 'trainaug', a list of voc2012; ade20k has none, leave it out"):
        run("ade20k", tmp_path, train_list="trainaug")
    with pytest.raises(LocAtError, match=r"sbd is \S+, which serves voc2012 with train_list trainaug alone"):
        run("voc2012", tmp_path, sbd=tmp_path)
    with pytest.raises(LocAtError, match=r"unknown data set 'ade2k'; did you mean ade20k\?"):
        run("ade2k", tmp_path)
