"""The segmentation benchmarks as data sets: their prepared folders, opened by name."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from locatvit.data.layout import CLASSES_FILE, read_classes, read_record
from locatvit.data.segmentation_folder import SegmentationFolder
from locatvit.data.segmentation_sets import NUM_TRAINAUG, SETS, SegmentationSet
from locatvit.data.spec import Split
from locatvit.errors import LocAtError

LISTS = ("train", "trainaug")

_log = logging.getLogger(__name__)


class NamedSet(SegmentationFolder):
    """A benchmark in the layout that ``locatvit data prepare`` writes.

    Args:
        split: ``"train"`` or ``"val"``.
        root: the prepared folder, or the official one in which it was prepared.
        transform: ``(PIL image, int64 mask [H, W])`` to what an item shall be.

    Raises:
        LocAtError: as ``SegmentationFolder``; an official folder that is not prepared, with the command that
            does it; classes that are not the benchmark's.
    """

    set_name: ClassVar[str]

    def __init__(self, split: Split, root: Path | None, transform: Callable[..., Any] | None = None) -> None:
        known = SETS[self.set_name]
        self.folder = prepared_folder(known, root)
        _check_classes(self.folder, known, read_classes(self.folder))
        super().__init__(
            split, self.folder, transform, name=known.name, image_size=known.image_size, palette=known.palette
        )
        record = read_record(self.folder)
        if record is not None and record.get("partial"):
            _log.warning(
                "%s is a part of %s, %d %s images: its numbers do not compare with published ones",
                self.folder, known.name, len(self), split,
            )  # fmt: skip


class ADE20K(NamedSet):
    """ADE20K's scene parsing benchmark: 150 classes, 255 = other objects."""

    set_name = "ade20k"


class PascalContext(NamedSet):
    """PASCAL Context: the 59 most frequent classes, 255 = everything else."""

    set_name = "pascal_context"


class CocoStuff(NamedSet):
    """COCO-Stuff 164k: 80 things and 91 stuffs, 255 = unlabelled."""

    set_name = "coco_stuff"


class CocoStuff10k(NamedSet):
    """COCO-Stuff 10k, version 1.1: the same classes, 9,000 training and 1,000 test images (split ``"val"``)."""

    set_name = "coco_stuff_10k"


class Cityscapes(NamedSet):
    """Cityscapes' fine annotations: 19 classes, 255 = void."""

    set_name = "cityscapes"


class VOC2012(NamedSet):
    """PASCAL VOC 2012: background and 20 classes, 255 = borders and difficult objects.

    Args:
        split, root, transform: see ``NamedSet``.
        train_list: which training images: ``"train"``, VOC's own 1,464, or ``"trainaug"``, 10,582 with those of
            SBD; None for all that were prepared.

    Raises:
        LocAtError: as ``NamedSet``, or a list that was not prepared.
    """

    set_name = "voc2012"

    def __init__(
        self,
        split: Split,
        root: Path | None,
        transform: Callable[..., Any] | None = None,
        *,
        train_list: str | None = None,
    ) -> None:
        if train_list is not None and train_list not in LISTS:
            raise LocAtError(f"train_list of voc2012 is {train_list!r}; it must be one of {', '.join(LISTS)}")
        super().__init__(split, root, transform)
        if split == "train" and train_list is not None:
            self._select(train_list)

    def _select(self, train_list: str) -> None:
        record = read_record(self.folder) or {}
        prepared = record.get("train_list")
        if prepared == train_list:
            return
        if prepared != "trainaug":
            raise LocAtError(
                f"{self.folder} was prepared with the list {prepared or 'train'!r}, not {train_list!r} "
                f"({NUM_TRAINAUG} images with SBD's); run: locatvit data prepare voc2012 --root OFFICIAL "
                f"--train_list {train_list}"
            )
        path = self.folder / "train.txt"
        if not path.is_file():
            raise LocAtError(f"no file {path}, the list of VOC's own training images; prepare the data set again")
        names = set(path.read_text(encoding="utf-8").split())
        self.pairs = [pair for pair in self.pairs if pair[0].stem in names]


def prepared_folder(known: SegmentationSet, root: Path | None) -> Path:
    """The folder with the prepared layout: ``root``, or ``locatvit_NAME`` in it.

    Raises:
        LocAtError: neither is one; says how to prepare it.
    """
    if root is None:
        raise LocAtError(
            f"data set {known.name!r} needs root: the folder that `locatvit data prepare {known.name}` wrote, or the "
            "official one in which it did"
        )
    within = root / f"locatvit_{known.name}"
    for folder in (root, within):
        if (folder / CLASSES_FILE).is_file():
            return folder
    if not root.is_dir():
        raise LocAtError(f"no folder {root}; {known.title} is downloaded from {known.page}, see: locatvit data --help")
    state = "is not prepared" if not within.is_dir() else "is prepared only in part, the preparation was stopped"
    raise LocAtError(
        f"{known.name} in {root} {state}: there is no {CLASSES_FILE}; run: "
        f"locatvit data prepare {known.name} --root {root}"
    )


def _check_classes(folder: Path, known: SegmentationSet, found: tuple[str, ...]) -> None:
    if found == known.classes:
        return
    title = "CamVid" if known.name == "camvid" else known.name
    places = [place for place, (one, other) in enumerate(zip(found, known.classes, strict=False)) if one != other]
    difference = f"; class {places[0]} is {found[places[0]]!r}, not {known.classes[places[0]]!r}" if places else ""
    raise LocAtError(
        f"{folder}/{CLASSES_FILE} has {len(found)} classes ({found[0]}, ...), "
        f"not {title}'s {len(known.classes)} ({known.classes[0]}, ...){difference}; open it as data set 'folder'"
    )
