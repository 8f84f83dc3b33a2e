"""PASCAL VOC 2012, alone or with SBD's masks.

The augmented list is what SBD and VOC have masks for, less VOC's validation images: 10,582. Where VOC has a mask
of its own that one is taken, with its ignored borders; SBD's masks (``GTcls.Segmentation``) have none.
"""

from __future__ import annotations

from pathlib import Path

from jaxtyping import Integer
from numpy import ndarray

from locatvit.data.decoding import decode_mask
from locatvit.data.prepare.matlab import read_matlab
from locatvit.data.prepare.plan import Item, Plan, PrepareOptions, base_folder, pair, read_list, scan
from locatvit.data.segmentation_sets import NUM_TRAINAUG, SETS
from locatvit.data.spec import SPLITS, Split
from locatvit.errors import LocAtError

SBD_PAGE = "http://www.cs.berkeley.edu/~bharath2/codes/SBD/download.html"
_SBD_FOLDERS = ("benchmark_RELEASE/dataset", "VOCaug/dataset", "SBD/dataset", "sbd/dataset", "dataset", "SBD", "sbd")
_VOC_FOLDERS = (".", "VOC2012", "VOCdevkit/VOC2012")


def plan(options: PrepareOptions) -> Plan:
    """See ``Plan``; the train list in it is ``options.train_list``."""
    known = SETS["voc2012"]
    base = base_folder(options.root, known, _VOC_FOLDERS, "JPEGImages")
    missing: list[str] = []
    images = scan(base / "JPEGImages", (".jpg",), missing)
    masks = scan(base / "SegmentationClass", (".png",), missing)
    names = {split: read_list(base / "ImageSets" / "Segmentation" / f"{split}.txt", known) for split in SPLITS}
    items = [item for split in SPLITS for item in pair(split, images, masks, missing, names[split])]
    expected: dict[Split, int] = dict(known.num_images)
    if options.train_list == "trainaug":
        items += _augmented(options, images, names, missing)
        expected["train"] = NUM_TRAINAUG
    return Plan(
        known.name, known.classes, tuple(items), read_labels, known.train_ids, expected,
        missing=tuple(missing), known=known, lists={"train": tuple(names["train"])},
        record={"train_list": options.train_list},
    )  # fmt: skip


def read_labels(path: Path) -> Integer[ndarray, "H W"]:
    """The numbers of a mask of VOC's (a palette image) or of SBD's (a MATLAB file)."""
    if path.suffix == ".mat":
        return read_matlab(path, "GTcls", lambda value: value["Segmentation"][0, 0])
    return decode_mask(path)


def _augmented(
    options: PrepareOptions, images: dict[str, Path], names: dict[Split, list[str]], missing: list[str]
) -> list[Item]:
    """The training images that SBD adds to VOC's."""
    known = SETS["voc2012"]
    folder = _sbd_folder(options)
    listed = {name for each in ("train.txt", "val.txt") for name in read_list(folder / each, known)}
    added = sorted(listed - {*names["train"]} - {*names["val"]})
    return pair("train", images, scan(folder / "cls", (".mat",), missing), missing, added)


def _sbd_folder(options: PrepareOptions) -> Path:
    place = options.root if options.sbd is None else options.sbd
    for folder in (place, *(place / name for name in _SBD_FOLDERS)):
        if (folder / "cls").is_dir():
            return folder
    raise LocAtError(
        f"{place} does not hold SBD, which the list trainaug needs: expected benchmark_RELEASE/dataset/"
        f"{{cls,train.txt,val.txt}}. Download it from {SBD_PAGE} and give its folder by --sbd"
    )
